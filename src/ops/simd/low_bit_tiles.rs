//! Tiles of codes of 1, 2 and 8 bits times rows of codes, for instructions that add up four products of bytes in each lane of
//! 32 bits, or what stands for them. Defined once, for vectors of any number of lanes: `x86::low_bit_vnni` and
//! `aarch64::low_bit` say what their instructions are.
//!
//! A vector holds one word of neighbouring rows, as they lie: its masked bytes times one broadcast word of activations are a
//! partial sum of each row, and nothing is ever shuffled.

use std::ops::Range;

use crate::ops::simd::groups::{GroupActs, GroupTile};
use crate::ops::simd::prefetch::{self, Ahead};
use crate::quant::{Bits, TILE_ROWS};

/// Groups by which fetching of scales is ahead.
const SCALES_AHEAD: usize = 4;
/// How 8-bit codes are fetched: they are done with much sooner than others.
pub(super) const BYTES_AHEAD: Ahead = Ahead { bytes: 16384, ..Ahead::SECOND };

/// Words of a row that are multiplied before those of the next rows, so that memory is read nearly in its order.
pub(super) const PIECE: usize = 16;

/// Words of a row, after a check that all of its groups have scales, and all rows of codes what they are multiplied by.
pub(super) fn checked(tile: &GroupTile, bits: Bits, acts: &[GroupActs]) -> usize {
    let n = tile.words.of_a_row();
    let groups = n.div_ceil(tile.group_words.max(1));
    assert!(tile.group_words > 0 && tile.scales.len() >= groups * TILE_ROWS, "a group lacks its scales");
    let codes = n * bits.cols_per_word() / 4;
    assert!(tile.act_words > 0 && tile.group_words.is_multiple_of(tile.act_words), "a group cuts activations");
    let units = n.div_ceil(tile.act_words);
    let is_whole = |a: &GroupActs| a.words.len() >= codes && a.scale_and_sum.len() >= 2 * units;
    assert!(acts.iter().all(is_whole), "a row of codes is shorter than the weights");
    n
}

/// What the stored sums of a group of a row's codes become: the factor, and what they are reduced by.
pub(super) fn of_acts(act: &GroupActs, unit: usize, bits: Bits) -> (f32, i32) {
    (act.scale_and_sum[2 * unit], bits.times_and_offset()[1] * act.scale_and_sum[2 * unit + 1] as i32)
}

/// Fetches the scales of some rows, of a group that is used soon after group `g`; the next tile's follow this one's.
#[inline(always)]
pub(super) fn fetch_scales(tile: &GroupTile, g: usize, rows: Range<usize>) {
    if tile.words.after.is_some() {
        prefetch::run(tile.words.ahead, tile.scales, (g + SCALES_AHEAD) * TILE_ROWS + rows.start, rows.len());
    }
}

/// Defines `ternary_tile`, a [`TileKernel`](crate::ops::simd::ternary::TileKernel), and `group_tile`, a
/// [`GroupKernel`](crate::ops::simd::groups::GroupKernel), for processors with `$features`. The module `$v` has vectors of
/// `LANES` integers (`Ints`) and floats; `$sums` says of how many vectors at once the sums stay in registers (`BLOCKS`, for one
/// to four rows of codes), and in how many parts they are for one row of codes (`HALVES`). How sums of words are made is defined
/// beside it: [`low_bit_words`] does, or what has the same functions.
macro_rules! low_bit_tiles {
    ($features:literal, $v:ident, $sums:ident) => {
        use std::array;
        use std::ops::Range;

        use crate::ops::simd::groups::{GroupActs, GroupTile, TileOuts};
        use crate::ops::simd::low_bit::{BATCH, TileWords};
        use crate::ops::simd::low_bit_tiles::{BYTES_AHEAD, PIECE, checked, fetch_scales, of_acts};
        use crate::ops::simd::portable;
        use crate::ops::simd::ternary::{Codes, TileSums};
        use crate::quant::{Bits, TILE_ROWS};

        const B: [usize; 4] = $sums::BLOCKS;

        /// Sums of `A` rows of codes with `B` vectors of rows, in `H` parts: a single row of codes may have 2, of every other
        /// product, since one would be added to before the processor is done with the addition before.
        type Exact<const B: usize, const A: usize, const H: usize> = [[[$v::Ints; B]; A]; H];

        #[target_feature(enable = $features)]
        pub(in crate::unstable::ops::simd) fn ternary_tile(
            tile: &TileWords,
            bits: Bits,
            acts: &[Codes],
            sums: &mut TileSums,
        ) {
            match (bits, acts.len()) {
                (_, 0) => {}
                (Bits::One, 1) => ternary_blocks::<{ B[0] }, 1, { $sums::HALVES }, 8>(tile, bits, acts, sums),
                (Bits::One, 2) => ternary_blocks::<{ B[1] }, 2, 1, 8>(tile, bits, acts, sums),
                (Bits::One, 3) => ternary_blocks::<{ B[2] }, 3, 1, 8>(tile, bits, acts, sums),
                (Bits::One, _) => ternary_blocks::<{ B[3] }, 4, 1, 8>(tile, bits, acts, sums),
                // A ternary matrix has no more.
                (Bits::Two | Bits::Six | Bits::Eight, 1) => {
                    ternary_blocks::<{ B[0] }, 1, { $sums::HALVES }, 4>(tile, bits, acts, sums)
                }
                (Bits::Two | Bits::Six | Bits::Eight, 2) => ternary_blocks::<{ B[1] }, 2, 1, 4>(tile, bits, acts, sums),
                (Bits::Two | Bits::Six | Bits::Eight, 3) => ternary_blocks::<{ B[2] }, 3, 1, 4>(tile, bits, acts, sums),
                (Bits::Two | Bits::Six | Bits::Eight, _) => ternary_blocks::<{ B[3] }, 4, 1, 4>(tile, bits, acts, sums),
            }
        }

        /// Sets a tile's sums.
        #[target_feature(enable = $features)]
        fn ternary_blocks<const B: usize, const A: usize, const H: usize, const G: usize>(
            tile: &TileWords,
            bits: Bits,
            acts: &[Codes],
            sums: &mut TileSums,
        ) {
            let codes: [&[u32]; A] = array::from_fn(|a| acts[a].words);
            assert!(
                codes.iter().all(|codes| codes.len() >= tile.of_a_row() * G),
                "a row of codes is shorter than the weights"
            );
            for (sums, act) in sums.iter_mut().zip(acts) {
                sums.fill(-bits.times_and_offset()[1] * act.sum);
            }
            add_pieces::<B, A, H, G>(tile, 0..tile.of_a_row(), &codes, sums);
        }

        /// Adds the products of words of each row of a tile, in pieces of some of all rows, so that memory is read in its order.
        #[target_feature(enable = $features)]
        fn add_pieces<const B: usize, const A: usize, const H: usize, const G: usize>(
            tile: &TileWords,
            words: Range<usize>,
            codes: &[&[u32]; A],
            sums: &mut TileSums,
        ) {
            let rows = B * $v::LANES;
            let ahead = if G == 1 { BYTES_AHEAD } else { tile.ahead.of_short_runs(size_of_val(tile.all)) };
            for piece in words.clone().step_by(PIECE) {
                for from in (0..TILE_ROWS).step_by(rows) {
                    let mut exact = begin::<B, A, H, G>([0; A]);
                    for j in piece..words.end.min(piece + PIECE) {
                        tile.fetch_by(ahead, j, from..from + rows);
                        add_word::<B, A, H, G>(&tile.all[j * TILE_ROWS + from..][..rows], codes, j, &mut exact);
                    }
                    for a in 0..A {
                        for b in 0..B {
                            let sums = &mut sums[a][from + b * $v::LANES..][..$v::LANES];
                            // SAFETY: `sums` has an element for each lane.
                            unsafe {
                                let exact = $v::add(total::<B, A, H, G>(&exact, a, b), $v::load(sums.as_ptr().cast()));
                                $v::store(sums.as_mut_ptr(), exact);
                            }
                        }
                    }
                }
            }
        }

        #[target_feature(enable = $features)]
        pub(in crate::unstable::ops::simd) fn group_tile(
            tile: &GroupTile,
            bits: Bits,
            acts: &[GroupActs],
            outs: &mut TileOuts,
        ) {
            if bits == Bits::Six {
                return portable::six_bits::tile(tile, acts, outs);
            }
            let _ = checked(tile, bits, acts);
            match (bits, acts.len()) {
                (_, 0) | (Bits::Six, _) => {}
                (Bits::One, 1) => group_blocks::<{ B[0] }, 1, { $sums::HALVES }, 8>(tile, bits, acts, outs),
                (Bits::One, 2) => group_blocks::<{ B[1] }, 2, 1, 8>(tile, bits, acts, outs),
                (Bits::One, 3) => group_blocks::<{ B[2] }, 3, 1, 8>(tile, bits, acts, outs),
                (Bits::One, _) => group_blocks::<{ B[3] }, 4, 1, 8>(tile, bits, acts, outs),
                (Bits::Two, 1) => group_blocks::<{ B[0] }, 1, { $sums::HALVES }, 4>(tile, bits, acts, outs),
                (Bits::Two, 2) => group_blocks::<{ B[1] }, 2, 1, 4>(tile, bits, acts, outs),
                (Bits::Two, 3) => group_blocks::<{ B[2] }, 3, 1, 4>(tile, bits, acts, outs),
                (Bits::Two, _) => group_blocks::<{ B[3] }, 4, 1, 4>(tile, bits, acts, outs),
                (Bits::Eight, 1) => group_blocks::<{ B[0] }, 1, 1, 1>(tile, bits, acts, outs),
                (Bits::Eight, 2) => group_blocks::<{ B[1] }, 2, 1, 1>(tile, bits, acts, outs),
                (Bits::Eight, 3) => group_blocks::<{ B[2] }, 3, 1, 1>(tile, bits, acts, outs),
                (Bits::Eight, _) => group_blocks::<{ B[3] }, 4, 1, 1>(tile, bits, acts, outs),
            }
        }

        /// Adds a tile's products to `outs`, group by group. Exact sums of a group of activations become floats, and once a
        /// group of weights they are scaled.
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop)] // As above.
        fn group_blocks<const B: usize, const A: usize, const H: usize, const G: usize>(
            tile: &GroupTile,
            bits: Bits,
            acts: &[GroupActs],
            outs: &mut TileOuts,
        ) {
            // Several rows of codes hide waiting for memory.
            if A == 1 && tile.act_words > PIECE && tile.act_words == tile.group_words {
                return row_of_long_groups::<B, A, H, G>(tile, bits, acts, outs);
            }
            let (n, rows) = (tile.words.of_a_row(), B * $v::LANES);
            let codes: [&[u32]; A] = array::from_fn(|a| acts[a].words);
            let of_a_group = size_of::<[u32; TILE_ROWS]>() * tile.group_words;
            let ahead = if G == 1 { BYTES_AHEAD } else { tile.words.ahead.of_short_runs(of_a_group) };
            for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
                let end = n.min(first + tile.group_words);
                for from in (0..TILE_ROWS).step_by(rows) {
                    fetch_scales(tile, g, from..from + rows);
                    let mut sums = [[$v::no_floats(); B]; A];
                    for start in (first..end).step_by(tile.act_words) {
                        let unit = start / tile.act_words;
                        let mut exact = begin::<B, A, H, G>(array::from_fn(|a| {
                            if G == 1 && $v::SIGNED { 0 } else { -of_acts(&acts[a], unit, bits).1 }
                        }));
                        for j in start..end.min(start + tile.act_words) {
                            tile.words.fetch_by(ahead, j, from..from + rows);
                            let words = &tile.words.all[j * TILE_ROWS + from..][..rows];
                            add_word::<B, A, H, G>(words, &codes, j, &mut exact);
                        }
                        for a in 0..A {
                            let inv_k = of_acts(&acts[a], unit, bits).0;
                            for b in 0..B {
                                sums[a][b] = $v::add_scaled(sums[a][b], total::<B, A, H, G>(&exact, a, b), inv_k);
                            }
                        }
                    }
                    let scales = &tile.scales[g * TILE_ROWS + from..][..rows];
                    for a in 0..A {
                        let outs = &mut outs[a][from..from + rows];
                        for b in 0..B {
                            // SAFETY: both have an element for each lane of `B` vectors.
                            unsafe {
                                let scales = scales.as_ptr().add(b * $v::LANES);
                                $v::settle(outs.as_mut_ptr().add(b * $v::LANES), sums[a][b], scales);
                            }
                        }
                    }
                }
            }
        }

        /// [`group_blocks`] of a row of codes whose groups, those of the weights, have many words of a row: by pieces of them.
        #[target_feature(enable = $features)]
        fn row_of_long_groups<const B: usize, const A: usize, const H: usize, const G: usize>(
            tile: &GroupTile,
            bits: Bits,
            acts: &[GroupActs],
            outs: &mut TileOuts,
        ) {
            let n = tile.words.of_a_row();
            let codes: [&[u32]; A] = array::from_fn(|a| acts[a].words);
            for (g, start) in (0..n).step_by(tile.group_words).enumerate() {
                fetch_scales(tile, g, 0..TILE_ROWS);
                let of_acts: [(f32, i32); A] = array::from_fn(|a| of_acts(&acts[a], g, bits));
                let mut exact: TileSums = [[0; TILE_ROWS]; BATCH];
                for (exact, (_, less)) in exact.iter_mut().zip(of_acts) {
                    exact.fill(if G == 1 && $v::SIGNED { 0 } else { -less });
                }
                add_pieces::<B, A, H, G>(&tile.words, start..n.min(start + tile.group_words), &codes, &mut exact);
                let scales = &tile.scales[g * TILE_ROWS..][..TILE_ROWS];
                for ((exact, outs), (inv_k, _)) in exact.iter().zip(outs.iter_mut()).zip(of_acts) {
                    for row in (0..TILE_ROWS).step_by($v::LANES) {
                        // SAFETY: all have an element for each row of a tile.
                        unsafe {
                            let exact = $v::load(exact.as_ptr().add(row).cast());
                            let sum = $v::add_scaled($v::no_floats(), exact, inv_k);
                            $v::settle(outs.as_mut_ptr().add(row), sum, scales.as_ptr().add(row));
                        }
                    }
                }
            }
        }
    };
}
pub(super) use low_bit_tiles;

/// Defines how [`low_bit_tiles`] adds up one word after the other: `begin`, `add_word` and `total`; a word's codes are taken out
/// by `pick`. The sums of a row of codes and a vector of rows are a vector. `$sums` adds up products (`dot`) of one word between
/// `open` and `close`.
macro_rules! low_bit_words {
    ($features:literal, $v:ident, $sums:ident) => {
        /// Sums that begin with a number for each row of codes.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn begin<const B: usize, const A: usize, const H: usize, const G: usize>(
            with: [i32; A],
        ) -> Exact<B, A, H> {
            let mut exact: Exact<B, A, H> = [[[$v::splat(0); B]; A]; H];
            for a in 0..A {
                exact[0][a] = [$v::splat(with[a]); B];
            }
            exact
        }

        /// The sums of row `a` of codes with vector `b` of rows.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn total<const B: usize, const A: usize, const H: usize, const G: usize>(
            exact: &Exact<B, A, H>,
            a: usize,
            b: usize,
        ) -> $v::Ints {
            if H == 2 { $v::add(exact[0][a][b], exact[1][a][b]) } else { exact[0][a][b] }
        }

        /// Takes what belongs to word `four` of the `G` words of codes out of words; called for one after the other. A bit
        /// counts 2: it is picked one place above where it is.
        #[inline]
        #[target_feature(enable = $features)]
        pub(super) fn pick<const G: usize>(w: &mut $v::Ints, four: usize) -> $v::Ints {
            let mask = $v::splat([0, -1, 0, 0, 0x0303_0303, 0, 0, 0, 0x0202_0202][G]);
            let first = G == 8 && four == 0;
            let picked = match G {
                1 if $v::SIGNED => $v::xor(*w, $v::splat(i32::from_ne_bytes([0x80; 4]))),
                1 => *w,
                _ => $v::and(if first { $v::left_1(*w) } else { *w }, mask),
            };
            *w = match G {
                8 if !first => $v::right_1(*w),
                4 => $v::right_2(*w),
                _ => *w,
            };
            picked
        }

        /// Adds the products of word `j` of some rows. `G` words of codes belong to it: 8 at 1 bit, 4 at 2 bits, 1 at 8 bits.
        #[inline]
        #[target_feature(enable = $features)]
        #[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
        pub(super) fn add_word<const B: usize, const A: usize, const H: usize, const G: usize>(
            words: &[u32],
            codes: &[&[u32]; A],
            j: usize,
            exact: &mut Exact<B, A, H>,
        ) {
            let mut w = [$v::splat(0); B];
            let mut open = [[[$sums::open($v::splat(0)); B]; A]; H];
            assert!(words.len() == B * $v::LANES, "rows of a block");
            for b in 0..B {
                // SAFETY: in bounds by the assertion.
                w[b] = unsafe { $v::load(words.as_ptr().add(b * $v::LANES)) };
                for h in 0..H {
                    for a in 0..A {
                        open[h][a][b] = $sums::open(exact[h][a][b]);
                    }
                }
            }
            for four in 0..G {
                let mut x = [$v::splat(0); A];
                for a in 0..A {
                    // SAFETY: every row of codes has `G` words for each word of a row, as the callers check.
                    x[a] = $v::splat(unsafe { *codes[a].get_unchecked(j * G + four) } as i32);
                }
                for b in 0..B {
                    let picked = pick::<G>(&mut w[b], four);
                    for a in 0..A {
                        let sum = &mut open[four % H][a][b];
                        *sum = $sums::dot(*sum, picked, x[a]);
                    }
                }
            }
            for h in 0..H {
                for a in 0..A {
                    for b in 0..B {
                        exact[h][a][b] = $sums::close::<G>(exact[h][a][b], open[h][a][b]);
                    }
                }
            }
        }
    };
}
pub(super) use low_bit_words;
