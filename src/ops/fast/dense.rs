//! Matrix products with f32, f16 or 8-bit weights: dot products for few rows, the `gemm` crate for many.

use super::{Shared, maths};
use crate::plan::Floats;
use crate::threads::Threads;

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

/// Rows of x from which the product goes through `gemm`, which keeps blocks of both in registers.
const GEMM_ROWS: usize = 9;
/// Rows of w that are widened and multiplied at a time.
const WIDEN_ROWS: usize = 384;
/// Weights of a task of dot products: a long run of memory for its thread, few enough to share evenly.
const TASK: usize = 1 << 18;
/// Rows of w whose sums a kernel makes together, at most.
const GROUP: usize = 16;

/// The product of some rows of w with all rows of x, by dot products: `(x, w, d_in, y)`, x `[rows, d_in]`, w of whole
/// rows; the product of row r with the n-th row of w is at `y[r · outs + n]`.
pub(super) type DotKernel = fn(&[f32], Floats, usize, &mut [f32]);

/// The best kernel for this processor.
fn dot_kernel() -> DotKernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::dense_x86::kernel() {
        return kernel;
    }
    dots
}

/// Dot products by way of [`maths::dot`], on any processor.
fn dots(x: &[f32], w: Floats, d_in: usize, y: &mut [f32]) {
    let outs = y.len() / (x.len() / d_in);
    let mut widened = vec![0.0; d_in];
    for n in 0..outs {
        let w = match w {
            Floats::F32(w) => &w[n * d_in..][..d_in],
            stored => {
                stored.part(n * d_in..(n + 1) * d_in).widen(&mut widened);
                &widened
            }
        };
        y[n..].iter_mut().step_by(outs).zip(x.chunks_exact(d_in)).for_each(|(y, x)| *y = maths::dot(x, w));
    }
}

/// Some rows of a weight.
fn some_rows(w: Floats, from: usize, n: usize, d_in: usize) -> Floats {
    w.part(from * d_in..(from + n) * d_in)
}

/// The product without bias; y's other columns stay.
pub fn dense(d: Dense, threads: &Threads, x: &[f32], w: Floats, y: &mut [f32]) {
    let x = &x[..d.rows * d.d_in];
    assert!(d.col0 + d.d_out <= d.y_width && y.len() >= d.rows * d.y_width, "output of {d:?}");
    if d.rows == 0 {
        return;
    }
    if d.rows >= GEMM_ROWS {
        return gemm_blocks(d, threads, x, w, y);
    }
    let (y, kernel) = (Shared::new(y), dot_kernel());
    let grain = (TASK / d.d_in.max(1)).next_multiple_of(GROUP);
    threads.chunks(d.d_out, grain, |outs| {
        let mut found = vec![0.0; outs.len() * d.rows];
        kernel(x, some_rows(w, outs.start, outs.len(), d.d_in), d.d_in, &mut found);
        for (r, found) in found.chunks_exact(outs.len()).enumerate() {
            // SAFETY: each column of y belongs to one task.
            unsafe { y.slice(r * d.y_width + d.col0 + outs.start, outs.len()) }.copy_from_slice(found);
        }
    });
}

/// The product in blocks of outputs, each widened by the thread that multiplies it.
fn gemm_blocks(d: Dense, threads: &Threads, x: &[f32], w: Floats, y: &mut [f32]) {
    let y = Shared::new(y);
    threads.chunks(d.d_out, WIDEN_ROWS, |outs| {
        let block = Dense { d_out: outs.len(), col0: d.col0 + outs.start, ..d };
        match some_rows(w, outs.start, outs.len(), d.d_in) {
            Floats::F32(w) => gemm_f32(block, x, w, y),
            stored => {
                let mut widened = vec![0.0; outs.len() * d.d_in];
                stored.widen(&mut widened);
                gemm_f32(block, x, &widened, y);
            }
        }
    });
}

/// One block; its columns of y belong to the caller alone.
fn gemm_f32(d: Dense, x: &[f32], w: &[f32], y: Shared<f32>) {
    assert!(x.len() >= d.rows * d.d_in && w.len() >= d.d_out * d.d_in, "inputs of {d:?}");
    // SAFETY: the strides stay inside the slices, by the assertions here and in `dense`; y is not read, and its columns
    // of different blocks do not overlap.
    unsafe {
        gemm::gemm(
            d.rows,
            d.d_out,
            d.d_in,
            y.at(d.col0),
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
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every kernel that this processor can run.
    fn kernels() -> Vec<DotKernel> {
        let mut all: Vec<DotKernel> = vec![dots];
        #[cfg(target_arch = "x86_64")]
        all.extend(super::super::dense_x86::kernels());
        all
    }

    #[test]
    fn every_dot_kernel_adds_up_products() {
        for (rows, d_out, d_in) in [(1, 1, 4), (1, 9, 20), (2, 7, 64), (3, 5, 36), (8, 6, 68), (5, 3, 768)] {
            let number = |i: usize| (i * 7 % 13) as f32 - 6.0;
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let w: Vec<f32> = (0..d_out * d_in).map(|i| number(i + 5)).collect();
            let narrow: Vec<half::f16> = w.iter().map(|&v| half::f16::from_f32(v)).collect();
            let bytes: Vec<i8> = w.iter().map(|&v| v as i8).collect();
            for kernel in kernels() {
                for w_kind in [Floats::F32(&w), Floats::F16(&narrow), Floats::Int8(&bytes)] {
                    let mut y = vec![0.0; rows * d_out];
                    kernel(&x, w_kind, d_in, &mut y);
                    for (i, y) in y.iter().enumerate() {
                        let (r, o) = (i / d_out, i % d_out);
                        let want: f32 = (0..d_in).map(|k| x[r * d_in + k] * w[o * d_in + k]).sum();
                        assert_eq!(*y, want, "row {r}, output {o} of {rows}x{d_out}x{d_in}");
                    }
                }
            }
        }
    }
}
