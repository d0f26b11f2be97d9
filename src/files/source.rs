//! Models that are neither a file nor files in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::checkpoint::bytes::Bytes;
use crate::files::checkpoint::{Contents, Entry, TensorInfo, sort_by_name};

/// Where the files and the tensors of a model come from: an archive, a network, random numbers.
///
/// The same name must give the same tensor each time: a model is opened more than once.
pub trait TensorSource: fmt::Debug + Send + Sync {
    /// The name of the model, in messages.
    fn name(&self) -> &str;

    /// The whole content of the file `name` beside the checkpoint (`config.json`, `tokenizer.json`); none if there is no
    /// such file.
    fn file(&self, name: &str) -> Option<Cow<'_, [u8]>>;

    /// The tensors of the checkpoint, in any order. Their number of elements must fit in a `usize`.
    fn tensors(&self) -> Vec<TensorInfo>;

    /// The text pairs of the checkpoint (see [`crate::files::Checkpoint::metadata`]).
    fn metadata(&self) -> BTreeMap<String, String>;

    /// The bytes of a range of a tensor's elements, counted row-major, in the number format of [`TensorSource::tensors`].
    /// The range lies within the tensor.
    ///
    /// # Errors
    /// Those of the source; [`Error::OutOfMemory`] with the tensor's name if the system has no memory for the bytes.
    fn read(&self, tensor: &str, elements: Range<usize>) -> Result<Vec<u8>>;
}

/// The tensors of a source, as a checkpoint has them.
pub(crate) fn contents(source: &Arc<dyn TensorSource>) -> Result<Contents> {
    let path = Path::new(source.name());
    let entry = |info| Entry { info, backing: 0, bytes: 0..0, strides: None };
    let mut entries: Vec<Entry> = source.tensors().into_iter().map(entry).collect();
    for TensorInfo { name, stored, shape } in entries.iter().map(|e| &e.info) {
        let bytes = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).and_then(|n| stored.bytes(n));
        let object = || format!("{}: tensor {name:?}", path.display());
        bytes.ok_or_else(|| {
            Error::format(object(), format!("its shape {shape:?} of {stored} overflows, or ends within a block"))
        })?;
        if stored.tail_bytes() > 0 {
            return Err(Error::format(object(), format!("is of {stored}, which only files have")));
        }
    }
    sort_by_name(path, &mut entries)?;
    let backings = vec![Bytes::Source(source.clone())];
    Ok(Contents { entries, backings, metadata: source.metadata(), ..Contents::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Checkpoint, ModelFiles, StorageDType};

    /// Tensors of `U8`, each element its number; `short` bytes are missing of every range.
    #[derive(Debug)]
    struct Numbers {
        shapes: Vec<(&'static str, Vec<usize>)>,
        short: usize,
    }

    impl TensorSource for Numbers {
        fn name(&self) -> &str {
            "numbers"
        }

        fn file(&self, name: &str) -> Option<Cow<'_, [u8]>> {
            (name == "config.json").then_some(Cow::Borrowed(b"{}"))
        }

        fn tensors(&self) -> Vec<TensorInfo> {
            let info = |(name, shape): &(&str, Vec<usize>)| TensorInfo {
                name: (*name).to_owned(),
                stored: StorageDType::U8,
                shape: shape.clone(),
            };
            self.shapes.iter().map(info).collect()
        }

        fn metadata(&self) -> BTreeMap<String, String> {
            BTreeMap::from([("a".to_owned(), "b".to_owned())])
        }

        fn read(&self, _: &str, elements: Range<usize>) -> Result<Vec<u8>> {
            Ok(elements.map(|i| i as u8).skip(self.short).collect())
        }
    }

    fn files(shapes: &[(&'static str, &[usize])], short: usize) -> ModelFiles {
        let shapes = shapes.iter().map(|(name, shape)| (*name, shape.to_vec())).collect();
        ModelFiles::Source(Arc::new(Numbers { shapes, short }))
    }

    #[test]
    fn files_and_tensors_of_a_source_are_read() {
        let files = files(&[("y", &[2, 3]), ("x", &[4])], 0);
        assert_eq!(files.read("config.json", 10).unwrap(), &b"{}"[..]);
        assert!(files.has("config.json") && !files.has("tokenizer.json"));
        assert!(files.read("tokenizer.json", 10).is_err());
        assert!(files == files.clone() && files != super::tests::files(&[], 0));
        let checkpoint = Checkpoint::open(&files).unwrap();
        assert_eq!(checkpoint.tensors().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(checkpoint.metadata()["a"], "b");
        assert_eq!(*checkpoint.bytes("y").unwrap(), [0, 1, 2, 3, 4, 5]);
        assert_eq!(*checkpoint.bytes_of("x", 1..3).unwrap(), [1, 2]);
        assert!(checkpoint.bytes_of("x", 1..5).is_err() && checkpoint.bytes("z").is_err());
    }

    #[test]
    fn what_a_source_may_not_give_is_named() {
        let says = |result: Result<Checkpoint>, part: &str| {
            let error = result.and_then(|c| c.bytes("x").map(|_| ())).unwrap_err().to_string();
            assert!(error.contains("\"x\"") && error.contains(part), "{error}");
        };
        says(Checkpoint::open(files(&[("x", &[4])], 1)), "not there");
        says(Checkpoint::open(files(&[("x", &[usize::MAX, 2])], 0)), "overflows");
        says(Checkpoint::open(files(&[("x", &[4]), ("x", &[4])], 0)), "twice");
    }
}
