//! Codes by groups of 32 columns, without instructions of any processor.

use crate::bounds::{at_least, largest_magnitude};
use crate::cpu_level::for_each_level;
use crate::ops::quantise_groups::{CODE_GROUP, LARGEST_CODES, candidate_k};
use crate::ops::simd::group_codes::{Block, GROUPS, chosen, factors};
use crate::ops::simd::maths::{ROUND, quantise_inline, total};

for_each_level! {
    /// The kernel in plain Rust, written so that the compiler vectorises it.
    pub fn quantise(
        y: &Block<f32>,
        max_code_and_floor: [f32; 2],
        codes: &mut Block<i8>,
        scale_and_sum: &mut [[f32; 2]; GROUPS],
    ) {
        let [max_code, floor] = max_code_and_floor;
        let mut top = [1.0; GROUPS];
        for (top, y) in top.iter_mut().zip(y) {
            *top = at_least(largest_magnitude(y), floor);
        }
        let mut errors = [[0.0; GROUPS]; LARGEST_CODES];
        for (below, errors) in errors.iter_mut().enumerate() {
            for ((error, y), top) in errors.iter_mut().zip(y).zip(top) {
                *error = squared_error(y, candidate_k(max_code, below, top));
            }
        }
        let k = chosen(max_code, &top, &errors);
        let (mut sums, mut by_value, mut squares) = ([0.0; GROUPS], [0.0; GROUPS], [0.0; GROUPS]);
        for (g, (y, codes)) in y.iter().zip(codes).enumerate() {
            sums[g] = quantise_inline(y, k[g], max_code, codes) as f32;
            (by_value[g], squares[g]) = products(y, k[g], codes);
        }
        factors(&k, [&by_value, &squares], &sums, scale_and_sum);
    }
}

/// `Σ (yk − code)²` of a group for a k with which no code is beyond the largest one.
#[inline(always)]
fn squared_error(y: &[f32; CODE_GROUP], k: f32) -> f32 {
    let mut squares = [0.0; CODE_GROUP];
    for i in 0..CODE_GROUP {
        let scaled = y[i] * k;
        let error = scaled - ((scaled + ROUND) - ROUND);
        squares[i] = error * error;
    }
    total(squares)
}

/// `Σ yk · code` and `Σ code²` of a group.
#[inline(always)]
fn products(y: &[f32; CODE_GROUP], k: f32, codes: &[i8; CODE_GROUP]) -> (f32, f32) {
    let (mut by_value, mut squares) = ([0.0; CODE_GROUP], 0);
    for i in 0..CODE_GROUP {
        by_value[i] = y[i] * k * f32::from(codes[i]);
        squares += i32::from(codes[i]) * i32::from(codes[i]);
    }
    (total(by_value), squares as f32)
}
