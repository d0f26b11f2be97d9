//! Checkpoints without a file, for measuring: tensors whose elements are made up when they are read.

use std::collections::BTreeMap;
use std::ops::Range;

use half::f16;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::files::checkpoint::bytes::Backing;
use crate::files::checkpoint::storage_dtype::Stored;
use crate::files::checkpoint::{Contents, Entry, TensorInfo, sort_by_name};
use crate::files::weights::{PACKED_KEY, PackedInfo};
use crate::quant::Bits;

/// What elements of weights are about as large as.
const SIZE: f32 = 0.02;
/// Elements that a thread makes at once.
const PIECE: usize = 1 << 14;

/// A model whose weights are random numbers, the same ones each time. Nothing is kept: a tensor takes memory only while it
/// is read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Stands for the directory in messages.
    pub name: &'static str,
    /// `config.json`.
    pub config: String,
    /// The checkpoint.
    pub tensors: Vec<MadeTensor>,
}

/// A tensor of a model that is made up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MadeTensor {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// What it holds.
    pub fill: Fill,
}

/// What a tensor that is made up holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// A norm's weights: about normal around 1, in 32 bits.
    Norm,
    /// Weights and biases: about normal around 0, in 32 bits.
    Exact,
    /// The same in 16 bits.
    Half,
    /// A ternary matrix `[rows, cols]` in the packed form, codes −1 and +1 at 1 bit each.
    Ternary,
}

impl Fill {
    fn stored(self) -> Stored {
        match self {
            Fill::Norm | Fill::Exact => Stored::F32,
            Fill::Half => Stored::F16,
            Fill::Ternary => Stored::U32,
        }
    }

    /// The bytes of some elements of a tensor.
    ///
    /// # Errors
    /// [`Error::Limit`] with the tensor's name if the system has no memory for them.
    pub(crate) fn bytes(self, name: &str, seed: u64, elements: Range<usize>) -> Result<Vec<u8>> {
        let size = self.stored().size();
        let len = size.saturating_mul(elements.len());
        let mut bytes: Vec<u8> = bytemuck::try_zeroed_vec(len).map_err(|()| Error::memory(name, len))?;
        bytes.par_chunks_mut(size * PIECE).enumerate().for_each(|(piece, bytes)| {
            let first = elements.start + piece * PIECE;
            for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
                let at = (first + i) as u64;
                match self {
                    Fill::Norm => element.copy_from_slice(&(1.0 + 0.1 * about_normal(seed, at)).to_le_bytes()),
                    Fill::Exact => element.copy_from_slice(&(SIZE * about_normal(seed, at)).to_le_bytes()),
                    Fill::Half => element.copy_from_slice(&f16::from_f32(SIZE * about_normal(seed, at)).to_le_bytes()),
                    Fill::Ternary => element.copy_from_slice(&(random(seed, at) as u32).to_le_bytes()),
                }
            }
        });
        Ok(bytes)
    }
}

impl Made {
    /// The tensors as those of a packed checkpoint.
    pub(crate) fn contents(&self) -> Result<Contents> {
        let object = format!("{}: {PACKED_KEY}", self.name);
        let (mut table, mut entries) = (BTreeMap::new(), Vec::new());
        for (backing, MadeTensor { name, shape, fill }) in self.tensors.iter().enumerate() {
            let mut shape = shape.clone();
            if *fill == Fill::Ternary {
                let [rows, cols] = *shape.as_slice() else {
                    return Err(Error::shape(
                        format!("{}: tensor {name}", self.name),
                        "[rows, cols]",
                        format!("{shape:?}"),
                    ));
                };
                let scale_bits = (0.8 * SIZE).to_bits();
                table.insert(name, PackedInfo { rows, cols, bits: Bits::One.count(), scale_bits });
                shape = vec![Bits::One.matrix_words(rows, cols)];
            }
            let info = TensorInfo { name: name.clone(), stored: fill.stored(), shape };
            entries.push(Entry { info, backing, bytes: 0..0, strides: None });
        }
        sort_by_name(self.name.as_ref(), &mut entries)?;
        let table = serde_json::to_string(&table).map_err(|e| Error::format(object, e))?;
        let backings = self.tensors.iter().map(|t| Backing::Made(t.fill)).collect();
        let metadata = BTreeMap::from([(PACKED_KEY.to_owned(), table)]);
        Ok(Contents { entries, unreadable: BTreeMap::new(), backings, metadata })
    }
}

/// Number `i` of the random numbers that begin with `seed`: a step of SplitMix64 each, so that any of them can be made on
/// any thread. Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
pub fn random(seed: u64, i: u64) -> u64 {
    let mut z = seed.wrapping_add((i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ z >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ z >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ z >> 31
}

/// The sum of four uniform 16-bit numbers, scaled to mean 0 and variance 1: close enough to normal for weights.
pub fn about_normal(seed: u64, i: u64) -> f32 {
    let bits = random(seed, i);
    let sum: u64 = (0..4).map(|k| bits >> (16 * k) & 0xFFFF).sum();
    (sum as f32 / 65535.0 - 2.0) * 3f32.sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_tensor_is_the_same_as_in_the_whole() {
        for fill in [Fill::Norm, Fill::Exact, Fill::Half, Fill::Ternary] {
            let bytes = |seed, elements| fill.bytes("x", seed, elements).unwrap();
            let (size, whole) = (fill.stored().size(), bytes(7, 0..40_000));
            assert_eq!(whole.len(), 40_000 * size);
            assert_eq!(bytes(7, 16_380..33_000), whole[16_380 * size..33_000 * size]);
            assert_ne!(bytes(8, 0..100), whole[..100 * size]);
        }
    }

    #[test]
    fn the_numbers_have_mean_0_and_variance_1() {
        let all: Vec<f64> = (0..100_000).map(|i| f64::from(about_normal(3, i))).collect();
        let mean = all.iter().sum::<f64>() / 1e5;
        let variance = all.iter().map(|v| v * v).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }
}
