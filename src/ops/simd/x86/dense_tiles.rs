//! Products of many rows with f32, f16 or 8-bit weights, for x86-64 with AVX-512: tiles of 6 rows of x and 4 of w, whose
//! sums stay in registers.
//!
//! Both matrices are read as they lie, in vectors along their rows, and weights are widened on the way: nothing is copied
//! into another order first. A tile's rows of x stay in the L1 cache while all rows of w of a block are read.

use std::arch::x86_64::*;

use half::f16;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::dense::{Block, BlockKernel};
use crate::ops::simd::x86::attention_decode::{load16, sums};
use crate::ops::simd::x86::dense_rows::load16_i8;
use crate::plan::Floats;

/// Floats of a vector.
const LANES: usize = 16;
/// Maximum number of rows of x of a tile.
const ROWS: usize = 6;
/// Rows of w of a tile: the sums of four rows of x are then as many as `sums` adds up at once.
const OUTS: usize = 4;
/// Columns of a pass: this many of each of a tile's rows of x stay in the L1 cache.
const DEPTH: usize = 1024;

/// The kernel, if this processor can run it.
pub fn kernel() -> Option<BlockKernel> {
    // SAFETY: the processor has AVX-512F, BW and VL.
    allows(CpuLevel::Avx512).then_some(|block| unsafe { block_avx512(block) })
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
fn block_avx512(block: &Block) {
    match block.w {
        Floats::F32(w) => f32_block(block, w),
        Floats::F16(w) => f16_block(block, w),
        Floats::Int8(w) => i8_block(block, w),
    }
}

/// Where a tile is: its first row of x, its first row of w, its first column.
type At = [usize; 3];

/// Defines the kernel for one weight type: `$load` reads a vector, `$load_some` the lanes of a mask of one. The products of
/// two rows are added up in one vector, pieces of [`DEPTH`] columns apart, in the same order in every batch.
macro_rules! tiles {
    ($block:ident, $tile:ident, $element:ty, $load:ident, $load_some:expr) => {
        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        fn $block(b: &Block, w: &[$element]) {
            let (rows, outs) = (b.x.len() / b.d_in, w.len() / b.d_in);
            // Tiles of about the same height.
            let height = rows.div_ceil(rows.div_ceil(ROWS).max(1)).max(1);
            for from in (0..b.d_in).step_by(DEPTH) {
                for r in (0..rows).step_by(height) {
                    for o in (0..outs).step_by(OUTS) {
                        match (rows - r).min(height) {
                            1 => $tile::<1>(b, w, [r, o, from]),
                            2 => $tile::<2>(b, w, [r, o, from]),
                            3 => $tile::<3>(b, w, [r, o, from]),
                            4 => $tile::<4>(b, w, [r, o, from]),
                            5 => $tile::<5>(b, w, [r, o, from]),
                            _ => $tile::<ROWS>(b, w, [r, o, from]),
                        }
                    }
                }
            }
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vl")]
        fn $tile<const A: usize>(b: &Block, w: &[$element], [r, o, from]: At) {
            let (depth, outs) = (DEPTH.min(b.d_in - from), w.len() / b.d_in);
            let (whole, rest) = (depth / LANES * LANES, depth % LANES);
            assert!(b.x.len() >= (r + A) * b.d_in && o < outs, "a tile's place");
            // Constant bounds unroll, so that the sums stay in registers; the last row of w may be multiplied again.
            let x: [_; A] = std::array::from_fn(|a| b.x[(r + a) * b.d_in + from..][..depth].as_ptr());
            let w: [_; OUTS] = std::array::from_fn(|i| w[(o + i).min(outs - 1) * b.d_in + from..][..depth].as_ptr());
            let mut acc = [[_mm512_setzero_ps(); OUTS]; A];
            for i in (0..whole).step_by(LANES) {
                // SAFETY: the whole vector lies inside the row.
                let wide = w.map(|w| unsafe { $load(w.add(i)) });
                for a in 0..A {
                    // SAFETY: as above.
                    let x = unsafe { _mm512_loadu_ps(x[a].add(i)) };
                    for (acc, w) in acc[a].iter_mut().zip(wide) {
                        *acc = _mm512_fmadd_ps(x, w, *acc);
                    }
                }
            }
            if rest > 0 {
                let there = ((1u32 << rest) - 1) as u16;
                // SAFETY: the lanes of the mask lie inside the row.
                let wide = w.map(|w| unsafe { $load_some(there, w.add(whole)) });
                for a in 0..A {
                    // SAFETY: as above.
                    let x = unsafe { _mm512_maskz_loadu_ps(there, x[a].add(whole)) };
                    for (acc, w) in acc[a].iter_mut().zip(wide) {
                        *acc = _mm512_fmadd_ps(x, w, *acc);
                    }
                }
            }
            for a in (0..A).step_by(4) {
                let mut four = [_mm512_setzero_ps(); LANES];
                for i in 0..4.min(A - a) {
                    four[i * OUTS..][..OUTS].copy_from_slice(&acc[a + i]);
                }
                let mut found = [[0.0; OUTS]; 4];
                // SAFETY: the array has an element for each lane.
                unsafe { _mm512_storeu_ps(found.as_mut_ptr().cast(), sums(&four)) };
                for i in 0..4.min(A - a) {
                    b.store(r + a + i, o, &found[i][..OUTS.min(outs - o)], from > 0);
                }
            }
        }
    };
}

/// Some of 16 f16 as f32, the others 0.
///
/// # Safety
/// The elements of the mask can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn some16(there: u16, at: *const f16) -> __m512 {
    // SAFETY: by the contract.
    _mm512_cvtph_ps(unsafe { _mm256_maskz_loadu_epi16(there, at.cast()) })
}

/// Some of 16 integers as f32, the others 0.
///
/// # Safety
/// The elements of the mask can be read.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn some16_i8(there: u16, at: *const i8) -> __m512 {
    // SAFETY: by the contract.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_maskz_loadu_epi8(there, at) }))
}

tiles!(f32_block, f32_tile, f32, _mm512_loadu_ps, _mm512_maskz_loadu_ps);
tiles!(f16_block, f16_tile, f16, load16, some16);
tiles!(i8_block, i8_tile, i8, load16_i8, some16_i8);
