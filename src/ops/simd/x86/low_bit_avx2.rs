//! Exact sums of products of 2-bit codes for x86-64 with AVX2, which has no instruction that adds four products of bytes:
//! pairs are added up in 16 bits, where many words fit before they are widened.
//!
//! A vector holds one word of 8 neighbouring rows, as in `x86::ternary`.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::ops::simd::groups::GroupTile;
use crate::ops::simd::low_bit::TileWords;
use crate::quant::TILE_ROWS;

/// Rows of a vector.
pub(super) const LANES: usize = 8;

/// Vectors of the rows of a tile.
pub(super) const VECTORS: usize = TILE_ROWS / LANES;

/// Words whose products fit 16 bits: the sum of two is at most `3 · 2 · 128`, where 3 is code 2.
const WORDS_OF_16_BITS: usize = 10;

/// Words of activation codes that a word of a row is multiplied with.
const FOURS: usize = 4;

/// Whether the products of this many words of a row are added up in one piece.
pub(super) fn is_one_piece(words: usize) -> bool {
    words <= WORDS_OF_16_BITS
}

/// `Σ stored code · activation` over the words `words` of each row of a tile, in pieces: `add(a, row, sums)` is called with those
/// of [`LANES`] rows from `row` on and row `a` of activations, of a piece of the words.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn products<const A: usize>(
    tile: &TileWords,
    words: Range<usize>,
    acts: &[&[u32]; A],
    mut add: impl FnMut(usize, usize, __m256i),
) {
    check(tile, words.end, acts);
    for from in words.clone().step_by(WORDS_OF_16_BITS) {
        let piece = from..words.end.min(from + WORDS_OF_16_BITS);
        match A {
            1 | 2 => blocks::<A, 4>(tile, piece, acts, &mut add),
            _ => blocks::<A, 2>(tile, piece, acts, &mut add),
        }
    }
}

/// Checks that a tile has the first `end` words of each row, and each row of codes what they are multiplied with.
pub(super) fn check(tile: &TileWords, end: usize, acts: &[&[u32]]) {
    assert!(tile.all.len() >= end * TILE_ROWS, "a tile is shorter than its rows");
    assert!(acts.iter().all(|act| act.len() >= end * FOURS), "a row of codes is shorter than the weights");
}

/// A piece, in blocks of `B` vectors whose sums stay in registers.
#[inline]
#[target_feature(enable = "avx2")]
fn blocks<const A: usize, const B: usize>(
    tile: &TileWords,
    words: Range<usize>,
    acts: &[&[u32]; A],
    add: &mut impl FnMut(usize, usize, __m256i),
) {
    let ones = _mm256_set1_epi16(1);
    for row in (0..TILE_ROWS).step_by(B * LANES) {
        let sums = match A {
            1 => [row_16(tile, words.clone(), row, acts[0]); A],
            _ => sums_16::<A, B>(tile, words.clone(), row, acts),
        };
        for (a, sums) in sums.iter().enumerate() {
            for (b, &sum) in sums.iter().enumerate() {
                add(a, row + LANES * b, _mm256_madd_epi16(sum, ones));
            }
        }
    }
}

/// The sums of `B` vectors of rows from `row` on, two of 16 bits for each row.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn sums_16<const A: usize, const B: usize>(
    tile: &TileWords,
    words: Range<usize>,
    row: usize,
    acts: &[&[u32]; A],
) -> [[__m256i; B]; A] {
    let mask = _mm256_set1_epi8(3);
    let mut sums = [[_mm256_setzero_si256(); B]; A];
    for j in words {
        tile.fetch(j, row..row + B * LANES);
        let mut w: [__m256i; B] = load(tile, j, row);
        for four in 0..FOURS {
            let mut picked = w;
            for b in 0..B {
                picked[b] = _mm256_and_si256(w[b], mask);
                w[b] = _mm256_srli_epi32::<2>(w[b]);
            }
            for a in 0..A {
                // SAFETY: every row of codes has `FOURS` words for each word of a row, by `check`.
                let x = _mm256_set1_epi32(unsafe { *acts[a].get_unchecked(j * FOURS + four) } as i32);
                for b in 0..B {
                    sums[a][b] = _mm256_add_epi16(sums[a][b], _mm256_maddubs_epi16(picked[b], x));
                }
            }
        }
    }
    sums
}

/// Word `j` of `B` vectors of rows from `row` on, which [`check`] has found.
#[inline]
#[target_feature(enable = "avx2")]
fn load<const B: usize>(tile: &TileWords, j: usize, row: usize) -> [__m256i; B] {
    debug_assert!(row + B * LANES <= TILE_ROWS, "rows of a tile");
    let mut w = [_mm256_setzero_si256(); B];
    for (b, w) in w.iter_mut().enumerate() {
        // SAFETY: row + 8 (b + 1) <= TILE_ROWS, and the tile has word j of all rows, by `check`.
        *w = unsafe { _mm256_loadu_si256(tile.all.as_ptr().add(j * TILE_ROWS + row + LANES * b).cast()) };
    }
    w
}

/// Words of which four times the products fit 16 bits.
const WORDS_OF_FOURFOLD: usize = WORDS_OF_16_BITS / 2;

/// [`sums_16`] of one row of codes, whose products do not hide the shifts: the upper two bits of a half byte are not shifted down, so
/// that their sums are four times what they should be.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn row_16<const B: usize>(tile: &TileWords, words: Range<usize>, row: usize, act: &[u32]) -> [__m256i; B] {
    let mut sums = [_mm256_setzero_si256(); B];
    let ahead = tile.ahead.of_short_runs(size_of_val(tile.all));
    for from in words.clone().step_by(WORDS_OF_FOURFOLD) {
        let mut fourfold = [_mm256_setzero_si256(); B];
        for j in from..words.end.min(from + WORDS_OF_FOURFOLD) {
            tile.fetch_by(ahead, j, row..row + B * LANES);
            let (w, x) = (load::<B>(tile, j, row), factors(act, j));
            for b in 0..B {
                add_word_of_one(w[b], &x, &mut sums[b], &mut fourfold[b]);
            }
        }
        for b in 0..B {
            sums[b] = _mm256_add_epi16(sums[b], _mm256_srai_epi16::<2>(fourfold[b]));
        }
    }
    sums
}

/// What word `j` of a row is multiplied with, of a row of codes that [`check`] has found.
#[inline]
#[target_feature(enable = "avx2")]
fn factors(act: &[u32], j: usize) -> [__m256i; FOURS] {
    let mut x = [_mm256_setzero_si256(); FOURS];
    for (four, x) in x.iter_mut().enumerate() {
        // SAFETY: the row of codes has `FOURS` words for each word of a row, by `check`.
        *x = _mm256_set1_epi32(unsafe { *act.get_unchecked(j * FOURS + four) } as i32);
    }
    x
}

/// Adds a word's products: those of the lower two bits of each half byte, and four times those of the upper two.
#[inline]
#[target_feature(enable = "avx2")]
fn add_word_of_one(w: __m256i, x: &[__m256i; FOURS], sum: &mut __m256i, fourfold: &mut __m256i) {
    let (lower, upper) = (_mm256_set1_epi8(0b0011), _mm256_set1_epi8(0b1100));
    for (half, w) in [w, _mm256_srli_epi16::<4>(w)].into_iter().enumerate() {
        let [once, four_times] = [lower, upper].map(|mask| _mm256_and_si256(w, mask));
        *sum = _mm256_add_epi16(*sum, _mm256_maddubs_epi16(once, x[2 * half]));
        *fourfold = _mm256_add_epi16(*fourfold, _mm256_maddubs_epi16(four_times, x[2 * half + 1]));
    }
}

/// `Σ code · activation` of the `W` words from word `j` on of each row of a tile, which [`check`] has found; `less` are the sums
/// of the activations. `add(a, b, sums)` is called with those of row `a` of activations and vector `b` of rows. For blocks so
/// small that what is taken off their sums fits 16 bits.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn block_sums<const A: usize, const W: usize>(
    tile: &TileWords,
    j: usize,
    acts: &[&[u32]; A],
    less: [i32; A],
    add: &mut impl FnMut(usize, usize, __m256i),
) {
    const { assert!(W <= 2, "32 activations add up to 4096 at most") };
    for i in 0..W {
        tile.fetch(j + i, 0..TILE_ROWS);
    }
    // Taken off one of a row's two sums.
    let first = less.map(|less| _mm256_set1_epi32(-less & 0xffff));
    if A == 1 {
        block_of_one::<W>(tile, j, acts[0], first[0], add)
    } else {
        block_of_some::<A, W>(tile, j, acts, first, add)
    }
}

/// [`block_sums`] of one row of codes, as [`row_16`].
#[inline]
#[target_feature(enable = "avx2")]
fn block_of_one<const W: usize>(
    tile: &TileWords,
    j: usize,
    act: &[u32],
    first: __m256i,
    add: &mut impl FnMut(usize, usize, __m256i),
) {
    let mut x = [[_mm256_setzero_si256(); FOURS]; W];
    for (i, x) in x.iter_mut().enumerate() {
        *x = factors(act, j + i);
    }
    for b in 0..VECTORS {
        let (mut once, mut fourfold) = (first, _mm256_setzero_si256());
        for (i, x) in x.iter().enumerate() {
            let [w] = load(tile, j + i, LANES * b);
            add_word_of_one(w, x, &mut once, &mut fourfold);
        }
        let all = _mm256_add_epi16(once, _mm256_srai_epi16::<2>(fourfold));
        add(0, b, _mm256_madd_epi16(all, _mm256_set1_epi16(1)));
    }
}

/// [`block_sums`] of several, two vectors of rows at a time.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn block_of_some<const A: usize, const W: usize>(
    tile: &TileWords,
    j: usize,
    acts: &[&[u32]; A],
    first: [__m256i; A],
    add: &mut impl FnMut(usize, usize, __m256i),
) {
    const B: usize = 2;
    let (mask, ones) = (_mm256_set1_epi8(3), _mm256_set1_epi16(1));
    for from in (0..VECTORS).step_by(B) {
        let mut sums = first.map(|first| [first; B]);
        for i in 0..W {
            // As in `sums_16`: a step that both call is 1.1 times as slow here.
            let mut w: [__m256i; B] = load(tile, j + i, LANES * from);
            for four in 0..FOURS {
                let picked = w.map(|w| _mm256_and_si256(w, mask));
                w = w.map(|w| _mm256_srli_epi32::<2>(w));
                for a in 0..A {
                    // SAFETY: every row of codes has `FOURS` words for each word of a row, by `check`.
                    let x = _mm256_set1_epi32(unsafe { *acts[a].get_unchecked((j + i) * FOURS + four) } as i32);
                    for b in 0..B {
                        sums[a][b] = _mm256_add_epi16(sums[a][b], _mm256_maddubs_epi16(picked[b], x));
                    }
                }
            }
        }
        for (a, sums) in sums.iter().enumerate() {
            for (b, &sum) in sums.iter().enumerate() {
                add(a, from + b, _mm256_madd_epi16(sum, ones));
            }
        }
    }
}

/// Adds sums of [`LANES`] rows to those from `row` on.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn add_exact(to: &mut [i32; TILE_ROWS], row: usize, sums: __m256i) {
    let to = &mut to[row..row + LANES];
    // SAFETY: it has 8 elements.
    unsafe {
        let old = _mm256_loadu_si256(to.as_ptr().cast());
        _mm256_storeu_si256(to.as_mut_ptr().cast(), _mm256_add_epi32(old, sums));
    }
}

/// Adds a group's sums of rows from `row` on, times their scales, to outputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
pub fn settle<const B: usize>(tile: &GroupTile, g: usize, row: usize, sums: &[__m256; B], out: &mut [f32; TILE_ROWS]) {
    let rows = row..row + B * LANES;
    let outs = out[rows.clone()].chunks_exact_mut(LANES);
    let scales = tile.scales[g * TILE_ROWS..][rows].chunks_exact(LANES);
    for ((out, &sum), scales) in outs.zip(sums).zip(scales) {
        // SAFETY: `scales` and `out` have 8 elements; unaligned loads and stores are allowed.
        unsafe {
            let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().cast()));
            let total = _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(out.as_ptr()));
            _mm256_storeu_ps(out.as_mut_ptr(), total);
        }
    }
}
