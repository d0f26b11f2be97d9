//! BitGen's episodic memory on the host: what it holds, noise on it, and which slots were read ([`EpisodicMemory`]);
//! writing, quality, ageing and counts (`changes`); its file (`file`).
//!
//! Nothing is trained here: the device reads the memory as an input of each pass, and what a write changes is there in
//! the next one.

mod changes;
mod file;

pub use changes::{DECAY_RATE, MemoryStatistics, MemoryWrite, QUALITY_RATE};

use crate::engine::sampler::uniform;
use crate::error::{Error, Result};
use crate::files::Weights;

/// A memory of slots that are found by their content. Source: Das et al. 2024 (Larimar).
#[derive(Debug, Clone, PartialEq)]
pub struct EpisodicMemory {
    /// Width of a slot.
    pub width: usize,
    /// The slots' means, `[slots, width]`.
    pub mean: Vec<f32>,
    /// The logarithm of the variance that all of them share.
    pub logvar: f32,
    /// What the cosine with a slot is multiplied by, `[slots]`.
    pub quality: Vec<f32>,
    /// In how many passes each slot was read, `[slots]`.
    pub read_count: Vec<f32>,
    /// How often each slot was written, `[slots]`.
    pub write_count: Vec<f32>,
    /// The slots' ages, `[slots]`.
    pub age: Vec<f32>,
}

/// Noise on the memory of one pass. The original always draws some, the mean itself is what it stands for.
#[derive(Debug, Clone, PartialEq, Default)]
#[non_exhaustive]
pub enum MemoryNoise {
    /// None: equal inputs give equal results.
    #[default]
    None,
    /// Normal noise from a seed.
    Seed(u64),
    /// Given by the caller, `[slots, width]`, of variance 1.
    Given(Vec<f32>),
}

impl EpisodicMemory {
    /// The memory of a checkpoint of `[slots, width]`.
    ///
    /// # Errors
    /// [`Error::MissingTensors`], [`Error::Shape`], [`Error::Unsupported`] for a tensor that is not there or not so,
    /// [`Error::Format`] for values that no memory has.
    pub fn load(weights: &Weights, sizes: [usize; 2]) -> Result<Self> {
        Self::read(weights.checkpoint(), "episodic_memory.gpm.", sizes)
    }

    /// Slots and their width.
    pub fn sizes(&self) -> [usize; 2] {
        [self.quality.len(), self.width]
    }

    /// What a pass reads, `[slots, width]`: `mean + noise · exp(logvar / 2)`.
    ///
    /// # Errors
    /// [`Error::Argument`] for given noise of another size.
    pub fn drawn(&self, noise: &MemoryNoise) -> Result<Vec<f32>> {
        let n = self.mean.len();
        let noise = match noise {
            MemoryNoise::None => return Ok(self.mean.clone()),
            MemoryNoise::Seed(seed) => normal(*seed, n),
            MemoryNoise::Given(noise) if noise.len() == n => noise.clone(),
            MemoryNoise::Given(noise) => {
                let problem = format!("{} values, expected {} x {}", noise.len(), n / self.width, self.width);
                return Err(Error::argument("memory noise", problem));
            }
        };
        let spread = (0.5 * self.logvar).exp();
        Ok(self.mean.iter().zip(noise).map(|(m, e)| m + e * spread).collect())
    }

    /// Counts a pass: each slot in `read` was read, however often it is there.
    pub fn count_reads(&mut self, read: &[u32]) {
        let mut seen = vec![false; self.read_count.len()];
        for &slot in read {
            if let Some(seen) = seen.get_mut(slot as usize) {
                *seen = true;
            }
        }
        self.read_count.iter_mut().zip(seen).for_each(|(count, seen)| *count += f32::from(u8::from(seen)));
    }
}

/// Normally distributed numbers of a seed, by the transformation of Box and Muller (1958).
fn normal(seed: u64, n: usize) -> Vec<f32> {
    let value = |i: u64| {
        // Both are in [0, 1); the logarithm wants (0, 1].
        let (u, v) = (1.0 - f64::from(uniform(seed, 2 * i)), f64::from(uniform(seed, 2 * i + 1)));
        ((-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()) as f32
    };
    (0..n as u64).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> EpisodicMemory {
        let counts = || vec![0.0; 2];
        EpisodicMemory {
            width: 2,
            mean: vec![1.0, 2.0, 3.0, 4.0],
            logvar: 2.0 * 0.5f32.ln(),
            quality: vec![1.0; 2],
            read_count: counts(),
            write_count: counts(),
            age: counts(),
        }
    }

    #[test]
    fn noise_is_scaled_by_the_spread_and_none_is_the_mean() {
        let memory = memory();
        assert_eq!(memory.drawn(&MemoryNoise::None).unwrap(), memory.mean);
        let drawn = memory.drawn(&MemoryNoise::Given(vec![2.0, 0.0, -2.0, 4.0])).unwrap();
        let want = [2.0, 2.0, 2.0, 6.0];
        assert!(drawn.iter().zip(want).all(|(d, w)| (d - w).abs() < 1e-6), "{drawn:?}");
        assert!(memory.drawn(&MemoryNoise::Given(vec![0.0; 3])).is_err());
    }

    #[test]
    fn seeded_noise_is_normal() {
        let x = normal(7, 20_000);
        let mean = x.iter().sum::<f32>() / x.len() as f32;
        let var = x.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / x.len() as f32;
        assert!(mean.abs() < 0.03 && (var - 1.0).abs() < 0.05, "{mean}, {var}");
        assert_eq!(x, normal(7, 20_000));
    }

    #[test]
    fn a_slot_counts_once_a_pass() {
        let mut memory = memory();
        memory.count_reads(&[1, 1, 1]);
        memory.count_reads(&[0, 1]);
        assert_eq!(memory.read_count, [1.0, 2.0]);
    }
}
