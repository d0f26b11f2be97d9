//! Scores and weighted sums of a block of keys, for x86-64 with AVX-512: f16 is widened in registers, and the sums of 16
//! dot products are made together, so that nothing but the block is read and nothing but the result is written.

use std::arch::x86_64::*;

use half::f16;

use super::attention::{BLOCK, Block, HEAD, Kernel};
use super::maths;
use crate::plan::Floats;

/// Keys whose scores make a vector.
const KEYS: usize = 16;

/// The kernel for heads of width `d`, if this processor can run it and there is one.
pub fn kernel(d: usize) -> Option<Kernel> {
    if !(is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")) {
        return None;
    }
    macro_rules! of {
        ($columns:literal) => {
            |q, block, scale, seen| {
                // SAFETY: the processor has AVX-512F and VL.
                unsafe { group::<$columns>(q, block, scale, seen) }
            }
        };
    }
    Some(match d {
        16 => of!(1),
        32 => of!(2),
        64 => of!(4),
        80 => of!(5),
        96 => of!(6),
        128 => of!(8),
        _ => return None,
    })
}

/// The sum of each of 16 vectors, in one. By reference: an array of vectors is copied through memory.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn sums(v: &[__m512; KEYS]) -> __m512 {
    let add = |a, b| _mm512_add_ps(a, b);
    let pair = |i: usize| add(_mm512_unpacklo_ps(v[i], v[i + 1]), _mm512_unpackhi_ps(v[i], v[i + 1]));
    let four = |i: usize| {
        let (a, b) = (_mm512_castps_pd(pair(i)), _mm512_castps_pd(pair(i + 2)));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        add(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
    };
    // Quarter i of each is keys 0..4 of a group of four, a partial sum each.
    let (a, b, c, d) = (four(0), four(4), four(8), four(12));
    let (ab, cd) = (
        add(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)),
        add(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d)),
    );
    add(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
}

/// All query heads that share these keys, two at a time where there are two.
#[target_feature(enable = "avx512f,avx512vl")]
fn group<const C: usize>(q: &[f32], block: &Block, scale: f32, seen: &mut [f32]) {
    let d = C * KEYS;
    let (qs, seen) = (q.chunks(2 * d), seen.chunks_mut(2 * (HEAD + d)));
    for (q, seen) in qs.zip(seen) {
        match (q.len() / d, block.k, block.v) {
            (2, Floats::F16(k), Floats::F16(v)) => f16_heads::<C, 2>(q, (k, v), block, scale, seen),
            (1, Floats::F16(k), Floats::F16(v)) => f16_heads::<C, 1>(q, (k, v), block, scale, seen),
            (2, Floats::F32(k), Floats::F32(v)) => f32_heads::<C, 2>(q, (k, v), block, scale, seen),
            (1, Floats::F32(k), Floats::F32(v)) => f32_heads::<C, 1>(q, (k, v), block, scale, seen),
            _ => unreachable!("keys and values have one dtype, and heads are whole"),
        }
    }
}

/// Defines the kernel for one element type: `G` heads of `16 · C` columns.
macro_rules! heads {
    ($name:ident, $scores:ident, $element:ty, $load:expr) => {
        /// The scores of a block's keys, `scale` times the dot products; behind them the lowest number.
        #[target_feature(enable = "avx512f,avx512vl")]
        fn $scores<const C: usize, const G: usize>(
            q: &[f32],
            k: &[$element],
            block: &Block,
            scale: f32,
        ) -> [[f32; BLOCK]; G] {
            let (d, n) = (C * KEYS, block.n);
            assert!((1..=BLOCK).contains(&n) && q.len() == G * d, "a block's shapes");
            assert!(k.len() >= (n - 1) * block.k_width + d, "a block's keys");
            let mut wide = [[_mm512_setzero_ps(); C]; G];
            for (g, wide) in wide.iter_mut().enumerate() {
                for (c, wide) in wide.iter_mut().enumerate() {
                    // SAFETY: inside q, by the assertion.
                    *wide = unsafe { _mm512_loadu_ps(q.as_ptr().add(g * d + c * KEYS)) };
                }
            }
            let mut scores = [[f32::MIN; BLOCK]; G];
            for from in (0..n).step_by(KEYS) {
                let mut dots = [[_mm512_setzero_ps(); KEYS]; G];
                let keys = KEYS.min(n - from);
                for j in 0..keys {
                    for c in 0..C {
                        // SAFETY: key `from + j < n`, inside k by the assertion.
                        let at = unsafe { k.as_ptr().add((from + j) * block.k_width + c * KEYS) };
                        let next = block.ahead[0] + (from + j) * d + c * KEYS;
                        _mm_prefetch::<_MM_HINT_T0>(k.as_ptr().wrapping_add(next).cast());
                        // SAFETY: as above.
                        let key = unsafe { $load(at) };
                        for g in 0..G {
                            dots[g][j] = _mm512_fmadd_ps(wide[g][c], key, dots[g][j]);
                        }
                    }
                }
                for g in 0..G {
                    let there = ((1u32 << keys) - 1) as u16;
                    let lowest = _mm512_set1_ps(f32::MIN);
                    let all = _mm512_mask_mul_ps(lowest, there, sums(&dots[g]), _mm512_set1_ps(scale));
                    // SAFETY: `from + 16 <= BLOCK`.
                    unsafe { _mm512_storeu_ps(scores[g].as_mut_ptr().add(from), all) };
                }
            }
            scores
        }

        #[target_feature(enable = "avx512f,avx512vl")]
        fn $name<const C: usize, const G: usize>(
            q: &[f32],
            (k, v): (&[$element], &[$element]),
            block: &Block,
            scale: f32,
            seen: &mut [f32],
        ) {
            let (n, words) = (block.n, HEAD + C * KEYS);
            let mut scores = $scores::<C, G>(q, k, block, scale);
            assert!(seen.len() == G * words && v.len() >= (n - 1) * block.v_width + C * KEYS, "a block's values");
            let mut acc = [[_mm512_setzero_ps(); C]; G];
            for g in 0..G {
                let shrink = weigh(&mut scores[g], &mut seen[g * words..]);
                for (c, acc) in acc[g].iter_mut().enumerate() {
                    // SAFETY: inside `seen`, by the assertion.
                    let old = unsafe { _mm512_loadu_ps(seen.as_ptr().add(g * words + HEAD + c * KEYS)) };
                    *acc = _mm512_mul_ps(old, _mm512_set1_ps(shrink));
                }
            }
            for j in 0..n {
                for c in 0..C {
                    // SAFETY: key `j < n`, inside v by the assertion.
                    let at = unsafe { v.as_ptr().add(j * block.v_width + c * KEYS) };
                    let next = block.ahead[1] + j * C * KEYS + c * KEYS;
                    _mm_prefetch::<_MM_HINT_T0>(v.as_ptr().wrapping_add(next).cast());
                    // SAFETY: as above.
                    let value = unsafe { $load(at) };
                    for g in 0..G {
                        acc[g][c] = _mm512_fmadd_ps(_mm512_set1_ps(scores[g][j]), value, acc[g][c]);
                    }
                }
            }
            for g in 0..G {
                for (c, acc) in acc[g].iter().enumerate() {
                    // SAFETY: inside `seen`, by the assertion.
                    unsafe { _mm512_storeu_ps(seen.as_mut_ptr().add(g * words + HEAD + c * KEYS), *acc) };
                }
            }
        }
    };
}

/// Scores become weights, of which those of the lowest number add nothing; returns what the sums so far shrink by.
#[target_feature(enable = "avx512f,avx512vl")]
fn weigh(scores: &mut [f32; BLOCK], seen: &mut [f32]) -> f32 {
    let top = maths::max_inline(scores).max(seen[0]);
    let shrink = maths::exp_inline(seen[0] - top);
    seen[0] = top;
    seen[1] = seen[1] * shrink + maths::exp_all_inline(scores, top);
    shrink
}

/// 16 f16 as f32.
///
/// # Safety
/// 16 elements can be read.
#[target_feature(enable = "avx512f,avx512vl")]
pub(super) unsafe fn load16(at: *const f16) -> __m512 {
    // SAFETY: by the contract.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

heads!(f16_heads, f16_scores, f16, load16);
heads!(f32_heads, f32_scores, f32, _mm512_loadu_ps);
