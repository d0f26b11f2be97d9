//! The kernel of products with scales by group for x86-64 with AVX2, or AVX-512 with VNNI.
//!
//! Both read a tile's words as they lie, as `x86::ternary` does: a vector holds one word of 8 or 16 neighbouring rows. The
//! integer sums of a group of activations become floats in registers, and once a group of weights they are scaled. A byte of
//! a product is unsigned, so that codes need not be shifted down to its lowest bits: masks pick them where they are, and a
//! sum of each place is shifted once a group.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::groups::{GroupActs, GroupKernel, GroupTile, TileOuts};
use crate::ops::simd::low_bit::Kernel;
use crate::ops::simd::low_bit_tiles::{BYTES_AHEAD, checked, fetch_scales, of_acts};
use crate::ops::simd::x86::low_bit_avx2::{self, LANES, VECTORS, add_exact, settle};
use crate::ops::simd::x86::low_bit_vnni::{evex, vex};
use crate::ops::simd::x86::{lookup_avx2, lookup_avx512, six_bits};
use crate::quant::{Bits, TILE_ROWS};

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<GroupKernel> {
    let mut all: Vec<GroupKernel> = Vec::new();
    if allows(CpuLevel::Avx2) {
        all.push(Kernel {
            // SAFETY: the processor has AVX2, FMA and F16C.
            run: |tile, bits, acts, outs| unsafe { tile_avx2(tile, bits, acts, outs) },
            make_tables: Some(lookup_avx2::make_tables),
            lay_out: Some(lookup_avx2::lay_out),
        });
    }
    if allows(CpuLevel::AvxVnni) && is_x86_feature_detected!("avxvnni") {
        all.push(Kernel {
            run: |tile, bits, acts, out| match bits {
                // SAFETY: the processor has AVX2, FMA, F16C and AVX-VNNI.
                Bits::One | Bits::Six => unsafe { tile_avx2(tile, bits, acts, out) },
                // SAFETY: likewise.
                Bits::Two | Bits::Eight => unsafe { vex::group_tile(tile, bits, acts, out) },
            },
            make_tables: Some(lookup_avx2::make_tables),
            lay_out: Some(lookup_avx2::lay_out),
        });
    } else if allows(CpuLevel::AvxVnni) {
        all.push(Kernel {
            run: |tile, bits, acts, out| match bits {
                // SAFETY: the processor has AVX2, FMA, F16C, and VNNI with AVX-512 VL.
                Bits::One | Bits::Six => unsafe { tile_avx2(tile, bits, acts, out) },
                // SAFETY: likewise.
                Bits::Two | Bits::Eight => unsafe { evex::group_tile(tile, bits, acts, out) },
            },
            make_tables: Some(lookup_avx2::make_tables),
            lay_out: Some(lookup_avx2::lay_out),
        });
    }
    if allows(CpuLevel::Avx512) {
        all.push(Kernel {
            // SAFETY: the processor has AVX-512F and VNNI.
            run: |tile, bits, acts, outs| unsafe { tile_vnni(tile, bits, acts, outs) },
            make_tables: None,
            lay_out: None,
        });
        if is_x86_feature_detected!("avx512vbmi") {
            all.push(Kernel {
                // SAFETY: the processor has AVX-512F, BW, VNNI and VBMI.
                run: |tile, bits, acts, outs| unsafe { tile_vbmi(tile, bits, acts, outs) },
                make_tables: Some(lookup_avx512::make_tables),
                lay_out: None,
            });
        }
    }
    all
}

/// The words `first..end` of a group of weights, cut into the numbers and words of the groups of activations in it.
fn units(tile: &GroupTile, first: usize, end: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let (step, number) = (tile.act_words, first / tile.act_words);
    (first..end).step_by(step).enumerate().map(move |(i, from)| (number + i, from..end.min(from + step)))
}

/// Adds what a group of activations gave, exact sums, times its `1/k`.
#[inline]
#[target_feature(enable = "avx512f")]
fn add_scaled<const B: usize>(exact: &[__m512i; B], inv_k: f32, sums: &mut [__m512; B]) {
    let inv_k = _mm512_set1_ps(inv_k);
    for (sum, &exact) in sums.iter_mut().zip(exact) {
        *sum = _mm512_fmadd_ps(_mm512_cvtepi32_ps(exact), inv_k, *sum);
    }
}

/// Adds a group's sums of vectors of 16 rows, from row `from` on, times their scales to outputs.
#[inline]
#[target_feature(enable = "avx512f")]
fn settle_vnni<const B: usize>(
    tile: &GroupTile,
    g: usize,
    from: usize,
    sums: &[__m512; B],
    outs: &mut [f32; TILE_ROWS],
) {
    for (b, &sum) in sums.iter().enumerate() {
        let at = from + 16 * b;
        let (scales, out) = (&tile.scales[g * TILE_ROWS + at..][..16], &mut outs[at..at + 16]);
        // SAFETY: both have 16 elements; unaligned loads and stores are allowed.
        unsafe {
            let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast()));
            let total = _mm512_fmadd_ps(sum, scale, _mm512_loadu_ps(out.as_ptr()));
            _mm512_storeu_ps(out.as_mut_ptr(), total);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_avx2(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    if bits == Bits::Six {
        return six_bits::tile(tile, acts, outs);
    }
    let _ = checked(tile, bits, acts);
    match *acts {
        [a] => rows_avx2(tile, bits, [a], outs),
        [a, b] => rows_avx2(tile, bits, [a, b], outs),
        [a, b, c] => rows_avx2(tile, bits, [a, b, c], outs),
        [a, b, c, d, ..] => rows_avx2(tile, bits, [a, b, c, d], outs),
        [] => {}
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rows_avx2<const A: usize>(tile: &GroupTile, bits: Bits, acts: [GroupActs; A], outs: &mut TileOuts) {
    // A factor for 32 columns.
    match (bits, tile.act_words) {
        // Sums of more rows do not stay in registers.
        (Bits::One, 1) if A <= 2 => return rows_of_ones_avx2(tile, acts, outs),
        (Bits::Two, 1 | 2) => return rows_of_twos_avx2(tile, acts, outs),
        _ => {}
    }
    let n = tile.words.of_a_row();
    for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; A];
        for (unit, words) in units(tile, first, (first + tile.group_words).min(n)) {
            match bits {
                Bits::One | Bits::Two => unit_avx2(tile, bits, unit, words, &acts, &mut sums),
                _ => unit_of_bytes_avx2(tile, unit, words, &acts, &mut sums),
            }
        }
        for (sums, out) in sums.iter().zip(outs.iter_mut()) {
            settle(tile, g, 0, sums, out);
        }
    }
}

/// [`rows_avx2`] of 1-bit codes whose activations have a factor for each word: the sums of 32 rows stay in registers over a
/// group of weights.
#[target_feature(enable = "avx2,fma,f16c")]
fn rows_of_ones_avx2<const A: usize>(tile: &GroupTile, acts: [GroupActs; A], outs: &mut TileOuts) {
    const B: usize = lookup_avx2::ROWS / LANES;
    let (n, tables) = (tile.words.of_a_row(), acts.each_ref().map(|act| act.tables));
    lookup_avx2::check(&tile.words, n, &tables);
    for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
        for row in (0..TILE_ROWS).step_by(B * LANES) {
            let mut sums = [[_mm256_setzero_ps(); B]; A];
            for j in first..n.min(first + tile.group_words) {
                let found = lookup_avx2::word_sums(&tile.words, j, row, &tables);
                for a in 0..A {
                    add_ones_avx2(found[a], of_acts(&acts[a], j, Bits::One), &mut sums[a]);
                }
            }
            for (sums, outs) in sums.iter().zip(outs.iter_mut()) {
                settle(tile, g, row, sums, outs);
            }
        }
    }
}

/// [`rows_avx2`] of 2-bit codes whose activations have a factor for 32 columns.
#[target_feature(enable = "avx2,fma,f16c")]
fn rows_of_twos_avx2<const A: usize>(tile: &GroupTile, acts: [GroupActs; A], outs: &mut TileOuts) {
    let (n, codes) = (tile.words.of_a_row(), acts.each_ref().map(|act| act.words));
    low_bit_avx2::check(&tile.words, n, &codes);
    for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
        let mut sums = [[_mm256_setzero_ps(); VECTORS]; A];
        for (unit, words) in units(tile, first, n.min(first + tile.group_words)) {
            let of = acts.each_ref().map(|act| of_acts(act, unit, Bits::Two));
            let (inv_k, less) = (of.map(|(inv_k, _)| _mm256_set1_ps(inv_k)), of.map(|(_, less)| less));
            let mut add = |a: usize, b: usize, exact| {
                sums[a][b] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), inv_k[a], sums[a][b]);
            };
            match words.len() {
                1 => low_bit_avx2::block_sums::<A, 1>(&tile.words, words.start, &codes, less, &mut add),
                _ => low_bit_avx2::block_sums::<A, 2>(&tile.words, words.start, &codes, less, &mut add),
            }
        }
        for (sums, out) in sums.iter().zip(outs.iter_mut()) {
            settle(tile, g, 0, sums, out);
        }
    }
}

/// Adds what a word of 1-bit codes gave, the sums of 32 rows in 16 bits, by `(1/k, sum of codes)` of its activations.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_ones_avx2(found: [__m256i; 2], (inv_k, less): (f32, i32), sums: &mut [__m256; 4]) {
    // A code is 2 · stored − 1, so the exact sum fits 16 bits. In the upper half of 32 bits it is 2^16 times itself.
    let less = _mm256_set1_epi16((2 * i32::from(lookup_avx2::WORD_BIAS) + less) as i16);
    let (factor, zero) = (_mm256_set1_ps(inv_k / 65536.0), _mm256_setzero_si256());
    for (found, sums) in found.into_iter().zip(sums.chunks_exact_mut(2)) {
        let exact = _mm256_sub_epi16(_mm256_add_epi16(found, found), less);
        let halves = [_mm256_unpacklo_epi16(zero, exact), _mm256_unpackhi_epi16(zero, exact)];
        for (sum, half) in sums.iter_mut().zip(halves) {
            *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(half), factor, *sum);
        }
    }
}

/// Adds what a group of activations gives, the words `words` of each row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unit_avx2<const A: usize>(
    tile: &GroupTile,
    bits: Bits,
    unit: usize,
    words: Range<usize>,
    acts: &[GroupActs; A],
    sums: &mut [[__m256; VECTORS]; A],
) {
    let of = acts.each_ref().map(|act| of_acts(act, unit, bits));
    let settle = |sums: &mut [__m256; VECTORS], a: usize, row: usize, exact| {
        let exact = if bits == Bits::One { _mm256_slli_epi32::<1>(exact) } else { exact };
        add_scaled_avx2(sums, row, _mm256_sub_epi32(exact, _mm256_set1_epi32(of[a].1)), of[a].0);
    };
    let one_piece = match bits {
        Bits::One => lookup_avx2::is_one_piece(words.len()),
        _ => low_bit_avx2::is_one_piece(words.len()),
    };
    if one_piece {
        return pieces_avx2(tile, bits, words, acts, |a, row, exact| settle(&mut sums[a], a, row, exact));
    }
    let mut all = [[0; TILE_ROWS]; A];
    pieces_avx2(tile, bits, words, acts, |a, row, some| add_exact(&mut all[a], row, some));
    for (a, (all, sums)) in all.iter().zip(sums).enumerate() {
        for (i, exact) in all.chunks_exact(LANES).enumerate() {
            // SAFETY: `exact` has 8 elements.
            settle(sums, a, i * LANES, unsafe { _mm256_loadu_si256(exact.as_ptr().cast()) });
        }
    }
}

/// Exact sums over stored codes of 1 or 2 bits, in pieces.
#[inline]
#[target_feature(enable = "avx2")]
fn pieces_avx2<const A: usize>(
    tile: &GroupTile,
    bits: Bits,
    words: Range<usize>,
    acts: &[GroupActs; A],
    add: impl FnMut(usize, usize, __m256i),
) {
    match bits {
        Bits::One => lookup_avx2::products(&tile.words, words, &acts.each_ref().map(|act| act.tables), add),
        _ => low_bit_avx2::products(&tile.words, words, &acts.each_ref().map(|act| act.words), add),
    }
}

/// Adds exact sums of 8 rows from `row` on times `1/k` to sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled_avx2(sums: &mut [__m256; VECTORS], row: usize, exact: __m256i, inv_k: f32) {
    let sum = &mut sums[row / LANES];
    *sum = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(inv_k), *sum);
}

/// [`unit_avx2`] of codes of 8 bits: products of 16 bits, those of even and of odd columns.
#[target_feature(enable = "avx2,fma,f16c")]
fn unit_of_bytes_avx2<const A: usize>(
    tile: &GroupTile,
    unit: usize,
    words: Range<usize>,
    acts: &[GroupActs; A],
    sums: &mut [[__m256; VECTORS]; A],
) {
    const B: usize = 4;
    let low = _mm256_set1_epi16(0xff);
    for (act, sums) in acts.iter().zip(sums) {
        let (inv_k, less) = of_acts(act, unit, Bits::Eight);
        for row in (0..TILE_ROWS).step_by(B * LANES) {
            let mut exact = [_mm256_set1_epi32(-less); B];
            for j in words.clone() {
                tile.words.fetch_by(BYTES_AHEAD, j, row..row + B * LANES);
                let x = _mm256_set1_epi32(act.words[j] as i32);
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                let odd = _mm256_srai_epi16::<8>(x);
                let codes = &tile.words.all[j * TILE_ROWS + row..][..B * LANES];
                for (exact, codes) in exact.iter_mut().zip(codes.chunks_exact(LANES)) {
                    // SAFETY: `codes` has 8 words; unaligned loads are allowed.
                    let w = unsafe { _mm256_loadu_si256(codes.as_ptr().cast()) };
                    let even = _mm256_madd_epi16(_mm256_and_si256(w, low), even);
                    let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(w), odd);
                    *exact = _mm256_add_epi32(*exact, _mm256_add_epi32(even, odd));
                }
            }
            for (b, exact) in exact.into_iter().enumerate() {
                add_scaled_avx2(sums, row + LANES * b, exact, inv_k);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn tile_vbmi(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    if bits != Bits::One {
        return tile_vnni(tile, bits, acts, outs);
    }
    let _ = checked(tile, bits, acts);
    // Sums of more rows at once do not stay in registers.
    for (acts, outs) in acts.chunks(2).zip(outs.chunks_mut(2)) {
        match *acts {
            [a] => blocks_vbmi::<8, 1>(tile, [a], outs),
            [a, b, ..] => blocks_vbmi::<4, 2>(tile, [a, b], outs),
            [] => {}
        }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn tile_vnni(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    match bits {
        Bits::One => rows_vnni::<8>(tile, bits, acts, outs),
        Bits::Two => rows_vnni::<4>(tile, bits, acts, outs),
        // Memory is what they wait for, with these instructions as well.
        Bits::Six => six_bits::tile(tile, acts, outs),
        Bits::Eight => rows_vnni::<1>(tile, bits, acts, outs),
    }
}

/// `G` words of codes per word of weights.
#[target_feature(enable = "avx512f,avx512vnni")]
fn rows_vnni<const G: usize>(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    let _ = checked(tile, bits, acts);
    match *acts {
        [a] => blocks_vnni::<8, 1, G>(tile, bits, [a], outs),
        [a, b] => blocks_vnni::<4, 2, G>(tile, bits, [a, b], outs),
        [a, b, c] => blocks_vnni::<4, 3, G>(tile, bits, [a, b, c], outs),
        [a, b, c, d, ..] => blocks_vnni::<4, 4, G>(tile, bits, [a, b, c, d], outs),
        [] => {}
    }
}

/// A tile in passes of `B` vectors of 16 rows whose sums stay in registers: all of a tile for one row of codes, so that memory is
/// read in its order. Exact sums of row `a` of codes begin with `$first(a, unit)`, and `$add(j, from, exact)` adds word `j`.
macro_rules! blocks_512 {
    ($tile:ident, $acts:ident, $outs:ident, $first:expr, $add:expr) => {
        let n = $tile.words.of_a_row();
        for from in (0..TILE_ROWS).step_by(16 * B) {
            let (mut j, mut unit, mut g) = (0, 0, 0);
            while j < n {
                fetch_scales($tile, g, from..from + 16 * B);
                let mut sums = [[_mm512_setzero_ps(); B]; A];
                let end = n.min(j + $tile.group_words);
                while j < end {
                    let mut exact = [[_mm512_setzero_si512(); B]; A];
                    for a in 0..A {
                        exact[a] = [_mm512_set1_epi32($first(a, unit)); B];
                    }
                    let stop = end.min(j + $tile.act_words);
                    while j < stop {
                        $add(j, from, &mut exact);
                        j += 1;
                    }
                    for a in 0..A {
                        add_scaled(&exact[a], $acts[a].scale_and_sum[2 * unit], &mut sums[a]);
                    }
                    unit += 1;
                }
                for a in 0..A {
                    settle_vnni($tile, g, from, &sums[a], &mut $outs[a]);
                }
                g += 1;
            }
        }
    };
}

/// `A` rows of codes.
#[target_feature(enable = "avx512f,avx512vnni")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn blocks_vnni<const B: usize, const A: usize, const G: usize>(
    tile: &GroupTile,
    bits: Bits,
    acts: [GroupActs; A],
    outs: &mut TileOuts,
) {
    let first = |a: usize, unit| -of_acts(&acts[a], unit, bits).1;
    blocks_512!(tile, acts, outs, first, |j, from, exact: &mut _| {
        add_word_vnni::<B, A, G>(tile, j, from, &acts, exact);
    });
}

/// `A` rows of codes with their tables.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
#[allow(clippy::needless_range_loop)] // As above.
fn blocks_vbmi<const B: usize, const A: usize>(tile: &GroupTile, acts: [GroupActs; A], outs: &mut [[f32; TILE_ROWS]]) {
    let tables = acts.map(|act| act.tables);
    blocks_512!(tile, acts, outs, |_, _| 0, |j, from, exact: &mut _| {
        tile.words.fetch(j, from..from + 16 * B);
        // SAFETY: as of this function.
        unsafe { lookup_avx512::add_word(&tile.words.all[j * TILE_ROWS + from..], j, &tables, exact) };
    });
}

/// Adds the products of word `j` of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
#[allow(clippy::needless_range_loop)] // As above.
fn add_word_vnni<const B: usize, const A: usize, const G: usize>(
    tile: &GroupTile,
    j: usize,
    from: usize,
    acts: &[GroupActs; A],
    exact: &mut [[__m512i; B]; A],
) {
    let ahead = if G == 1 { BYTES_AHEAD } else { tile.words.ahead };
    tile.words.fetch_by(ahead, j, from..from + 16 * B);
    // One bit stands for 2, so it is picked one place above where it is.
    let mask = _mm512_set1_epi8([0, -1, 0, 0, 3, 0, 0, 0, 2][G]);
    let words = &tile.words.all[j * TILE_ROWS + from..][..16 * B];
    let mut w = [_mm512_setzero_si512(); B];
    for (w, words) in w.iter_mut().zip(words.chunks_exact(16)) {
        // SAFETY: `words` has 16 words; unaligned loads are allowed.
        *w = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        if G == 8 {
            *w = _mm512_rol_epi32::<1>(*w);
        }
    }
    for four in 0..G {
        let mut picked = w;
        for picked in &mut picked {
            *picked = _mm512_and_si512(*picked, mask);
        }
        for a in 0..A {
            // SAFETY: every row of codes has `G` words for each word of a row (`checked`).
            let x = _mm512_set1_epi32(unsafe { *acts[a].words.get_unchecked(j * G + four) } as i32);
            for b in 0..B {
                exact[a][b] = _mm512_dpbusd_epi32(exact[a][b], picked[b], x);
            }
        }
        for w in &mut w {
            *w = if G == 8 { _mm512_ror_epi32::<1>(*w) } else { _mm512_srli_epi32::<2>(*w) };
        }
    }
}
