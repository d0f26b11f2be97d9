//! Tiles of low-bit codes for aarch64: by sums of four products of bytes in one instruction where the processor has it
//! (dotprod), else by products of 16 bits.

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::groups::{GroupKernel, GroupRun};
use crate::ops::simd::low_bit::Kernel;
use crate::ops::simd::low_bit_tiles::low_bit_tiles;
use crate::ops::simd::ternary::{TileKernel, TileRun};

/// All kernels of ternary tiles that this processor can run, the best last.
pub fn ternary_kernels() -> Vec<TileKernel> {
    let mut all: Vec<TileKernel> = Vec::new();
    if allows(CpuLevel::Neon) {
        // SAFETY: the processor has NEON.
        let run: TileRun = |tile, bits, acts, sums| unsafe { with_products::ternary_tile(tile, bits, acts, sums) };
        all.push(Kernel { run, make_tables: None, lay_out: None });
    }
    if allows(CpuLevel::NeonDot) {
        // SAFETY: the processor has dotprod.
        let run: TileRun = |tile, bits, acts, sums| unsafe { with_dots::ternary_tile(tile, bits, acts, sums) };
        all.push(Kernel { run, make_tables: None, lay_out: None });
    }
    all
}

/// All kernels of tiles with scales by group that this processor can run, the best last.
pub fn group_kernels() -> Vec<GroupKernel> {
    let mut all: Vec<GroupKernel> = Vec::new();
    if allows(CpuLevel::Neon) {
        // SAFETY: the processor has NEON.
        let run: GroupRun = |tile, bits, acts, outs| unsafe { with_products::group_tile(tile, bits, acts, outs) };
        all.push(Kernel { run, make_tables: None, lay_out: None });
    }
    if allows(CpuLevel::NeonDot) {
        // SAFETY: the processor has dotprod.
        let run: GroupRun = |tile, bits, acts, outs| unsafe { with_dots::group_tile(tile, bits, acts, outs) };
        all.push(Kernel { run, make_tables: None, lay_out: None });
    }
    all
}

mod with_products {
    use super::{products, v128};
    super::low_bit_tiles!("neon", v128, products);
}

mod with_dots {
    use super::{dots, v128};
    super::low_bit_tiles!("neon,dotprod", v128, dots);
}

/// Sums of products in 16 bits, which those of one word fit: 4 of at most `3 · 128`, 8 of at most `2 · 128`, or one of
/// `128 · 128`.
mod products {
    use std::arch::aarch64::*;

    /// Of 32 registers, sums take 12 to 24, those of a word among them.
    pub const BLOCKS: [usize; 4] = [4, 4, 2, 2];
    pub const HALVES: usize = 1;

    /// Sums of each byte of two rows, and of the other two.
    type Open = [int16x8_t; 2];

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn open(_: int32x4_t) -> Open {
        [vdupq_n_s16(0); 2]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn dot([low, high]: Open, codes: int32x4_t, x: int32x4_t) -> Open {
        let (codes, x) = (vreinterpretq_s8_s32(codes), vreinterpretq_s8_s32(x));
        [vmlal_s8(low, vget_low_s8(codes), vget_low_s8(x)), vmlal_high_s8(high, codes, x)]
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn close<const G: usize>(sum: int32x4_t, [low, high]: Open) -> int32x4_t {
        match G {
            // Two of 8-bit codes do not fit.
            1 => vaddq_s32(sum, vpaddq_s32(vpaddlq_s16(low), vpaddlq_s16(high))),
            _ => vpadalq_s16(sum, vpaddq_s16(low, high)),
        }
    }
}

/// Sums of four products of bytes in one instruction.
mod dots {
    use std::arch::aarch64::*;
    use std::arch::asm;

    /// Of 32 registers, sums take 8 to 16.
    pub const BLOCKS: [usize; 4] = [4; 4];
    pub const HALVES: usize = 2;

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn open(sum: int32x4_t) -> int32x4_t {
        sum
    }

    /// In assembly, since the intrinsic is not stable.
    #[inline]
    #[target_feature(enable = "neon,dotprod")]
    pub fn dot(mut sum: int32x4_t, codes: int32x4_t, x: int32x4_t) -> int32x4_t {
        // SAFETY: it reads and writes these registers only, and the processor has the instruction.
        unsafe {
            asm!(
                "sdot {sum:v}.4s, {codes:v}.16b, {x:v}.16b",
                sum = inout(vreg) sum,
                codes = in(vreg) codes,
                x = in(vreg) x,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
        sum
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn close<const G: usize>(_: int32x4_t, sum: int32x4_t) -> int32x4_t {
        sum
    }
}

/// Vectors of 128 bits.
mod v128 {
    use std::arch::aarch64::*;

    use half::f16;

    use crate::ops::simd::arm::dense_rows::load_f16;

    pub const LANES: usize = 4;
    /// Codes are signed bytes: those of 8 bits are stored with their sign turned.
    pub const SIGNED: bool = true;
    pub type Ints = int32x4_t;

    /// # Safety
    /// 4 words can be read.
    #[inline]
    #[target_feature(enable = "neon")]
    pub unsafe fn load(at: *const u32) -> Ints {
        // SAFETY: by the contract.
        unsafe { vld1q_s32(at.cast()) }
    }

    /// # Safety
    /// 4 integers can be written.
    #[inline]
    #[target_feature(enable = "neon")]
    pub unsafe fn store(at: *mut i32, v: Ints) {
        // SAFETY: by the contract.
        unsafe { vst1q_s32(at, v) };
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn splat(v: i32) -> Ints {
        vdupq_n_s32(v)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn add(a: Ints, b: Ints) -> Ints {
        vaddq_s32(a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn and(a: Ints, b: Ints) -> Ints {
        vandq_s32(a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn xor(a: Ints, b: Ints) -> Ints {
        veorq_s32(a, b)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn left_1(v: Ints) -> Ints {
        vshlq_n_s32::<1>(v)
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn right_1(v: Ints) -> Ints {
        vreinterpretq_s32_u32(vshrq_n_u32::<1>(vreinterpretq_u32_s32(v)))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn right_2(v: Ints) -> Ints {
        vreinterpretq_s32_u32(vshrq_n_u32::<2>(vreinterpretq_u32_s32(v)))
    }

    #[inline]
    #[target_feature(enable = "neon")]
    pub fn no_floats() -> float32x4_t {
        vdupq_n_f32(0.0)
    }

    /// `sum + exact · factor`.
    #[inline]
    #[target_feature(enable = "neon")]
    pub fn add_scaled(sum: float32x4_t, exact: Ints, factor: f32) -> float32x4_t {
        vfmaq_n_f32(sum, vcvtq_f32_s32(exact), factor)
    }

    /// `out += sum · scale`.
    ///
    /// # Safety
    /// Both pointers are to 4 elements.
    #[inline]
    #[target_feature(enable = "neon")]
    pub unsafe fn settle(out: *mut f32, sum: float32x4_t, scales: *const f16) {
        // SAFETY: by the contract.
        unsafe { vst1q_f32(out, vfmaq_f32(vld1q_f32(out), sum, load_f16(scales))) };
    }
}
