//! Products with codes of 6 bits ([`six_bits`]) that have scales by group, without instructions of any processor.

use std::ops::Range;

use crate::cpu_level::for_each_level;
use crate::ops::simd::groups::{GroupActs, GroupTile, TileOuts};
use crate::quant::TILE_ROWS;
use crate::quant::six_bits::{self, COLUMNS, GROUP, GROUP_WORDS, GROUPS, WORDS};

/// Words of 16 columns of a row of activation codes.
pub const ACT_WORDS: usize = GROUP / 4;
/// Rows of a tile whose sums are computed together.
const BLOCK: usize = 32;

for_each_level! {
    /// Adds the products of a tile with rows of codes.
    pub fn tile(tile: &GroupTile, acts: &[GroupActs], outs: &mut TileOuts) {
        for (act, out) in acts.iter().zip(outs.iter_mut()) {
            for row in (0..TILE_ROWS).step_by(BLOCK) {
                for (g, first) in (0..tile.words.of_a_row()).step_by(tile.group_words).enumerate() {
                    let words = first..tile.words.of_a_row().min(first + tile.group_words);
                    settle(tile, [g, row], &group_sums(tile, act, words, row), out);
                }
            }
        }
    }
}

for_each_level! {
    /// Adds the products of a tile with rows of floats.
    pub fn float_tile(tile: &GroupTile, x: &[&[f32]], outs: &mut TileOuts) {
        for (x, out) in x.iter().zip(outs.iter_mut()) {
            for row in (0..TILE_ROWS).step_by(BLOCK) {
                for (g, first) in (0..tile.words.of_a_row()).step_by(tile.group_words).enumerate() {
                    let mut sums = [0f32; BLOCK];
                    for unit in first / WORDS..tile.words.of_a_row().min(first + tile.group_words) / WORDS {
                        let x = &x[unit * COLUMNS..x.len().min((unit + 1) * COLUMNS)];
                        add_floats(&tile.words.all[unit * WORDS * TILE_ROWS + row..], x, &mut sums);
                    }
                    settle(tile, [g, row], &sums, out);
                }
            }
        }
    }
}

/// Adds a group's sums times their scales to outputs.
#[inline(always)]
fn settle(tile: &GroupTile, [g, row]: [usize; 2], sums: &[f32; BLOCK], out: &mut [f32; TILE_ROWS]) {
    let scales = &tile.scales[g * TILE_ROWS + row..][..BLOCK];
    for ((out, sum), scale) in out[row..row + BLOCK].iter_mut().zip(sums).zip(scales) {
        *out += sum * scale.to_f32();
    }
}

/// The groups of activations of the words `words` of each row, a group of weights: the number of each, and its groups of 16
/// columns, of all of the row. Those that have no activations are left out: their codes are 0.
pub fn act_groups(
    tile: &GroupTile,
    act: &GroupActs,
    words: Range<usize>,
) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
    let step = (GROUPS * tile.act_words).div_ceil(WORDS).max(1);
    let end = (words.end / WORDS * GROUPS).min(act.words.len() / ACT_WORDS);
    (words.start / WORDS * GROUPS..end).step_by(step).map(move |from| (from / step, from..end.min(from + step)))
}

/// The sums of a row of codes with the words `words` of rows from `row` on, each group of activations with its factor.
#[inline(always)]
fn group_sums(tile: &GroupTile, act: &GroupActs, words: Range<usize>, row: usize) -> [f32; BLOCK] {
    let mut sums = [0f32; BLOCK];
    for (unit, groups) in act_groups(tile, act, words) {
        let mut exact = [0i32; BLOCK];
        for i in groups {
            let act = &act.words[i * ACT_WORDS..][..ACT_WORDS];
            add_codes(&tile.words.all[i / GROUPS * WORDS * TILE_ROWS + row..], i % GROUPS, act, &mut exact);
        }
        let inv_k = act.scale_and_sum[2 * unit];
        sums.iter_mut().zip(exact).for_each(|(sum, exact)| *sum += exact as f32 * inv_k);
    }
    sums
}

/// The four bytes that are stored of columns `4k..` of a row, of the 16 whose words are `lower` and `upper`.
#[inline(always)]
fn stored(lower: [u32; 2], upper: u32, k: usize) -> u32 {
    (lower[k / 2] >> (4 * (k % 2)) & 0x0f0f_0f0f) | (upper >> (2 * k) & 0x0303_0303) << 4
}

/// The words of row `r` for group `group` of 16 columns of 64, and their integer; `words` begin with the first row's.
#[inline(always)]
fn words_of(words: &[u32], group: usize, r: usize) -> ([u32; 2], u32, i32) {
    let word = |i: usize| words[(1 + GROUP_WORDS * group + i) * TILE_ROWS + r];
    let integer = (words[r] >> (8 * group)) as u8 as i8;
    ([word(0), word(1)], word(2), i32::from(integer))
}

#[inline(always)]
fn add_codes(words: &[u32], group: usize, act: &[u32], exact: &mut [i32; BLOCK]) {
    let act: [[i32; 4]; ACT_WORDS] = std::array::from_fn(|k| act[k].to_le_bytes().map(|b| i32::from(b as i8)));
    let less = i32::from(six_bits::ZERO) * act.as_flattened().iter().sum::<i32>();
    for (r, exact) in exact.iter_mut().enumerate() {
        let (lower, upper, integer) = words_of(words, group, r);
        let mut sum = -less;
        for (k, act) in act.iter().enumerate() {
            let stored = stored(lower, upper, k);
            for (b, act) in act.iter().enumerate() {
                sum += (stored >> (8 * b) & 63) as i32 * act;
            }
        }
        *exact += integer * sum;
    }
}

#[inline(always)]
fn add_floats(words: &[u32], x: &[f32], sums: &mut [f32; BLOCK]) {
    for (group, x) in x.chunks(GROUP).enumerate() {
        let mut of_group = [0f32; BLOCK];
        for (c, x) in x.iter().enumerate() {
            for (r, sum) in of_group.iter_mut().enumerate() {
                let (lower, upper, _) = words_of(words, group, r);
                let code = (stored(lower, upper, c / 4) >> (8 * (c % 4)) & 63) as i32 - i32::from(six_bits::ZERO);
                *sum += code as f32 * x;
            }
        }
        for (r, (sum, of_group)) in sums.iter_mut().zip(of_group).enumerate() {
            *sum += words_of(words, group, r).2 as f32 * of_group;
        }
    }
}
