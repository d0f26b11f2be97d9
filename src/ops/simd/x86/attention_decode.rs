//! Scores and weighted sums of a block of keys, for x86-64 with AVX2, FMA and F16C, or AVX-512: f16 and 8-bit integers are widened
//! in registers, and the sums of as many dot products as a vector has lanes are made together, so that nothing but the block is
//! read and nothing but the result is written.

use half::f16;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::attention::{BLOCK, Block, HEAD, Kernel};
use crate::ops::simd::x86::floats::{avx2, avx512};
use crate::ops::simd::{maths, prefetch};
use crate::plan::Floats;

/// The best kernel for heads of width `d` that this processor can run, if there is one.
pub fn kernel(d: usize) -> Option<Kernel> {
    macro_rules! of {
        ($heads:ident, $columns:literal, $together:literal, $sharing:literal) => {
            |q, block, scale, partial| {
                // SAFETY: the processor has what the level says.
                unsafe { $heads::<$columns, $together, $sharing>(q, block, scale, partial) }
            }
        };
    }
    if allows(CpuLevel::Avx512) {
        return Some(match d {
            16 => of!(heads_avx512, 1, 1, 4),
            32 => of!(heads_avx512, 2, 2, 4),
            64 => of!(heads_avx512, 4, 4, 4),
            80 => of!(heads_avx512, 5, 5, 2),
            96 => of!(heads_avx512, 6, 6, 2),
            128 => of!(heads_avx512, 8, 8, 2),
            _ => return None,
        });
    }
    if !allows(CpuLevel::Avx2) {
        return None;
    }
    Some(match d {
        16 => of!(heads_avx2, 2, 2, 2),
        32 => of!(heads_avx2, 4, 4, 2),
        64 => of!(heads_avx2, 8, 4, 2),
        80 => of!(heads_avx2, 10, 5, 2),
        96 => of!(heads_avx2, 12, 4, 2),
        128 => of!(heads_avx2, 16, 4, 2),
        _ => return None,
    })
}

/// Query heads that take a block together: the weights of one are a long chain of operations, which others fill.
const HEADS: usize = 16;

/// Heads from `head` on that share their keys: `most`, two or one.
fn sharing(head: usize, heads: usize, group: usize, most: usize) -> usize {
    let all = (group - head % group).min(heads - head);
    if all >= most { most } else { all.min(2) }
}

/// Defines the kernel of one set of instructions: heads of `C` vectors, of which the values of `W` are added up at a time, and of
/// which `G` that share their keys take them together.
macro_rules! heads {
    ($heads:ident, $features:literal, $of_f16:ident, $of_f32:ident, $of_int8:ident) => {
        #[target_feature(enable = $features)]
        fn $heads<const C: usize, const W: usize, const G: usize>(
            q: &[f32],
            block: &Block,
            scale: f32,
            partial: &mut [f32],
        ) {
            match (block.k, block.v) {
                (Floats::F16(k), Floats::F16(v)) => $of_f16::heads::<C, W, G>(q, (k, v), block, scale, partial),
                (Floats::F32(k), Floats::F32(v)) => $of_f32::heads::<C, W, G>(q, (k, v), block, scale, partial),
                (Floats::Int8(k), Floats::Int8(v)) => $of_int8::heads::<C, W, G>(q, (k, v), block, scale, partial),
                _ => unreachable!("keys and values have one dtype"),
            }
        }
    };
}
heads!(heads_avx2, "avx2,fma,f16c", f16_avx2, f32_avx2, int8_avx2);
heads!(heads_avx512, "avx512f,avx512vl", f16_avx512, f32_avx512, int8_avx512);

/// Elements of a cache line of this type.
const fn line<T>() -> usize {
    64 / size_of::<T>()
}

/// Defines the kernel for vectors `$v` and one element type, which `$load` widens; `$scaled` says whether heads of a row have
/// scales.
macro_rules! kernel {
    ($name:ident, $features:literal, $v:ident, $element:ty, $load:ident, $scaled:literal) => {
        mod $name {
            use super::*;

            const LANES: usize = $v::LANES;

            #[target_feature(enable = $features)]
            pub fn heads<const C: usize, const W: usize, const G: usize>(
                q: &[f32],
                (k, v): (&[$element], &[$element]),
                block: &Block,
                scale: f32,
                partial: &mut [f32],
            ) {
                let (d, words) = (C * LANES, HEAD + C * LANES);
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
                        let (n, at) = (sharing(head, to, block.group, G), head / block.group * d);
                        let (q, scores) = (&q[head * d..][..n * d], &mut weights[head - from..][..n]);
                        let scales = if $scaled { &block.scales[0][head / block.group..] } else { &[] };
                        let soon = soon.wrapping_add(block.n * at);
                        match n {
                            4 => self::scores::<C, 4>(q, (&k[at..], scales), soon, block, scale, scores),
                            2 => self::scores::<C, 2>(q, (&k[at..], scales), soon, block, scale, scores),
                            _ => self::scores::<C, 1>(q, (&k[at..], scales), soon, block, scale, scores),
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
                        let (n, at) = (sharing(head, to, block.group, G), head / block.group * d);
                        let (weights, shrinks) = (&weights[head - from..][..n], &shrinks[head - from..][..n]);
                        let partial = &mut partial[(head - from) * words..][..n * words];
                        let later = later.wrapping_add(block.n * at);
                        match n {
                            4 => values::<C, 4, W>(&v[at..], later, block, (weights, shrinks), partial),
                            2 => values::<C, 2, W>(&v[at..], later, block, (weights, shrinks), partial),
                            _ => values::<C, 1, W>(&v[at..], later, block, (weights, shrinks), partial),
                        }
                        head += n;
                    }
                }
            }

            /// The scores of a block's keys, `scale` times the dot products; behind them the lowest number.
            #[target_feature(enable = $features)]
            fn scores<const C: usize, const G: usize>(
                q: &[f32],
                (k, scales): (&[$element], &[f32]),
                ahead: *const $element,
                block: &Block,
                scale: f32,
                scores: &mut [[f32; BLOCK]],
            ) {
                let (d, n) = (C * LANES, block.n);
                assert!((1..=BLOCK).contains(&n) && q.len() == G * d && scores.len() == G, "a block's shapes");
                assert!(k.len() >= (n - 1) * block.k_width + d, "a block's keys");
                let mut wide = [[$v::zero(); C]; G];
                for (g, wide) in wide.iter_mut().enumerate() {
                    for (c, wide) in wide.iter_mut().enumerate() {
                        // SAFETY: inside q, by the assertion.
                        *wide = unsafe { $v::load(q.as_ptr().add(g * d + c * LANES)) };
                    }
                }
                let mut dots = [[$v::zero(); LANES]; G];
                for from in (0..n).step_by(LANES) {
                    let keys = LANES.min(n - from);
                    // SAFETY: key `from`, and the others below `n`, are inside k by the assertion.
                    let first = unsafe { k.as_ptr().add(from * block.k_width) };
                    let ahead = ahead.wrapping_add(from * d);
                    if keys == LANES {
                        // A constant count unrolls.
                        self::keys::<C, G>(&wide, first, block.k_width, ahead, LANES, &mut dots);
                    } else {
                        self::keys::<C, G>(&wide, first, block.k_width, ahead, keys, &mut dots);
                    }
                    let factor = match $scaled {
                        true => $v::multiply($v::splat(scale), scales_of(scales, from, keys, block)),
                        false => $v::splat(scale),
                    };
                    for g in 0..G {
                        let all = $v::multiply($v::sums(&dots[g]), factor);
                        // SAFETY: `from < n <= BLOCK`, which is a multiple of the lanes as `from` is.
                        unsafe { $v::store(scores[g].as_mut_ptr().add(from), all) };
                    }
                }
                scores.iter_mut().for_each(|scores| scores[n..].fill(f32::MIN));
            }

            /// Products of up to as many keys as lanes with the queries, not yet added up.
            #[inline]
            #[target_feature(enable = $features)]
            fn keys<const C: usize, const G: usize>(
                wide: &[[$v::Floats; C]; G],
                first: *const $element,
                width: usize,
                ahead: *const $element,
                keys: usize,
                dots: &mut [[$v::Floats; LANES]; G],
            ) {
                for j in 0..keys.min(LANES) {
                    let mut sums = [$v::zero(); G];
                    for c in 0..C {
                        if c * LANES % line::<$element>() == 0 {
                            prefetch::into_first(ahead.wrapping_add((j * C + c) * LANES));
                        }
                        // SAFETY: inside the keys, by the caller's assertion.
                        let key = unsafe { $v::$load(first.add(j * width + c * LANES)) };
                        for g in 0..G {
                            sums[g] = $v::multiply_add(wide[g][c], key, sums[g]);
                        }
                    }
                    for g in 0..G {
                        dots[g][j] = sums[g];
                    }
                }
            }

            /// Adds the weighted values of a block.
            #[target_feature(enable = $features)]
            fn values<const C: usize, const G: usize, const W: usize>(
                v: &[$element],
                ahead: *const $element,
                block: &Block,
                (weights, shrinks): (&[[f32; BLOCK]], &[f32]),
                partial: &mut [f32],
            ) {
                let (n, words) = (block.n, HEAD + C * LANES);
                assert!((1..=BLOCK).contains(&n) && weights.len() == G && shrinks.len() == G, "a block's shapes");
                assert!(C.is_multiple_of(W) && partial.len() == G * words, "a block's results");
                assert!(v.len() >= (n - 1) * block.v_width + C * LANES, "a block's values");
                for from in (0..C).step_by(W) {
                    let mut acc = [[$v::zero(); W]; G];
                    for g in 0..G {
                        for c in 0..W {
                            // SAFETY: inside `partial`, by the assertion.
                            let old = unsafe { $v::load(partial.as_ptr().add(g * words + HEAD + (from + c) * LANES)) };
                            acc[g][c] = $v::multiply(old, $v::splat(shrinks[g]));
                        }
                    }
                    for j in 0..n {
                        for c in 0..W {
                            if (from + c) * LANES % line::<$element>() == 0 {
                                prefetch::into_first(ahead.wrapping_add((j * C + from + c) * LANES));
                            }
                            // SAFETY: key `j < n`, inside v by the assertion.
                            let value = unsafe { $v::$load(v.as_ptr().add(j * block.v_width + (from + c) * LANES)) };
                            for g in 0..G {
                                acc[g][c] = $v::multiply_add($v::splat(weights[g][j]), value, acc[g][c]);
                            }
                        }
                    }
                    for g in 0..G {
                        for c in 0..W {
                            // SAFETY: inside `partial`, by the assertion.
                            unsafe {
                                $v::store(partial.as_mut_ptr().add(g * words + HEAD + (from + c) * LANES), acc[g][c]);
                            }
                        }
                    }
                }
            }

            /// Scores become weights, of which those of the lowest number add nothing; returns what the sums so far shrink by.
            #[target_feature(enable = $features)]
            fn weigh(scores: &mut [f32; BLOCK], partial: &mut [f32]) -> f32 {
                let max = maths::max_inline(scores).max(partial[0]);
                let shrink = maths::exp_inline::<true>(partial[0] - max);
                partial[0] = max;
                partial[1] = partial[1] * shrink + maths::exp_all_inline::<true>(scores, max);
                shrink
            }

            /// The scales of `keys` rows of a block from row `from` on, behind them zeros.
            #[inline]
            #[target_feature(enable = $features)]
            fn scales_of(scales: &[f32], from: usize, keys: usize, block: &Block) -> $v::Floats {
                let mut all = [0.0; LANES];
                let rows = scales.iter().skip(from * block.scales_width).step_by(block.scales_width.max(1));
                all[..keys].iter_mut().zip(rows).for_each(|(to, scale)| *to = *scale);
                // SAFETY: the array has an element for each lane.
                unsafe { $v::load(all.as_ptr()) }
            }

            /// Weights become those of the integers of the values.
            #[target_feature(enable = $features)]
            fn scale_weights(weights: &mut [f32; BLOCK], scales: &[f32], block: &Block) {
                let rows = scales.iter().step_by(block.scales_width.max(1));
                weights[..block.n].iter_mut().zip(rows).for_each(|(weight, scale)| *weight *= *scale);
            }
        }
    };
}

kernel!(f16_avx2, "avx2,fma,f16c", avx2, f16, load_f16, false);
kernel!(f32_avx2, "avx2,fma,f16c", avx2, f32, load, false);
kernel!(int8_avx2, "avx2,fma,f16c", avx2, i8, load_i8, true);
kernel!(f16_avx512, "avx512f,avx512vl", avx512, f16, load_f16, false);
kernel!(f32_avx512, "avx512f,avx512vl", avx512, f32, load, false);
kernel!(int8_avx512, "avx512f,avx512vl", avx512, i8, load_i8, true);
