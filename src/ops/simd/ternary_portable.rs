//! The tile kernel in plain Rust, written so that the compiler vectorises it over the tile's rows.

use crate::ops::simd::ternary::TileSums;
use crate::quant::{Bits, TILE_ROWS};

/// See [`crate::ops::simd::ternary::TileKernel`].
pub fn tile(words: &[u32], bits: Bits, acts: &[&[u32]], _: &[u32], sums: &mut TileSums) {
    let groups = 8 / bits.count();
    let mask = if bits == Bits::One { 1 } else { 3 };
    for (j, words) in words.chunks_exact(TILE_ROWS).enumerate() {
        for g in 0..groups {
            for (act, sums) in acts.iter().zip(sums.iter_mut()) {
                let bytes = act[j * groups + g].to_le_bytes().map(|b| i32::from(b as i8));
                let shift = (g * bits.count()) as u32;
                for (sum, &word) in sums.iter_mut().zip(words) {
                    let code = |b: u32| (word >> (shift + 8 * b) & mask) as i32;
                    *sum += code(0) * bytes[0] + code(1) * bytes[1] + code(2) * bytes[2] + code(3) * bytes[3];
                }
            }
        }
    }
}
