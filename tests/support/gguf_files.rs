//! GGUF files, written field by field.
#![allow(dead_code)] // Each test uses a part.

/// Values of keys: the type's number and the bytes behind it.
pub mod value {
    fn of(id: u32, bytes: &[u8]) -> Vec<u8> {
        [&id.to_le_bytes(), bytes].concat()
    }
    pub fn u8(n: u8) -> Vec<u8> {
        of(0, &[n])
    }
    pub fn i8(n: i8) -> Vec<u8> {
        of(1, &n.to_le_bytes())
    }
    pub fn u16(n: u16) -> Vec<u8> {
        of(2, &n.to_le_bytes())
    }
    pub fn i16(n: i16) -> Vec<u8> {
        of(3, &n.to_le_bytes())
    }
    pub fn u32(n: u32) -> Vec<u8> {
        of(4, &n.to_le_bytes())
    }
    pub fn i32(n: i32) -> Vec<u8> {
        of(5, &n.to_le_bytes())
    }
    pub fn f32(x: f32) -> Vec<u8> {
        of(6, &x.to_le_bytes())
    }
    pub fn bool(byte: u8) -> Vec<u8> {
        of(7, &[byte])
    }
    pub fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
        of(8, &super::text(text))
    }
    pub fn u64(n: u64) -> Vec<u8> {
        of(10, &n.to_le_bytes())
    }
    pub fn i64(n: i64) -> Vec<u8> {
        of(11, &n.to_le_bytes())
    }
    pub fn f64(x: f64) -> Vec<u8> {
        of(12, &x.to_le_bytes())
    }
    /// An array of values of one type, which each begin with its number; at least one.
    pub fn array(values: &[Vec<u8>]) -> Vec<u8> {
        let bytes: Vec<u8> = values.iter().flat_map(|value| value[4..].to_vec()).collect();
        [&9u32.to_le_bytes(), &values[0][..4], &(values.len() as u64).to_le_bytes(), &bytes].concat()
    }
}

/// A text with its length in front.
pub fn text(text: impl AsRef<[u8]>) -> Vec<u8> {
    let bytes = text.as_ref();
    [&(bytes.len() as u64).to_le_bytes(), bytes].concat()
}

/// A tensor: name, dimensions as the file has them (the contiguous one first), type number, bytes.
pub type Tensor = (String, Vec<u64>, u32, Vec<u8>);

/// A file to be written.
#[derive(Clone)]
pub struct GgufFile {
    pub version: u32,
    pub keys: Vec<(String, Vec<u8>)>,
    pub tensors: Vec<Tensor>,
    pub alignment: usize,
}

impl GgufFile {
    pub fn new(keys: &[(&str, Vec<u8>)]) -> Self {
        let keys = keys.iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
        GgufFile { version: 3, keys, tensors: Vec::new(), alignment: 32 }
    }

    pub fn tensor(mut self, name: &str, dims: &[u64], type_id: u32, bytes: &[u8]) -> Self {
        self.tensors.push((name.to_owned(), dims.to_vec(), type_id, bytes.to_vec()));
        self
    }

    /// The bytes in front of the tensors' own.
    pub fn header(&self) -> Vec<u8> {
        let counts = [self.tensors.len() as u64, self.keys.len() as u64];
        let mut out = [b"GGUF", &self.version.to_le_bytes()[..]].concat();
        out.extend(counts.iter().flat_map(|n| n.to_le_bytes()));
        for (key, value) in &self.keys {
            out.extend([text(key), value.clone()].concat());
        }
        let mut offset = 0;
        for (name, dims, type_id, bytes) in &self.tensors {
            out.extend(text(name));
            out.extend((dims.len() as u32).to_le_bytes());
            out.extend(dims.iter().flat_map(|dim| dim.to_le_bytes()));
            out.extend(type_id.to_le_bytes());
            out.extend((offset as u64).to_le_bytes());
            offset += bytes.len().next_multiple_of(self.alignment);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out = self.header();
        for (_, _, _, bytes) in &self.tensors {
            out.extend(bytes);
            out.resize(out.len().next_multiple_of(self.alignment), 0);
        }
        out
    }
}
