//! Attention of many queries over the same keys, for x86-64 with AVX-512: the keys of a head are laid out by columns once,
//! and then scores and weighted sums are products whose sums stay in registers.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::attention::{Whole, WholeKernel};
use crate::ops::simd::{Shared, maths};

/// Floats of a vector.
const LANES: usize = 16;
/// Keys are padded to a multiple of this: two vectors, the smallest unit in which scores are computed.
const PAD: usize = 2 * LANES;

/// The kernel for heads of width `d`, if there is one that this processor can run.
pub fn kernel(d: usize) -> Option<WholeKernel> {
    if !allows(CpuLevel::Avx512) {
        return None;
    }
    macro_rules! of {
        ($queries:literal, $columns:literal) => {
            // SAFETY: the processor has AVX-512F.
            |attention, rows, head, y| unsafe { queries::<$queries, $columns>(attention, rows, head, y) }
        };
    }
    // As many queries at once as leave their sums in registers.
    Some(match d {
        16 => of!(6, 1),
        32 => of!(6, 2),
        64 => of!(6, 4),
        80 => of!(4, 5),
        96 => of!(4, 6),
        128 => of!(2, 8),
        _ => return None,
    })
}

/// Queries `rows`, which read the same keys, of one head of `16 · C` columns, `A` at a time.
#[target_feature(enable = "avx512f")]
fn queries<const A: usize, const C: usize>(whole: &Whole, rows: Range<usize>, head: usize, y: Shared<'_, f32>) {
    let (d, of) = (C * LANES, whole.of);
    let Some(&(first, n)) = of.spans.get(rows.start) else { return };
    let kv = head / of.group;
    let padded = n.next_multiple_of(PAD);
    let mut room = vec![0.0; d * padded + n * d + A * padded];
    let (keys, rest) = room.split_at_mut(d * padded);
    let (values, weights) = rest.split_at_mut(n * d);
    for j in 0..n {
        let (k, v) = (whole.k.row(first + j, kv * d, d), whole.v.row(first + j, kv * d, d));
        keys[j..].iter_mut().step_by(padded).zip(k).for_each(|(to, k)| *to = *k);
        values[j * d..][..d].copy_from_slice(v);
    }
    for r in rows.clone().step_by(A) {
        // The last query alone is taken several times.
        let q: [&[f32]; A] = std::array::from_fn(|a| of.q.row((r + a).min(rows.end - 1), head * d, d));
        for from in (0..padded).step_by(4 * LANES) {
            match padded - from {
                PAD => scores::<A, 2>(q, keys, from, of.scale, weights),
                _ => scores::<A, 4>(q, keys, from, of.scale, weights),
            }
        }
        let sums: [f32; A] = std::array::from_fn(|a| weigh(&mut weights[a * padded..][..padded], n));
        let out = weighted::<A, C>(values, weights, padded);
        for a in 0..A.min(rows.end - r) {
            // SAFETY: each (query, head) belongs to one task.
            let y = unsafe { y.slice(((r + a) * of.heads + head) * d, d) };
            for (y, out) in y.chunks_exact_mut(LANES).zip(out[a]) {
                // SAFETY: the array has an element for each lane.
                unsafe { _mm512_storeu_ps(y.as_mut_ptr(), _mm512_div_ps(out, _mm512_set1_ps(sums[a]))) };
            }
        }
    }
}

/// The scores of `A` queries with `16 · V` keys from number `from` on; keys are by columns.
#[inline]
#[target_feature(enable = "avx512f")]
fn scores<const A: usize, const V: usize>(q: [&[f32]; A], keys: &[f32], from: usize, scale: f32, y: &mut [f32]) {
    let (d, padded) = (q[0].len(), y.len() / A);
    assert!(
        q.iter().all(|q| q.len() == d) && keys.len() == d * padded && from + V * LANES <= padded,
        "keys by columns"
    );
    let mut acc = [[_mm512_setzero_ps(); V]; A];
    for i in 0..d {
        // SAFETY: inside column i, by the assertion.
        let k: [_; V] =
            std::array::from_fn(|v| unsafe { _mm512_loadu_ps(keys.as_ptr().add(i * padded + from + v * LANES)) });
        for a in 0..A {
            // SAFETY: every query has d elements.
            let q = _mm512_set1_ps(unsafe { *q[a].get_unchecked(i) });
            for (acc, k) in acc[a].iter_mut().zip(k) {
                *acc = _mm512_fmadd_ps(q, k, *acc);
            }
        }
    }
    for (a, sums) in acc.into_iter().enumerate() {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: inside row a of y, by the assertion.
            unsafe {
                let to = y.as_mut_ptr().add(a * padded + from + v * LANES);
                _mm512_storeu_ps(to, _mm512_mul_ps(sum, _mm512_set1_ps(scale)));
            }
        }
    }
}

/// A query's scores become weights, behind its `n` keys such that add nothing; returns their sum.
#[inline]
#[target_feature(enable = "avx512f")]
fn weigh(scores: &mut [f32], n: usize) -> f32 {
    scores[n..].fill(f32::MIN);
    let mut max = _mm512_set1_ps(f32::MIN);
    for scores in scores.chunks_exact(LANES) {
        // SAFETY: there are 16.
        max = _mm512_max_ps(max, unsafe { _mm512_loadu_ps(scores.as_ptr()) });
    }
    let max = _mm512_reduce_max_ps(max);
    // All scores are -∞, or there is no key.
    maths::exp_all_inline(scores, if max > f32::MIN { max } else { f32::NAN })
}

/// The values, weighted for `A` queries.
#[inline]
#[target_feature(enable = "avx512f")]
fn weighted<const A: usize, const C: usize>(values: &[f32], weights: &[f32], padded: usize) -> [[__m512; C]; A] {
    let n = values.len() / (C * LANES);
    assert!(n <= padded && weights.len() == A * padded, "weights of a query");
    let mut acc = [[_mm512_setzero_ps(); C]; A];
    for (j, v) in values.chunks_exact(C * LANES).enumerate() {
        // SAFETY: a row of values has C vectors.
        let v: [_; C] = std::array::from_fn(|c| unsafe { _mm512_loadu_ps(v.as_ptr().add(c * LANES)) });
        for a in 0..A {
            // SAFETY: `j < n <= padded`.
            let w = _mm512_set1_ps(unsafe { *weights.get_unchecked(a * padded + j) });
            for (acc, v) in acc[a].iter_mut().zip(v) {
                *acc = _mm512_fmadd_ps(w, v, *acc);
            }
        }
    }
    acc
}
