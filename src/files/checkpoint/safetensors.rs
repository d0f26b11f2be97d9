//! The safetensors form: 8 bytes of header length, a JSON header, the tensors' bytes without gaps.

use std::collections::BTreeMap;
use std::path::Path;

use ::safetensors::Dtype;
use serde::Deserialize;
use serde::de::{DeserializeOwned, Error as _, MapAccess, SeqAccess, Visitor};

use crate::error::{Error, Result};
use crate::files::checkpoint::bytes::Bytes;
use crate::files::checkpoint::storage_dtype::StorageDType;
use crate::files::checkpoint::{Contents, Entry, TensorInfo, Unreadable, sort_by_name};

/// The longest header read, in bytes.
pub(crate) const MAX_HEADER: usize = 100_000_000;
/// Maximum number of dimensions of a tensor.
pub(crate) const MAX_DIMS: usize = 8;
/// Maximum number of tensors of a file, of text pairs in its header, and of tensors of an index; published ones have up to
/// 20 thousand, 10 and 140 thousand.
pub(crate) const MAX_TENSORS: usize = 100_000;
const MAX_METADATA: usize = 10_000;
pub(crate) const MAX_INDEXED: usize = 250_000;
/// The bytes of the header's length, which come before it.
const LENGTH_BYTES: usize = 8;

/// What a header says of one tensor.
#[derive(Debug, Deserialize)]
struct Declared {
    dtype: Format,
    shape: Shape,
    data_offsets: (usize, usize),
}

/// Dimensions, of which no more are kept than a tensor may have.
#[derive(Debug)]
struct Shape {
    dims: Vec<usize>,
    count: usize,
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(ShapeVisitor)
    }
}

struct ShapeVisitor;

impl<'de> Visitor<'de> for ShapeVisitor {
    type Value = Shape;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a list of dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Shape, A::Error> {
        let mut shape = Shape { dims: Vec::new(), count: 0 };
        while let Some(dim) = seq.next_element()? {
            shape.count += 1;
            if shape.count <= MAX_DIMS {
                shape.dims.push(dim);
            }
        }
        Ok(shape)
    }
}

/// A number format by name; later versions of the form have others.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Format {
    Known(Dtype),
    Other(String),
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Format::Known(dtype) => dtype.fmt(f),
            Format::Other(name) => f.write_str(name),
        }
    }
}

/// What a header says: tensors, what cannot be read, and the text pairs.
type Parsed = (Vec<Entry>, Unreadable, BTreeMap<String, String>);

/// Reads the header of the safetensors file `path`, whose content is `file`.
pub(crate) fn read(path: &Path, file: Bytes) -> Result<Contents> {
    let (entries, unreadable, metadata) = parse(path, file.bytes())?;
    Ok(Contents { entries, unreadable, backings: vec![file], metadata, ..Contents::default() })
}

fn parse(path: &Path, bytes: &[u8]) -> Result<Parsed> {
    let json = header(path, bytes)?;
    let data_start = LENGTH_BYTES + json.len();
    let header: Named<Declared, MAX_TENSORS> = serde_json::from_slice(json).map_err(|error| {
        // The header is one line, as a rule; then the column is the offset.
        let at = if error.line() == 1 { LENGTH_BYTES + error.column().saturating_sub(1) } else { LENGTH_BYTES };
        Error::format(format!("{}: header at byte {at}", path.display()), error)
    })?;
    let object = |name: &str| format!("{}: tensor {name:?}", path.display());
    let checked = |(name, declared): &(String, Declared)| {
        check(declared, bytes.len() - data_start).map_err(|problem| Error::format(object(name), problem))
    };
    let formats: Vec<Option<StorageDType>> = header.pairs.iter().map(checked).collect::<Result<_>>()?;
    check_layout(path, &header.pairs, bytes.len(), data_start)?;
    let (mut entries, mut unreadable) = (Vec::with_capacity(header.pairs.len()), Unreadable::new());
    for ((name, declared), stored) in header.pairs.into_iter().zip(formats) {
        let (start, end) = declared.data_offsets;
        let bytes = data_start + start..data_start + end;
        let Some(stored) = stored else {
            let why = format!("it is of {}; floats and integers of whole bytes can be read", declared.dtype);
            if unreadable.insert(name.clone(), why).is_some() {
                return Err(Error::format(object(&name), "is there twice; names must be unique"));
            }
            continue;
        };
        let info = TensorInfo { name, stored, shape: declared.shape.dims };
        entries.push(Entry { info, backing: 0, bytes, strides: None });
    }
    sort_by_name(path, &mut entries)?;
    Ok((entries, unreadable, header.metadata))
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
fn check(declared: &Declared, data_len: usize) -> std::result::Result<Option<StorageDType>, String> {
    let Declared { dtype, shape, data_offsets: (start, end) } = declared;
    if shape.count > MAX_DIMS {
        return Err(format!("has {} dimensions, at most {MAX_DIMS} are allowed", shape.count));
    }
    let shape = &shape.dims;
    let length = end.checked_sub(*start).ok_or_else(|| format!("its offsets [{start}, {end}] descend"))?;
    if *end > data_len {
        let problem = format!("ends at byte {end} after the header, the file has {data_len}");
        return Err(format!("{problem}; it is cut short, fetch it again"));
    }
    let Format::Known(dtype) = dtype else { return Ok(None) };
    let elements = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim));
    let bits = elements.and_then(|elements| elements.checked_mul(dtype.bitsize()));
    let bits = bits.ok_or_else(|| format!("its shape {shape:?} of {dtype} overflows"))?;
    if length.checked_mul(8) != Some(bits) {
        return Err(format!("shape {shape:?} of {dtype} needs {} bytes, its offsets hold {length}", bits.div_ceil(8)));
    }
    Ok(stored(*dtype))
}

/// The number format of a safetensors dtype, if tensors of it can be read.
fn stored(dtype: Dtype) -> Option<StorageDType> {
    Some(match dtype {
        Dtype::F64 => StorageDType::F64,
        Dtype::F32 => StorageDType::F32,
        Dtype::F16 => StorageDType::F16,
        Dtype::BF16 => StorageDType::BF16,
        Dtype::F8_E4M3 => StorageDType::F8E4M3,
        Dtype::F8_E5M2 => StorageDType::F8E5M2,
        Dtype::I64 => StorageDType::I64,
        Dtype::I32 => StorageDType::I32,
        Dtype::I16 => StorageDType::I16,
        Dtype::I8 => StorageDType::I8,
        Dtype::U64 => StorageDType::U64,
        Dtype::U32 => StorageDType::U32,
        Dtype::U16 => StorageDType::U16,
        Dtype::U8 => StorageDType::U8,
        Dtype::BOOL => StorageDType::Bool,
        _ => return None,
    })
}

/// Checks that the tensors lie behind one another, from the header to the end of the file: what overlaps or leaves a gap
/// is not what the writer wrote.
fn check_layout(path: &Path, pairs: &[(String, Declared)], have: usize, data_start: usize) -> Result<()> {
    let file = path.display();
    let mut places: Vec<(usize, usize, &str)> =
        pairs.iter().map(|(name, t)| (t.data_offsets.0, t.data_offsets.1, name.as_str())).collect();
    places.sort();
    let mut at = 0;
    for &(start, end, name) in &places {
        if start != at {
            let problem = "its offsets overlap another tensor's or leave a gap";
            return Err(Error::format(format!("{file}: tensor {name:?}"), problem));
        }
        at = end;
    }
    if at < have - data_start {
        let end =
            if places.is_empty() { "with the header".to_string() } else { format!("at byte {}", data_start + at) };
        return Err(Error::format(file, format!("its tensors end {end}, the file has {have} bytes")));
    }
    Ok(())
}

/// A JSON object as a list of at most `MAX` pairs, so that a repeated key is seen; `__metadata__` aside.
#[derive(Debug)]
pub(crate) struct Named<V, const MAX: usize> {
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) pairs: Vec<(String, V)>,
}

impl<V, const MAX: usize> Default for Named<V, MAX> {
    fn default() -> Self {
        Named { metadata: BTreeMap::new(), pairs: Vec::new() }
    }
}

impl<'de, V: DeserializeOwned, const MAX: usize> Deserialize<'de> for Named<V, MAX> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(NamedVisitor(std::marker::PhantomData))
    }
}

struct NamedVisitor<V, const MAX: usize>(std::marker::PhantomData<V>);

impl<'de, V: DeserializeOwned, const MAX: usize> Visitor<'de> for NamedVisitor<V, MAX> {
    type Value = Named<V, MAX>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self::Value, A::Error> {
        let mut named = Named::default();
        while let Some(key) = map.next_key::<String>()? {
            if key == "__metadata__" {
                let texts: Texts = map.next_value()?;
                named.metadata = texts.0;
            } else if named.pairs.len() < MAX {
                named.pairs.push((key, map.next_value()?));
            } else {
                return Err(A::Error::custom(format!("more than {MAX} tensors")));
            }
        }
        Ok(named)
    }
}

/// A JSON object of texts, of at most [`MAX_METADATA`]; of a repeated key the last.
struct Texts(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for Texts {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(TextsVisitor)
    }
}

struct TextsVisitor;

impl<'de> Visitor<'de> for TextsVisitor {
    type Value = Texts;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a JSON object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Texts, A::Error> {
        let mut texts = BTreeMap::new();
        while let Some((key, value)) = map.next_entry()? {
            texts.insert(key, value);
            if texts.len() > MAX_METADATA {
                return Err(A::Error::custom(format!("more than {MAX_METADATA} texts in __metadata__")));
            }
        }
        Ok(Texts(texts))
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
        let (entries, _, metadata) = parse(Path::new("m"), &file(json, 10)).unwrap();
        let data = 8 + json.len();
        assert_eq!(metadata["format"], "pt");
        assert_eq!((entries[0].info.name.as_str(), entries[0].info.stored), ("a", StorageDType::BF16));
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
    fn a_tensor_that_cannot_be_read_stops_no_other() {
        for (dtype, bytes) in [("F4", 4), ("C64", 64), ("F8_E8M0", 8), ("F6_E2M3", 6), ("X7", 5)] {
            let json = format!(
                r#"{{"w":{{"dtype":"{dtype}","shape":[8],"data_offsets":[4,{}]}},
                "v":{{"dtype":"U8","shape":[4],"data_offsets":[0,4]}}}}"#,
                4 + bytes
            );
            let (entries, unreadable, _) = parse(Path::new("m"), &file(&json, 4 + bytes)).unwrap();
            assert_eq!((entries.len(), unreadable.len()), (1, 1));
            assert!(unreadable["w"].contains(dtype), "{unreadable:?}");
            let beyond = refusal(&json, 3 + bytes);
            assert!(beyond.contains("\"w\"") && beyond.contains("cut short"), "{beyond}");
        }
    }

    #[test]
    fn repeated_names_are_refused() {
        for dtype in ["U8", "C64"] {
            let one = format!(r#""w":{{"dtype":"{dtype}","shape":[0],"data_offsets":[0,0]}}"#);
            assert!(refusal(&format!("{{{one},{one}}}"), 0).contains("twice"));
        }
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
