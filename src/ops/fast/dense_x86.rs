//! Dot products of few rows with f32 or f16 weights, for x86-64 with AVX2 and F16C, or AVX-512.
//!
//! A weight vector is widened in a register and multiplied with every row of x while it is there: the weights are read
//! once, and nothing is written but the sums.

use std::arch::x86_64::*;

use half::f16;

use super::dense::DotKernel;
use crate::plan::Floats;

/// The best kernel that this processor can run.
pub fn kernel() -> Option<DotKernel> {
    kernels().pop()
}

/// All kernels that this processor can run, the best last.
pub fn kernels() -> Vec<DotKernel> {
    let mut all: Vec<DotKernel> = Vec::new();
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
        // SAFETY: the processor has AVX2, FMA and F16C.
        all.push(|x, w, d_in, y| unsafe { dots_avx2(x, w, d_in, y) });
    }
    if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
        // SAFETY: the processor has AVX-512F.
        all.push(|x, w, d_in, y| unsafe { dots_avx512(x, w, d_in, y) });
    }
    all
}

/// How far ahead weights are fetched, in bytes: a hardware prefetcher alone reaches about half of the memory's rate.
const AHEAD: usize = 8192;

/// Calls `$one::<A>` for each row of w and each `A` rows of x; `A · U` sums stay in registers.
macro_rules! blocks {
    ($one:ident, $x:ident, $w:ident, $d_in:ident, $y:ident) => {{
        let rows = $x.len() / $d_in;
        assert!($d_in > 0 && $x.len() == rows * $d_in, "shapes of a product");
        for (o, y) in $y.chunks_exact_mut(rows).enumerate() {
            let w = &$w[o * $d_in..][..$d_in];
            let (xs, mut ys) = ($x.chunks_exact(4 * $d_in), y.chunks_exact_mut(4));
            let last = xs.remainder();
            for (x, y) in xs.zip(&mut ys) {
                $one::<4>(x, w, y);
            }
            match (last.len() / $d_in, ys.into_remainder()) {
                (1, y) => $one::<1>(last, w, y),
                (2, y) => $one::<2>(last, w, y),
                (3, y) => $one::<3>(last, w, y),
                _ => {}
            }
        }
    }};
}

#[target_feature(enable = "avx512f,avx512vl")]
fn dots_avx512(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    match w {
        Floats::F16(w) => blocks!(f16_avx512, x, w, d_in, y),
        Floats::F32(w) => blocks!(f32_avx512, x, w, d_in, y),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dots_avx2(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    match w {
        Floats::F16(w) => blocks!(f16_avx2, x, w, d_in, y),
        Floats::F32(w) => blocks!(f32_avx2, x, w, d_in, y),
    }
}

/// Vectors of a row that are added up side by side, for any number of rows: a row's sum is the same in every batch.
const U: usize = 4;

/// Defines a kernel for one vector width and one weight type: `A` rows of x with one row of w.
macro_rules! kernel {
    ($name:ident, $features:literal, $element:ty, $lanes:literal, $vector:ty, $zero:ident, $load:expr, $load_x:ident,
     $fma:ident, $sum:expr, $widen:expr) => {
        #[target_feature(enable = $features)]
        fn $name<const A: usize>(x: &[f32], w: &[$element], y: &mut [f32]) {
            let d_in = w.len();
            let mut acc = [[$zero(); U]; A];
            let step = |acc: &mut [[$vector; U]; A], i: usize, u: usize| {
                // SAFETY: a prefetch may name any address.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(w.as_ptr().add(i).cast::<i8>().wrapping_add(AHEAD)) };
                // SAFETY: the callers keep `i + lanes <= d_in`, the length of w.
                let wide = unsafe { $load(w.as_ptr().add(i)) };
                for (x, acc) in x.chunks_exact(d_in).zip(acc) {
                    // SAFETY: as above; each chunk is as long as w.
                    acc[u] = $fma(unsafe { $load_x(x.as_ptr().add(i)) }, wide, acc[u]);
                }
            };
            let (blocks, whole) = (d_in / ($lanes * U) * ($lanes * U), d_in / $lanes * $lanes);
            for i in (0..blocks).step_by($lanes * U) {
                for u in 0..U {
                    step(&mut acc, i + u * $lanes, u);
                }
            }
            for i in (blocks..whole).step_by($lanes) {
                step(&mut acc, i, 0);
            }
            for ((acc, x), y) in acc.iter().zip(x.chunks_exact(d_in)).zip(y) {
                let rest: f32 = (whole..d_in).map(|i| x[i] * $widen(w[i])).sum();
                *y = rest + acc.iter().map(|&v| $sum(v)).sum::<f32>();
            }
        }
    };
}

/// 16 f16 as f32.
///
/// # Safety
/// 16 elements can be read.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn load16(at: *const f16) -> __m512 {
    // SAFETY: by the contract.
    _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
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

#[target_feature(enable = "avx2")]
fn sum8(v: __m256) -> f32 {
    let mut lanes = [0.0f32; 8];
    // SAFETY: there are 8 lanes to write.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), v) };
    (lanes[0] + lanes[4]) + (lanes[1] + lanes[5]) + ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]))
}

kernel!(
    f16_avx512,
    "avx512f,avx512vl",
    f16,
    16,
    __m512,
    _mm512_setzero_ps,
    load16,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_reduce_add_ps,
    f16::to_f32
);
kernel!(
    f32_avx512,
    "avx512f,avx512vl",
    f32,
    16,
    __m512,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_loadu_ps,
    _mm512_fmadd_ps,
    _mm512_reduce_add_ps,
    f32::from
);
kernel!(
    f16_avx2,
    "avx2,fma,f16c",
    f16,
    8,
    __m256,
    _mm256_setzero_ps,
    load8,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    sum8,
    f16::to_f32
);
kernel!(
    f32_avx2,
    "avx2,fma,f16c",
    f32,
    8,
    __m256,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_loadu_ps,
    _mm256_fmadd_ps,
    sum8,
    f32::from
);
