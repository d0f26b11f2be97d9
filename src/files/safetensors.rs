//! The safetensors form: 8 bytes of header length, a JSON header, the tensors' bytes without gaps.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::SafeTensors;
use ::safetensors::tensor::{Dtype, SafeTensorError, TensorInfo as Declared};
use serde::Deserialize;
use serde::de::{DeserializeOwned, MapAccess, Visitor};

use super::checkpoint::{Contents, Entry, TensorInfo, sort_by_name};
use super::mapped::Backing;
use super::stored::Stored;
use crate::error::{Error, Result};

/// The longest header read, in bytes.
pub(super) const MAX_HEADER: usize = 100_000_000;
/// The most dimensions of a tensor.
pub(super) const MAX_DIMS: usize = 8;
/// The bytes of the header's length, which come before it.
const LENGTH_BYTES: usize = 8;

/// Reads the header of the safetensors file `path`, whose content is `file`.
pub(super) fn read(path: &Path, file: Backing) -> Result<Contents> {
    let (entries, metadata) = parse(path, file.bytes())?;
    Ok(Contents { entries, backings: vec![file], metadata })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<(Vec<Entry>, BTreeMap<String, String>)> {
    let json = header(path, bytes)?;
    let data_start = LENGTH_BYTES + json.len();
    let header: Named<Declared> = serde_json::from_slice(json).map_err(|error| {
        // The header is one line, as a rule; then the column is the offset.
        let at = if error.line() == 1 { LENGTH_BYTES + error.column().saturating_sub(1) } else { LENGTH_BYTES };
        Error::format(format!("{}: header at byte {at}", path.display()), error)
    })?;
    let mut entries = Vec::with_capacity(header.pairs.len());
    for (name, declared) in header.pairs {
        let stored = check(&declared, bytes.len() - data_start)
            .map_err(|problem| Error::format(format!("{}: tensor {name:?}", path.display()), problem))?;
        let (start, end) = declared.data_offsets;
        let bytes = data_start + start..data_start + end;
        let stored = stored.ok_or_else(|| Error::Unsupported {
            object: format!("{}: tensor {name:?} of {}", path.display(), declared.dtype),
            problem: "floats and integers of whole bytes can be read".to_string(),
        })?;
        let info = TensorInfo { name, stored, shape: declared.shape };
        entries.push(Entry { info, backing: 0, bytes, strides: None });
    }
    sort_by_name(path, &mut entries)?;
    SafeTensors::read_metadata(bytes).map_err(|error| layout_error(path, bytes.len(), &entries, error))?;
    Ok((entries, header.metadata))
}

/// The JSON header's bytes.
fn header<'a>(path: &Path, bytes: &'a [u8]) -> Result<&'a [u8]> {
    let file = path.display();
    let Some((length, rest)) = bytes.split_first_chunk::<LENGTH_BYTES>() else {
        let problem = format!("is not a model file: it has {} bytes, a header alone has 8", bytes.len());
        return Err(Error::format(file, problem));
    };
    let wanted = u64::from_le_bytes(*length);
    let cut_before_json = rest.is_empty() && wanted <= MAX_HEADER as u64;
    if !rest.starts_with(b"{") && !cut_before_json {
        let problem = format!("is not a model file: neither a zip archive nor a safetensors header of {wanted} bytes");
        return Err(Error::format(file, problem));
    }
    let length = usize::try_from(wanted).ok().filter(|&length| length <= MAX_HEADER).ok_or_else(|| {
        Error::format(&file, format!("byte 0: the header's length is {wanted}, at most {MAX_HEADER} are allowed"))
    })?;
    rest.get(..length).ok_or_else(|| {
        let (need, have) = (length + LENGTH_BYTES, bytes.len());
        Error::format(file, format!("is cut short: its header needs {need} bytes, the file has {have}; fetch it again"))
    })
}

/// Checks one tensor's shape and offsets against each other and against the `data_len` bytes after the header.
/// `Ok(None)` for a number format that cannot be read.
fn check(declared: &Declared, data_len: usize) -> std::result::Result<Option<Stored>, String> {
    let Declared { dtype, shape, data_offsets: (start, end) } = declared;
    if shape.len() > MAX_DIMS {
        return Err(format!("has {} dimensions, at most {MAX_DIMS} are allowed", shape.len()));
    }
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize()));
    let bits = bits.ok_or_else(|| format!("its shape {shape:?} of {dtype} overflows"))?;
    let length = end.checked_sub(*start).ok_or_else(|| format!("its offsets [{start}, {end}] descend"))?;
    if length.checked_mul(8) != Some(bits) {
        return Err(format!("shape {shape:?} of {dtype} needs {} bytes, its offsets hold {length}", bits.div_ceil(8)));
    }
    if *end > data_len {
        let problem = format!("ends at byte {end} after the header, the file has {data_len}");
        return Err(format!("{problem}; it is cut short, fetch it again"));
    }
    Ok(stored(*dtype))
}

/// The number format of a safetensors dtype, if tensors of it can be read.
fn stored(dtype: Dtype) -> Option<Stored> {
    Some(match dtype {
        Dtype::F64 => Stored::F64,
        Dtype::F32 => Stored::F32,
        Dtype::F16 => Stored::F16,
        Dtype::BF16 => Stored::BF16,
        Dtype::F8_E4M3 => Stored::F8E4M3,
        Dtype::F8_E5M2 => Stored::F8E5M2,
        Dtype::I64 => Stored::I64,
        Dtype::I32 => Stored::I32,
        Dtype::I16 => Stored::I16,
        Dtype::I8 => Stored::I8,
        Dtype::U64 => Stored::U64,
        Dtype::U32 => Stored::U32,
        Dtype::U16 => Stored::U16,
        Dtype::U8 => Stored::U8,
        Dtype::BOOL => Stored::Bool,
        _ => return None,
    })
}

/// What the format's own check found wrong with how the tensors lie together.
fn layout_error(path: &Path, have: usize, entries: &[Entry], error: SafeTensorError) -> Error {
    let file = path.display();
    match error {
        SafeTensorError::InvalidOffset(name) => {
            let problem = "its offsets overlap another tensor's or leave a gap";
            Error::format(format!("{file}: tensor {name:?}"), problem)
        }
        SafeTensorError::MetadataIncompleteBuffer => {
            let end = entries.iter().map(|entry| entry.bytes.end).max();
            let end = end.map_or("with the header".to_string(), |end| format!("at byte {end}"));
            Error::format(file, format!("its tensors end {end}, the file has {have} bytes"))
        }
        other => Error::format(file, other),
    }
}

/// A JSON object as a list, so that a repeated key is seen; `__metadata__` aside.
#[derive(Debug)]
pub(super) struct Named<V> {
    pub(super) metadata: BTreeMap<String, String>,
    pub(super) pairs: Vec<(String, V)>,
}

impl<'de, V: DeserializeOwned> Deserialize<'de> for Named<V> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(NamedVisitor(std::marker::PhantomData))
    }
}

struct NamedVisitor<V>(std::marker::PhantomData<V>);

impl<'de, V: DeserializeOwned> Visitor<'de> for NamedVisitor<V> {
    type Value = Named<V>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut named = Named { metadata: BTreeMap::new(), pairs: Vec::new() };
        while let Some(key) = map.next_key::<String>()? {
            if key == "__metadata__" {
                named.metadata = map.next_value()?;
            } else {
                named.pairs.push((key, map.next_value()?));
            }
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(json: &str, data: usize) -> Vec<u8> {
        let mut bytes = (json.len() as u64).to_le_bytes().to_vec();
        bytes.extend_from_slice(json.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        bytes
    }

    fn refusal(json: &str, data: usize) -> String {
        parse(Path::new("m"), &file(json, data)).unwrap_err().to_string()
    }

    #[test]
    fn a_header_gives_names_shapes_places_and_metadata() {
        let json = r#"{"b":{"dtype":"F32","shape":[2],"data_offsets":[2,10]},"__metadata__":{"format":"pt"},
            "a":{"dtype":"BF16","shape":[],"data_offsets":[0,2]}}"#;
        let (entries, metadata) = parse(Path::new("m"), &file(json, 10)).unwrap();
        let data = 8 + json.len();
        assert_eq!(metadata["format"], "pt");
        assert_eq!((entries[0].info.name.as_str(), entries[0].info.stored), ("a", Stored::BF16));
        assert_eq!((entries[1].info.shape.as_slice(), entries[1].bytes.clone()), (&[2][..], data + 2..data + 10));
    }

    #[test]
    fn bad_offsets_name_the_tensor() {
        let descending = refusal(r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[4,0]}}"#, 4);
        assert!(descending.contains("\"w\"") && descending.contains("descend"), "{descending}");
        let gap = refusal(r#"{"w":{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}"#, 6);
        assert!(gap.contains("\"w\"") && gap.contains("gap"), "{gap}");
        let one = r#""v":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        let overlap = refusal(&format!(r#"{{{one},"w":{{"dtype":"U8","shape":[4],"data_offsets":[2,6]}}}}"#), 6);
        assert!(overlap.contains("\"w\"") && overlap.contains("overlap"), "{overlap}");
        let outside = refusal(&format!("{{{one}}}"), 3);
        assert!(outside.contains("\"v\"") && outside.contains("byte 4") && outside.contains("has 3"), "{outside}");
        let trailing = refusal(&format!("{{{one}}}"), 5);
        assert!(trailing.contains("end at byte"), "{trailing}");
    }

    #[test]
    fn bad_shapes_name_the_tensor() {
        let overflow = refusal(r#"{"w":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0]}}"#, 0);
        assert!(overflow.contains("\"w\"") && overflow.contains("overflows"), "{overflow}");
        let wrapped = refusal(r#"{"w":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,8]}}"#, 8);
        assert!(wrapped.contains("\"w\"") && wrapped.contains("overflows"), "{wrapped}");
        let deep = refusal(r#"{"w":{"dtype":"U8","shape":[1,1,1,1,1,1,1,1,1],"data_offsets":[0,1]}}"#, 1);
        assert!(deep.contains("\"w\"") && deep.contains("9 dimensions"), "{deep}");
        let negative = refusal(r#"{"w":{"dtype":"U8","shape":[-1],"data_offsets":[0,1]}}"#, 1);
        assert!(negative.contains("at byte") && negative.contains("-1"), "{negative}");
        let size = refusal(r#"{"w":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}}"#, 4);
        assert!(size.contains("needs 8 bytes") && size.contains("hold 4"), "{size}");
    }

    #[test]
    fn repeated_names_and_unreadable_formats_are_refused() {
        let one = r#""w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]}"#;
        assert!(refusal(&format!("{{{one},{one}}}"), 4).contains("twice"));
        let packed = refusal(r#"{"w":{"dtype":"F4","shape":[2],"data_offsets":[0,1]}}"#, 1);
        assert!(packed.contains("\"w\" of F4 is not supported"), "{packed}");
    }

    #[test]
    fn a_header_length_beyond_the_limit_is_refused_unread() {
        let mut bytes = u64::MAX.to_le_bytes().to_vec();
        bytes.extend_from_slice(b"{}");
        let error = parse(Path::new("m"), &bytes).unwrap_err().to_string();
        assert!(error.contains("18446744073709551615") && error.contains("100000000"), "{error}");
        bytes[..8].copy_from_slice(&50_000_000u64.to_le_bytes());
        let error = parse(Path::new("m"), &bytes).unwrap_err().to_string();
        assert!(error.contains("needs 50000008 bytes") && error.contains("has 10"), "{error}");
    }
}
