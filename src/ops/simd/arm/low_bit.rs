//! Tiles of low-bit codes for aarch64: by products of small matrices of bytes in one instruction where the processor has it
//! (i8mm), else by sums of four products of bytes (dotprod), else by products of 16 bits.

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::groups::{GroupKernel, GroupRun};
use crate::ops::simd::low_bit::Kernel;
use crate::ops::simd::low_bit_tiles::{low_bit_tiles, low_bit_words};
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
    if allows(CpuLevel::NeonI8mm) {
        // SAFETY: the processor has dotprod and i8mm.
        let run: TileRun = |tile, bits, acts, sums| unsafe { with_matrices::ternary_tile(tile, bits, acts, sums) };
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
    if allows(CpuLevel::NeonI8mm) {
        // SAFETY: the processor has dotprod and i8mm.
        let run: GroupRun = |tile, bits, acts, outs| unsafe { with_matrices::group_tile(tile, bits, acts, outs) };
        all.push(Kernel { run, make_tables: None, lay_out: None });
    }
    all
}

mod with_products {
    use super::{products, v128};
    super::low_bit_tiles!("neon", v128, products);
    super::low_bit_words!("neon", v128, products);
}

mod with_dots {
    use super::{dots, v128};
    super::low_bit_tiles!("neon,dotprod", v128, dots);
    super::low_bit_words!("neon,dotprod", v128, dots);
}

mod with_matrices {
    use std::arch::aarch64::*;

    use super::{dots, matrices, v128, with_dots};
    super::low_bit_tiles!("neon,dotprod,i8mm", v128, dots);

    /// Rows of codes that are multiplied two at a time: all pairs, where an even number of words of codes belongs to each word of
    /// weights.
    const fn paired(a: usize, g: usize) -> usize {
        if g.is_multiple_of(2) { a / 2 * 2 } else { 0 }
    }

    /// Sums that begin with a number for each row of codes. Of a pair of rows of codes, a vector has the sums of both with rows 0
    /// and 1 of a vector of rows, and the next one those with rows 2 and 3.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn begin<const B: usize, const A: usize, const H: usize, const G: usize>(with: [i32; A]) -> Exact<B, A, H> {
        let mut exact = with_dots::begin::<B, A, H, G>(with);
        for a in (0..paired(A, G)).step_by(2) {
            let both = vzip1q_s32(vdupq_n_s32(with[a]), vdupq_n_s32(with[a + 1]));
            exact[0][a] = [both; B];
            exact[0][a + 1] = [both; B];
        }
        exact
    }

    /// The sums of row `a` of codes with vector `b` of rows.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    fn total<const B: usize, const A: usize, const H: usize, const G: usize>(
        exact: &Exact<B, A, H>,
        a: usize,
        b: usize,
    ) -> int32x4_t {
        if a >= paired(A, G) {
            return with_dots::total::<B, A, H, G>(exact, a, b);
        }
        let first = a / 2 * 2;
        let [low, high] = [exact[0][first][b], exact[0][first + 1][b]];
        if a == first { vuzp1q_s32(low, high) } else { vuzp2q_s32(low, high) }
    }

    /// Adds the products of word `j` of some rows, two words of codes at a time.
    #[inline]
    #[target_feature(enable = "neon,dotprod,i8mm")]
    #[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
    fn add_word<const B: usize, const A: usize, const H: usize, const G: usize>(
        words: &[u32],
        codes: &[&[u32]; A],
        j: usize,
        exact: &mut Exact<B, A, H>,
    ) {
        let pairs = paired(A, G);
        if pairs == 0 {
            return with_dots::add_word::<B, A, H, G>(words, codes, j, exact);
        }
        assert!(words.len() == B * v128::LANES, "rows of a block");
        // SAFETY: in bounds by the assertion.
        let mut w: [int32x4_t; B] = array::from_fn(|b| unsafe { v128::load(words.as_ptr().add(b * v128::LANES)) });
        for two in (0..G).step_by(2) {
            // SAFETY: every row of codes has `G` words for each word of a row, as the callers check.
            let x: [int32x2_t; A] = array::from_fn(|a| unsafe { vld1_s32(codes[a].as_ptr().add(j * G + two).cast()) });
            for b in 0..B {
                let picked = [two, two + 1].map(|four| with_dots::pick::<G>(&mut w[b], four));
                let rows = [vzip1q_s32(picked[0], picked[1]), vzip2q_s32(picked[0], picked[1])];
                for a in 0..pairs {
                    let both = vcombine_s32(x[a / 2 * 2], x[a / 2 * 2 + 1]);
                    exact[0][a][b] = matrices::add(exact[0][a][b], rows[a % 2], both);
                }
                if pairs < A {
                    let sum = dots::dot(exact[0][pairs][b], picked[0], vdupq_lane_s32::<0>(x[pairs]));
                    exact[0][pairs][b] = dots::dot(sum, picked[1], vdupq_lane_s32::<1>(x[pairs]));
                }
            }
        }
    }
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

/// Products of matrices of bytes.
mod matrices {
    use std::arch::aarch64::*;
    use std::arch::asm;

    /// Adds to `sum[2 i + k]` the products of the 8 bytes of half `i` of `a` with those of half `k` of `b`. In assembly, since the
    /// intrinsic is not stable.
    #[inline]
    #[target_feature(enable = "neon,i8mm")]
    pub fn add(mut sum: int32x4_t, a: int32x4_t, b: int32x4_t) -> int32x4_t {
        // SAFETY: it reads and writes these registers only, and the processor has the instruction.
        unsafe {
            asm!(
                "smmla {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags),
            );
        }
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
