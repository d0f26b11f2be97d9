//! Dot products of few rows with f32, f16 or 8-bit weights, for x86-64 with AVX2 and F16C, or AVX-512.
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

/// Calls `$one::<A, O>` for blocks of `A` rows of x and `O` rows of w, whose sums stay in registers. Several rows of x share
/// each vector of x among two rows of w. One row reads w from front to back, as fast as memory gives it; with `$pairs` it
/// shares too, for weights so small that loading x takes longer.
macro_rules! blocks {
    ($one:ident, $x:ident, $w:ident, $d_in:ident, $y:ident, $pairs:expr) => {{
        let rows = $x.len() / $d_in;
        assert!($d_in > 0 && $x.len() == rows * $d_in, "shapes of a product");
        for (w, y) in $w.chunks(2 * $d_in).zip($y.chunks_mut(2 * rows)) {
            for r in (0..rows).step_by(4) {
                let x = &$x[r * $d_in..rows.min(r + 4) * $d_in];
                match (x.len() / $d_in, w.len() / $d_in) {
                    (4, 2) => $one::<4, 2>(x, w, $d_in, &mut y[r..], rows),
                    (3, 2) => $one::<3, 2>(x, w, $d_in, &mut y[r..], rows),
                    (2, 2) => $one::<2, 2>(x, w, $d_in, &mut y[r..], rows),
                    (1, 2) if $pairs => $one::<1, 2>(x, w, $d_in, &mut y[r..], rows),
                    (n, outs) => {
                        for (a, o) in (0..n).flat_map(|a| (0..outs).map(move |o| (a, o))) {
                            let (x, w) = (&x[a * $d_in..][..$d_in], &w[o * $d_in..][..$d_in]);
                            $one::<1, 1>(x, w, $d_in, &mut y[o * rows + r + a..], rows);
                        }
                    }
                }
            }
        }
    }};
}

#[target_feature(enable = "avx512f,avx512vl")]
fn dots_avx512(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    match w {
        Floats::F16(w) => blocks!(f16_avx512, x, w, d_in, y, false),
        Floats::Int8(w) => blocks!(i8_avx512, x, w, d_in, y, true),
        Floats::F32(w) => blocks!(f32_avx512, x, w, d_in, y, false),
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dots_avx2(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    match w {
        Floats::F16(w) => blocks!(f16_avx2, x, w, d_in, y, false),
        Floats::Int8(w) => blocks!(i8_avx2, x, w, d_in, y, true),
        Floats::F32(w) => blocks!(f32_avx2, x, w, d_in, y, false),
    }
}

/// Vectors of a row that are added up side by side, for any number of rows: a row's sum is the same in every batch.
const U: usize = 2;

/// Multiplies the vectors at column `$i` of all rows and adds them to the sums `$u`.
macro_rules! vector {
    ($load:expr, $load_x:ident, $fma:ident, $x:ident, $w:ident, $d_in:ident, $i:expr, $acc:ident, $u:expr, [$a:ident, $o:ident], $zero:ident) => {{
        let mut wide = [$zero(); $o];
        for o in 0..$o {
            // SAFETY: the whole vector lies inside row o.
            let at = unsafe { $w.as_ptr().add(o * $d_in + $i) };
            _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
            // SAFETY: as above.
            wide[o] = unsafe { $load(at) };
        }
        for a in 0..$a {
            // SAFETY: the whole vector lies inside row a.
            let x = unsafe { $load_x($x.as_ptr().add(a * $d_in + $i)) };
            for o in 0..$o {
                $acc[a][o][$u] = $fma(x, wide[o], $acc[a][o][$u]);
            }
        }
    }};
}

/// Defines a kernel for one vector width and one weight type: `A` rows of x with `O` rows of w; the sum of rows a and o
/// goes to `y[o · stride + a]`.
macro_rules! kernel {
    ($name:ident, $features:literal, $element:ty, $lanes:literal, $zero:ident, $load:expr, $load_x:ident, $add:ident,
     $fma:ident, $sum:expr, $widen:expr) => {
        #[target_feature(enable = $features)]
        fn $name<const A: usize, const O: usize>(x: &[f32], w: &[$element], d_in: usize, y: &mut [f32], stride: usize) {
            assert!(x.len() == A * d_in && w.len() == O * d_in, "shapes of a block");
            // The bounds of all inner loops are constant, so that they unroll and the sums stay in registers.
            let mut acc = [[[$zero(); U]; O]; A];
            let (pairs, whole) = (d_in / ($lanes * U) * ($lanes * U), d_in / $lanes * $lanes);
            for i in (0..pairs).step_by($lanes * U) {
                for u in 0..U {
                    vector!($load, $load_x, $fma, x, w, d_in, i + u * $lanes, acc, u, [A, O], $zero);
                }
            }
            if pairs < whole {
                vector!($load, $load_x, $fma, x, w, d_in, pairs, acc, 0, [A, O], $zero);
            }
            for a in 0..A {
                for o in 0..O {
                    let rest: f32 = (whole..d_in).map(|i| x[a * d_in + i] * $widen(w[o * d_in + i])).sum();
                    y[o * stride + a] = rest + $sum($add(acc[a][o][0], acc[a][o][1]));
                }
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

/// 16 integers as f32.
///
/// # Safety
/// 16 elements can be read.
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn load16_i8(at: *const i8) -> __m512 {
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
    _mm512_setzero_ps,
    load16,
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps,
    _mm512_reduce_add_ps,
    f16::to_f32
);
kernel!(
    f32_avx512,
    "avx512f,avx512vl",
    f32,
    16,
    _mm512_setzero_ps,
    _mm512_loadu_ps,
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps,
    _mm512_reduce_add_ps,
    f32::from
);
kernel!(
    f16_avx2,
    "avx2,fma,f16c",
    f16,
    8,
    _mm256_setzero_ps,
    load8,
    _mm256_loadu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps,
    sum8,
    f16::to_f32
);
kernel!(
    f32_avx2,
    "avx2,fma,f16c",
    f32,
    8,
    _mm256_setzero_ps,
    _mm256_loadu_ps,
    _mm256_loadu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps,
    sum8,
    f32::from
);
kernel!(
    i8_avx512,
    "avx512f,avx512vl",
    i8,
    16,
    _mm512_setzero_ps,
    load16_i8,
    _mm512_loadu_ps,
    _mm512_add_ps,
    _mm512_fmadd_ps,
    _mm512_reduce_add_ps,
    f32::from
);
kernel!(
    i8_avx2,
    "avx2,fma,f16c",
    i8,
    8,
    _mm256_setzero_ps,
    load8_i8,
    _mm256_loadu_ps,
    _mm256_add_ps,
    _mm256_fmadd_ps,
    sum8,
    f32::from
);
