//! The kernel of products with scales by group for x86-64 with AVX2, or AVX-512 with VNNI.
//!
//! Both read a tile's words as they lie, as `ternary_x86` does: a vector holds one word of 8 or 16 neighbouring rows. A
//! group's integer sums become floats, scaled, in registers. A byte of a product is unsigned, so that codes need not be
//! shifted down to its lowest bits: masks pick them where they are, and a sum of each place is shifted once a group.

use std::arch::x86_64::*;

use crate::ops::simd::groups::{GroupActs, GroupKernel, GroupTile, TileOuts};
use crate::quant::{Bits, TILE_ROWS};

/// Words and halves of a cache line.
const LINE: [usize; 2] = [16, 32];
/// Words of a row, and groups, by which fetching is ahead: 4 KB of both. A hardware prefetcher alone reaches about half of the
/// memory's rate.
const AHEAD: [usize; 2] = [8, 16];

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<GroupKernel> {
    let mut all: Vec<GroupKernel> = Vec::new();
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has AVX2, FMA and F16C.
        all.push(|tile, bits, acts, outs| unsafe { tile_avx2(tile, bits, acts, outs) });
    }
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
        // SAFETY: the processor has AVX-512F and VNNI.
        all.push(|tile, bits, acts, outs| unsafe { tile_vnni(tile, bits, acts, outs) });
    }
    all
}

/// Words of a row, after a check that all of its groups have scales, and all rows of codes what they are multiplied by.
fn checked(tile: &GroupTile, bits: Bits, acts: &[GroupActs]) -> usize {
    let n = tile.words.len() / TILE_ROWS;
    let groups = n.div_ceil(tile.group_words.max(1));
    assert!(tile.group_words > 0 && tile.scales.len() >= groups * TILE_ROWS, "a group lacks its scales");
    let codes = n * bits.cols_per_word() / 4;
    let is_whole = |a: &GroupActs| a.words.len() >= codes && a.scale_and_sum.len() >= 2 * groups;
    assert!(acts.iter().all(is_whole), "a row of codes is shorter than the weights");
    n
}

/// What a group's stored sums of a row of codes become: the factor, and what they are reduced by.
fn of_group(act: &GroupActs, g: usize, bits: Bits) -> (f32, i32) {
    (act.scale_and_sum[2 * g], bits.times_and_offset()[1] * act.scale_and_sum[2 * g + 1] as i32)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn tile_avx2(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    let _ = checked(tile, bits, acts);
    for (act, outs) in acts.iter().zip(outs.iter_mut()) {
        for block in (0..TILE_ROWS).step_by(32) {
            match bits {
                Bits::One => block_avx2::<8>(tile, bits, act, block, outs),
                Bits::Two => block_avx2::<4>(tile, bits, act, block, outs),
                Bits::Eight => block_avx2::<1>(tile, bits, act, block, outs),
            }
        }
    }
}

/// 32 rows: 4 vectors of sums. `G` words of codes a word of weights.
#[target_feature(enable = "avx2,fma,f16c")]
fn block_avx2<const G: usize>(
    tile: &GroupTile,
    bits: Bits,
    act: &GroupActs,
    block: usize,
    outs: &mut [f32; TILE_ROWS],
) {
    let n = tile.words.len() / TILE_ROWS;
    let mask = _mm256_set1_epi8(if G == 8 { 1 } else { 3 });
    let (ones, low) = (_mm256_set1_epi16(1), _mm256_set1_epi16(0xff));
    for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
        let mut acc = [_mm256_setzero_si256(); 4];
        for j in first..(first + tile.group_words).min(n) {
            let words = &tile.words[j * TILE_ROWS + block..][..32];
            let mut w = [_mm256_setzero_si256(); 4];
            for (w, words) in w.iter_mut().zip(words.chunks_exact(8)) {
                // SAFETY: `words` has 8 words; unaligned loads are allowed.
                *w = unsafe { _mm256_loadu_si256(words.as_ptr().cast()) };
            }
            for four in 0..G {
                let x = _mm256_set1_epi32(act.words[j * G + four] as i32);
                for (acc, w) in acc.iter_mut().zip(&mut w) {
                    if G == 1 {
                        // Bytes up to 255: products of 16 bits, those of even and of odd columns.
                        let even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
                        let even = _mm256_madd_epi16(_mm256_and_si256(*w, low), even);
                        let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(*w), _mm256_srai_epi16::<8>(x));
                        *acc = _mm256_add_epi32(*acc, _mm256_add_epi32(even, odd));
                    } else {
                        // Codes are at most 3, so two products fit 16 bits.
                        let pairs = _mm256_maddubs_epi16(_mm256_and_si256(*w, mask), x);
                        *acc = _mm256_add_epi32(*acc, _mm256_madd_epi16(pairs, ones));
                        *w = if G == 8 { _mm256_srli_epi32::<1>(*w) } else { _mm256_srli_epi32::<2>(*w) };
                    }
                }
            }
        }
        let (inv_k, less) = of_group(act, g, bits);
        for (b, acc) in acc.into_iter().enumerate() {
            let at = block + 8 * b;
            let sum = if G == 8 { _mm256_slli_epi32::<1>(acc) } else { acc };
            let sum = _mm256_cvtepi32_ps(_mm256_sub_epi32(sum, _mm256_set1_epi32(less)));
            let (scales, out) = (&tile.scales[g * TILE_ROWS + at..][..8], &mut outs[at..at + 8]);
            // SAFETY: both have 8 elements; unaligned loads and stores are allowed.
            unsafe {
                let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().cast()));
                let factor = _mm256_mul_ps(scale, _mm256_set1_ps(inv_k));
                let total = _mm256_fmadd_ps(sum, factor, _mm256_loadu_ps(out.as_ptr()));
                _mm256_storeu_ps(out.as_mut_ptr(), total);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn tile_vnni(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    let _ = checked(tile, bits, acts);
    match (bits, acts.len()) {
        (_, 0) => {}
        (Bits::One, 1) => blocks_vnni::<8, 1, 8, 2>(tile, bits, acts, outs),
        (Bits::One, 2) => blocks_vnni::<4, 2, 8, 2>(tile, bits, acts, outs),
        (Bits::One, 3) => blocks_vnni::<4, 3, 8, 1>(tile, bits, acts, outs),
        (Bits::One, _) => blocks_vnni::<4, 4, 8, 1>(tile, bits, acts, outs),
        (Bits::Two, 1) => blocks_vnni::<8, 1, 4, 2>(tile, bits, acts, outs),
        (Bits::Two, 2) => blocks_vnni::<4, 2, 4, 2>(tile, bits, acts, outs),
        (Bits::Two, 3) => blocks_vnni::<4, 3, 4, 1>(tile, bits, acts, outs),
        (Bits::Two, _) => blocks_vnni::<4, 4, 4, 1>(tile, bits, acts, outs),
        (Bits::Eight, 1) => blocks_vnni::<8, 1, 1, 1>(tile, bits, acts, outs),
        (Bits::Eight, 2) => blocks_vnni::<4, 2, 1, 1>(tile, bits, acts, outs),
        (Bits::Eight, 3) => blocks_vnni::<4, 3, 1, 1>(tile, bits, acts, outs),
        (Bits::Eight, _) => blocks_vnni::<4, 4, 1, 1>(tile, bits, acts, outs),
    }
}

/// `B` vectors of 16 rows whose sums stay in registers: all of a tile for one row of codes, so that memory is read in its
/// order. `A` rows of codes, `G` words of them per word of weights, of which `M` are picked by masks before the word is
/// shifted.
#[target_feature(enable = "avx512f,avx512vnni")]
fn blocks_vnni<const B: usize, const A: usize, const G: usize, const M: usize>(
    tile: &GroupTile,
    bits: Bits,
    acts: &[GroupActs],
    outs: &mut TileOuts,
) {
    let n = tile.words.len() / TILE_ROWS;
    let Ok(acts) = <[GroupActs; A]>::try_from(acts) else { unreachable!("the caller has as many rows of codes") };
    for from in (0..TILE_ROWS).step_by(16 * B) {
        for (g, first) in (0..n).step_by(tile.group_words).enumerate() {
            fetch(tile.scales, (g + AHEAD[1]) * TILE_ROWS + from, 16 * B / LINE[1], LINE[1]);
            let words = first..(first + tile.group_words).min(n);
            let acc = group_vnni::<B, A, G, M>(tile, words, from, &acts);
            for a in 0..A {
                let (inv_k, less) = of_group(&acts[a], g, bits);
                for b in 0..B {
                    let at = from + 16 * b;
                    let sum = if G == 8 { _mm512_slli_epi32::<1>(acc[a][b]) } else { acc[a][b] };
                    let sum = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum, _mm512_set1_epi32(less)));
                    let (scales, out) = (&tile.scales[g * TILE_ROWS + at..][..16], &mut outs[a][at..at + 16]);
                    // SAFETY: both have 16 elements; unaligned loads and stores are allowed.
                    unsafe {
                        let scale = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast()));
                        let factor = _mm512_mul_ps(scale, _mm512_set1_ps(inv_k));
                        let total = _mm512_fmadd_ps(sum, factor, _mm512_loadu_ps(out.as_ptr()));
                        _mm512_storeu_ps(out.as_mut_ptr(), total);
                    }
                }
            }
        }
    }
}

/// Fetches `n` lines of `line` elements each, from element `at` on; the next tile follows this one.
fn fetch<T>(from: &[T], at: usize, n: usize, line: usize) {
    for i in 0..n {
        // SAFETY: a prefetch of any address has no effect that a program sees.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(from.as_ptr().wrapping_add(at + i * line).cast()) };
    }
}

/// Sums over stored codes of one group, the words `words` of each row.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
fn group_vnni<const B: usize, const A: usize, const G: usize, const M: usize>(
    tile: &GroupTile,
    words: std::ops::Range<usize>,
    from: usize,
    acts: &[GroupActs; A],
) -> [[__m512i; B]; A] {
    let width = 8 / G; // bits a code
    let mut masks = [_mm512_setzero_si512(); M];
    for (m, mask) in masks.iter_mut().enumerate() {
        *mask = _mm512_set1_epi8((((1u32 << width) - 1) << (m * width)) as i8);
    }
    let mut acc = [[[_mm512_setzero_si512(); B]; M]; A];
    for j in words {
        fetch(tile.words, (j + AHEAD[0]) * TILE_ROWS + from, B, LINE[0]);
        let words = &tile.words[j * TILE_ROWS + from..][..16 * B];
        let mut w = [_mm512_setzero_si512(); B];
        for (w, words) in w.iter_mut().zip(words.chunks_exact(16)) {
            // SAFETY: `words` has 16 words; unaligned loads are allowed.
            *w = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        }
        for h in 0..G / M {
            for m in 0..M {
                let mut picked = w;
                for picked in &mut picked {
                    *picked = _mm512_and_si512(*picked, masks[m]);
                }
                for a in 0..A {
                    // SAFETY: `j < n`, and every row of codes has `G` words for each word of a row (`checked`).
                    let x = _mm512_set1_epi32(unsafe { *acts[a].words.get_unchecked(j * G + h * M + m) } as i32);
                    for b in 0..B {
                        acc[a][m][b] = _mm512_dpbusd_epi32(acc[a][m][b], picked[b], x);
                    }
                }
            }
            if h + 1 < G / M {
                for w in &mut w {
                    *w = _mm512_srlv_epi32(*w, _mm512_set1_epi32((M * width) as i32));
                }
            }
        }
    }
    let mut sums = [[_mm512_setzero_si512(); B]; A];
    for a in 0..A {
        for m in 0..M {
            for b in 0..B {
                let placed = _mm512_srav_epi32(acc[a][m][b], _mm512_set1_epi32((m * width) as i32));
                sums[a][b] = _mm512_add_epi32(sums[a][b], placed);
            }
        }
    }
    sums
}
