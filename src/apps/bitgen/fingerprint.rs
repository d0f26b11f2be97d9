//! A hash by which models with equal weights are recognised.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::files::hash::{HASH, hash, hex};
use crate::files::{Checkpoint, ModelFiles};
use crate::threads;

/// A hash of tensors' names, dtypes, shapes and bytes, independent of the kind of file; the file is read for it.
///
/// # Errors
/// Those of [`Checkpoint::open`], and [`crate::Error::MissingTensors`].
pub(crate) fn fingerprint(files: &ModelFiles, tensors: &BTreeSet<String>) -> Result<String> {
    let checkpoint = Checkpoint::open(files)?;
    let of_one = |name: &String| -> Result<[u8; HASH]> {
        let mut one = Sha256::new();
        if let Some(tensor) = checkpoint.get(name) {
            one.update(format!("{name}\n{} {:?}\n", tensor.stored, tensor.shape));
        }
        one.update(checkpoint.bytes(name)?.as_ref());
        checkpoint.release(name);
        Ok(one.finalize().into())
    };
    let each: Result<Vec<[u8; HASH]>> = threads::shared().map(tensors, of_one).into_iter().collect();
    Ok(hex(&hash(each?.as_flattened())))
}
