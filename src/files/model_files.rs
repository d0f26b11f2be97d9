//! Where a model's files are: on disk, in memory, or behind a source.

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::TensorSource;
use crate::files::checkpoint::bytes::Bytes;

/// The files of a model: its checkpoint, and beside it `config.json` and, as a rule, `tokenizer.json`.
///
/// Whatever opens a model takes a path as well, for [`ModelFiles::Disk`].
#[derive(Clone)]
#[non_exhaustive]
pub enum ModelFiles {
    /// A checkpoint, or a directory with one; the other files lie in the same directory.
    Disk(PathBuf),
    /// Files that the program holds as long as it runs.
    Memory {
        /// Stands for the directory in messages.
        name: &'static str,
        /// Names and contents; the checkpoint is [`ModelFiles::CHECKPOINT`].
        files: &'static [(&'static str, &'static [u8])],
    },
    /// Files in memory that are freed with the model ([`ModelFiles::from_bytes`]).
    Owned {
        /// Stands for the directory in messages.
        name: Arc<str>,
        /// Names and contents; the checkpoint is [`ModelFiles::CHECKPOINT`].
        files: Arc<[(String, Arc<[u8]>)]>,
    },
    /// A source that is asked for each file and each tensor.
    Source(Arc<dyn TensorSource>),
}

/// What is built in; nothing without the feature.
#[cfg(not(feature = "demo"))]
const DEMO: &[(&str, &[u8])] = &[];
#[cfg(feature = "demo")]
const DEMO: &[(&str, &[u8])] = &[
    (ModelFiles::CHECKPOINT, include_bytes!("../../examples/shapes/model/model.safetensors")),
    ("config.json", include_bytes!("../../examples/shapes/model/config.json")),
    ("tokenizer.json", include_bytes!("../../examples/shapes/model/tokenizer.json")),
];

impl ModelFiles {
    /// The name of a checkpoint in memory.
    pub const CHECKPOINT: &str = "model.safetensors";

    /// The demo model: a small EmberNet that answers questions about drawn scenes (`examples/shapes`).
    ///
    /// # Errors
    /// [`Error::Argument`] if the crate is built without its feature `demo`.
    pub fn demo() -> Result<Self> {
        if DEMO.is_empty() {
            let problem =
                "none is given, and the demo model is not built in; give one, or build with the feature `demo`";
            return Err(Error::argument("model", problem));
        }
        Ok(ModelFiles::Memory { name: "the demo model", files: DEMO })
    }

    /// Files in memory, downloaded or decrypted, with their names: the checkpoint, of whatever form, is
    /// [`ModelFiles::CHECKPOINT`], and beside it are `config.json` and `tokenizer.json`, which a GGUF file needs not. `name`
    /// stands for the directory in messages.
    pub fn from_bytes<N: Into<String>, B: Into<Arc<[u8]>>>(
        name: impl Into<Arc<str>>,
        files: impl IntoIterator<Item = (N, B)>,
    ) -> Self {
        let files = files.into_iter().map(|(name, bytes)| (name.into(), bytes.into())).collect();
        ModelFiles::Owned { name: name.into(), files }
    }

    /// The path of the file `name` beside the checkpoint; for a model in memory, what messages call it.
    pub fn path(&self, name: &str) -> PathBuf {
        match self {
            ModelFiles::Disk(path) if path.is_dir() => path.join(name),
            ModelFiles::Disk(path) => path.parent().unwrap_or(Path::new(".")).join(name),
            ModelFiles::Memory { name: model, .. } => Path::new(model).join(name),
            ModelFiles::Owned { name: model, .. } => Path::new(&**model).join(name),
            ModelFiles::Source(source) => Path::new(source.name()).join(name),
        }
    }

    /// Whether there is a file `name` beside the checkpoint.
    pub fn has(&self, name: &str) -> bool {
        match self {
            ModelFiles::Disk(_) => self.path(name).exists(),
            ModelFiles::Memory { .. } | ModelFiles::Owned { .. } => self.in_memory(name).is_ok(),
            ModelFiles::Source(source) => source.file(name).is_some(),
        }
    }

    /// The content of the file `name` beside the checkpoint, or the first `max + 1` bytes of a longer one.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Format`] for what is not a regular file.
    pub fn read(&self, name: &str, max: u64) -> Result<Cow<'static, [u8]>> {
        match self {
            ModelFiles::Disk(_) => read_regular(&self.path(name), max).map(Cow::Owned),
            ModelFiles::Memory { .. } | ModelFiles::Owned { .. } => Ok(match self.in_memory(name)? {
                Bytes::Static(bytes) => Cow::Borrowed(bytes),
                other => {
                    let bytes = other.bytes();
                    Cow::Owned(bytes[..bytes.len().min((max as usize).saturating_add(1))].to_vec())
                }
            }),
            ModelFiles::Source(source) => {
                source.file(name).map(|bytes| Cow::Owned(bytes.into_owned())).ok_or_else(|| self.missing(name))
            }
        }
    }

    /// The whole content of the file `name` of a model in memory.
    pub(crate) fn in_memory(&self, name: &str) -> Result<Bytes> {
        let found = match self {
            ModelFiles::Memory { files, .. } => {
                files.iter().find(|(file, _)| *file == name).map(|(_, bytes)| Bytes::Static(bytes))
            }
            ModelFiles::Owned { files, .. } => {
                files.iter().find(|(file, _)| file == name).map(|(_, bytes)| Bytes::Shared(bytes.clone()))
            }
            ModelFiles::Disk(_) | ModelFiles::Source(_) => None,
        };
        found.ok_or_else(|| self.missing(name))
    }

    /// Whether they can be read again without being kept in memory.
    pub(crate) fn is_elsewhere(&self) -> bool {
        !matches!(self, ModelFiles::Owned { .. })
    }

    /// The same files, found from any working directory.
    ///
    /// # Errors
    /// As [`absolute`].
    pub(crate) fn absolute(self) -> Result<Self> {
        match self {
            ModelFiles::Disk(path) => absolute(&path).map(ModelFiles::Disk),
            other => Ok(other),
        }
    }

    fn missing(&self, name: &str) -> Error {
        Error::io(self.path(name))(io::ErrorKind::NotFound.into())
    }
}

impl<P: AsRef<Path>> From<P> for ModelFiles {
    fn from(path: P) -> Self {
        ModelFiles::Disk(path.as_ref().to_owned())
    }
}

impl From<&ModelFiles> for ModelFiles {
    fn from(files: &ModelFiles) -> Self {
        files.clone()
    }
}

/// Sources, and owned files, are equal if they are one and the same.
impl PartialEq for ModelFiles {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (ModelFiles::Disk(a), ModelFiles::Disk(b)) => a == b,
            (ModelFiles::Memory { name: a, files: x }, ModelFiles::Memory { name: b, files: y }) => a == b && x == y,
            (ModelFiles::Owned { name: a, files: x }, ModelFiles::Owned { name: b, files: y }) => {
                a == b && Arc::ptr_eq(x, y)
            }
            (ModelFiles::Source(a), ModelFiles::Source(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

impl Eq for ModelFiles {}

impl fmt::Display for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ModelFiles::Disk(path) => path.display().fmt(f),
            ModelFiles::Memory { name, .. } => f.write_str(name),
            ModelFiles::Owned { name, .. } => f.write_str(name),
            ModelFiles::Source(source) => f.write_str(source.name()),
        }
    }
}

impl fmt::Debug for ModelFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ModelFiles({self})")
    }
}

/// A path that leads to the same place from any working directory. What is read after it was opened is kept by such a one,
/// since an application may change its working directory.
///
/// # Errors
/// [`Error::Io`] for an empty path, and without a working directory.
pub(crate) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).map_err(Error::io(path))
}

/// [`read_at_most`] of a regular file: a pipe in its place would be waited for without end.
///
/// # Errors
/// [`Error::Io`], [`Error::Format`] for anything else.
pub(crate) fn read_regular(path: &Path, max: u64) -> Result<Vec<u8>> {
    let kind = fs::metadata(path).map_err(Error::io(path))?;
    if !kind.is_file() && !kind.is_dir() {
        return Err(Error::format(path.display(), "is not a regular file"));
    }
    read_at_most(path, max)
}

/// The content of a file, or the first `max + 1` bytes of a longer one, so that an endless file is told from one that
/// just fits.
///
/// # Errors
/// [`Error::Io`].
pub(crate) fn read_at_most(path: &Path, max: u64) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(Error::io(path))?;
    file.take(max.saturating_add(1)).read_to_end(&mut bytes).map_err(Error::io(path))?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILES: ModelFiles = ModelFiles::Memory { name: "a model", files: &[("config.json", b"{}")] };

    #[test]
    fn files_lie_beside_a_checkpoint_or_in_its_directory() {
        assert_eq!(ModelFiles::from("models/m.safetensors").path("x"), Path::new("models/x"));
        let dir = env!("CARGO_MANIFEST_DIR");
        assert_eq!(ModelFiles::from(dir).path("x"), Path::new(dir).join("x"));
        assert!(ModelFiles::from(dir).has("Cargo.toml") && !ModelFiles::from(dir).has("config.json"));
    }

    #[test]
    fn files_in_memory_are_found_by_name_and_missing_ones_are_named() {
        assert_eq!(FILES.read("config.json", 10).unwrap(), &b"{}"[..]);
        assert!(FILES.has("config.json") && !FILES.has("tokenizer.json"));
        assert_eq!(FILES.read("tokenizer.json", 10).unwrap_err().to_string(), missing("a model/tokenizer.json"));
        assert_eq!(format!("{FILES} {FILES:?}"), "a model ModelFiles(a model)");
    }

    #[test]
    fn owned_files_are_freed_with_the_last_that_holds_them() {
        let config: Arc<[u8]> = Arc::from(&b"{}"[..]);
        let files = ModelFiles::from_bytes("m", [("config.json", config.clone())]);
        assert_eq!(files.read("config.json", 10).unwrap(), &b"{}"[..]);
        assert_eq!(files.read("config.json", 0).unwrap(), &b"{"[..]);
        assert!(files == files.clone() && !files.has("x") && files.path("x") == Path::new("m/x"));
        assert_eq!(files.read("x", 10).unwrap_err().to_string(), missing("m/x"));
        drop(files);
        assert_eq!(Arc::strong_count(&config), 1);
    }

    fn missing(path: &str) -> String {
        format!("{path}: there is no such file or folder")
    }

    #[cfg(not(feature = "demo"))]
    #[test]
    fn without_the_feature_the_error_says_what_to_do() {
        let error = ModelFiles::demo().unwrap_err().to_string();
        assert!(error.contains("feature `demo`"), "{error}");
    }

    #[test]
    fn a_long_file_is_cut_behind_the_limit() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
        assert_eq!(read_at_most(&path, 4).unwrap().len(), 5);
    }
}
