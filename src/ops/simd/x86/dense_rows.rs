//! Dot products of few rows with f32, f16 or 8-bit weights, for x86-64 with AVX2 and F16C, or AVX-512.

use half::f16;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::dense::DotKernel;
use crate::ops::simd::dense_rows::{blocks, fetch_ahead, kernel};
use crate::ops::simd::x86::floats::{avx2, avx512};
use crate::plan::Floats;

/// The best kernel that this processor can run.
pub fn kernel() -> Option<DotKernel> {
    kernels().pop()
}

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<DotKernel> {
    let mut all: Vec<DotKernel> = Vec::new();
    if allows(CpuLevel::Avx2) {
        // SAFETY: the processor has AVX2, FMA and F16C.
        all.push(|x, w, d_in, y| unsafe { dots_avx2(x, w, d_in, y) });
    }
    if allows(CpuLevel::Avx512) {
        // SAFETY: the processor has AVX-512F and AVX-512VL.
        all.push(|x, w, d_in, y| unsafe { dots_avx512(x, w, d_in, y) });
    }
    all
}

#[target_feature(enable = "avx512f,avx512vl")]
fn dots_avx512(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    match w {
        Floats::F16(w) => blocks!(f16_avx512, 8, 1, x, w, d_in, y),
        Floats::Int8(w) => blocks!(i8_avx512, 8, 2, x, w, d_in, y),
        Floats::F32(w) => blocks!(f32_avx512, 8, 1, x, w, d_in, y),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dots_avx2(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    match w {
        Floats::F16(w) => blocks!(f16_avx2, 4, 4, x, w, d_in, y),
        Floats::Int8(w) => blocks!(i8_avx2, 4, 4, x, w, d_in, y),
        Floats::F32(w) => blocks!(f32_avx2, 4, 4, x, w, d_in, y),
    }
}

/// [`kernel`] for vectors `$v`.
macro_rules! kernels {
    ($name:ident, $features:literal, $v:ident, $lanes:literal, $element:ty, $load:ident, $widen:expr) => {
        kernel!(
            $name,
            $features,
            $element,
            $lanes,
            $v::zero,
            $v::$load,
            $v::load,
            $v::multiply_add,
            $v::sums,
            $v::store,
            $widen
        );
    };
}

kernels!(f16_avx512, "avx512f,avx512vl", avx512, 16, f16, load_f16, f16::to_f32);
kernels!(f32_avx512, "avx512f,avx512vl", avx512, 16, f32, load, f32::from);
kernels!(i8_avx512, "avx512f,avx512vl", avx512, 16, i8, load_i8, f32::from);
kernels!(f16_avx2, "avx2,fma,f16c", avx2, 8, f16, load_f16, f16::to_f32);
kernels!(f32_avx2, "avx2,fma,f16c", avx2, 8, f32, load, f32::from);
kernels!(i8_avx2, "avx2,fma,f16c", avx2, 8, i8, load_i8, f32::from);
