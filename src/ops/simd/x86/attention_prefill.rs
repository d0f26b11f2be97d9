//! Attention of many queries over the same keys, for x86-64 with AVX2 and FMA, or AVX-512: the keys of a head are laid out by
//! columns once, and then scores and weighted sums are products whose sums stay in registers.

use std::ops::Range;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::attention::{Whole, WholeKernel};
use crate::ops::simd::x86::floats::{avx2, avx512};
use crate::ops::simd::{Shared, maths};

/// The best kernel for heads of width `d` that this processor can run, if there is one.
pub fn kernel(d: usize) -> Option<WholeKernel> {
    macro_rules! of {
        ($of:ident, $queries:literal, $columns:literal, $together:literal) => {
            // SAFETY: the processor has what the level says.
            |attention, rows, head, y| unsafe {
                $of::queries::<$queries, $columns, $together>(attention, rows, head, y)
            }
        };
    }
    // As many queries at once as leave their sums in registers.
    if allows(CpuLevel::Avx512) {
        return Some(match d {
            16 => of!(of_avx512, 6, 1, 1),
            32 => of!(of_avx512, 6, 2, 2),
            64 => of!(of_avx512, 6, 4, 4),
            80 => of!(of_avx512, 4, 5, 5),
            96 => of!(of_avx512, 4, 6, 6),
            128 => of!(of_avx512, 2, 8, 8),
            _ => return None,
        });
    }
    if !allows(CpuLevel::Avx2) {
        return None;
    }
    Some(match d {
        16 => of!(of_avx2, 6, 2, 2),
        32 => of!(of_avx2, 6, 4, 2),
        64 => of!(of_avx2, 6, 8, 2),
        80 => of!(of_avx2, 6, 10, 2),
        96 => of!(of_avx2, 6, 12, 2),
        128 => of!(of_avx2, 6, 16, 2),
        _ => return None,
    })
}

/// Defines the kernel for vectors `$v`, which computes scores of up to `$keys` vectors of keys at a time.
macro_rules! kernel {
    ($name:ident, $features:literal, $v:ident, $keys:literal) => {
        mod $name {
            use super::*;

            const LANES: usize = $v::LANES;
            /// Keys are padded to a multiple of this: two vectors, the smallest unit in which scores are computed.
            const PAD: usize = 2 * LANES;

            /// Queries `rows`, which read the same keys, of one head of `C` vectors, `A` at a time; values of `W` vectors of it
            /// are added up at a time.
            #[target_feature(enable = $features)]
            pub fn queries<const A: usize, const C: usize, const W: usize>(
                whole: &Whole,
                rows: Range<usize>,
                head: usize,
                y: Shared<'_, f32>,
            ) {
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
                    for from in (0..padded).step_by($keys * LANES) {
                        match padded - from {
                            PAD => scores::<A, 2>(q, keys, from, of.scale, weights),
                            _ => scores::<A, $keys>(q, keys, from, of.scale, weights),
                        }
                    }
                    let sums: [f32; A] = std::array::from_fn(|a| weigh(&mut weights[a * padded..][..padded], n));
                    for from in (0..C).step_by(W) {
                        let out = weighted::<A, C, W>(values, weights, from, padded);
                        for a in 0..A.min(rows.end - r) {
                            let at = ((r + a) * of.heads + head) * d + from * LANES;
                            // SAFETY: each (query, head) belongs to one task.
                            let y = unsafe { y.slice(at, W * LANES) };
                            for (y, out) in y.chunks_exact_mut(LANES).zip(out[a]) {
                                // SAFETY: `y` has an element for each lane.
                                unsafe { $v::store(y.as_mut_ptr(), out) };
                                y.iter_mut().for_each(|y| *y /= sums[a]);
                            }
                        }
                    }
                }
            }

            /// The scores of `A` queries with `V` vectors of keys from number `from` on; keys are by columns.
            #[inline]
            #[target_feature(enable = $features)]
            fn scores<const A: usize, const V: usize>(
                q: [&[f32]; A],
                keys: &[f32],
                from: usize,
                scale: f32,
                y: &mut [f32],
            ) {
                let (d, padded) = (q[0].len(), y.len() / A);
                assert!(
                    q.iter().all(|q| q.len() == d) && keys.len() == d * padded && from + V * LANES <= padded,
                    "keys by columns"
                );
                let mut acc = [[$v::zero(); V]; A];
                for i in 0..d {
                    let k: [_; V] = std::array::from_fn(|v| {
                        // SAFETY: inside column i, by the assertion.
                        unsafe { $v::load(keys.as_ptr().add(i * padded + from + v * LANES)) }
                    });
                    for a in 0..A {
                        // SAFETY: every query has d elements.
                        let q = $v::splat(unsafe { *q[a].get_unchecked(i) });
                        for (acc, k) in acc[a].iter_mut().zip(k) {
                            *acc = $v::multiply_add(q, k, *acc);
                        }
                    }
                }
                for (a, sums) in acc.into_iter().enumerate() {
                    for (v, sum) in sums.into_iter().enumerate() {
                        // SAFETY: inside row a of y, by the assertion.
                        unsafe {
                            let to = y.as_mut_ptr().add(a * padded + from + v * LANES);
                            $v::store(to, $v::multiply(sum, $v::splat(scale)));
                        }
                    }
                }
            }

            /// A query's scores become weights, behind its `n` keys such that add nothing; returns their sum.
            #[inline]
            #[target_feature(enable = $features)]
            fn weigh(scores: &mut [f32], n: usize) -> f32 {
                scores[n..].fill(f32::MIN);
                let mut lanes = [f32::MIN; LANES];
                for scores in scores.chunks_exact(LANES) {
                    lanes
                        .iter_mut()
                        .zip(scores)
                        .for_each(|(max, &score)| *max = if score > *max { score } else { *max });
                }
                let max = lanes.into_iter().fold(f32::MIN, f32::max);
                // All scores are -∞, or there is no key.
                maths::exp_all_inline::<true>(scores, if max > f32::MIN { max } else { f32::NAN })
            }

            /// Vectors `from..from + W` of the values, weighted for `A` queries.
            #[inline]
            #[target_feature(enable = $features)]
            fn weighted<const A: usize, const C: usize, const W: usize>(
                values: &[f32],
                weights: &[f32],
                from: usize,
                padded: usize,
            ) -> [[$v::Floats; W]; A] {
                let n = values.len() / (C * LANES);
                assert!(n <= padded && weights.len() == A * padded && from + W <= C, "weights of a query");
                let mut acc = [[$v::zero(); W]; A];
                for (j, v) in values.chunks_exact(C * LANES).enumerate() {
                    // SAFETY: a row of values has C vectors.
                    let v: [_; W] = std::array::from_fn(|c| unsafe { $v::load(v.as_ptr().add((from + c) * LANES)) });
                    for a in 0..A {
                        // SAFETY: `j < n <= padded`.
                        let w = $v::splat(unsafe { *weights.get_unchecked(a * padded + j) });
                        for (acc, v) in acc[a].iter_mut().zip(v) {
                            *acc = $v::multiply_add(w, v, *acc);
                        }
                    }
                }
                acc
            }
        }
    };
}

kernel!(of_avx2, "avx2,fma,f16c", avx2, 2);
kernel!(of_avx512, "avx512f,avx512vl", avx512, 4);
