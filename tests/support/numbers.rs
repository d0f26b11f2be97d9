//! Numbers as words, how near two lists of them are, and reproducible noise.
#![allow(dead_code)] // Each test uses a part.

use ternion::unstable::quant::Packed;

/// Floats as words.
pub fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|v| v.to_bits()).collect()
}

/// Words as floats.
pub fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&w| f32::from_bits(w)).collect()
}

/// Floats as words of two f16 each.
pub fn f16_words(data: &[f32]) -> Vec<u32> {
    let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
    data.chunks(2).map(|p| half(p[0]) | half(p.get(1).copied().unwrap_or(0.0)) << 16).collect()
}

/// The worst difference of two lists relative to `max(1, |want|)`: its size and index. NaN is worse than any number.
pub fn worst(found: &[f32], want: &[f32]) -> (f32, usize) {
    assert_eq!(found.len(), want.len(), "lengths");
    let mut worst = (0.0, 0);
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        let equal = f.to_bits() == w.to_bits();
        let diff = if equal { 0.0 } else { (f - w).abs() / w.abs().max(1.0) };
        let diff = if diff.is_nan() { f32::INFINITY } else { diff };
        if diff > worst.0 {
            worst = (diff, i);
        }
    }
    worst
}

/// Says where two lists differ by more than `tol` ([`worst`]), if they do.
pub fn compare(found: &[f32], want: &[f32], tol: f32) -> Result<(), String> {
    let (diff, at) = worst(found, want);
    if diff <= tol {
        return Ok(());
    }
    Err(format!("differs by {diff:e} > {tol:e} at {at} of {}: found {}, expected {}", want.len(), found[at], want[at]))
}

/// Reproducible numbers.
pub struct Noise(pub u64);

impl Noise {
    /// 32 random bits (splitmix64).
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    /// Floats in ±scale.
    pub fn f32s(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| (f64::from(self.word()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32 * scale).collect()
    }

    /// Activation codes of all 8 bits.
    pub fn acts(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.word() as u8 as i8).collect()
    }

    /// A ternary matrix; without zeros it takes 1 bit per code.
    pub fn packed(&mut self, rows: usize, cols: usize, zeros: bool, scale: f32) -> Packed<'static> {
        let code = |w: u32| if zeros { (w % 3) as i8 - 1 } else { (w % 2) as i8 * 2 - 1 };
        let codes: Vec<i8> = (0..rows * cols).map(|_| code(self.word())).collect();
        Packed::new(rows, cols, &codes, scale)
    }
}
