//! f32 and f16 matrix products: dot products for few rows, the `gemm` crate for many.

use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::{Shared, THREADS_FROM};
use crate::plan::Floats;

/// `y[r, col0 + o] = Σ_i x[r, i] · w[o, i]`.
#[derive(Debug, Clone, Copy)]
pub struct Dense {
    /// Rows of x and y.
    pub rows: usize,
    /// Rows of w.
    pub d_out: usize,
    /// Columns of x and w.
    pub d_in: usize,
    /// First column of y.
    pub col0: usize,
    /// Columns of y.
    pub y_width: usize,
}

/// Rows from which the product goes through `gemm`, which reads w in blocks that fit the cache.
const GEMM_ROWS: usize = 5;
/// Rows of an f16 matrix that are widened at a time.
const WIDEN_ROWS: usize = 256;

/// The product without bias; y's other columns stay.
pub fn dense(d: Dense, x: &[f32], w: Floats, y: &mut [f32]) {
    if d.rows >= GEMM_ROWS {
        return gemm_blocks(d, x, w, y);
    }
    let y = Shared::new(y);
    let run = |outs: std::ops::Range<usize>| {
        let mut widened = vec![0.0; d.d_in];
        for o in outs {
            let row = match w {
                Floats::F32(w) => &w[o * d.d_in..][..d.d_in],
                Floats::F16(w) => {
                    w[o * d.d_in..][..d.d_in].convert_to_f32_slice(&mut widened);
                    &widened
                }
            };
            for r in 0..d.rows {
                // SAFETY: each column of y belongs to one task.
                let out = unsafe { y.slice(r * d.y_width + d.col0 + o, 1) };
                out[0] = dot_f32(&x[r * d.d_in..][..d.d_in], row);
            }
        }
    };
    if d.rows * d.d_out * d.d_in < THREADS_FROM {
        run(0..d.d_out);
    } else {
        let chunk = d.d_out.div_ceil(4 * rayon::current_num_threads()).max(1);
        (0..d.d_out.div_ceil(chunk)).into_par_iter().for_each(|c| run(c * chunk..((c + 1) * chunk).min(d.d_out)));
    }
}

fn gemm_blocks(d: Dense, x: &[f32], w: Floats, y: &mut [f32]) {
    match w {
        Floats::F32(w) => gemm_f32(d, x, &w[..d.d_out * d.d_in], y),
        Floats::F16(w) => {
            let mut block = vec![0.0; WIDEN_ROWS.min(d.d_out) * d.d_in];
            for from in (0..d.d_out).step_by(WIDEN_ROWS) {
                let n = WIDEN_ROWS.min(d.d_out - from);
                let block = &mut block[..n * d.d_in];
                w[from * d.d_in..][..n * d.d_in].convert_to_f32_slice(block);
                gemm_f32(Dense { d_out: n, col0: d.col0 + from, ..d }, x, block, y);
            }
        }
    }
}

fn gemm_f32(d: Dense, x: &[f32], w: &[f32], y: &mut [f32]) {
    assert!(x.len() >= d.rows * d.d_in && w.len() >= d.d_out * d.d_in, "inputs of {d:?}");
    assert!(d.col0 + d.d_out <= d.y_width && y.len() >= d.rows * d.y_width, "output of {d:?}");
    let work = d.rows * d.d_out * d.d_in;
    let threads = if work < THREADS_FROM { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(0) };
    // SAFETY: the strides stay inside the slices, by the assertions above; y is not read.
    unsafe {
        gemm::gemm(
            d.rows,
            d.d_out,
            d.d_in,
            y.as_mut_ptr().add(d.col0),
            1,
            d.y_width as isize,
            false,
            x.as_ptr(),
            1,
            d.d_in as isize,
            w.as_ptr(),
            d.d_in as isize,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            threads,
        );
    }
}

/// `Σ a · b`, in lanes that the compiler vectorises.
pub fn dot_f32(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut acc = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            acc[i] += a[i] * b[i];
        }
    }
    acc.iter().sum::<f32>() + rest
}
