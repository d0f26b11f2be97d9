//! Codes by groups of 32 columns, for x86-64 with AVX2 and FMA, or AVX-512: a vector holds a sum of each of as many groups as it
//! has lanes.

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::quantise_groups::{CODE_GROUP, LARGEST_CODES};
use crate::ops::simd::group_codes::{Block, GROUPS, Kernel, chosen, factors};
use crate::ops::simd::x86::floats::{avx2, avx512};

/// Every kernel that this processor can run, the best one last.
pub fn kernels() -> Vec<Kernel> {
    let mut all: Vec<Kernel> = Vec::new();
    if allows(CpuLevel::Avx2) {
        // SAFETY: the processor has what the level says.
        all.push(|y, bounds, codes, to| unsafe { block_avx2::quantise(y, bounds, codes, to) });
    }
    if allows(CpuLevel::Avx512) {
        // SAFETY: likewise.
        all.push(|y, bounds, codes, to| unsafe { block_avx512::quantise(y, bounds, codes, to) });
    }
    all
}

/// Defines the kernel for vectors `$v`.
macro_rules! block {
    ($name:ident, $features:literal, $v:ident) => {
        mod $name {
            use super::*;

            const LANES: usize = $v::LANES;
            /// Vectors of a group.
            const VECTORS: usize = CODE_GROUP / LANES;

            /// As many groups as a vector has lanes.
            type Groups<T> = [[T; CODE_GROUP]; LANES];

            #[target_feature(enable = $features)]
            pub fn quantise(
                y: &Block<f32>,
                [max_code, floor]: [f32; 2],
                codes: &mut Block<i8>,
                to: &mut [[f32; 2]; GROUPS],
            ) {
                let groups = y.as_chunks::<LANES>().0.iter().zip(codes.as_chunks_mut::<LANES>().0);
                for ((y, codes), to) in groups.zip(to.as_chunks_mut::<LANES>().0) {
                    let (top, mut errors) = ($v::larger($v::splat(floor), tops(y)), [[0.0; LANES]; LARGEST_CODES]);
                    for (below, errors) in errors.iter_mut().enumerate() {
                        // Of the whole vector: the compiler would divide lane by lane.
                        let k = $v::divide($v::splat(max_code - below as f32), top);
                        *errors = squared_errors(y, &lanes(k));
                    }
                    let top = lanes(top);
                    let k = chosen(max_code, &top, &errors);
                    let [sums, by_value, squares] = round(y, &k, max_code, codes);
                    factors(&k, [&by_value, &squares], &sums, to);
                }
            }

            /// Vector number `i` of a group.
            #[inline]
            #[target_feature(enable = $features)]
            fn vector(y: &[f32; CODE_GROUP], i: usize) -> $v::Floats {
                // SAFETY: a group has as many vectors.
                unsafe { $v::load(y[i * LANES..][..LANES].as_ptr()) }
            }

            /// The lanes of a vector.
            #[inline]
            #[target_feature(enable = $features)]
            fn lanes(v: $v::Floats) -> [f32; LANES] {
                let mut lanes = [0.0; LANES];
                // SAFETY: there is room for all.
                unsafe { $v::store(lanes.as_mut_ptr(), v) };
                lanes
            }

            /// The largest magnitude of each group, NaN where one is.
            #[inline]
            #[target_feature(enable = $features)]
            fn tops(y: &Groups<f32>) -> $v::Floats {
                let mut tops = [$v::zero(); LANES];
                for (top, y) in tops.iter_mut().zip(y) {
                    for i in 0..VECTORS {
                        *top = $v::larger_magnitude(*top, vector(y, i));
                    }
                }
                $v::across(&tops, |a, b| $v::larger_magnitude(a, b))
            }

            /// `Σ (yk − code)²` of each group.
            #[inline]
            #[target_feature(enable = $features)]
            fn squared_errors(y: &Groups<f32>, k: &[f32; LANES]) -> [f32; LANES] {
                let mut errors = [$v::zero(); LANES];
                for ((sum, y), k) in errors.iter_mut().zip(y).zip(k) {
                    let k = $v::splat(*k);
                    for i in 0..VECTORS {
                        let error = $v::residue($v::multiply(vector(y, i), k));
                        *sum = $v::multiply_add(error, error, *sum);
                    }
                }
                lanes($v::sums(&errors))
            }

            /// The codes, and of each group their sum, `Σ yk · code` and `Σ code²`.
            #[inline]
            #[target_feature(enable = $features)]
            fn round(y: &Groups<f32>, k: &[f32; LANES], max_code: f32, codes: &mut Groups<i8>) -> [[f32; LANES]; 3] {
                let (low, high) = ($v::splat(-max_code - 1.0), $v::splat(max_code));
                let mut all = [[$v::zero(); LANES]; 3];
                for (g, (y, codes)) in y.iter().zip(codes).enumerate() {
                    let (k, mut sums) = ($v::splat(k[g]), [$v::zero(); 3]);
                    for i in 0..VECTORS {
                        let scaled = $v::multiply(vector(y, i), k);
                        let code = $v::rounded($v::smaller($v::larger(scaled, low), high));
                        // SAFETY: a group has as many codes.
                        unsafe { $v::store_i8(codes[i * LANES..][..LANES].as_mut_ptr(), code) };
                        sums[0] = $v::add(sums[0], code);
                        sums[1] = $v::multiply_add(scaled, code, sums[1]);
                        sums[2] = $v::multiply_add(code, code, sums[2]);
                    }
                    all.iter_mut().zip(sums).for_each(|(all, sum)| all[g] = sum);
                }
                [lanes($v::sums(&all[0])), lanes($v::sums(&all[1])), lanes($v::sums(&all[2]))]
            }
        }
    };
}
block!(block_avx2, "avx2,fma", avx2);
block!(block_avx512, "avx512f,avx512dq,avx512vl", avx512);
