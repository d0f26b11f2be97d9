//! Dot products of few rows with f32, f16 or 8-bit weights, for x86-64 with AVX2 and F16C, or AVX-512.
//!
//! A weight vector is widened in a register and multiplied with every row of x while it is there: the weights are read
//! once, and nothing is written but the sums.

use std::arch::x86_64::*;

use half::f16;

use crate::alloc::CACHE_LINE;
use crate::cpu_level::{CpuLevel, allows};
use crate::ops::simd::dense::DotKernel;
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

/// How far ahead weights are fetched, in bytes: a hardware prefetcher alone may reach half of the memory's rate.
const AHEAD: usize = 8192;

/// Calls `$some::<A, O>` for blocks of `A` rows of x, at most `$max_rows`. Several rows of x share
/// their vectors between two rows of w. A single row of x takes `$single` rows of w at a time: 1 is as fast as memory, 2 is
/// faster where weights are so narrow that loading x takes longer.
macro_rules! blocks {
    ($some:ident, $max_rows:literal, $single:literal, $x:ident, $w:ident, $d_in:ident, $y:ident) => {{
        let rows = $x.len() / $d_in;
        assert!($d_in > 0 && $x.len() == rows * $d_in, "shapes of a product");
        for r in (0..rows).step_by($max_rows) {
            let x = &$x[r * $d_in..rows.min(r + $max_rows) * $d_in];
            let y = &mut $y[r * ($w.len() / $d_in)..];
            match x.len() / $d_in {
                1 => $some::<1, $single>(x, $w, $d_in, y),
                2 => $some::<2, 2>(x, $w, $d_in, y),
                3 => $some::<3, 2>(x, $w, $d_in, y),
                4 => $some::<4, 2>(x, $w, $d_in, y),
                5 => $some::<5, 2>(x, $w, $d_in, y),
                6 => $some::<6, 2>(x, $w, $d_in, y),
                7 => $some::<7, 2>(x, $w, $d_in, y),
                _ => $some::<8, 2>(x, $w, $d_in, y),
            }
        }
    }};
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

/// Defines a kernel for one vector width and one weight type: `A` rows of x with all rows of w, `O` at a time; the sum of
/// rows a and n goes to `y[a · outs + n]`. A row's products are added up in one vector, in the same order in every
/// batch; its lanes are added with those of other rows, as many at once as a vector has.
macro_rules! kernel {
    ($name:ident, $features:literal, $element:ty, $lanes:literal, $zero:ident, $load:expr, $load_x:ident, $fma:ident,
     $sums:ident, $store:ident, $widen:expr) => {
        #[target_feature(enable = $features)]
        fn $name<const A: usize, const O: usize>(x: &[f32], w: &[$element], d_in: usize, y: &mut [f32]) {
            assert!(x.len() == A * d_in, "shapes of a block");
            let (outs, whole) = (w.len() / d_in, d_in / $lanes * $lanes);
            let mut vectors = [[$zero(); $lanes]; A];
            for (from, w) in (0..outs).step_by($lanes).zip(w.chunks($lanes * d_in)) {
                let rows = w.len() / d_in;
                for n in (0..rows).step_by(O) {
                    // The bounds of the inner loops are constant, so that they unroll and the sums stay in registers.
                    let mut acc = [[$zero(); O]; A];
                    // The last row alone is multiplied O times.
                    let w: [_; O] = std::array::from_fn(|o| w[(n + o).min(rows - 1) * d_in..][..d_in].as_ptr());
                    for i in (0..whole).step_by($lanes) {
                        let step = O * $lanes * size_of::<$element>();
                        if i / $lanes * step % CACHE_LINE < step {
                            // Rows that are read at the same time lie one behind the other: fetched front to back they
                            // are one run of memory.
                            let first = w[0].cast::<i8>().wrapping_add(AHEAD + i * O * size_of::<$element>());
                            for line in 0..step.div_ceil(CACHE_LINE) {
                                _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(line * CACHE_LINE));
                            }
                        }
                        // SAFETY: the whole vector lies inside the row.
                        let wide = w.map(|w| unsafe { $load(w.add(i)) });
                        for a in 0..A {
                            // SAFETY: the whole vector lies inside row a.
                            let x = unsafe { $load_x(x.as_ptr().add(a * d_in + i)) };
                            for o in 0..O {
                                acc[a][o] = $fma(x, wide[o], acc[a][o]);
                            }
                        }
                    }
                    for a in 0..A {
                        vectors[a][n..n + O].copy_from_slice(&acc[a]);
                    }
                }
                for (a, vectors) in vectors.iter().enumerate() {
                    let mut sums = [0.0; $lanes];
                    // SAFETY: the array has an element for each lane.
                    unsafe { $store(sums.as_mut_ptr(), $sums(vectors)) };
                    for (w, sum) in w.chunks_exact(d_in).zip(&mut sums).take(if whole < d_in { rows } else { 0 }) {
                        *sum += (whole..d_in).map(|i| x[a * d_in + i] * $widen(w[i])).sum::<f32>();
                    }
                    y[a * outs + from..][..rows].copy_from_slice(&sums[..rows]);
                }
            }
        }
    };
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
