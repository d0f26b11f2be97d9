//! Mapping files into memory and telling, from the first bytes, what a file is.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use memmap2::Mmap;

use crate::error::{Error, Result};
use crate::files::checkpoint::archive::check_sum;
use crate::files::checkpoint::gguf::MAGIC;
use crate::files::{TensorSource, text};

/// The bytes behind tensors: a mapped file, what the program holds, what was inflated from a compressed archive entry, or
/// what a source gives on demand.
#[derive(Debug)]
pub(crate) enum Bytes {
    Map(Mmap),
    Static(&'static [u8]),
    Shared(Arc<[u8]>),
    Inflated(Vec<u8>),
    /// No bytes: elements are asked for when they are read.
    Source(Arc<dyn TensorSource>),
}

impl Bytes {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Bytes::Map(map) => map,
            Bytes::Static(bytes) => bytes,
            Bytes::Shared(bytes) => bytes,
            Bytes::Inflated(bytes) => bytes,
            Bytes::Source(_) => &[],
        }
    }

    /// Drops the pages under `range` from resident memory; the next read brings them back from the file.
    #[cfg(unix)]
    pub(crate) fn release(&self, range: &Range<usize>) {
        if let Bytes::Map(map) = self
            && !range.is_empty()
            && range.end <= map.len()
        {
            // SAFETY: The map is read-only and of a file, so a dropped page holds nothing that the file lacks: the next
            // read faults in the same bytes. Shared edges with other tensors are reread in the same way.
            let advised =
                unsafe { map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len()) };
            // Advice that is refused leaves the pages resident, which is correct, only larger.
            let _ = advised;
        }
    }

    /// Mapped pages are left to the operating system here.
    #[cfg(not(unix))]
    pub(crate) fn release(&self, _range: &Range<usize>) {}
}

/// A part of a backing whose sum the file holds. It is added up when a tensor of it is read, once.
#[derive(Debug)]
pub(crate) struct Sum {
    name: String,
    /// Index into [`crate::files::checkpoint::Contents::backings`].
    pub(crate) backing: usize,
    range: Range<usize>,
    crc32: u32,
    found: OnceLock<std::result::Result<(), String>>,
}

impl Sum {
    /// That of the storage `name` in the first backing.
    pub(crate) fn new(name: &str, range: Range<usize>, crc32: u32) -> Self {
        Sum { name: name.to_owned(), backing: 0, range, crc32, found: OnceLock::new() }
    }

    /// The backing and the first byte of the part.
    pub(crate) fn place(&self) -> (usize, usize) {
        (self.backing, self.range.start)
    }

    /// Whether bytes that do not begin in front of the part lie in it.
    pub(crate) fn covers(&self, bytes: &Range<usize>) -> bool {
        bytes.end <= self.range.end
    }

    /// Adds the part up, if that has not been done.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn check(&self, backing: &[u8]) -> std::result::Result<(), String> {
        let found = self.found.get_or_init(|| {
            let bytes = backing.get(self.range.clone()).ok_or("its bytes are not there")?;
            check_sum(bytes, self.crc32).map_err(|problem| format!("of its storage data/{}: {problem}", self.name))
        });
        found.clone()
    }
}

/// Maps a regular, non-empty file for reading.
pub(crate) fn map_file(path: &Path) -> Result<Bytes> {
    let kind = std::fs::metadata(path).map_err(Error::io(path))?;
    // Opening a pipe would block for ever, so this comes first.
    if !kind.is_file() {
        return Err(Error::format(path.display(), "is not a regular file"));
    }
    if kind.len() == 0 {
        return Err(Error::format(path.display(), "is empty, so it is not a model file; fetch it again"));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    // SAFETY: The map is read-only, and `Checkpoint` documents that the file must not change while it is open. What is
    // read from it is plain bytes, validated before use as lengths or offsets.
    unsafe { Mmap::map(&file) }.map(Bytes::Map).map_err(Error::io(path))
}

/// The forms of a single checkpoint file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum FileFormat {
    Gguf,
    Safetensors,
    TorchZip,
}

/// What `bytes`, the content of `path`, is; an error for the known things that are not a checkpoint.
pub(crate) fn recognise(path: &Path, bytes: &[u8]) -> Result<FileFormat> {
    let file = path.display();
    // Its ninth byte may be any.
    if bytes.starts_with(MAGIC) {
        return Ok(FileFormat::Gguf);
    }
    if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") {
        return Ok(FileFormat::TorchZip);
    }
    if bytes.get(8) == Some(&b'{') {
        return Ok(FileFormat::Safetensors);
    }
    if let Some(instead) = text::instead(bytes) {
        return Err(Error::format(file, instead));
    }
    if bytes.trim_ascii_start().starts_with(b"{") {
        return Err(Error::format(file, "is a text (JSON), not a model file; give the folder that it lies in"));
    }
    let tar = bytes.get(257..262) == Some(b"ustar");
    let bare_pickle = matches!(bytes, [0x80, 2..=5, ..]);
    if tar || bare_pickle {
        let old = "it is in an old torch format (a tar or a bare pickle); load it with torch and write it again with a \
                   current torch.save";
        return unsupported(path, old);
    }
    if bytes.len() < 8 {
        let problem = format!("is not a model file: it has {} bytes, a header alone has 8", bytes.len());
        return Err(Error::format(file, problem));
    }
    Ok(FileFormat::Safetensors)
}

fn unsupported<T>(path: &Path, problem: &str) -> Result<T> {
    Err(Error::Unsupported { object: path.display().to_string(), problem: problem.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        recognise(Path::new("m"), bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_file_is_known_by_its_first_bytes() {
        let form = |bytes| recognise(Path::new("m"), bytes).unwrap();
        assert_eq!(form(b"PK\x03\x04..."), FileFormat::TorchZip);
        assert_eq!(form(b"GGUF\x03\0\0\0{"), FileFormat::Gguf, "123 tensors");
        assert_eq!(
            form(b"\x80\x02\0\0\0\0\0\0{\"a\":1}"),
            FileFormat::Safetensors,
            "a header of 640 bytes is not a pickle"
        );
    }

    #[test]
    fn things_that_are_not_checkpoints_are_named() {
        assert!(refusal(b"version https://git-lfs.github.com/spec/v1\noid sha256:0").contains("git lfs pull"));
        assert!(refusal(b"\n<!DOCTYPE html><html>").contains("HTML"));
        assert!(refusal(b"{\n  \"model_type\": 1}").contains("JSON"));
        assert!(refusal(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.").contains("torch.save"));
        assert!(refusal(b"abc").contains("3 bytes"));
        let mut tar = vec![0u8; 512];
        tar[257..262].copy_from_slice(b"ustar");
        assert!(refusal(&tar).contains("tar"));
    }
}
