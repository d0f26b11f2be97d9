//! Keys and values as ops read and write them: rows of floats, or of 8-bit integers with a scale for each head.
//!
//! A cache of floats is `[rows, kv_heads · d]`. One of [`DType::Int8`] is `[rows, kv_heads, d]`: its scales, one for each head
//! of a row, lie behind all integers. Element `i` of a head is `q[i] · scale` with `scale = max |x| / 127` and
//! `q[i] = round(x[i] / scale)`: off by at most half a scale. A head with an element that is not finite gets a scale that is
//! not, so that whatever reads it is not finite either.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::Result;
use crate::ops::{require, simd};
use crate::plan::{Floats, Io};
use crate::quant::int8;
use crate::tensor::{DType, Spec};

/// Largest magnitude of an integer.
const MAX: f32 = 127.0;
/// A head without a larger element becomes zeros; the reciprocal of a number below it may be infinite.
const SMALLEST: f32 = 1e-30;

/// A cache of `rows` rows for keys or values of `kv_heads` heads of width `d`.
pub fn cache_spec(rows: usize, [kv_heads, d]: [usize; 2], dtype: DType) -> Spec {
    match dtype {
        DType::Int8 => Spec::fixed(&[rows, kv_heads, d], dtype),
        _ => Spec::fixed(&[rows, kv_heads * d], dtype),
    }
}

/// Elements of a row of keys or values, all heads side by side.
pub(super) fn row_width(x: &Spec) -> usize {
    if x.dtype == DType::Int8 { x.shape.iter().skip(1).product() } else { x.width() }
}

/// Keys or values of a matrix, of one matrix `[rows, ..]` or several `[m, rows, ..]`.
pub(super) fn rows_per_matrix(x: &Spec) -> usize {
    let row = if x.dtype == DType::Int8 { x.shape.first() } else { x.shape.iter().rev().nth(1) };
    row.copied().unwrap_or(1)
}

/// Keys of a row, of `n_keys` keys in all: first and count.
pub(super) fn row_span(row: &[u32], n_keys: usize) -> (usize, usize) {
    let first = n_keys.min(row[2] as usize);
    (first, (n_keys - first).min(row[3] as usize))
}

/// The word at which the scales of a cache of 8-bit integers begin.
pub(super) fn scales_at(x: &Spec) -> u32 {
    (x.len() / 4) as u32
}

/// Checks keys or values of which heads are read from column `at` on.
pub(super) fn check(what: &str, x: &Spec, at: usize, [kv_heads, d]: [usize; 2]) -> Result<()> {
    if x.dtype == DType::Int8 {
        let form = "[rows, kv heads, d] of 8-bit integers, d a multiple of 4";
        let fits = x.shape.len() == 3 && x.shape[1..] == [kv_heads, d] && at == 0 && d.is_multiple_of(4);
        return require(what, x, fits, form);
    }
    let float = matches!(x.dtype, DType::F32 | DType::F16);
    require(what, x, float && x.width() >= at + kv_heads * d, "F32 or F16 with room for all kv heads")
}

/// Keys or values as the plain definitions read them.
#[derive(Debug, Clone, Copy)]
pub(super) struct KvRows<'a> {
    data: Floats<'a>,
    /// Of 8-bit integers, a scale for each head.
    scales: &'a [f32],
    width: usize,
    d: usize,
}

impl<'a> KvRows<'a> {
    /// Input `i`, whose heads have `d` elements.
    pub fn input(io: &Io<'a>, i: usize, d: usize) -> Self {
        KvRows { data: io.floats(i), scales: scales(io, i), width: row_width(io.spec(i)), d }
    }

    /// An element.
    pub fn get(self, row: usize, column: usize) -> f32 {
        let at = row * self.width + column;
        let value = self.data.get(at);
        if self.scales.is_empty() { value } else { value * self.scales[at / self.d] }
    }
}

/// The scales of input `i`, by row and head; none for floats.
pub(super) fn scales<'a>(io: &Io<'a>, i: usize) -> &'a [f32] {
    if io.spec(i).dtype == DType::Int8 { io.int8(i).1 } else { &[] }
}

/// A cache that tasks write, each its own heads.
#[derive(Debug, Clone, Copy)]
pub(super) enum KvWriter<'a> {
    F32(simd::Shared<'a, f32>),
    F16(simd::Shared<'a, f16>),
    Int8(simd::Shared<'a, i8>, simd::Shared<'a, f32>),
}

impl<'a> KvWriter<'a> {
    /// Of the words of an output.
    pub fn new((spec, words): &'a mut (&Spec, &mut [u32])) -> Self {
        match spec.dtype {
            DType::Int8 => {
                let (integers, scales) = int8::parts_mut(words, spec.rows(), spec.width());
                KvWriter::Int8(simd::Shared::new(integers), simd::Shared::new(scales))
            }
            DType::F16 => KvWriter::F16(simd::Shared::new(bytemuck::cast_slice_mut(words))),
            _ => KvWriter::F32(simd::Shared::new(bytemuck::cast_slice_mut(words))),
        }
    }

    /// Writes head number `head`, counted over all rows.
    ///
    /// # Safety
    /// No other task writes this head.
    pub unsafe fn write(self, head: usize, values: &[f32]) {
        let d = values.len();
        // SAFETY: heads do not overlap, and no other task writes this one, by the contract.
        unsafe {
            match self {
                KvWriter::F32(all) => all.slice(head * d, d).copy_from_slice(values),
                KvWriter::F16(all) => all.slice(head * d, d).convert_from_f32_slice(values),
                KvWriter::Int8(all, scales) => {
                    scales.slice(head, 1)[0] = quantise(values, all.slice(head * d, d));
                }
            }
        }
    }
}

/// The integers of a head; returns their scale.
fn quantise(values: &[f32], integers: &mut [i8]) -> f32 {
    // Magnitudes are in the order of their bits, NaN's behind infinity's.
    let max = f32::from_bits(values.iter().fold(0, |max, v| max.max(v.to_bits() & 0x7fff_ffff)));
    let factor = if max > SMALLEST { MAX / max } else { 0.0 };
    simd::quantise(values, factor, MAX, integers);
    max * (1.0 / MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_element_is_off_by_at_most_half_a_scale() {
        let values: Vec<f32> = (0..72).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.03).collect();
        let mut integers = [0; 72];
        let scale = quantise(&values, &mut integers);
        assert!(integers.iter().any(|q| q.abs() == 127), "the largest element has the largest integer");
        for (q, v) in integers.iter().zip(values) {
            assert!((f32::from(*q) * scale - v).abs() <= 0.500_1 * scale, "{v} became {q} times {scale}");
        }
    }

    #[test]
    fn nothing_is_zero_and_what_is_not_finite_stays_so() {
        let mut integers = [1; 3];
        assert_eq!(quantise(&[0.0; 3], &mut integers), 0.0);
        assert_eq!(integers, [0; 3]);
        assert!(quantise(&[1e-38, 0.0, -1e-40], &mut integers) >= 0.0);
        assert_eq!(integers, [0; 3]);
        assert!(quantise(&[1.0, f32::NAN, 2.0], &mut integers).is_nan());
        assert!(quantise(&[1.0, f32::NEG_INFINITY, 2.0], &mut integers).is_infinite());
    }
}
