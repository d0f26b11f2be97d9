//! Models of random weights, for measuring: no files, and a tensor takes memory only while it is read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use half::f16;

use crate::error::{Error, Result};
use crate::files::weights::{PACKED_KEY, PackedInfo};
use crate::files::{ModelFiles, StorageDType, TensorInfo, TensorSource, Weights};
use crate::models::{EmberNet, EmberNetConfig, TensorRequest};
use crate::ops::split_mix;
use crate::quant::Bits;
use crate::tensor::Pack;
use crate::threads;

/// Standard deviation of the elements of weights.
const SIZE: f32 = 0.02;
/// Elements that one task computes.
const PIECE: usize = 1 << 14;

/// An EmberNet of the published sizes with random weights: 834 million parameters.
///
/// # Errors
/// None that its sizes can cause.
pub fn embernet() -> Result<ModelFiles> {
    embernet_of(EmberNetConfig::published())
}

/// An EmberNet of these sizes with random weights.
///
/// # Errors
/// [`Error::Config`] from opening it, for sizes that do not fit one another; none here.
pub fn embernet_of(config: EmberNetConfig) -> Result<ModelFiles> {
    let nothing = Weights::open(ModelFiles::Source(Arc::new(Synthetic::default())))?;
    let text = config.to_json().to_string();
    let tensors = EmberNet::tensors(config, &nothing);
    let source = Synthetic::new("an EmberNet with random weights", text, &tensors)?;
    Ok(ModelFiles::Source(Arc::new(source)))
}

/// A model of random weights, the same ones each time, as a packed checkpoint.
#[derive(Debug, Default)]
struct Synthetic {
    name: &'static str,
    /// `config.json`.
    config: String,
    /// Sorted by name; the place of a tensor is its seed.
    tensors: Vec<(TensorInfo, Fill)>,
    metadata: BTreeMap<String, String>,
}

impl Synthetic {
    /// A model of these tensors; some may be listed twice.
    fn new(name: &'static str, config: String, wanted: &[TensorRequest]) -> Result<Self> {
        let by_name: BTreeMap<&str, &TensorRequest> = wanted.iter().rev().map(|w| (w.name.as_str(), w)).collect();
        let (mut table, mut tensors) = (BTreeMap::new(), Vec::new());
        for (tensor, TensorRequest { shape, .. }) in &by_name {
            let (fill, mut shape) = (Fill::for_request(by_name[tensor]), shape.clone());
            if fill == Fill::Ternary {
                let [rows, cols] = *shape.as_slice() else {
                    let object = format!("{name}: tensor {tensor}");
                    return Err(Error::shape(object, "[rows, cols]", format!("{shape:?}")));
                };
                let scale_bits = (0.8 * SIZE).to_bits();
                table.insert(tensor, PackedInfo { rows, cols, bits: Bits::One.count(), scale_bits });
                shape = vec![Bits::One.matrix_words(rows, cols)];
            }
            tensors.push((TensorInfo { name: (*tensor).to_owned(), stored: fill.stored(), shape }, fill));
        }
        let table = serde_json::to_string(&table).map_err(|e| Error::format(format!("{name}: {PACKED_KEY}"), e))?;
        Ok(Synthetic { name, config, tensors, metadata: BTreeMap::from([(PACKED_KEY.to_owned(), table)]) })
    }
}

impl TensorSource for Synthetic {
    fn name(&self) -> &str {
        self.name
    }

    fn file(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        (name == "config.json").then_some(Cow::Borrowed(self.config.as_bytes()))
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        self.tensors.iter().map(|(info, _)| info.clone()).collect()
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }

    fn read(&self, tensor: &str, elements: Range<usize>) -> Result<Vec<u8>> {
        let found = self.tensors.binary_search_by(|(info, _)| info.name.as_str().cmp(tensor));
        match found.ok().and_then(|at| Some((at, self.tensors.get(at)?))) {
            Some((at, (_, fill))) => fill.bytes(tensor, at as u64, elements),
            None => Err(Error::MissingTensors { file: self.name.to_owned(), names: vec![tensor.to_owned()] }),
        }
    }
}

/// What a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// The weights of a norm: about normal around 1, in 32 bits.
    Norm,
    /// Weights and biases: about normal around 0, in 32 bits.
    Exact,
    /// The same in 16 bits.
    Half,
    /// A packed ternary matrix: codes −1 and +1 at 1 bit each.
    Ternary,
}

impl Fill {
    fn for_request(wanted: &TensorRequest) -> Self {
        match wanted.pack {
            Pack::Ternary(_) => Fill::Ternary,
            Pack::F16 | Pack::Int8 | Pack::Groups { .. } => Fill::Half,
            Pack::F32 if wanted.shape.len() == 1 && wanted.name.ends_with(".weight") => Fill::Norm,
            Pack::F32 => Fill::Exact,
        }
    }

    fn stored(self) -> StorageDType {
        match self {
            Fill::Norm | Fill::Exact => StorageDType::F32,
            Fill::Half => StorageDType::F16,
            Fill::Ternary => StorageDType::U32,
        }
    }

    /// The bytes of some elements of a tensor.
    ///
    /// # Errors
    /// [`Error::Limit`] with the tensor's name if the system has no memory for them.
    fn bytes(self, name: &str, seed: u64, elements: Range<usize>) -> Result<Vec<u8>> {
        let size = self.stored().size();
        let len = size.saturating_mul(elements.len());
        let mut bytes: Vec<u8> = bytemuck::try_zeroed_vec(len).map_err(|()| Error::memory(name, len))?;
        threads::shared().map(bytes.chunks_mut(size * PIECE).enumerate(), |(piece, bytes)| {
            let first = elements.start + piece * PIECE;
            for (i, element) in bytes.chunks_exact_mut(size).enumerate() {
                let at = (first + i) as u64;
                match self {
                    Fill::Norm => element.copy_from_slice(&(1.0 + 0.1 * about_normal(seed, at)).to_le_bytes()),
                    Fill::Exact => element.copy_from_slice(&(SIZE * about_normal(seed, at)).to_le_bytes()),
                    Fill::Half => element.copy_from_slice(&f16::from_f32(SIZE * about_normal(seed, at)).to_le_bytes()),
                    Fill::Ternary => element.copy_from_slice(&(split_mix(seed, at) as u32).to_le_bytes()),
                }
            }
        });
        Ok(bytes)
    }
}

/// The sum of four uniform 16-bit numbers, scaled to mean 0 and variance 1: close enough to normal for weights.
pub fn about_normal(seed: u64, i: u64) -> f32 {
    let bits = split_mix(seed, i);
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
