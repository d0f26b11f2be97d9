//! Writing safetensors files: the only writer of tensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

use ::safetensors::{Dtype, SafeTensorError, View, serialize_to_file};

use crate::error::{Error, Result};
use crate::files::StorageDType;
use crate::files::atomic::Replacement;

/// A tensor to write.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NewTensor<'a> {
    pub stored: StorageDType,
    pub shape: &'a [usize],
    /// The elements, row-major and little-endian.
    pub bytes: &'a [u8],
}

impl View for NewTensor<'_> {
    fn dtype(&self) -> Dtype {
        match self.stored {
            StorageDType::F64 => Dtype::F64,
            StorageDType::F32 => Dtype::F32,
            StorageDType::F16 => Dtype::F16,
            StorageDType::BF16 => Dtype::BF16,
            StorageDType::F8E4M3 => Dtype::F8_E4M3,
            StorageDType::F8E5M2 => Dtype::F8_E5M2,
            StorageDType::I64 => Dtype::I64,
            StorageDType::I32 => Dtype::I32,
            StorageDType::I16 => Dtype::I16,
            StorageDType::I8 => Dtype::I8,
            StorageDType::U64 => Dtype::U64,
            StorageDType::U32 => Dtype::U32,
            StorageDType::U16 => Dtype::U16,
            // Blocks are refused before anything is written.
            StorageDType::U8 | StorageDType::Blocks(_) => Dtype::U8,
            StorageDType::Bool => Dtype::BOOL,
        }
    }

    fn shape(&self) -> &[usize] {
        self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Writes a file of named tensors and text pairs: the whole new file, or the old one stays.
///
/// # Errors
/// [`Error::Io`]; [`Error::Format`] for a tensor whose bytes are not those of its shape.
pub(crate) fn write_tensors<'a>(
    file: &Path,
    tensors: impl IntoIterator<Item = (&'a str, NewTensor<'a>)>,
    metadata: &[(&str, String)],
) -> Result<()> {
    let new = Replacement::of(file)?;
    write_tensors_into(&new, tensors, metadata)?;
    new.put()
}

/// [`write_tensors`] into a new file that takes its place later.
///
/// # Errors
/// As [`write_tensors`].
pub(crate) fn write_tensors_into<'a>(
    new: &Replacement,
    tensors: impl IntoIterator<Item = (&'a str, NewTensor<'a>)>,
    metadata: &[(&str, String)],
) -> Result<()> {
    let file = new.target();
    let tensors: Vec<(&str, NewTensor)> = tensors.into_iter().collect();
    for (name, tensor) in &tensors {
        if matches!(tensor.stored, StorageDType::Blocks(_)) {
            let object = format!("{}: tensor {name} of {}", file.display(), tensor.stored);
            return Err(Error::format(object, "safetensors files have no blocks"));
        }
        let size = tensor.shape.iter().product::<usize>() * tensor.stored.size();
        if tensor.bytes.len() != size {
            let object = format!("{}: tensor {name}", file.display());
            return Err(Error::format(object, format!("has {} bytes, its shape needs {size}", tensor.bytes.len())));
        }
    }
    let metadata: HashMap<String, String> = metadata.iter().map(|(k, v)| ((*k).to_owned(), v.clone())).collect();
    serialize_to_file(tensors, Some(metadata), new.path()).map_err(|error| match error {
        SafeTensorError::IoError(error) => Error::io(file)(error),
        other => Error::format(file.display(), other),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::Checkpoint;

    #[test]
    fn what_is_written_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.safetensors");
        let values = [1.5f32, -2.0];
        let floats = NewTensor { stored: StorageDType::F32, shape: &[1, 2], bytes: bytemuck::cast_slice(&values) };
        let bytes = NewTensor { stored: StorageDType::U8, shape: &[3], bytes: &[7, 8, 9] };
        write_tensors(&file, [("x", floats), ("y", bytes)], &[("key", "text".to_owned())]).unwrap();
        let checkpoint = Checkpoint::open(&file).unwrap();
        assert_eq!(checkpoint.get("x").unwrap().shape, [1, 2]);
        assert_eq!(checkpoint.read_f32("x", 0..2).unwrap(), values);
        assert_eq!(*checkpoint.bytes("y").unwrap(), [7, 8, 9]);
        assert_eq!(checkpoint.metadata()["key"], "text");
        let short = NewTensor { shape: &[4], ..bytes };
        let error = write_tensors(&file, [("z", short)], &[]).unwrap_err().to_string();
        assert!(error.contains("tensor z") && error.contains("needs 4"), "{error}");
        assert!(Checkpoint::open(&file).unwrap().get("x").is_some(), "the old file stays");
    }
}
