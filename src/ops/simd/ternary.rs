//! Products of codes with ternary matrices: the work cut into tiles, each by the best kernel of this processor.

use crate::ops::simd::{Shared, maths, ternary_portable};
use crate::quant::{Bits, Stack, StackPart, TILE_ROWS};
use crate::threads::ThreadPool;

/// One row of activation codes, padded to a multiple of 32.
#[derive(Debug, Clone, Copy)]
pub struct Codes<'a> {
    /// The codes.
    pub codes: &'a [i8],
    /// Their sum.
    pub sum: i32,
}

/// One matrix times one row of codes.
#[derive(Debug, Clone, Copy)]
pub struct MatVecJob<'a> {
    /// Which matrix of the stack.
    pub matrix: usize,
    /// The codes.
    pub act: Codes<'a>,
    /// What a code of 1 stands for.
    pub inv_k: f32,
    /// First output.
    pub out: usize,
}

/// Rows of codes that share one pass over a tile's words.
pub(super) const BATCH: usize = 4;

/// Sums over stored codes (code + 1, or 0 and 1) of one tile, for up to [`BATCH`] rows of codes.
pub(super) type TileSums = [[i32; TILE_ROWS]; BATCH];

/// Adds up a tile: its words, the bits of a code, the rows of codes as words of four; and words that will be read next,
/// which may be fetched meanwhile.
pub(super) type TileKernel = fn(&[u32], Bits, &[&[u32]], &[u32], &mut TileSums);

/// The best kernel for this processor.
fn tile_kernel() -> TileKernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::x86::ternary::kernel() {
        return kernel;
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(kernel) = super::arm::low_bit::ternary_kernels().pop() {
        return kernel;
    }
    ternary_portable::tile
}

/// Tasks per thread in one call: more balance the work better, fewer cost less and read longer runs of memory.
const TASKS: usize = 6;

/// The cost of reading a tile, in units of the products of one row of codes.
const READING: usize = 2;

/// A tile of a matrix, and the products that it is part of.
#[derive(Clone, Copy)]
struct Tile<'a> {
    part: StackPart<'a>,
    tile: usize,
    jobs: &'a [MatVecJob<'a>],
}

impl<'a> Tile<'a> {
    fn words(&self) -> &'a [u32] {
        let len = self.part.bits.row_words(self.part.cols) * TILE_ROWS;
        &self.part.words[self.tile * len..][..len]
    }
}

/// The first product, by output, that would write what the one before it writes.
fn overlap(stack: Stack, jobs: &[MatVecJob]) -> Option<usize> {
    let mut ranges: Vec<(usize, usize)> = jobs.iter().map(|j| (j.out, j.out + stack.part(j.matrix).rows)).collect();
    ranges.sort_unstable();
    ranges.windows(2).find(|pair| pair[1].0 < pair[0].1).map(|pair| pair[1].0)
}

/// All `jobs`: `y[out..] = scale · inv_k · Σ code · activation (+ residual[out..])`. Outputs must not overlap: tasks write
/// them at the same time.
pub fn ternary_products(stack: Stack, mut jobs: Vec<MatVecJob>, threads: &ThreadPool, residual: &[f32], y: &mut [f32]) {
    debug_assert_eq!(overlap(stack, &jobs), None, "two products write this output");
    jobs.sort_by_key(|j| j.matrix);
    let kernel = tile_kernel();
    let mut groups: Vec<&[MatVecJob]> = jobs.chunk_by(|a, b| a.matrix == b.matrix).collect();
    // The longest first, so that no thread is left with one of them.
    groups.sort_by_key(|g| std::cmp::Reverse(g.len()));
    let mut tiles: Vec<Tile> = Vec::new();
    for jobs in groups {
        let part = stack.part(jobs[0].matrix);
        tiles.extend((0..part.rows.div_ceil(TILE_ROWS)).map(|tile| Tile { part, tile, jobs }));
    }
    let cost = |t: &Tile| t.jobs.len() + READING;
    let share = tiles.iter().map(cost).sum::<usize>().div_ceil(TASKS * threads.count());
    let mut full = 0;
    let tasks: Vec<&[Tile]> = tiles
        .chunk_by(|t, _| {
            full += cost(t);
            let more = full < share;
            full *= usize::from(more);
            more
        })
        .collect();
    let y = Shared::new(y);
    threads.run_ahead(tasks.len(), |i, next| {
        let after = next.map_or(&[][..], |next| &tasks[next][..1]);
        for (n, tile) in tasks[i].iter().enumerate() {
            let next = tasks[i][n + 1..].first().or(after.first()).map_or(&[][..], Tile::words);
            // Passes of about the same size: one for a single row costs nearly as much as one for two.
            let passes = tile.jobs.len().div_ceil(BATCH);
            let fetched = next.len().div_ceil(passes).max(1);
            let ahead = next.chunks(fetched).chain(std::iter::repeat(&[][..]));
            for (jobs, ahead) in tile.jobs.chunks(tile.jobs.len().div_ceil(passes)).zip(ahead) {
                run_tile(kernel, Tile { jobs, ..*tile }, ahead, residual, y);
            }
        }
    });
}

fn run_tile(kernel: TileKernel, of: Tile, ahead: &[u32], residual: &[f32], y: Shared<'_, f32>) {
    let Tile { part, tile, jobs: batch } = of;
    let mut acts: [&[u32]; BATCH] = [&[]; BATCH];
    for (act, job) in acts.iter_mut().zip(batch) {
        *act = bytemuck::cast_slice(job.act.codes);
    }
    let mut sums = [[0; TILE_ROWS]; BATCH];
    kernel(of.words(), part.bits, &acts[..batch.len()], ahead, &mut sums);
    let rows = TILE_ROWS.min(part.rows - tile * TILE_ROWS);
    for (job, sums) in batch.iter().zip(&sums) {
        let from = job.out + tile * TILE_ROWS;
        // SAFETY: each (output range, tile) belongs to one task.
        let out = unsafe { y.slice(from, rows) };
        let times = if part.bits == Bits::One { 2 } else { 1 };
        let residual = (!residual.is_empty()).then(|| &residual[from..from + rows]);
        maths::scale_sums(&sums[..rows], times, job.act.sum, part.scale * job.inv_k, residual, out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Packed, stack};

    /// Every kernel that this processor can run.
    fn kernels() -> Vec<TileKernel> {
        let mut all: Vec<TileKernel> = vec![ternary_portable::tile];
        #[cfg(target_arch = "x86_64")]
        all.extend(super::super::x86::ternary::kernels());
        #[cfg(target_arch = "aarch64")]
        all.extend(super::super::arm::low_bit::ternary_kernels());
        all
    }

    #[test]
    fn products_that_write_the_same_outputs_are_found() {
        let parts = [Packed::new(3, 4, &[1; 12], 1.0), Packed::new(130, 4, &[1; 520], 1.0)];
        let words = stack(&parts);
        let product = |matrix, out| MatVecJob { matrix, act: Codes { codes: &[], sum: 0 }, inv_k: 1.0, out };
        let found = |jobs: &[MatVecJob]| overlap(Stack(&words), jobs);
        assert_eq!(found(&[product(1, 3), product(0, 0), product(0, 133)]), None);
        assert_eq!(found(&[product(1, 3), product(0, 1)]), Some(3));
        assert_eq!(found(&[product(0, 132), product(1, 3)]), Some(132));
    }

    #[test]
    fn every_tile_kernel_sums_like_the_codes() {
        for (cols, zeros) in [(16, true), (40, false), (96, true), (100, false)] {
            let codes: Vec<i8> = (0..TILE_ROWS * cols)
                .map(|i| if zeros { (i * 7 % 3) as i8 - 1 } else { (i * 5 % 7 % 2) as i8 * 2 - 1 })
                .collect();
            let words = stack(&[Packed::new(TILE_ROWS, cols, &codes, 1.0)]);
            let part = Stack(&words).part(0);
            let act = |a: usize| -> Vec<i8> {
                (0..cols.next_multiple_of(32))
                    .map(|c| if c < cols { ((c * 37 + a * 91) % 256) as u8 as i8 } else { 0 })
                    .collect()
            };
            let acts: Vec<Vec<i8>> = (0..BATCH).map(act).collect();
            let act_words: Vec<Vec<u32>> = acts.iter().map(|a| bytemuck::pod_collect_to_vec(a)).collect();
            for kernel in kernels() {
                for n in 1..=BATCH {
                    let list: Vec<&[u32]> = act_words[..n].iter().map(|a| &a[..]).collect();
                    let mut sums = [[0; TILE_ROWS]; BATCH];
                    kernel(part.words, part.bits, &list, part.words, &mut sums);
                    for (act, sums) in acts[..n].iter().zip(&sums) {
                        let total: i32 = act.iter().map(|&v| i32::from(v)).sum();
                        for r in 0..TILE_ROWS {
                            let row = &codes[r * cols..][..cols];
                            let want: i32 = row.iter().zip(act).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
                            let times = if part.bits == Bits::One { 2 } else { 1 };
                            assert_eq!(times * sums[r] - total, want, "row {r} of {cols} columns");
                        }
                    }
                }
            }
        }
    }
}
