//! Dot products of few rows with f32, f16 or 8-bit weights, for x86-64 with AVX2 and F16C, or AVX-512.

use std::arch::x86_64::*;

use half::f16;

use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::dense::DotKernel;
use crate::ops::simd::dense_rows::{blocks, fetch_ahead, kernel};
use crate::ops::simd::x86::attention_decode::{load16, sums as sums16};
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
        Floats::F16(w) => blocks!(f16_avx2, 4, 1, x, w, d_in, y),
        Floats::Int8(w) => blocks!(i8_avx2, 4, 2, x, w, d_in, y),
        Floats::F32(w) => blocks!(f32_avx2, 4, 1, x, w, d_in, y),
    }
}

/// 8 f16 as f32.
///
/// # Safety
/// 8 elements can be read.
#[target_feature(enable = "avx2,f16c")]
unsafe fn load8(at: *const f16) -> __m256 {
    // SAFETY: by the contract.
    _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
}

/// 16 integers as f32.
///
/// # Safety
/// 16 elements can be read.
#[target_feature(enable = "avx512f,avx512vl")]
pub(in crate::ops::simd) unsafe fn load16_i8(at: *const i8) -> __m512 {
    // SAFETY: by the contract.
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.cast()) }))
}

/// 8 integers as f32.
///
/// # Safety
/// 8 elements can be read.
#[target_feature(enable = "avx2")]
unsafe fn load8_i8(at: *const i8) -> __m256 {
    // SAFETY: by the contract.
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
}

/// The sum of each of 8 vectors, in one.
#[inline]
#[target_feature(enable = "avx2")]
fn sums8(v: &[__m256; 8]) -> __m256 {
    let four = |i: usize| _mm256_hadd_ps(_mm256_hadd_ps(v[i], v[i + 1]), _mm256_hadd_ps(v[i + 2], v[i + 3]));
    let (a, b) = (four(0), four(4));
    _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
}

/// [`kernel`] with AVX-512.
macro_rules! avx512 {
    ($name:ident, $element:ty, $load:expr, $widen:expr) => {
        kernel!(
            $name,
            "avx512f,avx512vl",
            $element,
            16,
            _mm512_setzero_ps,
            $load,
            _mm512_loadu_ps,
            _mm512_fmadd_ps,
            sums16,
            _mm512_storeu_ps,
            $widen
        );
    };
}

/// [`kernel`] with AVX2.
macro_rules! avx2 {
    ($name:ident, $element:ty, $load:expr, $widen:expr) => {
        kernel!(
            $name,
            "avx2,fma,f16c",
            $element,
            8,
            _mm256_setzero_ps,
            $load,
            _mm256_loadu_ps,
            _mm256_fmadd_ps,
            sums8,
            _mm256_storeu_ps,
            $widen
        );
    };
}

avx512!(f16_avx512, f16, load16, f16::to_f32);
avx512!(f32_avx512, f32, _mm512_loadu_ps, f32::from);
avx512!(i8_avx512, i8, load16_i8, f32::from);
avx2!(f16_avx2, f16, load8, f16::to_f32);
avx2!(f32_avx2, f32, _mm256_loadu_ps, f32::from);
avx2!(i8_avx2, i8, load8_i8, f32::from);
