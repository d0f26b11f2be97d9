//! The tile kernel in plain Rust, written so that the compiler vectorises it over the tile's rows.

use crate::ops::simd::low_bit::TileWords;
use crate::ops::simd::ternary::{Codes, TileSums};
use crate::quant::{Bits, TILE_ROWS};

/// See [`crate::ops::simd::ternary::TileKernel`].
pub fn tile(tile: &TileWords, bits: Bits, acts: &[Codes], sums: &mut TileSums) {
    let (groups, count, [times, offset]) = (bits.cols_per_word() / 4, bits.count(), bits.times_and_offset());
    let mask = (1u32 << count) - 1;
    sums.fill([0; TILE_ROWS]);
    for (j, words) in tile.all.chunks_exact(TILE_ROWS).enumerate() {
        for g in 0..groups {
            for (act, sums) in acts.iter().zip(sums.iter_mut()) {
                let bytes = act.words[j * groups + g].to_le_bytes().map(|b| i32::from(b as i8));
                let shift = (g * count) as u32;
                for (sum, &word) in sums.iter_mut().zip(words) {
                    let code = |b: u32| (word >> (shift + 8 * b) & mask) as i32;
                    *sum += code(0) * bytes[0] + code(1) * bytes[1] + code(2) * bytes[2] + code(3) * bytes[3];
                }
            }
        }
    }
    for (act, sums) in acts.iter().zip(sums) {
        sums.iter_mut().for_each(|sum| *sum = times * *sum - offset * act.sum);
    }
}
