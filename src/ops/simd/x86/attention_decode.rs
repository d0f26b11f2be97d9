//! Scores and weighted sums of a block of keys, for x86-64 with AVX-512: f16 and 8-bit integers are widened in registers, and the sums of 16
//! dot products are made together, so that nothing but the block is read and nothing but the result is written.

use std::arch::x86_64::*;

use half::f16;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::attention::{BLOCK, Block, HEAD, Kernel};
use crate::ops::simd::maths;
use crate::plan::Floats;

/// Keys whose scores make a vector.
const KEYS: usize = 16;

/// The kernel for heads of width `d`, if this processor can run it and there is one.
pub fn kernel(d: usize) -> Option<Kernel> {
    if !allows(CpuLevel::Avx512) {
        return None;
    }
    macro_rules! of {
        ($columns:literal) => {
            |q, block, scale, partial| {
                // SAFETY: the processor has AVX-512F and VL.
                unsafe { heads::<$columns>(q, block, scale, partial) }
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
pub(in crate::ops::simd) fn sums(v: &[__m512; KEYS]) -> __m512 {
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

/// Query heads that take a block together: the weights of one are a long chain of operations, which others fill.
const HEADS: usize = 16;

/// Heads from `head` on, one or two, that share their keys.
fn pair(head: usize, heads: usize, group: usize) -> usize {
    1 + usize::from(head + 1 < heads && !(head + 1).is_multiple_of(group))
}

#[target_feature(enable = "avx512f,avx512vl")]
fn heads<const C: usize>(q: &[f32], block: &Block, scale: f32, partial: &mut [f32]) {
    match (block.k, block.v) {
        (Floats::F16(k), Floats::F16(v)) => f16_heads::<C>(q, (k, v), block, scale, partial),
        (Floats::F32(k), Floats::F32(v)) => f32_heads::<C>(q, (k, v), block, scale, partial),
        (Floats::Int8(k), Floats::Int8(v)) => int8_heads::<C>(q, (k, v), block, scale, partial),
        _ => unreachable!("keys and values have one dtype"),
    }
}

/// Elements of a cache line of this type.
const fn line<T>() -> usize {
    64 / size_of::<T>()
}

/// Defines the kernel for one element type, for heads of `16 · C` columns; `$scaled` says whether heads of a row have scales.
macro_rules! kernel {
    ($name:ident, $scores:ident, $keys:ident, $values:ident, $element:ty, $load:expr, $scaled:literal) => {
        #[target_feature(enable = "avx512f,avx512vl")]
        fn $name<const C: usize>(
            q: &[f32],
            (k, v): (&[$element], &[$element]),
            block: &Block,
            scale: f32,
            partial: &mut [f32],
        ) {
            let (d, words) = (C * KEYS, HEAD + C * KEYS);
            let heads = q.len() / d;
            assert!(q.len() == heads * d && partial.len() == heads * words, "a block's shapes");
            let mut weights = [[0.0; BLOCK]; HEADS];
            for from in (0..heads).step_by(HEADS) {
                let to = heads.min(from + HEADS);
                // While keys are read the block's values come, and then the next keys, front to back: heads lie side by
                // side, and memory is slow where it is read in strips.
                let (soon, later) = (v.as_ptr(), k.as_ptr().wrapping_offset(block.ahead));
                let mut head = from;
                while head < to {
                    let (n, at) = (pair(head, to, block.group), head / block.group * d);
                    let (q, scores) = (&q[head * d..][..n * d], &mut weights[head - from..][..n]);
                    let scales = if $scaled { &block.scales[0][head / block.group..] } else { &[] };
                    let soon = soon.wrapping_add(block.n * at);
                    match n {
                        2 => $scores::<C, 2>(q, (&k[at..], scales), soon, block, scale, scores),
                        _ => $scores::<C, 1>(q, (&k[at..], scales), soon, block, scale, scores),
                    }
                    head += n;
                }
                let mut shrinks = [0.0; HEADS];
                let partial = &mut partial[from * words..to * words];
                for ((weights, shrink), partial) in
                    weights.iter_mut().zip(&mut shrinks).zip(partial.chunks_exact_mut(words))
                {
                    *shrink = weigh(weights, partial);
                }
                if $scaled {
                    for (head, weights) in (from..to).zip(&mut weights) {
                        scale_weights(weights, &block.scales[1][head / block.group..], block);
                    }
                }
                head = from;
                while head < to {
                    let (n, at) = (pair(head, to, block.group), head / block.group * d);
                    let (weights, shrinks) = (&weights[head - from..][..n], &shrinks[head - from..][..n]);
                    let partial = &mut partial[(head - from) * words..][..n * words];
                    let later = later.wrapping_add(block.n * at);
                    match n {
                        2 => $values::<C, 2>(&v[at..], later, block, (weights, shrinks), partial),
                        _ => $values::<C, 1>(&v[at..], later, block, (weights, shrinks), partial),
                    }
                    head += n;
                }
            }
        }

        /// The scores of a block's keys, `scale` times the dot products; behind them the lowest number.
        #[target_feature(enable = "avx512f,avx512vl")]
        fn $scores<const C: usize, const G: usize>(
            q: &[f32],
            (k, scales): (&[$element], &[f32]),
            ahead: *const $element,
            block: &Block,
            scale: f32,
            scores: &mut [[f32; BLOCK]],
        ) {
            let (d, n) = (C * KEYS, block.n);
            assert!((1..=BLOCK).contains(&n) && q.len() == G * d && scores.len() == G, "a block's shapes");
            assert!(k.len() >= (n - 1) * block.k_width + d, "a block's keys");
            let mut wide = [[_mm512_setzero_ps(); C]; G];
            for (g, wide) in wide.iter_mut().enumerate() {
                for (c, wide) in wide.iter_mut().enumerate() {
                    // SAFETY: inside q, by the assertion.
                    *wide = unsafe { _mm512_loadu_ps(q.as_ptr().add(g * d + c * KEYS)) };
                }
            }
            let mut dots = [[_mm512_setzero_ps(); KEYS]; G];
            for from in (0..BLOCK).step_by(KEYS) {
                let keys = KEYS.min(n.saturating_sub(from));
                // SAFETY: key `from`, and the others below `n`, are inside k by the assertion.
                let first = unsafe { k.as_ptr().add(if keys > 0 { from * block.k_width } else { 0 }) };
                let ahead = ahead.wrapping_add(from * d);
                if keys == KEYS {
                    // A constant count unrolls.
                    $keys::<C, G>(&wide, first, block.k_width, ahead, KEYS, &mut dots);
                } else {
                    $keys::<C, G>(&wide, first, block.k_width, ahead, keys, &mut dots);
                }
                let there = ((1u32 << keys) - 1) as u16;
                let factor = match $scaled {
                    true => _mm512_mul_ps(_mm512_set1_ps(scale), scales_of(scales, from, keys, block)),
                    false => _mm512_set1_ps(scale),
                };
                for g in 0..G {
                    let lowest = _mm512_set1_ps(f32::MIN);
                    let all = _mm512_mask_mul_ps(lowest, there, sums(&dots[g]), factor);
                    // SAFETY: `from + 16 <= BLOCK`.
                    unsafe { _mm512_storeu_ps(scores[g].as_mut_ptr().add(from), all) };
                }
            }
        }

        /// Products of up to 16 keys with the queries, not yet added up.
        #[inline]
        #[target_feature(enable = "avx512f,avx512vl")]
        fn $keys<const C: usize, const G: usize>(
            wide: &[[__m512; C]; G],
            first: *const $element,
            width: usize,
            ahead: *const $element,
            keys: usize,
            dots: &mut [[__m512; KEYS]; G],
        ) {
            for j in 0..keys.min(KEYS) {
                let mut sums = [_mm512_setzero_ps(); G];
                for c in 0..C {
                    if c * KEYS % line::<$element>() == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add((j * C + c) * KEYS).cast());
                    }
                    // SAFETY: inside the keys, by the caller's assertion.
                    let key = unsafe { $load(first.add(j * width + c * KEYS)) };
                    for g in 0..G {
                        sums[g] = _mm512_fmadd_ps(wide[g][c], key, sums[g]);
                    }
                }
                for g in 0..G {
                    dots[g][j] = sums[g];
                }
            }
        }

        /// Adds the weighted values of a block.
        #[target_feature(enable = "avx512f,avx512vl")]
        fn $values<const C: usize, const G: usize>(
            v: &[$element],
            ahead: *const $element,
            block: &Block,
            (weights, shrinks): (&[[f32; BLOCK]], &[f32]),
            partial: &mut [f32],
        ) {
            let (n, words) = (block.n, HEAD + C * KEYS);
            assert!((1..=BLOCK).contains(&n) && weights.len() == G && shrinks.len() == G, "a block's shapes");
            assert!(partial.len() == G * words && v.len() >= (n - 1) * block.v_width + C * KEYS, "a block's values");
            let mut acc = [[_mm512_setzero_ps(); C]; G];
            for g in 0..G {
                for c in 0..C {
                    // SAFETY: inside `partial`, by the assertion.
                    let old = unsafe { _mm512_loadu_ps(partial.as_ptr().add(g * words + HEAD + c * KEYS)) };
                    acc[g][c] = _mm512_mul_ps(old, _mm512_set1_ps(shrinks[g]));
                }
            }
            for j in 0..n {
                for c in 0..C {
                    if c * KEYS % line::<$element>() == 0 {
                        _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add((j * C + c) * KEYS).cast());
                    }
                    // SAFETY: key `j < n`, inside v by the assertion.
                    let value = unsafe { $load(v.as_ptr().add(j * block.v_width + c * KEYS)) };
                    for g in 0..G {
                        acc[g][c] = _mm512_fmadd_ps(_mm512_set1_ps(weights[g][j]), value, acc[g][c]);
                    }
                }
            }
            for g in 0..G {
                for c in 0..C {
                    // SAFETY: inside `partial`, by the assertion.
                    unsafe { _mm512_storeu_ps(partial.as_mut_ptr().add(g * words + HEAD + c * KEYS), acc[g][c]) };
                }
            }
        }
    };
}

/// Scores become weights, of which those of the lowest number add nothing; returns what the sums so far shrink by.
#[target_feature(enable = "avx512f,avx512vl")]
fn weigh(scores: &mut [f32; BLOCK], partial: &mut [f32]) -> f32 {
    let max = maths::max_inline(scores).max(partial[0]);
    let shrink = maths::exp_inline(partial[0] - max);
    partial[0] = max;
    partial[1] = partial[1] * shrink + maths::exp_all_inline(scores, max);
    shrink
}

/// The scales of `keys` rows of a block from row `from` on, at most 16, behind them zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512vl")]
fn scales_of(scales: &[f32], from: usize, keys: usize, block: &Block) -> __m512 {
    let (width, last) = (block.scales_width, from + keys.saturating_sub(1));
    assert!(keys <= KEYS && last < BLOCK && (keys == 0 || last * width < scales.len()), "a scale for each row");
    let places = _mm512_mullo_epi32(
        _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
        _mm512_set1_epi32(width as i32),
    );
    let there = ((1u32 << keys) - 1) as u16;
    let first = scales.as_ptr().wrapping_add(from * width);
    // SAFETY: only rows below `keys` are read, which are there by the assertion.
    unsafe { _mm512_mask_i32gather_ps::<4>(_mm512_setzero_ps(), there, places, first) }
}

/// Weights become those of the integers of the values.
#[target_feature(enable = "avx512f,avx512vl")]
fn scale_weights(weights: &mut [f32; BLOCK], scales: &[f32], block: &Block) {
    for from in (0..block.n).step_by(KEYS) {
        let scales = scales_of(scales, from, KEYS.min(block.n - from), block);
        // SAFETY: `from + 16 <= BLOCK`, since `from < n <= BLOCK` is a multiple of 16.
        unsafe {
            let at = weights.as_mut_ptr().add(from);
            _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), scales));
        }
    }
}

/// 16 f16 as f32.
///
/// # Safety
/// 16 elements can be read.
#[target_feature(enable = "avx512f,avx512vl")]
pub(in crate::ops::simd) unsafe fn load16(at: *const f16) -> __m512 {
    // SAFETY: by the contract.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
}

/// 16 integers as f32.
///
/// # Safety
/// 16 elements can be read.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn load16_int8(at: *const i8) -> __m512 {
    // SAFETY: by the contract.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.cast()) }))
}

kernel!(f16_heads, f16_scores, f16_keys, f16_values, f16, load16, false);
kernel!(f32_heads, f32_scores, f32_keys, f32_values, f32, _mm512_loadu_ps, false);
kernel!(int8_heads, int8_scores, int8_keys, int8_values, i8, load16_int8, true);
