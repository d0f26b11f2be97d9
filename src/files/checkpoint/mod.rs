//! A checkpoint of any format as a set of named tensors.
//!
//! In reading order: this file ([`Checkpoint`]); `bytes` (mapped files, and which format a file has); `storage_dtype`
//! (element types in files); `safetensors`; `gguf`; `torch` (zip archives: `archive`, which hold a pickle: `pickle`,
//! `pickle_objects`, `pickle_calls`); `budget` (what reading may take); `sharded` (an index and its shards); `names`
//! (prefixes that trainers add); `write` (new safetensors files).

pub(crate) mod archive;
pub(crate) mod budget;
pub(crate) mod bytes;
pub(crate) mod gguf;
pub(crate) mod names;
pub(crate) mod pickle;
pub(crate) mod pickle_calls;
pub(crate) mod pickle_objects;
pub(crate) mod safetensors;
pub(crate) mod sharded;
pub(crate) mod storage_dtype;
pub(crate) mod torch;
pub(crate) mod write;

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::alloc::room;
use crate::error::{Error, Result};
use crate::files::checkpoint::bytes::{Bytes, FileFormat, Sum, map_file, recognise};
use crate::files::checkpoint::gguf::metadata::GgufMetadata;
use crate::files::{ModelFiles, StorageDType, read_regular, source, text};
use crate::quant::formats::Format;

/// The names looked for in a directory, first match wins: a single file before an index of several, as on the hub.
const FILE_NAMES: [&str; 6] = [
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "model.pt",
    "final_model.pt",
];
/// Ends of the names of files that may hold weights in one form or another, for messages.
const WEIGHT_FILES: [&str; 10] = ["safetensors", "bin", "pt", "pth", "ckpt", "gguf", "onnx", "h5", "msgpack", "npz"];
/// Bytes of a file by which a pointer to another one is told.
const MAX_POINTER: u64 = 200;
/// Maximum number of them that a message lists.
const MAX_LISTED: usize = 5;

/// The entry of [`Checkpoint::metadata`] with what a trainer's torch file holds under this name beside the tensors, its
/// configuration: a JSON object of the numbers, texts and truth values in it.
pub const CONFIG_ENTRY: &str = "config";

/// What a file says of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The tensor's name, without what wrappers for training put around it.
    pub name: String,
    /// The number format in the file.
    pub stored: StorageDType,
    /// The dimensions, outermost first; at most 8, empty for a scalar.
    pub shape: Vec<usize>,
}

impl TensorInfo {
    /// The number of elements; it does not overflow for the tensors of an open checkpoint.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// The number of bytes in the file; it does not overflow for the tensors of an open checkpoint.
    pub fn bytes(&self) -> usize {
        self.stored.bytes(self.elements()).unwrap_or(usize::MAX)
    }
}

/// Whole blocks of a tensor, as a file has them.
#[derive(Clone, Debug)]
pub struct Blocks<'a> {
    /// How they come apart.
    pub format: Format,
    /// The blocks.
    pub bytes: Cow<'a, [u8]>,
    /// The bytes behind the tensor's last block, which may hold its scale.
    pub tail: Cow<'a, [u8]>,
}

/// A tensor and where its elements lie. Readers make only entries whose bytes lie within their backing.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) info: TensorInfo,
    /// Index into [`Contents::backings`].
    pub(crate) backing: usize,
    /// From the first byte of the first element to the last byte of the last one, in the backing.
    pub(crate) bytes: Range<usize>,
    /// Steps between neighbours of each dimension, in elements; `None` where the elements are contiguous.
    pub(crate) strides: Option<Vec<usize>>,
}

/// Names of what a file holds and cannot be read, each with the reason.
pub(crate) type Unreadable = BTreeMap<String, String>;

/// What a reader of one file form finds; `entries` are sorted by name and the names are unique.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    pub(crate) entries: Vec<Entry>,
    pub(crate) unreadable: Unreadable,
    pub(crate) backings: Vec<Bytes>,
    /// Of parts of the backings, sorted by their places.
    pub(crate) sums: Vec<Sum>,
    pub(crate) metadata: BTreeMap<String, String>,
    /// The keys of a GGUF file.
    pub(crate) gguf: Option<GgufMetadata>,
}

impl Contents {
    /// The sum of the part in which a tensor lies, if the file holds one.
    fn sum_of(&self, entry: &Entry) -> Option<&Sum> {
        let behind = self.sums.partition_point(|sum| sum.place() <= (entry.backing, entry.bytes.start));
        self.sums.get(behind.checked_sub(1)?).filter(|sum| sum.covers(&entry.bytes))
    }
}

/// The named tensors of a model file, mapped into memory or held there: opening reads headers only, tensors are read on demand.
///
/// The file must not be changed while it is open: truncating a mapped file makes the next read of it end the process
/// (SIGBUS on Unix), and rewriting it changes the tensors. Replacing it by renaming another file over it is safe.
#[derive(Debug)]
pub struct Checkpoint {
    path: PathBuf,
    contents: Contents,
}

impl Checkpoint {
    /// Opens a checkpoint: a safetensors file, a torch zip file, an `.index.json` with its shards of either form, a GGUF
    /// file (of several, the first), or a directory with one of them under its usual name; in memory, a single file.
    ///
    /// What a file holds and this reader does not know is refused when it is read, not before
    /// ([`Checkpoint::unreadable`]).
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be opened, [`Error::Format`] for what is not a checkpoint or a broken one (with the
    /// offset, tensor or key), [`Error::MissingTensors`] for shards that lack tensors, [`Error::Unsupported`] for
    /// forms to save anew, [`Error::Limit`] for compressed archives that inflate to too much.
    pub fn open(files: impl Into<ModelFiles>) -> Result<Self> {
        let files = files.into();
        let path = match &files {
            ModelFiles::Disk(path) => find_file(path)?,
            ModelFiles::Memory { .. } | ModelFiles::Owned { .. } => files.path(ModelFiles::CHECKPOINT),
            ModelFiles::Source(from) => {
                return Ok(Self { path: from.name().into(), contents: source::contents(from)? });
            }
        };
        let file = match &files {
            ModelFiles::Disk(_) if path.to_string_lossy().ends_with(".index.json") => None,
            ModelFiles::Disk(_) => Some(map_file(&path)?),
            _ => Some(files.in_memory(ModelFiles::CHECKPOINT)?),
        };
        let mut contents = match file {
            None => sharded::read(&path)?,
            Some(file) => match recognise(&path, file.bytes())? {
                FileFormat::Gguf => gguf::shards::read(&path, file)?,
                FileFormat::Safetensors => safetensors::read(&path, file)?,
                FileFormat::TorchZip => torch::read(&path, file)?,
            },
        };
        names::unwrap(&path, &mut contents)?;
        Ok(Self { path, contents })
    }

    /// The file that was opened: the index for a sharded checkpoint, the file found for a directory, a name that only
    /// messages use for a file in memory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All tensors, sorted by name; tied ones appear under each of their names.
    pub fn tensors(&self) -> impl Iterator<Item = &TensorInfo> {
        self.contents.entries.iter().map(|entry| &entry.info)
    }

    /// The tensor called `name`, if there is one.
    pub fn get(&self, name: &str) -> Option<&TensorInfo> {
        self.entry(name).ok().map(|entry| &entry.info)
    }

    /// Names of what the file holds and this reader cannot give, each with the reason: tensors of other number formats,
    /// objects of other kinds, views that their storage does not show.
    pub fn unreadable(&self) -> &BTreeMap<String, String> {
        &self.contents.unreadable
    }

    /// Why the tensors `names`, none of which is among [`Checkpoint::tensors`], cannot be read: the reason of the first that
    /// has one, else that they are missing, or that something is in front of all names of the file.
    pub fn absent(&self, names: Vec<String>) -> Error {
        let file = self.path.display().to_string();
        if let Some((name, why)) = names.iter().find_map(|name| self.contents.unreadable.get_key_value(name)) {
            return Error::Unsupported { object: format!("{file}: tensor {name:?}"), problem: why.clone() };
        }
        let prefix = self.common_prefix();
        match names.first() {
            Some(first) if !prefix.is_empty() && !names.iter().any(|name| name.starts_with(prefix)) => {
                let (n, all) = (names.len(), self.contents.entries.len());
                let problem = format!(
                    "{n} tensors are missing, {first} for one: all {all} names in the file begin with {prefix:?}; save \
                     the state dict of the model inside"
                );
                Error::format(file, problem)
            }
            _ => Error::MissingTensors { file, names },
        }
    }

    /// What all names begin with, up to a dot; may be empty.
    pub(crate) fn common_prefix(&self) -> &str {
        names::common_prefix(&self.contents.entries)
    }

    /// The free-form text pairs of a safetensors header; [`CONFIG_ENTRY`] of a torch file, if it is there.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.contents.metadata
    }

    /// The keys of a GGUF file; none of other forms.
    pub fn gguf(&self) -> Option<&GgufMetadata> {
        self.contents.gguf.as_ref()
    }

    /// A range of a tensor's elements, counted row-major, converted to f32 from f64, f32, f16, bf16 or blocks, of which a
    /// range has whole ones.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] if there is no such tensor, [`Error::Unsupported`] if its format is another,
    /// [`Error::Argument`] if the range is not within the tensor.
    pub fn read_f32(&self, name: &str, elements: Range<usize>) -> Result<Vec<f32>> {
        let entry = self.entry(name)?;
        let stored = entry.info.stored;
        if !stored.reads_as_f32() {
            return Err(self.wrong_format(&entry.info, "f64, f32, f16 or bf16"));
        }
        let bytes = self.element_bytes(entry, elements)?;
        let mut values = room(name, bytes.len() / stored.size() * stored.block_elements())?;
        stored.decode(&bytes, &self.tail(entry)?, &mut values);
        Ok(values)
    }

    /// All elements of a u32 tensor, row-major; borrowed from the map where they lie there as this machine reads them.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] if there is no such tensor, [`Error::Unsupported`] if its format is not u32.
    pub fn read_words(&self, name: &str) -> Result<Cow<'_, [u32]>> {
        let entry = self.entry(name)?;
        if entry.info.stored != StorageDType::U32 {
            return Err(self.wrong_format(&entry.info, "u32"));
        }
        let bytes = self.element_bytes(entry, 0..entry.info.elements())?;
        if let (Cow::Borrowed(bytes), true) = (&bytes, cfg!(target_endian = "little"))
            && let Ok(words) = bytemuck::try_cast_slice(bytes)
        {
            return Ok(Cow::Borrowed(words));
        }
        let mut words = room(name, bytes.len() / size_of::<u32>())?;
        words.extend(bytes.as_chunks().0.iter().map(|&word| u32::from_le_bytes(word)));
        Ok(Cow::Owned(words))
    }

    /// The bytes of all elements in the file's format, row-major, and what is behind the last block; borrowed from the map
    /// where they are contiguous.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] if there is no such tensor.
    pub fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>> {
        let entry = self.entry(name)?;
        match (entry.info.stored.tail_bytes(), self.contents.backings.get(entry.backing)) {
            (1.., Some(backing)) => {
                backing.bytes().get(entry.bytes.clone()).map(Cow::Borrowed).ok_or_else(|| self.not_there(entry))
            }
            _ => self.element_bytes(entry, 0..entry.info.elements()),
        }
    }

    /// Whole blocks of a tensor, as the file has them, for a range of its elements.
    ///
    /// # Errors
    /// [`Error::MissingTensors`] if there is no such tensor, [`Error::Unsupported`] if it is not in blocks,
    /// [`Error::Argument`] if the range is not within the tensor, or cuts a block.
    pub fn blocks(&self, name: &str, elements: Range<usize>) -> Result<Blocks<'_>> {
        let entry = self.entry(name)?;
        let StorageDType::Blocks(format) = entry.info.stored else {
            return Err(self.wrong_format(&entry.info, "blocks"));
        };
        Ok(Blocks { format, bytes: self.element_bytes(entry, elements)?, tail: self.tail(entry)? })
    }

    /// The bytes behind a tensor's last block.
    fn tail(&self, entry: &Entry) -> Result<Cow<'_, [u8]>> {
        let n = entry.info.stored.tail_bytes();
        if n == 0 {
            return Ok(Cow::Borrowed(&[]));
        }
        let bytes = self.contents.backings.get(entry.backing).and_then(|b| b.bytes().get(entry.bytes.clone()));
        let tail = bytes.and_then(|bytes| bytes.get(bytes.len().checked_sub(n)?..));
        tail.map(Cow::Borrowed).ok_or_else(|| self.not_there(entry))
    }

    /// Readers make no entry whose bytes are not there; if one did, zeros would be weights in silence.
    fn not_there(&self, entry: &Entry) -> Error {
        let object = format!("{}: tensor {:?}", self.path.display(), entry.info.name);
        Error::format(object, "its bytes are not there")
    }

    /// [`Checkpoint::bytes`] of a range of the elements, which is an [`Error::Argument`] if it is not within the tensor.
    pub(crate) fn bytes_of(&self, name: &str, elements: Range<usize>) -> Result<Cow<'_, [u8]>> {
        self.element_bytes(self.entry(name)?, elements)
    }

    /// Drops a tensor's pages from resident memory once it has been read; reading it again brings them back. Does
    /// nothing for an unknown name and where the operating system has no such call.
    pub fn release(&self, name: &str) {
        self.release_rows(name, 0..1, 1);
    }

    /// [`Checkpoint::release`] of some of a tensor's `all` rows, where they follow each other in the file.
    pub(crate) fn release_rows(&self, name: &str, rows: Range<usize>, all: usize) {
        let Ok(entry) = self.entry(name) else { return };
        let start = |row: usize| entry.bytes.start + entry.bytes.len() / all.max(1) * row.min(all);
        let end = if rows.end >= all { entry.bytes.end } else { start(rows.end) };
        if let Some(backing) = self.contents.backings.get(entry.backing) {
            backing.release(&(start(rows.start)..end));
        }
    }

    fn entry(&self, name: &str) -> Result<&Entry> {
        let entries = &self.contents.entries;
        let found = entries.binary_search_by(|entry| entry.info.name.as_str().cmp(name)).ok();
        found.and_then(|at| entries.get(at)).ok_or_else(|| self.absent(vec![name.to_string()]))
    }

    fn element_bytes(&self, entry: &Entry, elements: Range<usize>) -> Result<Cow<'_, [u8]>> {
        let TensorInfo { name, stored, shape } = &entry.info;
        let count = entry.info.elements();
        if elements.start > elements.end || elements.end > count {
            let problem = format!("{elements:?} is not within the tensor's {count} elements");
            return Err(Error::argument(format!("elements of {name:?}"), problem));
        }
        let backing = self.contents.backings.get(entry.backing);
        let broken = || self.not_there(entry);
        let (size, block) = (stored.size(), stored.block_elements());
        if !elements.start.is_multiple_of(block) || !elements.end.is_multiple_of(block) {
            let problem = format!("{elements:?} cuts blocks of {block} elements");
            return Err(Error::argument(format!("elements of {name:?}"), problem));
        }
        if let Some(Bytes::Source(source)) = backing {
            let len = elements.len() / block * size;
            let bytes = source.read(name, elements)?;
            return if bytes.len() == len { Ok(Cow::Owned(bytes)) } else { Err(broken()) };
        }
        let all = backing.map(Bytes::bytes).unwrap_or_default();
        let bytes = all.get(entry.bytes.clone()).ok_or_else(broken)?;
        if let Some(sum) = self.contents.sum_of(entry) {
            let object = || format!("{}: tensor {name:?}", self.path.display());
            sum.check(all).map_err(|problem| Error::format(object(), problem))?;
        }
        match &entry.strides {
            Some(strides) => {
                let mut out = room(name, elements.len() * size)?;
                gather(bytes, size, (shape, strides), elements, &mut out).map(|()| Cow::Owned(out)).ok_or_else(broken)
            }
            None => {
                let range = elements.start / block * size..elements.end / block * size;
                bytes.get(range).map(Cow::Borrowed).ok_or_else(broken)
            }
        }
    }

    fn wrong_format(&self, info: &TensorInfo, readable: &str) -> Error {
        let object = format!("{}: tensor {:?} of {}", self.path.display(), info.name, info.stored);
        Error::Unsupported { object, problem: format!("it is needed as {readable}") }
    }
}

/// Copies elements `elements` (row-major count) of a tensor of this shape and these strides from `bytes`, which start at its
/// first element, to the end of `out`; none if one of them is not there.
fn gather(
    bytes: &[u8],
    size: usize,
    (shape, strides): (&[usize], &[usize]),
    elements: Range<usize>,
    out: &mut Vec<u8>,
) -> Option<()> {
    for element in elements {
        let mut rest = element;
        let mut at = 0;
        for (dim, stride) in shape.iter().zip(strides).rev() {
            at += rest % dim * stride;
            rest /= dim;
        }
        out.extend_from_slice(bytes.get(at * size..(at + 1) * size)?);
    }
    Some(())
}

/// Sorts `entries` by name, as [`Contents`] needs them.
///
/// # Errors
/// [`Error::Format`] on `path` if two have the same name.
pub(crate) fn sort_by_name(path: &Path, entries: &mut [Entry]) -> Result<()> {
    entries.sort_by(|a, b| a.info.name.cmp(&b.info.name));
    for pair in entries.windows(2) {
        if let [a, b] = pair
            && a.info.name == b.info.name
        {
            let object = format!("{}: tensor {:?}", path.display(), a.info.name);
            return Err(Error::format(object, "is there twice; names must be unique"));
        }
    }
    Ok(())
}

/// `path` itself if it is a file, else the first of [`FILE_NAMES`] in it, else its only GGUF file of a language model.
pub(crate) fn find_file(path: &Path) -> Result<PathBuf> {
    if !std::fs::metadata(path).map_err(Error::io(path))?.is_dir() {
        return Ok(path.to_path_buf());
    }
    if let Some(file) = FILE_NAMES.iter().map(|name| path.join(name)).find(|file| file.exists()) {
        return Ok(file);
    }
    let others = weight_files(path);
    let models: Vec<&String> = others.iter().filter(|name| gguf::is_model(name)).collect();
    if let [file] = models[..] {
        return Ok(path.join(file));
    }
    let shown: Vec<&str> = others.iter().take(MAX_LISTED).map(String::as_str).collect();
    let seen = if shown.is_empty() { String::new() } else { format!("; what is there: {}", shown.join(", ")) };
    let problem = if models.is_empty() {
        format!("holds no checkpoint; looked for {} and a GGUF file{seen}", FILE_NAMES.join(", "))
    } else {
        format!("holds several GGUF files; give one of them{seen}")
    };
    Err(Error::format(path.display(), problem))
}

/// What lies beside a checkpoint under the name of another one, and is none because it was not fetched; a sentence each.
pub(crate) fn not_fetched(checkpoint: &Path) -> Vec<String> {
    let files = FILE_NAMES.iter().map(|name| checkpoint.with_file_name(name)).filter(|file| file != checkpoint);
    let sentence = |file: PathBuf| {
        let problem = text::instead(&read_regular(&file, MAX_POINTER).ok()?)?;
        Some(format!("{} {problem}", file.display()))
    };
    files.filter_map(sentence).collect()
}

/// Names of files in a directory that look as if they held weights.
fn weight_files(directory: &Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name().to_string_lossy().into_owned();
        let end = Path::new(&name).extension()?.to_str()?;
        WEIGHT_FILES.contains(&end).then_some(name)
    };
    let mut names: Vec<String> = entries.filter_map(name).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(name: &str) -> Entry {
        let info = TensorInfo { name: name.to_string(), stored: StorageDType::U8, shape: vec![] };
        Entry { info, backing: 0, bytes: 0..0, strides: None }
    }

    #[test]
    fn a_strided_tensor_is_gathered_row_major() {
        let bytes: Vec<u8> = (0..6).collect();
        let gathered = |size, shape: &[usize], strides: &[usize], elements| {
            let mut out = Vec::new();
            gather(&bytes, size, (shape, strides), elements, &mut out).map(|()| out)
        };
        assert_eq!(gathered(1, &[3, 2], &[1, 3], 0..6).unwrap(), [0, 3, 1, 4, 2, 5]);
        assert_eq!(gathered(1, &[3, 2], &[1, 3], 3..5).unwrap(), [4, 2]);
        assert_eq!(gathered(2, &[2, 2], &[0, 1], 0..4).unwrap(), [0, 1, 2, 3, 0, 1, 2, 3]);
        assert_eq!(gathered(1, &[7], &[1], 0..7), None);
    }

    #[test]
    fn a_repeated_name_is_an_error() {
        let mut twice = [named("b"), named("a"), named("b")];
        let error = sort_by_name(Path::new("m"), &mut twice).unwrap_err();
        assert_eq!(error.to_string(), "m: tensor \"b\": is there twice; names must be unique");
    }

    #[test]
    fn a_checkpoint_can_be_shared_between_threads() {
        fn shared<T: Send + Sync>() {}
        shared::<Checkpoint>();
    }
}
