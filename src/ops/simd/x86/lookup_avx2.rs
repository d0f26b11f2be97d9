//! Exact sums of products with 1-bit codes for x86-64 with AVX2, by looking up sums of four activations among 16 bytes (the idea of
//! T-MAC, arXiv 2407.00088, section 3).
//!
//! The four bits of half a byte choose a sum of 10 bits, which is looked up in two parts of 5: eight of either, those of a whole
//! word, fit a byte. A shuffle looks up in one table, so that it needs the same byte of the words of 32 rows: bytes of four
//! vectors are transposed first. Resident weights are laid out so once; those that are read page by page for all rows of
//! activations.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::ops::simd::low_bit::{Order, Table, TileWords, WORD_CODES, WORD_TABLES};
use crate::ops::simd::x86::low_bit_avx2::LANES;
use crate::quant::{LAID_OUT_ROWS, TILE_ROWS};

/// Bits of the lower part of a sum.
const LOWER: i32 = 5;
/// What is added to a sum, so that it is never negative: four activations are at least `4 · -128`.
const BIAS: i16 = 512;
/// Bytes of a word.
const BYTES: usize = 4;
/// Halves of a byte.
const HALVES: usize = 2;
/// Words of a row whose sums fit 16 bits: a word's are at most `8 · (31 + 31 · 32)`.
const WORDS_OF_16_BITS: usize = 8;
/// Rows whose bytes are looked up together.
pub(super) const ROWS: usize = LAID_OUT_ROWS;
/// What the sums of a word are larger by than they are: a number of 16 bits with a sign holds two times a sum, in exact form.
pub(super) const WORD_BIAS: i16 = BIAS * (BYTES * HALVES) as i16;

/// Whether the products of this many words of a row are added up in one piece.
pub(super) fn is_one_piece(words: usize) -> bool {
    words <= WORDS_OF_16_BITS
}

/// Makes the tables of a row of codes: of each word, half and byte the lower parts of 16 sums, then the upper parts. The bits of
/// an element's number choose among the activations of that half and byte.
pub(super) fn make_tables(words: &[u32], to: &mut [Table]) {
    // SAFETY: the processor has AVX2, as every one on which kernels use these tables.
    unsafe { fill_tables(words, to) };
}

#[target_feature(enable = "avx2")]
fn fill_tables(words: &[u32], to: &mut [Table]) {
    // Plain loops here and below: a closure that is called by `map` need not be inlined, and would pass vectors through memory.
    let lower = _mm256_set1_epi16((1 << LOWER) - 1);
    let four_times =
        _mm256_setr_epi64x(0x0100_0100_0100_0100, 0x0302_0302_0302_0302, 0x0504_0504_0504_0504, 0x0706_0706_0706_0706);
    let halves = words.chunks_exact(WORD_CODES / HALVES);
    for (words, tables) in halves.zip(to.chunks_exact_mut(WORD_TABLES / HALVES)) {
        // SAFETY: `words` has 16 bytes.
        let x = _mm256_cvtepi8_epi16(unsafe { _mm_loadu_si128(words.as_ptr().cast()) });
        let first = of_two(_mm256_permute4x64_epi64::<0b01_00_01_00>(x), four_times);
        let first = _mm256_add_epi16(first, _mm256_set1_epi16(BIAS));
        let second = of_two(_mm256_permute4x64_epi64::<0b11_10_11_10>(x), four_times);
        let of_bytes = [
            [_mm256_permute4x64_epi64::<0x00>(first), _mm256_permute4x64_epi64::<0x00>(second)],
            [_mm256_permute4x64_epi64::<0x55>(first), _mm256_permute4x64_epi64::<0x55>(second)],
            [_mm256_permute4x64_epi64::<0xaa>(first), _mm256_permute4x64_epi64::<0xaa>(second)],
            [_mm256_permute4x64_epi64::<0xff>(first), _mm256_permute4x64_epi64::<0xff>(second)],
        ];
        let tables = tables.iter_mut().flat_map(|table| table.0.chunks_exact_mut(32));
        for (table, [first, second]) in tables.zip(of_bytes) {
            let sums = _mm256_add_epi16(first, _mm256_shuffle_epi8(second, four_times));
            let parts = _mm256_packus_epi16(_mm256_and_si256(sums, lower), _mm256_srli_epi16::<LOWER>(sums));
            // SAFETY: `table` has 32 bytes.
            unsafe { _mm256_storeu_si256(table.as_mut_ptr().cast(), _mm256_permute4x64_epi64::<0b11_01_10_00>(parts)) };
        }
    }
}

/// Sums of two activations of each byte, four for each byte; those of four are all pairs of these.
#[inline]
#[target_feature(enable = "avx2")]
fn of_two(x: __m256i, four_times: __m256i) -> __m256i {
    let first = _mm256_shuffle_epi8(x, four_times);
    let second = _mm256_shuffle_epi8(x, _mm256_add_epi8(four_times, _mm256_set1_epi8(8)));
    let (with_first, with_second) = (_mm256_set1_epi32(-1 << 16), _mm256_set1_epi64x(-1 << 32));
    _mm256_add_epi16(_mm256_and_si256(first, with_first), _mm256_and_si256(second, with_second))
}

/// The orders of a tile's words, as loops that are made for one of them know them.
const PLAIN: u8 = Order::Plain as u8;
const BLOCKS: u8 = Order::Blocks as u8;
const BY_ROWS: u8 = Order::BlocksByRows as u8;

/// `Σ stored code · activation` over the words `words` of each row of a tile, in pieces: `add(a, row, sums)` is called with those
/// of [`LANES`] rows from `row` on and row `a` of activations, of a piece of the words.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn products<const A: usize>(
    tile: &TileWords,
    words: Range<usize>,
    tables: &[&[Table]; A],
    mut add: impl FnMut(usize, usize, __m256i),
) {
    check(tile, words.end, tables);
    let piece = |from: usize| from..words.end.min(from + WORDS_OF_16_BITS);
    // In the order of the words in memory; with several rows of codes, so that their tables stay in the first cache.
    if tile.order == Order::BlocksByRows && A == 1 {
        for row in (0..TILE_ROWS).step_by(ROWS) {
            for from in words.clone().step_by(WORDS_OF_16_BITS) {
                add_piece::<A, BY_ROWS>(tile, piece(from), row, tables, &mut add);
            }
        }
        return;
    }
    for from in words.clone().step_by(WORDS_OF_16_BITS) {
        for row in (0..TILE_ROWS).step_by(ROWS) {
            match tile.order {
                Order::Plain => add_piece::<A, PLAIN>(tile, piece(from), row, tables, &mut add),
                Order::Blocks => add_piece::<A, BLOCKS>(tile, piece(from), row, tables, &mut add),
                Order::BlocksByRows => add_piece::<A, BY_ROWS>(tile, piece(from), row, tables, &mut add),
            }
        }
    }
}

/// Adds a piece of [`products`].
#[inline]
#[target_feature(enable = "avx2")]
fn add_piece<const A: usize, const ORDER: u8>(
    tile: &TileWords,
    piece: Range<usize>,
    row: usize,
    tables: &[&[Table]; A],
    add: &mut impl FnMut(usize, usize, __m256i),
) {
    let zero = _mm256_setzero_si256();
    let bias = _mm256_set1_epi32(i32::from(BIAS) * (BYTES * HALVES * piece.len()) as i32);
    let sums = sums_16::<A, ORDER>(tile, piece, row, tables);
    for (a, sums) in sums.iter().enumerate() {
        for (i, &sums) in sums.iter().enumerate() {
            let [first, second] = [_mm256_unpacklo_epi16(sums, zero), _mm256_unpackhi_epi16(sums, zero)];
            let row = row + 2 * LANES * i;
            add(a, row, _mm256_sub_epi32(first, bias));
            add(a, row + LANES, _mm256_sub_epi32(second, bias));
        }
    }
}

/// Checks that a tile has the first `end` words of each row, and each of them its tables.
pub(super) fn check(tile: &TileWords, end: usize, tables: &[&[Table]]) {
    assert!(tile.all.len() >= end * TILE_ROWS, "a tile is shorter than its rows");
    assert!(tables.iter().all(|tables| tables.len() >= end * WORD_TABLES), "a word of codes lacks its tables");
}

/// [`sums_16`] of one word, which [`check`] has found.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn word_sums<const A: usize>(
    tile: &TileWords,
    word: usize,
    row: usize,
    tables: &[&[Table]; A],
) -> [[__m256i; 2]; A] {
    match tile.order {
        Order::Plain => sums_16::<A, PLAIN>(tile, word..word + 1, row, tables),
        Order::Blocks => sums_16::<A, BLOCKS>(tile, word..word + 1, row, tables),
        Order::BlocksByRows => sums_16::<A, BY_ROWS>(tile, word..word + 1, row, tables),
    }
}

/// The sums of [`ROWS`] rows from `row` on over some words, in 16 bits without a sign: of rows 0 to 15 and 16 to 31, in the order
/// in which unpacking them gives rows in theirs.
#[inline]
#[target_feature(enable = "avx2")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn sums_16<const A: usize, const ORDER: u8>(
    tile: &TileWords,
    words: Range<usize>,
    row: usize,
    tables: &[&[Table]; A],
) -> [[__m256i; 2]; A] {
    let half = _mm256_set1_epi8(15);
    let weights = _mm256_set1_epi16(1 | 1 << LOWER << 8);
    let mut sums = [[_mm256_setzero_si256(); 2]; A];
    let (first, to_next) = if ORDER == BY_ROWS { Order::BlocksByRows } else { Order::Plain }.blocks(tile, row);
    for j in words {
        let words = tile.block(first + j * to_next);
        let bytes = if ORDER == PLAIN { transposed(words) } else { load(words) };
        let mut parts = [[_mm256_setzero_si256(); 2]; A];
        for byte in 0..BYTES {
            let upper = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes[byte]), half);
            for (which, half) in [_mm256_and_si256(bytes[byte], half), upper].into_iter().enumerate() {
                for a in 0..A {
                    // SAFETY: `check` has found that each word has its tables, of two times 16 bytes for each half and byte.
                    let table = unsafe {
                        let table = tables[a].as_ptr().add(j * WORD_TABLES).cast::<__m128i>();
                        let table = table.add(2 * (BYTES * which + byte));
                        [_mm_loadu_si128(table), _mm_loadu_si128(table.add(1))]
                    };
                    for (parts, table) in parts[a].iter_mut().zip(table) {
                        let found = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), half);
                        *parts = _mm256_add_epi8(*parts, found);
                    }
                }
            }
        }
        for (sums, [lower, upper]) in sums.iter_mut().zip(parts) {
            let both = [_mm256_unpacklo_epi8(lower, upper), _mm256_unpackhi_epi8(lower, upper)];
            for (sums, both) in sums.iter_mut().zip(both) {
                *sums = _mm256_add_epi16(*sums, _mm256_maddubs_epi16(both, weights));
            }
        }
    }
    sums
}

/// Writes the words of a tile in another order, each block as [`transposed`] gives it.
pub(super) fn lay_out(tile: &TileWords, order: Order, to: &mut [u32]) {
    // SAFETY: the processor has AVX2, as every one on which kernels use what is laid out.
    unsafe { transpose_all(tile, order, to) };
}

#[target_feature(enable = "avx2")]
fn transpose_all(tile: &TileWords, order: Order, to: &mut [u32]) {
    for (j, words) in tile.all.chunks_exact(TILE_ROWS).enumerate() {
        tile.fetch(j, 0..TILE_ROWS);
        for (i, words) in words.chunks_exact(ROWS).enumerate() {
            let (first, to_next) = order.blocks(tile, i * ROWS);
            for (to, bytes) in to[first + j * to_next..][..ROWS].chunks_exact_mut(LANES).zip(transposed(words)) {
                // SAFETY: `to` has 8 elements.
                unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bytes) };
            }
        }
    }
}

/// What [`lay_out`] has written.
#[inline]
#[target_feature(enable = "avx2")]
fn load(words: &[u32]) -> [__m256i; BYTES] {
    let mut bytes = [_mm256_setzero_si256(); BYTES];
    for (bytes, words) in bytes.iter_mut().zip(words.chunks_exact(LANES)) {
        // SAFETY: `words` has 8 elements.
        *bytes = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
    }
    bytes
}

/// The bytes of the words of [`ROWS`] rows: the first of all, the second, and so on; in each half of a vector four of rows
/// 0, 8, 16 and 24 on, or of 4, 12, 20 and 28 on.
#[inline]
#[target_feature(enable = "avx2")]
fn transposed(words: &[u32]) -> [__m256i; BYTES] {
    let order = _mm256_broadcastsi128_si256(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
    let words = &words[..ROWS];
    let mut w = [_mm256_setzero_si256(); 4];
    for (w, words) in w.iter_mut().zip(words.chunks_exact(LANES)) {
        // SAFETY: `words` has 8 elements.
        *w = _mm256_shuffle_epi8(unsafe { _mm256_loadu_si256(words.as_ptr().cast()) }, order);
    }
    let first = [_mm256_unpacklo_epi32(w[0], w[1]), _mm256_unpacklo_epi32(w[2], w[3])];
    let last = [_mm256_unpackhi_epi32(w[0], w[1]), _mm256_unpackhi_epi32(w[2], w[3])];
    [
        _mm256_unpacklo_epi64(first[0], first[1]),
        _mm256_unpackhi_epi64(first[0], first[1]),
        _mm256_unpacklo_epi64(last[0], last[1]),
        _mm256_unpackhi_epi64(last[0], last[1]),
    ]
}
