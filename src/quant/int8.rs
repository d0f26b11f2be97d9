//! Matrices of signed 8-bit integers with an f32 scale for each row.
//!
//! `w[o, i] ≈ scale[o] · q[o, i]` with `scale[o] = max_i |w[o, i]| / 127` and `q = round(w / scale)`, ties to even: an
//! element is off by at most half its row's scale. The words are all integers, four per word, then all scales, padded so
//! that kernels can read four words at a time.

use crate::alloc::zeros;
use crate::error::Result;
use crate::threads;

/// Largest magnitude of an integer.
const MAX: f32 = 127.0;
/// Added to a number of at most 2^22, it leaves the nearest integer, ties to even, in the sum's low bits.
const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
/// The number of words of a matrix is a multiple of this.
const ALIGN: usize = 4;
/// Rows that one task packs.
const TASK_ROWS: usize = 64;

/// Words of a matrix.
pub fn words(rows: usize, cols: usize) -> usize {
    ((rows * cols).div_ceil(4) + rows).next_multiple_of(ALIGN)
}

/// The words of a matrix whose rows have `cols` finite elements each.
///
/// # Errors
/// [`crate::Error::OutOfMemory`] if the system has no memory for them.
pub fn pack(values: &[f32], cols: usize) -> Result<Vec<u32>> {
    let rows = values.len() / cols.max(1);
    let mut all = zeros("a matrix of 8-bit integers", words(rows, cols))?;
    let (integers, scales) = all.split_at_mut((rows * cols).div_ceil(4));
    let integers: &mut [i8] = bytemuck::cast_slice_mut(integers);
    let (cols, piece) = (cols.max(1), TASK_ROWS * cols.max(1));
    let pieces = values.chunks(piece).zip(integers.chunks_mut(piece)).zip(scales.chunks_mut(TASK_ROWS));
    threads::shared().map(pieces, |((values, integers), scales)| {
        let rows = values.chunks_exact(cols).zip(integers.chunks_mut(cols)).zip(scales);
        rows.for_each(|((values, integers), scale)| *scale = quantise(values, integers).to_bits());
    });
    Ok(all)
}

/// The integers of one row; returns its scale.
fn quantise(values: &[f32], integers: &mut [i8]) -> f32 {
    let scale = values.iter().fold(0.0f32, |max, v| max.max(v.abs())) / MAX;
    if scale > 0.0 {
        for (q, v) in integers.iter_mut().zip(values) {
            *q = ((v / scale).clamp(-MAX, MAX) + ROUND).to_bits() as i8;
        }
    }
    scale
}

/// The integers `[rows · cols]` and the scales `[rows]` of a matrix.
pub fn parts(words: &[u32], rows: usize, cols: usize) -> (&[i8], &[f32]) {
    let (integers, scales) = words.split_at((rows * cols).div_ceil(4));
    (&bytemuck::cast_slice(integers)[..rows * cols], bytemuck::cast_slice(&scales[..rows]))
}

/// [`parts`] to be written.
pub fn parts_mut(words: &mut [u32], rows: usize, cols: usize) -> (&mut [i8], &mut [f32]) {
    let (integers, scales) = words.split_at_mut((rows * cols).div_ceil(4));
    (&mut bytemuck::cast_slice_mut(integers)[..rows * cols], bytemuck::cast_slice_mut(&mut scales[..rows]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_round_to_even_and_the_largest_is_127() {
        // Scales 2, 0 and 1/127.
        let values = [254.0, -1.0, 3.0, 5.0, 0.0, 0.0, 0.0, 0.0, 0.5, -1.0, 0.25, 1.0];
        let words = pack(&values, 4).unwrap();
        assert_eq!(words.len(), 8);
        let (integers, scales) = parts(&words, 3, 4);
        assert_eq!(integers[..8], [127, 0, 2, 2, 0, 0, 0, 0]);
        assert_eq!(integers[8..], [64, -127, 32, 127]);
        assert_eq!(scales, [2.0, 0.0, 1.0 / 127.0]);
    }

    #[test]
    fn an_element_is_off_by_at_most_half_a_scale() {
        let values: Vec<f32> = (0..700).map(|i| ((i * 37 % 101) as f32 - 50.0) * 1e-3 * (1 + i / 70) as f32).collect();
        let words = pack(&values, 70).unwrap();
        let (integers, scales) = parts(&words, 10, 70);
        for (i, v) in values.iter().enumerate() {
            let (q, scale) = (f32::from(integers[i]), scales[i / 70]);
            assert!((q * scale - v).abs() <= 0.500_01 * scale, "element {i}: {v} became {q} times {scale}");
        }
    }
}
