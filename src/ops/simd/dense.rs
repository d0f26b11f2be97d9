//! Matrix products with f32, f16 or 8-bit weights: dot products for few rows, tiles for many. The
//! `gemm` crate computes the tiles where this processor has no kernel of its own.

use std::ops::Range;

use crate::ops::simd::{Shared, maths};
use crate::plan::Floats;
use crate::threads::ThreadPool;

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

/// Minimum number of rows of x for which the product is computed in blocks, which keep several rows of both in registers.
const BLOCK_ROWS: usize = 9;
/// Rows of w of a block: they stay in the L2 cache while the rows of x are read.
const BLOCK_OUTS: usize = 128;
/// Minimum number of rows of x of a block; down to it, blocks are cut until every thread has enough tasks.
const SHARES: usize = 2;
const MIN_ROWS: usize = 24;
/// Weights of a task of dot products: a long run of memory for its thread, few enough to share evenly.
const TASK: usize = 1 << 18;
/// Maximum number of rows of w that a kernel sums at the same time.
const GROUP: usize = 16;

/// The product of some rows of w with all rows of x, by dot products: `(x, w, d_in, y)`, x `[rows, d_in]`, w of whole
/// rows; the product of row r with the n-th row of w is at `y[r · outs + n]`.
pub(super) type DotKernel = fn(&[f32], Floats, usize, &mut [f32]);

/// The best kernel for this processor.
fn dot_kernel() -> DotKernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::x86::dense_rows::kernel() {
        return kernel;
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(kernel) = super::arm::dense_rows::kernel() {
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
fn weight_rows(w: Floats, from: usize, n: usize, d_in: usize) -> Floats {
    w.part(from * d_in..(from + n) * d_in)
}

/// A block of the product of many rows.
#[derive(Debug)]
pub(super) struct Block<'a> {
    /// Rows of x, whole ones.
    pub x: &'a [f32],
    /// Rows of w, whole ones.
    pub w: Floats<'a>,
    /// Columns of both.
    pub d_in: usize,
    y: Shared<'a, f32>,
    /// Element of y that belongs to the first rows of both.
    at: usize,
    y_width: usize,
}

/// Makes a block of the product.
pub(super) type BlockKernel = fn(&Block);

/// The kernel of this processor for blocks.
fn block_kernel() -> BlockKernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::x86::dense_tiles::kernel() {
        return kernel;
    }
    gemm_block
}

impl Block<'_> {
    /// Writes neighbouring outputs of a row from number `o` on, or adds to them.
    #[inline(always)]
    pub(super) fn store(&self, row: usize, o: usize, found: &[f32], add: bool) {
        // SAFETY: the block's outputs belong to one task, which makes no other slice of them meanwhile.
        let y = unsafe { self.y.slice(self.at + row * self.y_width + o, found.len()) };
        match add {
            true => y.iter_mut().zip(found).for_each(|(y, v)| *y += v),
            false => y.copy_from_slice(found),
        }
    }
}

/// The product; y's other columns stay. Behind it, `finish(row, outputs, their part of y)` is called on the thread that
/// has made them.
pub fn dense(
    d: Dense,
    threads: &ThreadPool,
    x: &[f32],
    w: Floats,
    y: &mut [f32],
    finish: impl Fn(usize, Range<usize>, &mut [f32]) + Sync,
) {
    let x = &x[..d.rows * d.d_in];
    assert!(d.col0 + d.d_out <= d.y_width && y.len() >= d.rows * d.y_width, "output of {d:?}");
    if d.rows == 0 {
        return;
    }
    let y = Shared::new(y);
    let end = |rows: Range<usize>, outs: &Range<usize>| {
        for r in rows {
            // SAFETY: each block of y belongs to one task.
            finish(r, outs.clone(), unsafe { y.slice(r * d.y_width + d.col0 + outs.start, outs.len()) });
        }
    };
    if d.rows >= BLOCK_ROWS {
        return blocks(d, threads, x, w, y, end);
    }
    let kernel = dot_kernel();
    let grain = (TASK / d.d_in.max(1)).next_multiple_of(GROUP);
    threads.chunks(d.d_out, grain, |outs| {
        let mut found = vec![0.0; outs.len() * d.rows];
        kernel(x, weight_rows(w, outs.start, outs.len(), d.d_in), d.d_in, &mut found);
        for (r, found) in found.chunks_exact(outs.len()).enumerate() {
            // SAFETY: each column of y belongs to one task.
            unsafe { y.slice(r * d.y_width + d.col0 + outs.start, outs.len()) }.copy_from_slice(found);
        }
        end(0..d.rows, &outs);
    });
}

/// The product in blocks of outputs, and of rows where there are few outputs for many threads.
fn blocks(
    d: Dense,
    threads: &ThreadPool,
    x: &[f32],
    w: Floats,
    y: Shared<'_, f32>,
    end: impl Fn(Range<usize>, &Range<usize>) + Sync,
) {
    let (kernel, across) = (block_kernel(), d.d_out.div_ceil(BLOCK_OUTS));
    let down = (SHARES * threads.count()).div_ceil(across).min(d.rows.div_ceil(MIN_ROWS));
    let height = d.rows.div_ceil(down.max(1));
    threads.run(across * d.rows.div_ceil(height), |task| {
        let (o, r) = (task % across * BLOCK_OUTS, task / across * height);
        let (outs, rows) = (o..d.d_out.min(o + BLOCK_OUTS), r..d.rows.min(r + height));
        kernel(&Block {
            x: &x[rows.start * d.d_in..rows.end * d.d_in],
            w: weight_rows(w, outs.start, outs.len(), d.d_in),
            d_in: d.d_in,
            y,
            at: r * d.y_width + d.col0 + o,
            y_width: d.y_width,
        });
        end(rows, &outs);
    });
}

/// A block by the `gemm` crate, of weights that are widened first.
fn gemm_block(b: &Block) {
    match b.w {
        Floats::F32(w) => gemm_f32(b, w),
        stored => {
            let mut widened = vec![0.0; b.w.len()];
            stored.widen(&mut widened);
            gemm_f32(b, &widened);
        }
    }
}

fn gemm_f32(b: &Block, w: &[f32]) {
    let (rows, outs) = (b.x.len() / b.d_in, w.len() / b.d_in);
    let last = b.at + rows.saturating_sub(1) * b.y_width + outs;
    // SAFETY: x and w have whole rows, and y ends behind the last output, as `at` checks; y is not read, and a block's
    // outputs belong to one task.
    unsafe {
        b.y.at(last);
        gemm::gemm(
            rows,
            outs,
            b.d_in,
            b.y.at(b.at),
            1,
            b.y_width as isize,
            false,
            b.x.as_ptr(),
            1,
            b.d_in as isize,
            w.as_ptr(),
            b.d_in as isize,
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
        all.extend(super::super::x86::dense_rows::kernels());
        #[cfg(target_arch = "aarch64")]
        all.extend(super::super::arm::dense_rows::kernel());
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

    /// Every kernel of blocks that this processor can run.
    fn block_kernels() -> Vec<BlockKernel> {
        let mut all: Vec<BlockKernel> = vec![gemm_block];
        #[cfg(target_arch = "x86_64")]
        all.extend(super::super::x86::dense_tiles::kernels());
        all
    }

    #[test]
    fn every_block_kernel_multiplies_rows() {
        for (rows, d_out, d_in) in [(1, 1, 4), (9, 5, 20), (13, 7, 64), (4, 3, 1100), (6, 8, 2053)] {
            let number = |i: usize| (i * 7 % 13) as f32 - 6.0;
            let x: Vec<f32> = (0..rows * d_in).map(number).collect();
            let w: Vec<f32> = (0..d_out * d_in).map(|i| number(i + 5)).collect();
            let narrow: Vec<half::f16> = w.iter().map(|&v| half::f16::from_f32(v)).collect();
            let bytes: Vec<i8> = w.iter().map(|&v| v as i8).collect();
            for (k, kernel) in block_kernels().into_iter().enumerate() {
                for w_kind in [Floats::F32(&w), Floats::F16(&narrow), Floats::Int8(&bytes)] {
                    let (at, y_width) = (3, d_out + 5);
                    let mut y = vec![-1.0; at + rows * y_width];
                    kernel(&Block { x: &x, w: w_kind, d_in, y: Shared::new(&mut y), at, y_width });
                    for (i, &y) in y[at..].iter().enumerate() {
                        let (r, o) = (i / y_width, i % y_width);
                        let product = || (0..d_in).map(|k| x[r * d_in + k] * w[o * d_in + k]).sum();
                        let want = if o < d_out { product() } else { -1.0 };
                        assert_eq!(y, want, "kernel {k}, row {r}, output {o} of {rows}x{d_out}x{d_in}");
                    }
                }
            }
        }
    }
}
