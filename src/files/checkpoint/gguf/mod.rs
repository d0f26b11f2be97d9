//! GGUF files: keys and values, the tensors' names, and their bytes in blocks. Source: the format's description in the
//! ggml project, versions 2 and 3.
//!
//! A file is little-endian: `GGUF`, the version, the number of tensors, the number of keys; the keys with their values;
//! the tensors' names, dimensions, type numbers and offsets; fill up to the alignment; the tensors' bytes.
//!
//! In reading order: `reader` (numbers and texts, none beyond the end of the file); `value` (one value); `metadata` (all
//! keys); this file (the header as a whole); `layout` (where the tensors lie, in which form); `names` (by which models
//! know them); `shards` (one file or several); `config` (a model's configuration from its keys).

pub(crate) mod config;
mod layout;
pub(crate) mod metadata;
mod names;
mod reader;
pub(crate) mod shards;
pub(crate) mod value;

use std::collections::HashSet;
use std::path::Path;

use crate::alloc::room;
use crate::error::Result;
use crate::files::checkpoint::gguf::metadata::GgufMetadata;
use crate::files::checkpoint::gguf::reader::Reader;
use crate::files::checkpoint::gguf::value::GgufValue;

/// The first bytes of a file.
pub(crate) const MAGIC: &[u8; 4] = b"GGUF";
/// The versions that are read; 1 had shorter lengths.
const VERSIONS: [u32; 2] = [2, 3];
/// Maximum number of tensors.
const MAX_TENSORS: usize = 1 << 17;
/// Maximum number of bytes of a tensor's name.
const MAX_NAME: usize = 63;
/// Maximum number of dimensions.
const MAX_DIMS: usize = 4;
/// The fewest bytes that describe a tensor: a name of one byte, no dimensions.
const MIN_TENSOR_BYTES: usize = 8 + 1 + 4 + 4 + 8;
/// The key of the alignment, and what it is without the key.
const ALIGNMENT_KEY: &str = "general.alignment";
const ALIGNMENT: usize = 32;
/// The largest that is read, in bytes: a large page.
const MAX_ALIGNMENT: usize = 2 << 20;

/// How the names of files with a picture encoder begin, which lie beside the language model that they belong to.
const ENCODER: &str = "mmproj";

/// Whether a file of this name is a language model's GGUF file: the only one, or the first of several shards.
pub(crate) fn is_model(name: &str) -> bool {
    let Some(stem) = name.strip_suffix(".gguf") else { return false };
    let later_shard = shard_numbers(stem).is_some_and(|(_, number, _)| number != 1);
    !stem.starts_with(ENCODER) && !later_shard
}

/// Of the name of a shard, without its ending, what is in front of its number, the number, and how many there are:
/// `x-00002-of-00003`.
pub(crate) fn shard_numbers(stem: &str) -> Option<(&str, usize, usize)> {
    let number = |digits: &str| digits.parse().ok().filter(|_| digits.len() == 5 && !digits.starts_with('+'));
    let (rest, n) = stem.rsplit_once("-of-")?;
    let (name, i) = rest.rsplit_once('-')?;
    Some((name, number(i)?, number(n)?))
}

/// The header of a file.
#[derive(Debug)]
pub(crate) struct GgufHeader {
    /// All keys with their values.
    pub(crate) metadata: GgufMetadata,
    /// The tensors, in the order of the file.
    pub(crate) tensors: Vec<GgufTensor>,
    /// The tensors' bytes begin at multiples of this, a power of two.
    pub(crate) alignment: usize,
    /// Where the first tensor's bytes begin in the file, at most at its end.
    pub(crate) data: usize,
}

/// What a header says of one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GgufTensor {
    /// Its name in the file.
    pub(crate) name: String,
    /// The dimensions, outermost first; their product fits in an `i64` and a `usize`.
    pub(crate) shape: Vec<usize>,
    /// How its elements lie in blocks.
    pub(crate) type_id: u32,
    /// Where its bytes begin, counted from [`GgufHeader::data`]; a multiple of the alignment, within the file.
    pub(crate) offset: usize,
}

/// Reads the header of the file `path`, whose content is `bytes`.
///
/// # Errors
/// [`crate::Error::Format`] with the byte, key or tensor for what is cut short, not a GGUF file of these versions, or
/// broken; [`crate::Error::OutOfMemory`] if the system has no memory for the header.
pub(crate) fn read_header(path: &Path, bytes: &[u8]) -> Result<GgufHeader> {
    let file = path.display().to_string();
    let mut reader = Reader::new(&file, bytes);
    if reader.array("the first bytes")? != *MAGIC {
        return Err(reader.broken("is not a GGUF file"));
    }
    check_version(&mut reader)?;
    let n_tensors = reader.count("the number of tensors", MAX_TENSORS, MIN_TENSOR_BYTES)?;
    let metadata = GgufMetadata::parse(&mut reader)?;
    let alignment = alignment(&reader, &metadata)?;
    let mut tensors = room("descriptions of tensors", n_tensors)?;
    for _ in 0..n_tensors {
        tensors.push(tensor(&mut reader, alignment)?);
    }
    let mut names = HashSet::new();
    if let Some(twice) = tensors.iter().find(|tensor: &&GgufTensor| !names.insert(tensor.name.as_str())) {
        return Err(reader.wrong(format!("tensor {:?}", twice.name), "is there twice; names must be unique"));
    }
    let data = reader.aligned(alignment, n_tensors > 0)?;
    for tensor in &tensors {
        reader.starts_within(&tensor.name, data, tensor.offset)?;
    }
    Ok(GgufHeader { metadata, tensors, alignment, data })
}

fn check_version(reader: &mut Reader) -> Result<()> {
    let version = reader.u32("the version")?;
    if VERSIONS.contains(&version) {
        return Ok(());
    }
    if VERSIONS.contains(&version.swap_bytes()) {
        return Err(reader.broken("is a big-endian GGUF file; convert it to a little-endian one"));
    }
    let [a, b] = VERSIONS;
    Err(reader.broken(format!("is a GGUF file of version {version}, expected {a} or {b}; convert the model again")))
}

fn alignment(reader: &Reader, metadata: &GgufMetadata) -> Result<usize> {
    let Some(found) = metadata.get(ALIGNMENT_KEY) else { return Ok(ALIGNMENT) };
    let alignment = match found {
        GgufValue::Unsigned(n) => usize::try_from(n).ok().filter(|n| n.is_power_of_two() && *n <= MAX_ALIGNMENT),
        _ => None,
    };
    let problem = || format!("is {found}, expected a power of two up to {MAX_ALIGNMENT}");
    alignment.ok_or_else(|| reader.wrong(format!("{ALIGNMENT_KEY:?}"), problem()))
}

/// The next description of a tensor.
fn tensor(reader: &mut Reader, alignment: usize) -> Result<GgufTensor> {
    let name = reader.name("a tensor's name", MAX_NAME)?.to_owned();
    let object = format!("tensor {name:?}");
    let n_dims = reader.u32("the number of dimensions")?;
    let n_dims = usize::try_from(n_dims)
        .ok()
        .filter(|&n| n <= MAX_DIMS)
        .ok_or_else(|| reader.wrong(&object, format!("has {n_dims} dimensions, at most {MAX_DIMS} are allowed")))?;
    let mut shape = Vec::with_capacity(n_dims);
    for _ in 0..n_dims {
        shape.push(reader.u64("a dimension")?);
    }
    // The file has the contiguous dimension first.
    shape.reverse();
    let elements = shape.iter().try_fold(1u64, |n, &dim| n.checked_mul(dim));
    let fits = elements.is_some_and(|n| i64::try_from(n).is_ok() && usize::try_from(n).is_ok() && n > 0);
    if !fits {
        return Err(reader.wrong(&object, format!("has the shape {shape:?}, which no tensor has")));
    }
    let type_id = reader.u32("a type number")?;
    let offset = reader.u64("an offset")?;
    let offset = usize::try_from(offset).ok().filter(|offset| offset.is_multiple_of(alignment)).ok_or_else(|| {
        reader.wrong(&object, format!("begins at byte {offset} of the data, which is no multiple of {alignment}"))
    })?;
    // `fits` holds, so every dimension is at most their product.
    let shape = shape.into_iter().map(|dim| dim as usize).collect();
    Ok(GgufTensor { name, shape, type_id, offset })
}
