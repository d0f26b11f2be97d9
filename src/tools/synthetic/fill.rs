//! Random numbers as the bytes of tensors: any part of a tensor can be made by itself, on any thread.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::ops::split_mix;
use crate::threads;

/// Standard deviation of the elements of weights in 32 bits.
pub(super) const SIZE: f32 = 0.02;
/// Bytes that are made from one random number.
const STEP: usize = 8;
/// Bytes of a task.
const PIECE: usize = STEP << 13;
/// The upper bits of 2-bit codes.
const UPPER: u64 = 0xAAAA_AAAA_AAAA_AAAA;

/// What a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Fill {
    /// The weights of a norm: about normal around 1, in 32 bits.
    Norm,
    /// Weights and biases: about normal around 0, in 32 bits.
    Exact,
    /// One number, in 32 bits.
    Value(f32),
    /// 16-bit floats of which the bits `random` are, and the others those of `fixed`.
    Halves {
        /// Bits that are random.
        random: u16,
        /// What the others are.
        fixed: u16,
    },
    /// Any bits: codes of 1 bit.
    Bits,
    /// Codes of 2 bits: 0 and 2 a quarter of the time each, else 1.
    Codes,
}

impl Fill {
    /// Weights in 16 bits: magnitudes from 1/64 to 1/32, of either sign.
    pub const WEIGHTS: Fill = Fill::Halves { random: 0x83ff, fixed: exponent(-6) };

    /// 16-bit floats from 2^`power` to twice that.
    pub const fn positive(power: i32) -> Self {
        Fill::Halves { random: 0x03ff, fixed: exponent(power) }
    }

    /// The negative of [`Fill::positive`], element by element where their seeds are equal.
    pub const fn negative(power: i32) -> Self {
        Fill::Halves { random: 0x03ff, fixed: 0x8000 | exponent(power) }
    }

    /// The bytes of some elements of `size` bytes each of a tensor.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the tensor's name if the system has no memory for them.
    pub fn bytes(self, name: &str, seed: u64, size: usize, elements: Range<usize>) -> Result<Vec<u8>> {
        let len = size.saturating_mul(elements.len());
        let mut bytes: Vec<u8> = bytemuck::try_zeroed_vec(len).map_err(|()| Error::memory(name, len))?;
        let first = elements.start * size;
        // A row of scales is made by the thread that asks for it.
        if len <= PIECE {
            self.write(seed, first, &mut bytes);
        } else {
            let pieces = bytes.chunks_mut(PIECE).enumerate();
            threads::shared().map(pieces, |(i, piece)| self.write(seed, first + i * PIECE, piece));
        }
        Ok(bytes)
    }

    /// Writes the bytes of a tensor from byte `first` on.
    fn write(self, seed: u64, first: usize, to: &mut [u8]) {
        let (mut step, cut) = ((first / STEP) as u64, first % STEP);
        let mut rest = to;
        if cut > 0 {
            let end = rest.len().min(STEP - cut);
            let (head, tail) = rest.split_at_mut(end);
            head.copy_from_slice(&self.step(seed, step)[cut..cut + end]);
            (rest, step) = (tail, step + 1);
        }
        let (whole, end) = rest.as_chunks_mut::<STEP>();
        for (to, step) in whole.iter_mut().zip(step..) {
            *to = self.step(seed, step);
        }
        let last = self.step(seed, step + whole.len() as u64);
        end.iter_mut().zip(last).for_each(|(to, byte)| *to = byte);
    }

    /// Bytes `8 · step` to `8 · step + 7` of a tensor.
    fn step(self, seed: u64, step: u64) -> [u8; STEP] {
        let two = |value: &dyn Fn(u64) -> f32| {
            u64::from(value(2 * step).to_bits()) | u64::from(value(2 * step + 1).to_bits()) << 32
        };
        let four = |half: u16| u64::from(half) * 0x0001_0001_0001_0001;
        let random = || split_mix(seed, step);
        let made = match self {
            Fill::Norm => two(&|i| 1.0 + 0.1 * about_normal(seed, i)),
            Fill::Exact => two(&|i| SIZE * about_normal(seed, i)),
            Fill::Value(value) => two(&|_| value),
            Fill::Halves { random: mask, fixed } => random() & four(mask) | four(fixed),
            Fill::Bits => random(),
            // Of a 3 the upper bit goes.
            Fill::Codes => {
                let bits = random();
                bits & !(bits & bits << 1 & UPPER)
            }
        };
        made.to_le_bytes()
    }
}

/// The exponent of a normal 16-bit float.
const fn exponent(power: i32) -> u16 {
    ((power + 15) as u16) << 10
}

/// The sum of four uniform 16-bit numbers, scaled to mean 0 and variance 1: close enough to normal for weights.
pub fn about_normal(seed: u64, i: u64) -> f32 {
    let bits = split_mix(seed, i);
    let sum: u64 = (0..4).map(|k| bits >> (16 * k) & 0xFFFF).sum();
    (sum as f32 / 65535.0 - 2.0) * 3f32.sqrt()
}

#[cfg(test)]
mod tests {
    use half::f16;

    use super::*;

    #[test]
    fn a_part_of_a_tensor_is_the_same_as_in_the_whole() {
        let all = [
            (Fill::Norm, 4),
            (Fill::Exact, 4),
            (Fill::Value(0.5), 4),
            (Fill::WEIGHTS, 2),
            (Fill::Bits, 4),
            (Fill::Codes, 4),
            (Fill::Codes, 1),
        ];
        for (fill, size) in all {
            let bytes = |seed, elements| fill.bytes("x", seed, size, elements).unwrap();
            let whole = bytes(7, 0..200_000);
            assert_eq!(whole.len(), 200_000 * size);
            for part in [65_530..180_001, 3..5, 9..9, 1..70_000] {
                assert_eq!(bytes(7, part.clone()), whole[part.start * size..part.end * size], "{fill:?} {part:?}");
            }
            assert_eq!(bytes(8, 0..100) == whole[..100 * size], matches!(fill, Fill::Value(_)), "{fill:?}");
        }
    }

    #[test]
    fn the_numbers_have_mean_0_and_variance_1() {
        let all: Vec<f64> = (0..100_000).map(|i| f64::from(about_normal(3, i))).collect();
        let mean = all.iter().sum::<f64>() / 1e5;
        let variance = all.iter().map(|v| v * v).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (variance - 1.0).abs() < 0.02, "{mean} {variance}");
    }

    #[test]
    fn codes_are_0_1_and_2_around_1() {
        let mut counts = [0usize; 4];
        for byte in Fill::Codes.bytes("x", 5, 1, 0..100_000).unwrap() {
            (0..4).for_each(|k| counts[usize::from(byte >> (2 * k) & 3)] += 1);
        }
        assert_eq!(counts[3], 0);
        let near = |n: usize, share: f64| (n as f64 / 400_000.0 - share).abs() < 0.01;
        assert!(near(counts[0], 0.25) && near(counts[1], 0.5) && near(counts[2], 0.25), "{counts:?}");
    }

    #[test]
    fn halves_lie_between_powers_of_two() {
        let halves = |fill: Fill| -> Vec<f32> {
            let bytes = fill.bytes("x", 1, 2, 0..10_000).unwrap();
            bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect()
        };
        let (up, down) = (halves(Fill::positive(-5)), halves(Fill::negative(-6)));
        assert!(up.iter().all(|v| (1.0 / 32.0..1.0 / 16.0).contains(v)));
        assert!(up.iter().zip(&down).all(|(up, down)| *down == -0.5 * up));
        let weights = halves(Fill::WEIGHTS);
        assert!(weights.iter().all(|v| (1.0 / 64.0..1.0 / 32.0).contains(&v.abs())));
        let sum: f32 = weights.iter().sum();
        assert!(sum.abs() < 10.0, "{sum}");
    }
}
