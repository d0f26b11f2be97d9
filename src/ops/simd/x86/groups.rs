//! The kernel of products with scales by group for x86-64 with AVX2, or AVX-512 with VNNI.
//!
//! Both read a tile's words as they lie, as `x86::ternary` does: a vector holds one word of 8 or 16 neighbouring rows. The
//! integer sums of a group of activations become floats in registers, and once a group of weights they are scaled. A byte of
//! a product is unsigned, so that codes need not be shifted down to its lowest bits: masks pick them where they are, and a
//! sum of each place is shifted once a group.

use std::arch::x86_64::*;
use std::ops::Range;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::groups::{GroupActs, GroupKernel, GroupTile, Table, TileOuts};
use crate::ops::simd::low_bit_tiles::{AHEAD, BYTES_AHEAD, checked, fetch_scales, fetch_words, of_acts};
use crate::ops::simd::x86::low_bit_avx2::{LANES, add_exact, is_one_piece, products};
use crate::ops::simd::x86::low_bit_vnni::{evex, vex};
use crate::quant::{Bits, TILE_ROWS};

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<GroupKernel> {
    let mut all: Vec<GroupKernel> = Vec::new();
    if allows(CpuLevel::Avx2) {
        // SAFETY: the processor has AVX2, FMA and F16C.
        all.push(|tile, bits, acts, outs| unsafe { tile_avx2(tile, bits, acts, outs) });
    }
    if allows(CpuLevel::AvxVnni) && is_x86_feature_detected!("avxvnni") {
        // SAFETY: the processor has AVX2, FMA, F16C and AVX-VNNI.
        all.push(|tile, bits, acts, outs| unsafe { vex::group_tile(tile, bits, acts, outs) });
    } else if allows(CpuLevel::AvxVnni) {
        // SAFETY: the processor has AVX2, FMA, F16C, and VNNI with AVX-512 VL.
        all.push(|tile, bits, acts, outs| unsafe { evex::group_tile(tile, bits, acts, outs) });
    }
    if allows(CpuLevel::Avx512) {
        // SAFETY: the processor has AVX-512F and VNNI.
        all.push(|tile, bits, acts, outs| unsafe { tile_vnni(tile, bits, acts, outs) });
    }
    all
}

/// The words `first..end` of a group of weights, cut into the numbers and words of the groups of activations in it.
fn units(tile: &GroupTile, first: usize, end: usize) -> impl Iterator<Item = (usize, Range<usize>)> {
    let (step, number) = (tile.act_words, first / tile.act_words);
    (first..end).step_by(step).enumerate().map(move |(i, from)| (number + i, from..end.min(from + step)))
}

/// Tables of a word of 1-bit codes: of columns whose bits are the lower half of a byte, then of those of the upper half; of
/// each the lower 7 bits of the sums, then the upper ones.
const WORD_TABLES: usize = 4;
/// What the upper bits of a sum stand for.
const UPPER: i8 = i8::MIN; // 128, unsigned

/// The tables of a row of codes, on processors that can look up bytes among 64: element `16 b + n` of a half is the sum of
/// four activations, minus those for which byte `b`'s bits `n` are 0. It takes two look-ups, not four products.
pub fn make_tables(words: &[u32], to: &mut Vec<Table>) {
    to.clear();
    if allows(CpuLevel::Avx512) && is_x86_feature_detected!("avx512vbmi") {
        to.resize(words.len() / 8 * WORD_TABLES, Table([0; 64]));
        // SAFETY: the processor has AVX-512 with VBMI, which implies BW.
        unsafe { fill_tables(bytemuck::cast_slice(words), to) };
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn fill_tables(codes: &[i8], to: &mut [Table]) {
    // Lanes whose number has bit 0, 1, 2 or 3.
    const WITH_BIT: [u32; 4] = [0xaaaa_aaaa, 0xcccc_cccc, 0xf0f0_f0f0, 0xff00_ff00];
    let columns: [[u16; 32]; 2] = [0, 1].map(|i| std::array::from_fn(|lane| (2 * i + lane / 16) as u16));
    let even: [u8; 64] = std::array::from_fn(|at| 2 * at as u8);
    for (codes, to) in codes.chunks_exact(16).zip(to.chunks_exact_mut(2)) {
        // SAFETY: `codes` has 16 elements.
        let x = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.as_ptr().cast())) };
        let x = _mm512_castsi256_si512(x);
        let mut sums = [_mm512_setzero_si512(); 2];
        for (sums, columns) in sums.iter_mut().zip(&columns) {
            // SAFETY: `columns` has 32 elements.
            let mut at = unsafe { _mm512_loadu_si512(columns.as_ptr().cast()) };
            for with_bit in WITH_BIT {
                let one = _mm512_permutexvar_epi16(at, x);
                *sums = _mm512_mask_add_epi16(_mm512_sub_epi16(*sums, one), with_bit, *sums, one);
                at = _mm512_add_epi16(at, _mm512_set1_epi16(4));
            }
        }
        let lower = sums.map(|sums| _mm512_and_si512(sums, _mm512_set1_epi16(0x7f)));
        let upper = sums.map(|sums| _mm512_srai_epi16::<7>(sums));
        for (table, of_sums) in to.iter_mut().zip([lower, upper]) {
            // SAFETY: both have 64 bytes.
            unsafe {
                let even = _mm512_loadu_si512(even.as_ptr().cast());
                let bytes = _mm512_permutex2var_epi8(of_sums[0], even, of_sums[1]);
                _mm512_storeu_si512(table.0.as_mut_ptr().cast(), bytes);
            }
        }
    }
}

/// The tile for one row of codes, by look-ups: 1-bit codes whose tables are there.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn tile_tables(tile: &GroupTile, act: &GroupActs, outs: &mut [f32; TILE_ROWS]) {
    const VECTORS: usize = TILE_ROWS / 16;
    let n = tile.words.len() / TILE_ROWS;
    assert!(act.tables.len() >= n * WORD_TABLES, "a word of codes lacks its tables");
    let (mut j, mut unit, mut g) = (0, 0, 0);
    while j < n {
        fetch_scales(tile, g, 0..TILE_ROWS);
        let mut sums = [_mm512_setzero_ps(); VECTORS];
        let end = n.min(j + tile.group_words);
        while j < end {
            let mut exact = [_mm512_setzero_si512(); VECTORS];
            let stop = end.min(j + tile.act_words);
            while j < stop {
                fetch_words(tile, j + AHEAD[0], 0..TILE_ROWS);
                let words = &tile.words[j * TILE_ROWS..][..TILE_ROWS];
                add_word(words, &act.tables[j * WORD_TABLES..][..WORD_TABLES], &mut exact);
                j += 1;
            }
            add_scaled(&exact, act.scale_and_sum[2 * unit], &mut sums);
            unit += 1;
        }
        settle_vnni(tile, g, 0, &sums, outs);
        g += 1;
    }
}

/// Adds a word of a tile's rows to the sums.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn add_word(words: &[u32], tables: &[Table], sums: &mut [__m512i; 8]) {
    // What is looked up: four bits of a byte, and in front of them which byte of its word it is.
    const OR_OF_AND: i32 = 0xf8;
    let (half, byte) = (_mm512_set1_epi8(15), _mm512_set1_epi32(0x3020_1000));
    let (ones, upper) = (_mm512_set1_epi8(1), _mm512_set1_epi8(UPPER));
    let mut t = [_mm512_setzero_si512(); WORD_TABLES];
    for (t, table) in t.iter_mut().zip(tables) {
        // SAFETY: a table has 64 bytes.
        *t = unsafe { _mm512_loadu_si512(table.0.as_ptr().cast()) };
    }
    for (sum, words) in sums.iter_mut().zip(words.chunks_exact(16)) {
        // SAFETY: `words` has 16 words; unaligned loads are allowed.
        let w = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        let first = _mm512_ternarylogic_epi32::<OR_OF_AND>(byte, w, half);
        let second = _mm512_ternarylogic_epi32::<OR_OF_AND>(byte, _mm512_srli_epi32::<4>(w), half);
        // Two of 7 bits fit a byte.
        let low = _mm512_add_epi8(_mm512_permutexvar_epi8(first, t[0]), _mm512_permutexvar_epi8(second, t[2]));
        let high = _mm512_add_epi8(_mm512_permutexvar_epi8(first, t[1]), _mm512_permutexvar_epi8(second, t[3]));
        *sum = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(*sum, low, ones), upper, high);
    }
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
    let n = tile.words.len() / TILE_ROWS;
    for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
        let mut sums = [[0.0; TILE_ROWS]; A];
        for (unit, words) in units(tile, first, (first + tile.group_words).min(n)) {
            match bits {
                Bits::One => unit_avx2::<A, 8>(tile, unit, words, &acts, &mut sums),
                Bits::Two => unit_avx2::<A, 4>(tile, unit, words, &acts, &mut sums),
                Bits::Eight => unit_of_bytes_avx2(tile, unit, words, &acts, &mut sums),
            }
        }
        for (sums, outs) in sums.iter().zip(outs.iter_mut()) {
            let scales = &tile.scales[g * TILE_ROWS..][..TILE_ROWS];
            for ((out, sum), scales) in outs.chunks_exact_mut(8).zip(sums.chunks_exact(8)).zip(scales.chunks_exact(8)) {
                // SAFETY: each has 8 elements; unaligned loads and stores are allowed.
                unsafe {
                    let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().cast()));
                    let sum = _mm256_loadu_ps(sum.as_ptr());
                    let total = _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(out.as_ptr()));
                    _mm256_storeu_ps(out.as_mut_ptr(), total);
                }
            }
        }
    }
}

/// Adds what a group of activations gives, the words `words` of each row.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn unit_avx2<const A: usize, const FOURS: usize>(
    tile: &GroupTile,
    unit: usize,
    words: Range<usize>,
    acts: &[GroupActs; A],
    sums: &mut [[f32; TILE_ROWS]; A],
) {
    let bits = if FOURS == 8 { Bits::One } else { Bits::Two };
    let (of, codes) = (acts.each_ref().map(|act| of_acts(act, unit, bits)), acts.each_ref().map(|act| act.words));
    let settle = |sums: &mut [f32; TILE_ROWS], a: usize, row: usize, exact| {
        let exact = if FOURS == 8 { _mm256_slli_epi32::<1>(exact) } else { exact };
        add_scaled_avx2(sums, row, _mm256_sub_epi32(exact, _mm256_set1_epi32(of[a].1)), of[a].0);
    };
    if is_one_piece::<FOURS>(words.len()) {
        return products::<A, FOURS>(tile.words, words, &codes, |a, row, exact| settle(&mut sums[a], a, row, exact));
    }
    let mut all = [[0; TILE_ROWS]; A];
    products::<A, FOURS>(tile.words, words, &codes, |a, row, some| add_exact(&mut all[a], row, some));
    for (a, (all, sums)) in all.iter().zip(sums).enumerate() {
        for (i, exact) in all.chunks_exact(LANES).enumerate() {
            // SAFETY: `exact` has 8 elements.
            settle(sums, a, i * LANES, unsafe { _mm256_loadu_si256(exact.as_ptr().cast()) });
        }
    }
}

/// Adds exact sums of 8 rows from `row` on times `1/k` to sums.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn add_scaled_avx2(sums: &mut [f32; TILE_ROWS], row: usize, exact: __m256i, inv_k: f32) {
    let sums = &mut sums[row..row + LANES];
    // SAFETY: it has 8 elements.
    unsafe {
        let old = _mm256_loadu_ps(sums.as_ptr());
        let new = _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(inv_k), old);
        _mm256_storeu_ps(sums.as_mut_ptr(), new);
    }
}

/// [`unit_avx2`] of codes of 8 bits: products of 16 bits, those of even and of odd columns.
#[target_feature(enable = "avx2,fma,f16c")]
fn unit_of_bytes_avx2<const A: usize>(
    tile: &GroupTile,
    unit: usize,
    words: Range<usize>,
    acts: &[GroupActs; A],
    sums: &mut [[f32; TILE_ROWS]; A],
) {
    const B: usize = 4;
    let low = _mm256_set1_epi16(0xff);
    for (act, sums) in acts.iter().zip(sums) {
        let (inv_k, less) = of_acts(act, unit, Bits::Eight);
        for row in (0..TILE_ROWS).step_by(B * LANES) {
            let mut exact = [_mm256_set1_epi32(-less); B];
            for j in words.clone() {
                let x = _mm256_set1_epi32(act.words[j] as i32);
                let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                let odd = _mm256_srai_epi16::<8>(x);
                let codes = &tile.words[j * TILE_ROWS + row..][..B * LANES];
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

#[target_feature(enable = "avx512f,avx512vnni")]
fn tile_vnni(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    let _ = checked(tile, bits, acts);
    match (bits, acts.len()) {
        (_, 0) => {}
        // SAFETY: only `make_tables` makes them, on a processor with VBMI.
        (Bits::One, 1) if !acts[0].tables.is_empty() => unsafe { tile_tables(tile, &acts[0], &mut outs[0]) },
        (Bits::One, 1) => blocks_vnni::<8, 1, 8>(tile, bits, acts, outs),
        (Bits::One, 2) => blocks_vnni::<4, 2, 8>(tile, bits, acts, outs),
        (Bits::One, 3) => blocks_vnni::<4, 3, 8>(tile, bits, acts, outs),
        (Bits::One, _) => blocks_vnni::<4, 4, 8>(tile, bits, acts, outs),
        (Bits::Two, 1) => blocks_vnni::<8, 1, 4>(tile, bits, acts, outs),
        (Bits::Two, 2) => blocks_vnni::<4, 2, 4>(tile, bits, acts, outs),
        (Bits::Two, 3) => blocks_vnni::<4, 3, 4>(tile, bits, acts, outs),
        (Bits::Two, _) => blocks_vnni::<4, 4, 4>(tile, bits, acts, outs),
        (Bits::Eight, 1) => blocks_vnni::<8, 1, 1>(tile, bits, acts, outs),
        (Bits::Eight, 2) => blocks_vnni::<4, 2, 1>(tile, bits, acts, outs),
        (Bits::Eight, 3) => blocks_vnni::<4, 3, 1>(tile, bits, acts, outs),
        (Bits::Eight, _) => blocks_vnni::<4, 4, 1>(tile, bits, acts, outs),
    }
}

/// `B` vectors of 16 rows whose sums stay in registers: all of a tile for one row of codes, so that memory is read in its
/// order. `A` rows of codes, `G` words of them per word of weights.
#[target_feature(enable = "avx512f,avx512vnni")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn blocks_vnni<const B: usize, const A: usize, const G: usize>(
    tile: &GroupTile,
    bits: Bits,
    acts: &[GroupActs],
    outs: &mut TileOuts,
) {
    let n = tile.words.len() / TILE_ROWS;
    let Ok(acts) = <[GroupActs; A]>::try_from(acts) else { unreachable!("the caller has as many rows of codes") };
    for from in (0..TILE_ROWS).step_by(16 * B) {
        let (mut j, mut unit, mut g) = (0, 0, 0);
        while j < n {
            fetch_scales(tile, g, from..from + 16 * B);
            let mut sums = [[_mm512_setzero_ps(); B]; A];
            let end = n.min(j + tile.group_words);
            while j < end {
                let mut exact = [[_mm512_setzero_si512(); B]; A];
                for a in 0..A {
                    exact[a] = [_mm512_set1_epi32(-of_acts(&acts[a], unit, bits).1); B];
                }
                let stop = end.min(j + tile.act_words);
                while j < stop {
                    add_word_vnni::<B, A, G>(tile, j, from, &acts, &mut exact);
                    j += 1;
                }
                for a in 0..A {
                    add_scaled(&exact[a], of_acts(&acts[a], unit, bits).0, &mut sums[a]);
                }
                unit += 1;
            }
            for a in 0..A {
                settle_vnni(tile, g, from, &sums[a], &mut outs[a]);
            }
            g += 1;
        }
    }
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
    let ahead = if G == 1 { BYTES_AHEAD } else { AHEAD[0] };
    fetch_words(tile, j + ahead, from..from + 16 * B);
    // One bit stands for 2, so it is picked one place above where it is.
    let mask = _mm512_set1_epi8([0, -1, 0, 0, 3, 0, 0, 0, 2][G]);
    let words = &tile.words[j * TILE_ROWS + from..][..16 * B];
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
