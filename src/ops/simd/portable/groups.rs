//! Products with codes that have scales by group, without instructions of any processor: of rows of codes, and of rows of floats.

use std::ops::Range;

use crate::cpu_level::for_each_level;
use crate::ops::simd::groups::{GroupActs, GroupTile, TileOuts};
use crate::ops::simd::low_bit::Order;
use crate::ops::simd::portable::six_bits;
use crate::quant::{Bits, LAID_OUT_ROWS, TILE_ROWS, stored_in_block};

/// The kernel in plain Rust, written so that the compiler vectorises it over the tile's rows.
pub fn tile(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    if bits == Bits::Six {
        return six_bits::tile(tile, acts, outs);
    }
    let n = tile.words.of_a_row();
    for (g, first) in (0..n).step_by(tile.group_words.max(1)).enumerate() {
        let end = (first + tile.group_words).min(n);
        let scales = &tile.scales[g * TILE_ROWS..][..TILE_ROWS];
        for (act, outs) in acts.iter().zip(outs.iter_mut()) {
            let mut sums = [0f32; TILE_ROWS];
            for from in (first..end).step_by(tile.act_words.max(1)) {
                add_portable(tile, bits, act, from..end.min(from + tile.act_words), &mut sums);
            }
            for ((out, sum), scale) in outs.iter_mut().zip(sums).zip(scales) {
                *out += sum * scale.to_f32();
            }
        }
    }
}

/// Adds the product of one group of activation codes, those of the words `words` of each row.
fn add_portable(tile: &GroupTile, bits: Bits, act: &GroupActs, words: Range<usize>, to: &mut [f32; TILE_ROWS]) {
    let (fours, count, [times, offset]) = (bits.cols_per_word() / 4, bits.count(), bits.times_and_offset());
    let mask = (1u32 << count) - 1;
    let unit = words.start / tile.act_words;
    let mut sums = [0i32; TILE_ROWS];
    for i in words.start * fours..words.end * fours {
        let bytes = act.words[i].to_le_bytes().map(|b| i32::from(b as i8));
        let shift = (i % fours * count) as u32;
        let words = &tile.words.all[i / fours * TILE_ROWS..][..TILE_ROWS];
        for (sum, &word) in sums.iter_mut().zip(words) {
            let code = |b: u32| (word >> (shift + 8 * b) & mask) as i32;
            *sum += code(0) * bytes[0] + code(1) * bytes[1] + code(2) * bytes[2] + code(3) * bytes[3];
        }
    }
    let (inv_k, less) = (act.scale_and_sum[2 * unit], offset * act.scale_and_sum[2 * unit + 1] as i32);
    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += (times * sum - less) as f32 * inv_k);
}

for_each_level! {
    /// Adds the products of a tile with up to [`BATCH`] rows of floats.
    pub fn float_tile(tile: &GroupTile, bits: Bits, x: &[&[f32]], outs: &mut TileOuts) {
        match *x {
            _ if bits == Bits::Six => six_bits::float_tile(tile, x, outs),
            [a] => float_rows(tile, bits, [a], outs),
            [a, b] => float_rows(tile, bits, [a, b], outs),
            [a, b, c] => float_rows(tile, bits, [a, b, c], outs),
            [a, b, c, d, ..] => float_rows(tile, bits, [a, b, c, d], outs),
            [] => {}
        }
    }
}

/// Rows of a tile whose sums stay in registers.
const BLOCK: usize = LAID_OUT_ROWS;

#[inline(always)]
fn float_rows<const A: usize>(tile: &GroupTile, bits: Bits, x: [&[f32]; A], outs: &mut TileOuts) {
    let (per_word, count, [times, offset]) = (bits.cols_per_word(), bits.count(), bits.times_and_offset());
    let mask = (1u32 << count) - 1;
    let n = tile.words.of_a_row();
    for block in (0..TILE_ROWS).step_by(BLOCK) {
        let (from_word, to_next) = tile.words.order.blocks(&tile.words, block);
        for (g, first) in (0..n).step_by(tile.group_words.max(1)).enumerate() {
            let mut sums = [[0f32; BLOCK]; A];
            let from = first * per_word;
            for c in from..x[0].len().min((first + tile.group_words).min(n) * per_word) {
                let words = &tile.words.all[from_word + c / per_word * to_next..][..BLOCK];
                let shift = (8 * (c % 4) + count * (c % per_word / 4)) as u32;
                let mut codes = [0f32; BLOCK];
                for i in 0..BLOCK {
                    let stored = match tile.words.order {
                        Order::Plain => (words[i] >> shift) & mask,
                        // Only where another op multiplies the same matrix with codes.
                        Order::Blocks | Order::BlocksByRows => stored_in_block(words, i, c % per_word),
                    };
                    codes[i] = (times * stored as i32 - offset) as f32;
                }
                for a in 0..A {
                    let x = x[a][c];
                    for i in 0..BLOCK {
                        sums[a][i] += codes[i] * x;
                    }
                }
            }
            let scales = &tile.scales[g * TILE_ROWS + block..][..BLOCK];
            for (sums, outs) in sums.iter().zip(outs.iter_mut()) {
                for ((out, sum), scale) in outs[block..block + BLOCK].iter_mut().zip(sums).zip(scales) {
                    *out += sum * scale.to_f32();
                }
            }
        }
    }
}
