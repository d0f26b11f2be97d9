//! Tiles of products of many rows with f32, f16 or 8-bit weights, for x86-64 with AVX2, FMA and F16C, or AVX-512: the sums of a
//! tile stay in registers. x and w are read as they lie, in vectors along their rows, and weights are widened on the way:
//! nothing is copied into another order first. A tile's rows of x stay in the L1 cache while all rows of w of a block are read.

use half::f16;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::dense::{Block, BlockKernel};
use crate::ops::simd::x86::floats::{avx2, avx512};
use crate::plan::Floats;

/// Columns of a pass: this many of each of a tile's rows of x stay in the L1 cache.
const DEPTH: usize = 1024;
/// Maximum number of rows of w of a tile.
const MAX_OUTS: usize = 4;

/// The best kernel that this processor can run.
pub fn kernel() -> Option<BlockKernel> {
    kernels().pop()
}

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<BlockKernel> {
    let mut all: Vec<BlockKernel> = Vec::new();
    if allows(CpuLevel::Avx2) {
        // SAFETY: the processor has AVX2, FMA and F16C.
        all.push(|block| unsafe { block_avx2(block) });
    }
    if allows(CpuLevel::Avx512) {
        // SAFETY: the processor has AVX-512F and VL.
        all.push(|block| unsafe { block_avx512(block) });
    }
    all
}

#[target_feature(enable = "avx2,fma,f16c")]
fn block_avx2(block: &Block) {
    match block.w {
        Floats::F32(w) => f32_avx2(block, w),
        Floats::F16(w) => f16_avx2(block, w),
        Floats::Int8(w) => i8_avx2(block, w),
    }
}

#[target_feature(enable = "avx512f,avx512vl")]
fn block_avx512(block: &Block) {
    match block.w {
        Floats::F32(w) => f32_avx512(block, w),
        Floats::F16(w) => f16_avx512(block, w),
        Floats::Int8(w) => i8_avx512(block, w),
    }
}

/// Where a tile is: its first row of x, its first row of w, its first column.
type At = [usize; 3];

/// Defines the kernel for vectors `$v` and one weight type, which `$load` widens: tiles of up to `[… $rows]` rows of x and `$outs`
/// rows of w, as many as leave their sums in registers. The products of two rows are added up in one vector, pieces of
/// [`DEPTH`] columns apart, in the same order in every batch.
macro_rules! tiles {
    ($block:ident, $tile:ident, $features:literal, $v:ident, [$($some:literal)* | $rows:literal], $outs:literal,
     $load:ident, $element:ty) => {
        #[target_feature(enable = $features)]
        fn $block(b: &Block, w: &[$element]) {
            let (rows, outs) = (b.x.len() / b.d_in, w.len() / b.d_in);
            // Tiles of about the same height.
            let height = rows.div_ceil(rows.div_ceil($rows).max(1)).max(1);
            for from in (0..b.d_in).step_by(DEPTH) {
                for r in (0..rows).step_by(height) {
                    for o in (0..outs).step_by($outs) {
                        match (rows - r).min(height) {
                            $($some => $tile::<$some>(b, w, [r, o, from]),)*
                            _ => $tile::<$rows>(b, w, [r, o, from]),
                        }
                    }
                }
            }
        }

        #[target_feature(enable = $features)]
        fn $tile<const A: usize>(b: &Block, w: &[$element], [r, o, from]: At) {
            const LANES: usize = $v::LANES;
            let (depth, outs) = (DEPTH.min(b.d_in - from), w.len() / b.d_in);
            let (whole, rest) = (depth / LANES * LANES, depth % LANES);
            assert!(b.x.len() >= (r + A) * b.d_in && o < outs, "a tile's place");
            // Constant bounds unroll, so that the sums stay in registers; the last row of w may be multiplied again.
            let (mut x_at, mut w_at) = ([b.x.as_ptr(); A], [w.as_ptr(); $outs]);
            for a in 0..A {
                x_at[a] = x_at[a].wrapping_add((r + a) * b.d_in + from);
            }
            for i in 0..$outs {
                w_at[i] = w_at[i].wrapping_add((o + i).min(outs - 1) * b.d_in + from);
            }
            let mut acc = [[$v::zero(); $outs]; A];
            for i in (0..whole).step_by(LANES) {
                // SAFETY: the whole vector lies inside the row.
                let wide = w_at.map(|w| unsafe { $v::$load(w.add(i)) });
                for a in 0..A {
                    // SAFETY: as above.
                    let x = unsafe { $v::load(x_at[a].add(i)) };
                    for (acc, w) in acc[a].iter_mut().zip(wide) {
                        *acc = $v::multiply_add(x, w, *acc);
                    }
                }
            }
            if rest > 0 {
                let wide = w_at.map(|w| {
                    let mut padded = [<$element>::default(); LANES];
                    // SAFETY: the rest of the row.
                    padded[..rest].copy_from_slice(unsafe { std::slice::from_raw_parts(w.add(whole), rest) });
                    // SAFETY: the array has an element for each lane.
                    unsafe { $v::$load(padded.as_ptr()) }
                });
                for a in 0..A {
                    let mut padded = [0.0; LANES];
                    // SAFETY: as above.
                    padded[..rest].copy_from_slice(unsafe { std::slice::from_raw_parts(x_at[a].add(whole), rest) });
                    // SAFETY: as above.
                    let x = unsafe { $v::load(padded.as_ptr()) };
                    for (acc, w) in acc[a].iter_mut().zip(wide) {
                        *acc = $v::multiply_add(x, w, *acc);
                    }
                }
            }
            const TOGETHER: usize = LANES / MAX_OUTS;
            for a in (0..A).step_by(TOGETHER) {
                let mut vectors = [$v::zero(); LANES];
                for i in 0..TOGETHER.min(A - a) {
                    vectors[i * MAX_OUTS..][..$outs].copy_from_slice(&acc[a + i]);
                }
                let mut found = [[0.0; MAX_OUTS]; TOGETHER];
                // SAFETY: the array has an element for each lane.
                unsafe { $v::store(found.as_mut_ptr().cast(), $v::sums(&vectors)) };
                for i in 0..TOGETHER.min(A - a) {
                    b.store(r + a + i, o, &found[i][..$outs.min(outs - o)], from > 0);
                }
            }
        }
    };
}

tiles!(f32_avx2, f32_avx2_tile, "avx2,fma,f16c", avx2, [1 2 3 | 4], 3, load, f32);
tiles!(f16_avx2, f16_avx2_tile, "avx2,fma,f16c", avx2, [1 2 3 | 4], 3, load_f16, f16);
tiles!(i8_avx2, i8_avx2_tile, "avx2,fma,f16c", avx2, [1 2 3 | 4], 3, load_i8, i8);
tiles!(f32_avx512, f32_avx512_tile, "avx512f,avx512vl", avx512, [1 2 3 4 5 | 6], 4, load, f32);
tiles!(f16_avx512, f16_avx512_tile, "avx512f,avx512vl", avx512, [1 2 3 4 5 | 6], 4, load_f16, f16);
tiles!(i8_avx512, i8_avx512_tile, "avx512f,avx512vl", avx512, [1 2 3 4 5 | 6], 4, load_i8, i8);
