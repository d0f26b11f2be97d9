//! Products with codes of 6 bits ([`six_bits`]) that have scales by group, for x86-64 with AVX2: a vector holds a word of 8
//! neighbouring rows, two products of bytes are added to 16 bits, and two of these sums, times the integer of their 16 columns, to
//! 32 bits.
//!
//! [`six_bits`]: crate::quant::six_bits

use std::arch::x86_64::*;
use std::ops::Range;

use crate::ops::simd::groups::{GroupActs, GroupTile, TileOuts};
use crate::ops::simd::low_bit_tiles::BYTES_AHEAD;
use crate::ops::simd::portable::six_bits::{ACT_WORDS, act_groups};
use crate::ops::simd::x86::low_bit_avx2::{LANES, VECTORS, settle};
use crate::quant::TILE_ROWS;
use crate::quant::six_bits::{GROUP_WORDS, GROUPS, WORDS, ZERO};

/// Adds the products of a tile with rows of codes.
#[target_feature(enable = "avx2,fma,f16c")]
pub fn tile(tile: &GroupTile, acts: &[GroupActs], outs: &mut TileOuts) {
    // Sums of more vectors at once do not stay in registers.
    match *acts {
        [a] => rows::<8, 1>(tile, [a], outs),
        [a, b] => rows::<2, 2>(tile, [a, b], outs),
        [a, b, c] => rows::<1, 3>(tile, [a, b, c], outs),
        [a, b, c, d, ..] => rows::<1, 4>(tile, [a, b, c, d], outs),
        [] => {}
    }
}

/// `A` rows of codes, and `B` vectors of rows of the tile at once.
#[target_feature(enable = "avx2,fma,f16c")]
fn rows<const B: usize, const A: usize>(tile: &GroupTile, acts: [GroupActs; A], outs: &mut TileOuts) {
    let n = tile.words.of_a_row();
    for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; A];
        for (unit, groups) in act_groups(tile, &acts[0], first..n.min(first + tile.group_words)) {
            let inv_k = acts.each_ref().map(|act| _mm256_set1_ps(act.scale_and_sum[2 * unit]));
            for row in (0..TILE_ROWS).step_by(B * LANES) {
                let exact = exact_sums::<B, A>(tile, groups.clone(), row, &acts);
                for (a, exact) in exact.into_iter().enumerate() {
                    for (sum, exact) in sums[a][row / LANES..].iter_mut().zip(exact) {
                        *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), inv_k[a], *sum);
                    }
                }
            }
        }
        for (sums, out) in sums.iter().zip(outs.iter_mut()) {
            settle(tile, g, 0, sums, out);
        }
    }
}

/// The sums of rows from `row` on over groups of 16 columns.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn exact_sums<const B: usize, const A: usize>(
    tile: &GroupTile,
    groups: Range<usize>,
    row: usize,
    acts: &[GroupActs; A],
) -> [[__m256i; B]; A] {
    let mut exact = [[_mm256_setzero_si256(); B]; A];
    let zeros = _mm256_set1_epi8(ZERO as i8);
    for i in groups {
        let first = i / GROUPS * WORDS;
        let words = first + 1 + i % GROUPS * GROUP_WORDS;
        let mut x = [[_mm256_setzero_si256(); ACT_WORDS]; A];
        // What goes off the sums of stored codes, which are 32 more.
        let mut less = [[_mm256_setzero_si256(); 2]; A];
        for a in 0..A {
            let words = &acts[a].words[i * ACT_WORDS..][..ACT_WORDS];
            for k in 0..ACT_WORDS {
                x[a][k] = _mm256_set1_epi32(words[k] as i32);
                less[a][k / 2] = _mm256_add_epi16(less[a][k / 2], _mm256_maddubs_epi16(zeros, x[a][k]));
            }
        }
        let of_rows = |j: usize| &tile.words.all[j * TILE_ROWS + row..][..B * LANES];
        // The integers come with the first of their groups.
        for j in if i % GROUPS == 0 { first } else { words }..words + GROUP_WORDS {
            tile.words.fetch_by(BYTES_AHEAD, j, row..row + B * LANES);
        }
        let (of_integers, lower, next, upper) =
            (of_rows(first), of_rows(words), of_rows(words + 1), of_rows(words + 2));
        for b in 0..B {
            let stored = stored_bytes([load(lower, b), load(next, b)], load(upper, b));
            let integers = integers(load(of_integers, b), i % GROUPS);
            for a in 0..A {
                for pair in 0..2 {
                    let [one, other] = [2 * pair, 2 * pair + 1];
                    let sum = _mm256_add_epi16(
                        _mm256_maddubs_epi16(stored[one], x[a][one]),
                        _mm256_maddubs_epi16(stored[other], x[a][other]),
                    );
                    // At most 4 · 63 · 128 in magnitude, and a half of that behind the subtraction.
                    let sum = _mm256_madd_epi16(_mm256_sub_epi16(sum, less[a][pair]), integers);
                    exact[a][b] = _mm256_add_epi32(exact[a][b], sum);
                }
            }
        }
    }
    exact
}

/// Vector `b` of the words of some rows.
#[inline]
#[target_feature(enable = "avx2")]
fn load(words: &[u32], b: usize) -> __m256i {
    let words = &words[b * LANES..][..LANES];
    // SAFETY: `words` has 8 words; unaligned loads are allowed.
    unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }
}

/// The bytes that are stored of columns `4k..` of 16.
#[inline]
#[target_feature(enable = "avx2")]
fn stored_bytes(lower: [__m256i; 2], upper: __m256i) -> [__m256i; 4] {
    let (low, high) = (_mm256_set1_epi8(0x0f), _mm256_set1_epi8(0x30));
    let shifted = [_mm256_slli_epi32::<4>(upper), _mm256_slli_epi32::<2>(upper), upper, _mm256_srli_epi32::<2>(upper)];
    let lower = [lower[0], _mm256_srli_epi32::<4>(lower[0]), lower[1], _mm256_srli_epi32::<4>(lower[1])];
    let mut stored = [low; 4];
    for k in 0..4 {
        stored[k] = _mm256_or_si256(_mm256_and_si256(lower[k], low), _mm256_and_si256(shifted[k], high));
    }
    stored
}

/// Byte `group` of each word, a signed integer, in both of its halves.
#[inline]
#[target_feature(enable = "avx2")]
fn integers(words: __m256i, group: usize) -> __m256i {
    /// Picks a byte into the upper byte of both halves.
    const PICKS: [[i8; 32]; GROUPS] = {
        let mut picks = [[-1; 32]; GROUPS];
        let mut at = 0;
        while at < 32 * GROUPS {
            let (group, byte) = (at / 32, at % 32);
            if byte % 2 == 1 {
                picks[group][byte] = (byte % 16 / 4 * 4 + group) as i8;
            }
            at += 1;
        }
        picks
    };
    // SAFETY: a row of the table has 32 bytes; unaligned loads are allowed.
    let pick = unsafe { _mm256_loadu_si256(PICKS[group].as_ptr().cast()) };
    _mm256_srai_epi16::<8>(_mm256_shuffle_epi8(words, pick))
}
