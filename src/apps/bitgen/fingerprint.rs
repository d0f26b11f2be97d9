//! A hash by which models with equal weights are recognised.

use std::collections::BTreeSet;

use sha2::{Digest, Sha256};

use crate::error::Result;
use crate::files::{Checkpoint, ModelFiles};
use crate::threads;

/// Bytes of a hash.
pub(crate) const HASH: usize = 32;

/// SHA-256.
pub(crate) fn hash(bytes: &[u8]) -> [u8; HASH] {
    Sha256::digest(bytes).into()
}

/// Bytes as hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

/// The bytes that [`hex`] wrote.
pub(crate) fn from_hex(text: &str) -> Option<[u8; HASH]> {
    let digits: Option<Vec<u8>> = text.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
    let bytes: Vec<u8> = digits?.chunks(2).map(|pair| pair.iter().fold(0, |byte, d| byte << 4 | d)).collect();
    let whole = text.len() == 2 * HASH;
    bytes.try_into().ok().filter(|_| whole)
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hexadecimal_digits_come_back_as_bytes() {
        let bytes = hash(b"abc");
        assert_eq!(hex(&bytes), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(from_hex(&hex(&bytes)), Some(bytes));
        for broken in ["", "ba", &"g".repeat(64), &"a".repeat(63), &"a".repeat(66), &"é".repeat(32)] {
            assert_eq!(from_hex(broken), None, "{broken}");
        }
    }
}
