//! Dot products of few rows with f32, f16 or 8-bit weights, for aarch64.

use std::arch::aarch64::*;
use std::arch::asm;

use half::f16;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::dense::DotKernel;
use crate::ops::simd::dense_rows::{blocks, fetch_ahead, kernel};
use crate::plan::Floats;

/// The kernel, if this processor can run it.
pub fn kernel() -> Option<DotKernel> {
    // SAFETY: the processor has NEON.
    allows(CpuLevel::Neon).then_some(|x, w, d_in, y| unsafe { dots(x, w, d_in, y) })
}

/// A single row of x takes four rows of w at a time: one sum would be added to before the addition before is done.
#[target_feature(enable = "neon")]
fn dots(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    match w {
        Floats::F16(w) => blocks!(f16_dots, 8, 4, x, w, d_in, y),
        Floats::Int8(w) => blocks!(i8_dots, 8, 4, x, w, d_in, y),
        Floats::F32(w) => blocks!(f32_dots, 8, 4, x, w, d_in, y),
    }
}

/// 4 f16 as f32. In assembly, since the intrinsic is not stable.
///
/// # Safety
/// 4 elements can be read.
#[inline]
#[target_feature(enable = "neon")]
pub(in crate::unstable::ops::simd) unsafe fn load_f16(at: *const f16) -> float32x4_t {
    // SAFETY: by the contract.
    let narrow = unsafe { vld1_u16(at.cast()) };
    let wide;
    // SAFETY: it reads and writes these registers only, and every processor of the architecture has it.
    unsafe {
        asm!(
            "fcvtl {wide:v}.4s, {narrow:v}.4h",
            wide = lateout(vreg) wide,
            narrow = in(vreg) narrow,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    wide
}

/// 4 integers as f32.
///
/// # Safety
/// 4 elements can be read.
#[inline]
#[target_feature(enable = "neon")]
unsafe fn load_i8(at: *const i8) -> float32x4_t {
    // SAFETY: by the contract; unaligned reads are allowed.
    let bytes = vcreate_s8(u64::from(unsafe { at.cast::<u32>().read_unaligned() }));
    vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))))
}

#[inline]
#[target_feature(enable = "neon")]
fn zero() -> float32x4_t {
    vdupq_n_f32(0.0)
}

/// `a · b + sum`.
#[inline]
#[target_feature(enable = "neon")]
fn multiply_add(a: float32x4_t, b: float32x4_t, sum: float32x4_t) -> float32x4_t {
    vfmaq_f32(sum, a, b)
}

/// The sum of each of 4 vectors, in one.
#[inline]
#[target_feature(enable = "neon")]
fn sums(v: &[float32x4_t; 4]) -> float32x4_t {
    vpaddq_f32(vpaddq_f32(v[0], v[1]), vpaddq_f32(v[2], v[3]))
}

kernel!(f16_dots, "neon", f16, 4, zero, load_f16, vld1q_f32, multiply_add, sums, vst1q_f32, f16::to_f32);
kernel!(f32_dots, "neon", f32, 4, zero, vld1q_f32, vld1q_f32, multiply_add, sums, vst1q_f32, f32::from);
kernel!(i8_dots, "neon", i8, 4, zero, load_i8, vld1q_f32, multiply_add, sums, vst1q_f32, f32::from);
