//! The tile kernel for x86-64 with AVX2, or AVX-512 with VNNI.
//!
//! Both read a tile's words as they lie: a vector holds one word of 8 or 16 neighbouring rows, so that the masked
//! bytes of a vector times one broadcast word of activations are 8 or 16 partial sums, and nothing is ever shuffled.

use std::arch::x86_64::*;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::ternary::{TileKernel, TileSums};
use crate::ops::simd::x86::low_bit_avx2::{add_exact, products};
use crate::ops::simd::x86::low_bit_vnni::{evex, vex};
use crate::quant::{Bits, TILE_ROWS};

/// Words of a cache line.
const LINE: usize = 16;

/// The best kernel that this processor can run.
pub fn kernel() -> Option<TileKernel> {
    kernels().pop()
}

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<TileKernel> {
    let mut all: Vec<TileKernel> = Vec::new();
    if allows(CpuLevel::Avx2) {
        // SAFETY: the processor has AVX2.
        all.push(|words, bits, acts, _, sums| unsafe { tile_avx2(words, bits, acts, sums) });
    }
    if allows(CpuLevel::AvxVnni) && is_x86_feature_detected!("avxvnni") {
        // SAFETY: the processor has AVX2, FMA, F16C and AVX-VNNI.
        all.push(|words, bits, acts, ahead, sums| unsafe { vex::ternary_tile(words, bits, acts, ahead, sums) });
    } else if allows(CpuLevel::AvxVnni) {
        // SAFETY: the processor has AVX2, FMA, F16C, and VNNI with AVX-512 VL.
        all.push(|words, bits, acts, ahead, sums| unsafe { evex::ternary_tile(words, bits, acts, ahead, sums) });
    }
    if allows(CpuLevel::Avx512) {
        // SAFETY: the processor has AVX-512F and VNNI.
        all.push(|words, bits, acts, ahead, sums| unsafe { tile_vnni(words, bits, acts, ahead, sums) });
    }
    all
}

#[target_feature(enable = "avx2")]
fn tile_avx2(words: &[u32], bits: Bits, acts: &[&[u32]], sums: &mut TileSums) {
    match *acts {
        [a] => rows_avx2(words, bits, [a], sums),
        [a, b] => rows_avx2(words, bits, [a, b], sums),
        [a, b, c] => rows_avx2(words, bits, [a, b, c], sums),
        [a, b, c, d, ..] => rows_avx2(words, bits, [a, b, c, d], sums),
        [] => {}
    }
}

#[target_feature(enable = "avx2")]
fn rows_avx2<const A: usize>(words: &[u32], bits: Bits, acts: [&[u32]; A], sums: &mut TileSums) {
    let all = 0..words.len() / TILE_ROWS;
    let add = |a: usize, row: usize, some| add_exact(&mut sums[a], row, some);
    match bits {
        Bits::One => products::<A, 8>(words, all, &acts, add),
        // A ternary matrix has no more.
        Bits::Two | Bits::Eight => products::<A, 4>(words, all, &acts, add),
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn tile_vnni(words: &[u32], bits: Bits, acts: &[&[u32]], ahead: &[u32], sums: &mut TileSums) {
    match acts.len() {
        1 => blocks_vnni::<8, 1>(words, bits, acts, ahead, sums),
        2 => blocks_vnni::<8, 2>(words, bits, acts, ahead, sums),
        3 => blocks_vnni::<4, 3>(words, bits, acts, ahead, sums),
        _ => blocks_vnni::<4, 4>(words, bits, acts, ahead, sums),
    }
}

/// The tile in passes of `B` vectors of 16 rows for `A` rows of codes at once: `A·B` sums stay in registers.
#[target_feature(enable = "avx512f,avx512vnni")]
fn blocks_vnni<const B: usize, const A: usize>(
    words: &[u32],
    bits: Bits,
    acts: &[&[u32]],
    ahead: &[u32],
    sums: &mut TileSums,
) {
    for from in (0..TILE_ROWS).step_by(16 * B) {
        let [ahead_from, ahead_to] = [from, from + 16 * B].map(|row| ahead.len() * row / TILE_ROWS);
        let ahead = &ahead[ahead_from..ahead_to];
        let acc = match bits {
            Bits::One => block_vnni::<B, A, 8>(&words[from..], acts, ahead),
            // A ternary matrix has no more.
            Bits::Two | Bits::Eight => block_vnni::<B, A, 4>(&words[from..], acts, ahead),
        };
        for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
            for (acc, sums) in acc.iter().zip(sums[from..].chunks_exact_mut(16)) {
                // SAFETY: `sums` has 16 elements.
                unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), *acc) };
            }
        }
    }
}

/// `G` groups of columns per word: 8 at 1 bit, 4 at 2 bits. What is ahead is fetched evenly meanwhile: a hardware prefetcher
/// alone reaches about half of the memory's rate.
#[target_feature(enable = "avx512f,avx512vnni")]
fn block_vnni<const B: usize, const A: usize, const G: usize>(
    words: &[u32],
    acts: &[&[u32]],
    ahead: &[u32],
) -> [[__m512i; B]; A] {
    let mask = _mm512_set1_epi8(if G == 8 { 1 } else { 3 });
    let mut acc = [[_mm512_setzero_si512(); B]; A];
    let n = words.len().div_ceil(TILE_ROWS);
    assert!(acts.len() == A && acts.iter().all(|a| a.len() >= n * G), "a row of codes is shorter than the weights");
    let lines = ahead.len().div_ceil(LINE * n.max(1));
    for j in 0..n {
        for line in j * lines..(j + 1) * lines {
            _mm_prefetch::<_MM_HINT_T0>(ahead.as_ptr().wrapping_add(line * LINE).cast());
        }
        let words = &words[j * TILE_ROWS..][..16 * B];
        let mut w = [_mm512_setzero_si512(); B];
        for (w, words) in w.iter_mut().zip(words.chunks_exact(16)) {
            // SAFETY: `words` has 16 words; unaligned loads are allowed.
            *w = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        }
        for g in 0..G {
            #[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
            for a in 0..A {
                // SAFETY: `j * G + g < n * G`, which every row of codes has, by the assertion.
                let x = _mm512_set1_epi32(unsafe { *acts.get_unchecked(a).get_unchecked(j * G + g) } as i32);
                for b in 0..B {
                    acc[a][b] = _mm512_dpbusd_epi32(acc[a][b], _mm512_and_si512(w[b], mask), x);
                }
            }
            for w in &mut w {
                *w = if G == 8 { _mm512_srli_epi32::<1>(*w) } else { _mm512_srli_epi32::<2>(*w) };
            }
        }
    }
    acc
}
