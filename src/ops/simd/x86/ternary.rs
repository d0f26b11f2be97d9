//! The tile kernels for x86-64 with AVX2, or AVX-512 with VNNI.
//!
//! All read a tile's words as they lie: a vector holds one word of 8 or 16 neighbouring rows, so that the masked
//! bytes of a vector times one broadcast word of activations are 8 or 16 partial sums, and nothing is ever shuffled. Where bytes
//! can be looked up fast, codes of 1 bit are.

use std::arch::x86_64::*;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::low_bit::{Kernel, TileWords};
use crate::ops::simd::ternary::{Codes, TileKernel, TileSums};
use crate::ops::simd::x86::low_bit_avx2::{add_exact, products};
use crate::ops::simd::x86::low_bit_vnni::{evex, vex};
use crate::ops::simd::x86::{lookup_avx2, lookup_avx512};
use crate::quant::{Bits, TILE_ROWS};

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<TileKernel> {
    let mut all: Vec<TileKernel> = Vec::new();
    if allows(CpuLevel::Avx2) {
        all.push(Kernel {
            // SAFETY: the processor has AVX2.
            run: |tile, bits, acts, sums| unsafe { tile_avx2(tile, bits, acts, sums) },
            make_tables: Some(lookup_avx2::make_tables),
            lay_out: Some(lookup_avx2::lay_out),
        });
    }
    if allows(CpuLevel::AvxVnni) && is_x86_feature_detected!("avxvnni") {
        all.push(Kernel {
            run: |tile, bits, acts, out| match bits {
                // SAFETY: the processor has AVX2, FMA, F16C and AVX-VNNI.
                Bits::One => unsafe { tile_avx2(tile, bits, acts, out) },
                // SAFETY: likewise.
                Bits::Two | Bits::Six | Bits::Eight => unsafe { vex::ternary_tile(tile, bits, acts, out) },
            },
            make_tables: Some(lookup_avx2::make_tables),
            lay_out: Some(lookup_avx2::lay_out),
        });
    } else if allows(CpuLevel::AvxVnni) {
        all.push(Kernel {
            run: |tile, bits, acts, out| match bits {
                // SAFETY: the processor has AVX2, FMA, F16C, and VNNI with AVX-512 VL.
                Bits::One => unsafe { tile_avx2(tile, bits, acts, out) },
                // SAFETY: likewise.
                Bits::Two | Bits::Six | Bits::Eight => unsafe { evex::ternary_tile(tile, bits, acts, out) },
            },
            make_tables: Some(lookup_avx2::make_tables),
            lay_out: Some(lookup_avx2::lay_out),
        });
    }
    if allows(CpuLevel::Avx512) {
        all.push(Kernel {
            // SAFETY: the processor has AVX-512F and VNNI.
            run: |tile, bits, acts, sums| unsafe { tile_vnni(tile, bits, acts, sums) },
            make_tables: None,
            lay_out: None,
        });
        if is_x86_feature_detected!("avx512vbmi") {
            all.push(Kernel {
                // SAFETY: the processor has AVX-512F, BW, VNNI and VBMI.
                run: |tile, bits, acts, sums| unsafe { tile_vbmi(tile, bits, acts, sums) },
                make_tables: Some(lookup_avx512::make_tables),
                lay_out: None,
            });
        }
    }
    all
}

#[target_feature(enable = "avx2")]
fn tile_avx2(tile: &TileWords, bits: Bits, acts: &[Codes], sums: &mut TileSums) {
    match *acts {
        [a] => rows_avx2(tile, bits, [a], sums),
        [a, b] => rows_avx2(tile, bits, [a, b], sums),
        [a, b, c] => rows_avx2(tile, bits, [a, b, c], sums),
        [a, b, c, d, ..] => rows_avx2(tile, bits, [a, b, c, d], sums),
        [] => {}
    }
}

#[target_feature(enable = "avx2")]
fn rows_avx2<const A: usize>(tile: &TileWords, bits: Bits, acts: [Codes; A], sums: &mut TileSums) {
    let all = 0..tile.of_a_row();
    let [times, offset] = bits.times_and_offset();
    for (sums, act) in sums.iter_mut().zip(&acts) {
        sums.fill(-offset * act.sum);
    }
    match bits {
        Bits::One => lookup_avx2::products(tile, all, &acts.map(|act| act.tables), |a, row, some| {
            add_exact(&mut sums[a], row, _mm256_mullo_epi32(some, _mm256_set1_epi32(times)));
        }),
        // A ternary matrix has no more.
        Bits::Two | Bits::Six | Bits::Eight => {
            products(tile, all, &acts.map(|act| act.words), |a, row, some| add_exact(&mut sums[a], row, some))
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn tile_vbmi(tile: &TileWords, bits: Bits, acts: &[Codes], sums: &mut TileSums) {
    if bits != Bits::One {
        return tile_vnni(tile, bits, acts, sums);
    }
    // Two rows with all of a tile's, so that their tables are read once.
    for (acts, sums) in acts.chunks(2).zip(sums.chunks_mut(2)) {
        match *acts {
            [a] => looked_up([a], tile, sums),
            [a, b, ..] => looked_up([a, b], tile, sums),
            [] => {}
        }
    }
}

/// The tile for `A` rows of codes at once, by their tables.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi,avx512vnni")]
fn looked_up<const A: usize>(acts: [Codes; A], tile: &TileWords, sums: &mut [[i32; TILE_ROWS]]) {
    const VECTORS: usize = TILE_ROWS / 16;
    let tables = acts.map(|act| act.tables);
    let mut acc = [[_mm512_setzero_si512(); VECTORS]; A];
    for j in 0..tile.of_a_row() {
        tile.fetch(j, 0..TILE_ROWS);
        // SAFETY: as of this function.
        unsafe { lookup_avx512::add_word(&tile.all[j * TILE_ROWS..], j, &tables, &mut acc) };
    }
    store(&acc, 0, sums);
}

/// Stores sums of vectors of 16 rows from row `from` on.
#[inline]
#[target_feature(enable = "avx512f")]
fn store<const B: usize, const A: usize>(acc: &[[__m512i; B]; A], from: usize, sums: &mut [[i32; TILE_ROWS]]) {
    for (acc, sums) in acc.iter().zip(sums.iter_mut()) {
        for (acc, sums) in acc.iter().zip(sums[from..].chunks_exact_mut(16)) {
            // SAFETY: `sums` has 16 elements.
            unsafe { _mm512_storeu_si512(sums.as_mut_ptr().cast(), *acc) };
        }
    }
}

#[target_feature(enable = "avx512f,avx512vnni")]
fn tile_vnni(tile: &TileWords, bits: Bits, acts: &[Codes], sums: &mut TileSums) {
    match *acts {
        [a] => rows_vnni::<8, 1>(tile, bits, [a], sums),
        [a, b] => rows_vnni::<8, 2>(tile, bits, [a, b], sums),
        [a, b, c] => rows_vnni::<4, 3>(tile, bits, [a, b, c], sums),
        [a, b, c, d, ..] => rows_vnni::<4, 4>(tile, bits, [a, b, c, d], sums),
        [] => {}
    }
}

/// The tile in passes of `B` vectors of 16 rows for `A` rows of codes at once: `A·B` sums stay in registers.
#[target_feature(enable = "avx512f,avx512vnni")]
fn rows_vnni<const B: usize, const A: usize>(tile: &TileWords, bits: Bits, acts: [Codes; A], sums: &mut TileSums) {
    let [times, offset] = bits.times_and_offset();
    for from in (0..TILE_ROWS).step_by(16 * B) {
        let mut acc = match bits {
            Bits::One => block_vnni::<B, A, 8>(tile, from, &acts.map(|act| act.words)),
            // A ternary matrix has no more.
            Bits::Two | Bits::Six | Bits::Eight => block_vnni::<B, A, 4>(tile, from, &acts.map(|act| act.words)),
        };
        for (acc, act) in acc.iter_mut().zip(&acts) {
            let less = _mm512_set1_epi32(offset * act.sum);
            for acc in acc {
                *acc = _mm512_sub_epi32(_mm512_mullo_epi32(*acc, _mm512_set1_epi32(times)), less);
            }
        }
        store(&acc, from, sums);
    }
}

/// Sums over stored codes of rows from row `from` on: `G` groups of columns per word, 8 at 1 bit, 4 at 2 bits.
#[target_feature(enable = "avx512f,avx512vnni")]
fn block_vnni<const B: usize, const A: usize, const G: usize>(
    tile: &TileWords,
    from: usize,
    acts: &[&[u32]; A],
) -> [[__m512i; B]; A] {
    let mask = _mm512_set1_epi8(if G == 8 { 1 } else { 3 });
    let mut acc = [[_mm512_setzero_si512(); B]; A];
    let n = tile.of_a_row();
    assert!(acts.iter().all(|a| a.len() >= n * G), "a row of codes is shorter than the weights");
    for j in 0..n {
        tile.fetch(j, from..from + 16 * B);
        let words = &tile.all[j * TILE_ROWS + from..][..16 * B];
        let mut w = [_mm512_setzero_si512(); B];
        for (w, words) in w.iter_mut().zip(words.chunks_exact(16)) {
            // SAFETY: `words` has 16 words; unaligned loads are allowed.
            *w = unsafe { _mm512_loadu_si512(words.as_ptr().cast()) };
        }
        for g in 0..G {
            #[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
            for a in 0..A {
                // SAFETY: `j * G + g < n * G`, which every row of codes has, by the assertion.
                let x = _mm512_set1_epi32(unsafe { *acts[a].get_unchecked(j * G + g) } as i32);
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
