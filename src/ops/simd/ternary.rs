//! Products of codes with ternary matrices: the work cut into tiles, each by the best kernel of this processor.

use std::ops::Range;

use smallvec::SmallVec;

use crate::ops::simd::low_bit::{
    BATCH, Kernel, MakeTables, Order, Table, TileWords, lay_out_matrix, of_a_task, own_rows, rows_at_a_time,
    with_tables,
};
use crate::ops::simd::prefetch::{self, Ahead};
use crate::ops::simd::tiles::{Run, Tiles};
use crate::ops::simd::{Shared, maths, portable};
use crate::quant::{Bits, Stack, StackPart, TILE_ROWS, lay_out_stack};
use crate::threads::ThreadPool;

/// One row of activation codes.
#[derive(Debug, Clone, Copy)]
pub struct Codes<'a> {
    /// The codes, four per word, padded to a multiple of 32.
    pub(super) words: &'a [u32],
    /// Their sum.
    pub(super) sum: i32,
    /// What a kernel looks up; see [`Kernel`].
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // No other looks anything up.
    pub(super) tables: &'a [Table],
}

impl<'a> Codes<'a> {
    /// A row of codes, four per word and a multiple of 32, and their sum.
    pub fn new(words: &'a [u32], sum: i32) -> Self {
        Codes { words, sum, tables: &[] }
    }
}

/// `N` neighbouring matrices, each times one row of codes; what they give becomes one row of outputs.
#[derive(Debug, Clone, Copy)]
pub struct MatVecJob<'a, const N: usize> {
    /// Which matrix of the stack is the first.
    pub matrix: usize,
    /// The codes of each.
    pub acts: [Codes<'a>; N],
    /// What a code of 1 stands for, of each.
    pub inv_k: [f32; N],
    /// First output.
    pub out: usize,
}

impl<'a> MatVecJob<'a, 2> {
    /// Gate and up of one row of outputs.
    pub fn pair(gate: MatVecJob<'a, 1>, up: MatVecJob<'a, 1>) -> Self {
        let ([gate_act], [up_act], [gate_k], [up_k]) = (gate.acts, up.acts, gate.inv_k, up.inv_k);
        MatVecJob { matrix: gate.matrix, acts: [gate_act, up_act], inv_k: [gate_k, up_k], out: gate.out }
    }
}

/// `act(gate) · up` of as many elements each.
pub type GatedAct<'a> = &'a (dyn Fn(&[f32], &[f32], &mut [f32]) + Sync);

/// Where products go, and what is made of them before.
#[derive(Clone, Copy)]
struct Out<'a> {
    /// Added to them, if it is not empty.
    residual: &'a [f32],
    /// What is made of those of two matrices.
    act: Option<GatedAct<'a>>,
    y: Shared<'a, f32>,
}

/// Sums of one tile, for up to [`BATCH`] rows of codes.
pub(super) type TileSums = [[i32; TILE_ROWS]; BATCH];

/// Sets `Σ code · activation` of a tile's rows, whose codes have so many bits, and of up to [`BATCH`] rows of codes.
pub(super) type TileRun = fn(&TileWords, Bits, &[Codes], &mut TileSums);

/// A [`TileRun`] with its tables.
pub(super) type TileKernel = Kernel<TileRun>;

/// The best kernel for this processor.
fn tile_kernel() -> TileKernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::x86::ternary::kernels().pop() {
        return kernel;
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(kernel) = super::arm::low_bit::ternary_kernels().pop() {
        return kernel;
    }
    PORTABLE
}

/// The kernel in plain Rust.
const PORTABLE: TileKernel = Kernel { run: portable::ternary::tile, make_tables: None, lay_out: None };

/// Lays a stack of ternary matrices out as the best kernel uses it.
pub fn lay_out(stack: &mut [u32], threads: &ThreadPool) {
    if let Some(lay_out) = tile_kernel().lay_out {
        lay_out_stack(stack, |words, of_a_tile| lay_out_matrix(lay_out, ORDER, (words, of_a_tile), threads));
    }
}

/// The order of matrices that are laid out: products read them in the order of memory.
const ORDER: Order = Order::BlocksByRows;

/// The cost of reading a tile, in units of the products of one row of codes.
const READING: usize = 2;

/// A tile of some matrices, the same of each, and the products that it is part of.
#[derive(Clone, Copy)]
struct Tile<'a, const N: usize> {
    parts: [StackPart<'a>; N],
    tile: usize,
    jobs: &'a [MatVecJob<'a, N>],
}

impl<'a, const N: usize> Tile<'a, N> {
    /// The words of matrix `n`.
    fn words(&self, n: usize) -> &'a [u32] {
        let part = &self.parts[n];
        let len = part.bits.row_words(part.cols) * TILE_ROWS;
        &part.words[self.tile * len..][..len]
    }
}

/// The first product, by output, that would write what the one before it writes.
fn overlap<const N: usize>(stack: Stack, jobs: &[MatVecJob<N>]) -> Option<usize> {
    let mut ranges: Vec<(usize, usize)> = jobs.iter().map(|j| (j.out, j.out + stack.part(j.matrix).rows)).collect();
    ranges.sort_unstable();
    ranges.windows(2).find(|pair| pair[1].0 < pair[0].1).map(|pair| pair[1].0)
}

/// All `jobs`: `y[out..] = scale · inv_k · Σ code · activation (+ residual[out..])`. Outputs must not overlap: tasks write
/// them at the same time.
pub fn ternary_products(stack: Stack, jobs: Vec<MatVecJob<1>>, threads: &ThreadPool, residual: &[f32], y: &mut [f32]) {
    products(stack, jobs, threads, Out { residual, act: None, y: Shared::new(y) });
}

/// The same of pairs of matrices of as many rows, gate and up: `y[out..] = act(gate) · up`. The thread that has a tile of both
/// makes that of it at once, so that neither is written.
pub fn ternary_gated(stack: Stack, jobs: Vec<MatVecJob<2>>, threads: &ThreadPool, act: GatedAct, y: &mut [f32]) {
    products(stack, jobs, threads, Out { residual: &[], act: Some(act), y: Shared::new(y) });
}

fn products<const N: usize>(stack: Stack, mut jobs: Vec<MatVecJob<N>>, threads: &ThreadPool, out: Out) {
    debug_assert_eq!(overlap(stack, &jobs), None, "two products write this output");
    jobs.sort_by_key(|job| job.matrix);
    let kernel = tile_kernel();
    let any_bits = || jobs.iter().any(|job| parts::<N>(stack, job.matrix).iter().any(|part| part.bits == Bits::One));
    let Some(make) = kernel.make_tables.filter(|_| any_bits()) else {
        return run_tiles(stack, &jobs, (kernel, None), Some(threads), out);
    };
    if let Some(rows) = own_rows(jobs.len(), threads.count()) {
        return run_rows(stack, &jobs, (kernel, make, rows), threads, out);
    }
    let rows = distinct(&jobs);
    if rows.len() <= N * BATCH {
        return run_tiles(stack, &jobs, (kernel, Some((make, &rows))), Some(threads), out);
    }
    for piece in pieces(&jobs) {
        run_piece(stack, piece, (kernel, make), Some(threads), out);
    }
}

/// A matrix of a stack and those behind it.
fn parts<const N: usize>(stack: Stack, first: usize) -> [StackPart; N] {
    std::array::from_fn(|n| stack.part(first + n))
}

/// [`products`] of which threads make the tables together.
fn run_piece<const N: usize>(
    stack: Stack,
    jobs: &[MatVecJob<N>],
    (kernel, make): (TileKernel, MakeTables),
    threads: Option<&ThreadPool>,
    out: Out,
) {
    let rows = distinct(jobs);
    with_tables(make, &rows, threads, |tables| {
        run_tiles(stack, &with_their(jobs, &rows, tables), (kernel, None), threads, out);
    });
}

/// [`products`], sorted by their matrices: each task has some rows of codes, and all of a matrix.
fn run_rows<const N: usize>(
    stack: Stack,
    jobs: &[MatVecJob<N>],
    (kernel, make, rows): (TileKernel, MakeTables, usize),
    threads: &ThreadPool,
    out: Out,
) {
    let of_matrices = jobs.chunk_by(|a, b| a.matrix == b.matrix);
    let cut = |jobs: &'_ [MatVecJob<N>]| of_a_task(jobs.len(), rows, threads.count());
    let mut tasks: Vec<&[MatVecJob<N>]> = of_matrices.flat_map(|jobs| jobs.chunks(cut(jobs))).collect();
    // The longest first, so that no thread is left with one of them.
    tasks.sort_by_key(|jobs| std::cmp::Reverse(jobs.len() * stack.part(jobs[0].matrix).rows));
    threads.run(tasks.len(), |i| run_piece(stack, tasks[i], (kernel, make), None, out));
}

/// Products with the tables of their rows of codes, those of [`distinct`].
fn with_their<'a, const N: usize>(
    jobs: &[MatVecJob<'a, N>],
    rows: &[&[u32]],
    tables: &[&'a [Table]],
) -> Vec<MatVecJob<'a, N>> {
    let of = |words: &[u32]| tables[rows.partition_point(|row| row.as_ptr() < words.as_ptr())];
    let with = |act: Codes<'a>| Codes { tables: of(act.words), ..act };
    jobs.iter().map(|job| MatVecJob { acts: job.acts.map(with), ..*job }).collect()
}

/// The rows of codes of some products, each once, in the order of their addresses.
fn distinct<'a, const N: usize>(jobs: &[MatVecJob<'a, N>]) -> Vec<&'a [u32]> {
    let mut rows: Vec<&[u32]> = jobs.iter().flat_map(|job| job.acts).map(|act| act.words).collect();
    rows.sort_unstable_by_key(|row| row.as_ptr());
    rows.dedup_by_key(|row| row.as_ptr());
    rows
}

/// Products, sorted by their matrices, that may have tables at the same time. Those of a matrix stay together if they can, so
/// that it is read once.
fn pieces<'j, 'a, const N: usize>(jobs: &'j [MatVecJob<'a, N>]) -> Vec<&'j [MatVecJob<'a, N>]> {
    let rows = rows_at_a_time(jobs.first().map_or(0, |job| job.acts[0].words.len()));
    let max = (rows / N).max(1);
    if jobs.len() <= max || distinct(jobs).len() <= rows {
        return vec![jobs];
    }
    let (mut pieces, mut from, mut to) = (Vec::new(), 0, 0);
    for of_matrix in jobs.chunk_by(|a, b| a.matrix == b.matrix) {
        if to + of_matrix.len() - from > max {
            pieces.extend(jobs[from..to].chunks(max));
            from = to;
        }
        to += of_matrix.len();
    }
    pieces.extend(jobs[from..to].chunks(max));
    pieces
}

/// How tables are made, and of which rows of codes.
type Making<'a> = (MakeTables, &'a [&'a [u32]]);

/// Matrices, each with its products, and their tiles.
fn list<'j, 'a, const N: usize>(
    stack: Stack<'a>,
    jobs: &'j [MatVecJob<'a, N>],
    threads: usize,
) -> (Vec<Tile<'j, N>>, Tiles) {
    let matrices = jobs.chunk_by(|a, b| a.matrix == b.matrix);
    let first = |jobs: &'j [MatVecJob<'a, N>]| Tile { parts: parts(stack, jobs[0].matrix), tile: 0, jobs };
    let mut all: Vec<Tile<N>> = matrices.map(first).collect();
    // The longest first, so that no thread is left with one of them.
    all.sort_by_key(|of| std::cmp::Reverse(of.jobs.len()));
    let runs = all.iter().map(|of| Run { tiles: of.parts[0].rows.div_ceil(TILE_ROWS), cost: of.jobs.len() + READING });
    let tiles = Tiles::new(runs, threads);
    (all, tiles)
}

/// What a thread keeps of a tile.
struct Held {
    /// Cleared once, not for each few rows of codes: a kernel sets them.
    sums: TileSums,
    /// What the first of two matrices gave, of each product.
    gates: SmallVec<[[f32; TILE_ROWS]; BATCH]>,
}

/// [`products`], sorted by their matrices, with what the codes are looked up in; or each thread makes that for itself, of these
/// rows.
fn run_tiles<const N: usize>(
    stack: Stack,
    jobs: &[MatVecJob<N>],
    (kernel, make): (TileKernel, Option<Making>),
    threads: Option<&ThreadPool>,
    out: Out,
) {
    let of_threads = threads.map_or(1, ThreadPool::count);
    list(stack, jobs, of_threads).1.share(threads, |mine| {
        let run = |jobs: &[MatVecJob<N>]| {
            let (all, tiles) = list(stack, jobs, of_threads);
            let of = |tile: usize| {
                let (i, tile) = tiles.place(tile);
                Tile { tile, ..all[i] }
            };
            let mut held = Held { sums: [[0; TILE_ROWS]; BATCH], gates: SmallVec::new() };
            for (tile, after) in tiles.of_tasks(mine) {
                let after = after.map_or(&[][..], |after| of(after).words(0));
                run_tile(kernel, &of(tile), after, out, &mut held);
            }
        };
        match make {
            Some((make, rows)) => with_tables(make, rows, None, |tables| run(&with_their(jobs, rows, tables))),
            None => run(jobs),
        }
    });
}

/// All products of a tile; `after` are the words that are read next.
fn run_tile<const N: usize>(kernel: TileKernel, tile: &Tile<N>, after: &[u32], out: Out, held: &mut Held) {
    // Passes of about the same size: one for a single row costs nearly as much as one for two.
    let passes = tile.jobs.len().div_ceil(BATCH);
    let of_a_pass = tile.jobs.len().div_ceil(passes);
    held.gates.resize((N - 1) * tile.jobs.len(), [0.0; TILE_ROWS]);
    for (n, part) in tile.parts.iter().enumerate() {
        let after = if n + 1 < N { tile.words(n + 1) } else { after };
        let words = TileWords::new(tile.words(n), after).in_order(ORDER, part.laid_out);
        kernel.for_passes(words, part.bits, passes, |mut words| {
            for (pass, jobs) in tile.jobs.chunks(of_a_pass).enumerate() {
                // The others' codes have driven them out of the first cache.
                prefetch::run(Ahead::SECOND, tile.jobs, (pass + 1) * of_a_pass, of_a_pass);
                let mut acts = [Codes { words: &[], sum: 0, tables: &[] }; BATCH];
                for (act, job) in acts.iter_mut().zip(jobs) {
                    *act = job.acts[n];
                }
                (kernel.run)(&words, part.bits, &acts[..jobs.len()], &mut held.sums);
                finish(tile, n, pass * of_a_pass..pass * of_a_pass + jobs.len(), out, held);
                words.after = None;
            }
        });
    }
}

/// Makes values of the sums of some products with matrix `n`, and outputs of them where it is the last.
fn finish<const N: usize>(tile: &Tile<N>, n: usize, jobs: Range<usize>, out: Out, held: &mut Held) {
    let Tile { parts, tile, jobs: all } = tile;
    let part = &parts[n];
    let rows = TILE_ROWS.min(part.rows - tile * TILE_ROWS);
    for (i, sums) in jobs.zip(&held.sums) {
        let (job, sums) = (&all[i], &sums[..rows]);
        let factor = part.scale * job.inv_k[n];
        if n + 1 < N {
            maths::scale_sums(sums, factor, None, &mut held.gates[i][..rows]);
            continue;
        }
        let from = job.out + tile * TILE_ROWS;
        // SAFETY: each (output range, tile) belongs to one task.
        let y = unsafe { out.y.slice(from, rows) };
        match out.act {
            None => {
                let residual = (!out.residual.is_empty()).then(|| &out.residual[from..from + rows]);
                maths::scale_sums(sums, factor, residual, y);
            }
            Some(act) => {
                let mut up = [0.0; TILE_ROWS];
                maths::scale_sums(sums, factor, None, &mut up[..rows]);
                act(&held.gates[i][..rows], &up[..rows], y);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Packed, stack};

    /// Every kernel that this processor can run.
    fn kernels() -> Vec<TileKernel> {
        let mut all = vec![PORTABLE];
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
        let product = |matrix, out| MatVecJob { matrix, acts: [Codes::new(&[], 0)], inv_k: [1.0], out };
        let found = |jobs: &[MatVecJob<1>]| overlap(Stack(&words), jobs);
        assert_eq!(found(&[product(1, 3), product(0, 0), product(0, 133)]), None);
        assert_eq!(found(&[product(1, 3), product(0, 1)]), Some(3));
        assert_eq!(found(&[product(0, 132), product(1, 3)]), Some(132));
    }

    #[test]
    fn products_of_many_rows_are_those_of_each_alone() {
        let (rows, cols) = ([300, 64, 130], 100);
        let codes = |n: usize| (0..n).map(|i| (i * 5 % 7 % 2) as i8 * 2 - 1).collect::<Vec<i8>>();
        let parts = rows.map(|rows| Packed::new(rows, cols, &codes(rows * cols), 0.5));
        let words = stack(&parts);
        let acts: Vec<Vec<i8>> = (0..70)
            .map(|a| (0..128).map(|c| if c < cols { (c * 37 + a * 91) as u8 as i8 } else { 0 }).collect())
            .collect();
        let act_words: Vec<Vec<u32>> = acts.iter().map(|a| bytemuck::pod_collect_to_vec(a)).collect();
        let mut out = 0;
        let mut job = |matrix: usize, a: usize| {
            let act = Codes::new(&act_words[a], acts[a].iter().map(|&v| i32::from(v)).sum());
            let job = MatVecJob { matrix, acts: [act], inv_k: [1.0 + a as f32], out };
            out += rows[matrix];
            job
        };
        // The same rows of codes with several matrices, in no order.
        let jobs: Vec<MatVecJob<1>> = (0..70).flat_map(|a| [(a % 3, a), (2, a)]).map(|(m, a)| job(m, a)).collect();
        let residual: Vec<f32> = (0..out).map(|i| i as f32).collect();
        let run = |jobs: &[MatVecJob<1>], threads: &ThreadPool, y: &mut [f32]| {
            ternary_products(Stack(&words), jobs.to_vec(), threads, &residual, y);
        };
        let (mut together, mut alone) = (vec![0.0; out], vec![0.0; out]);
        assert!(own_rows(jobs.len(), 2).is_some());
        run(&jobs, &ThreadPool::new(2), &mut together);
        jobs.iter().for_each(|job| run(&[*job], &ThreadPool::one(), &mut alone));
        assert_eq!(together, alone);
    }

    #[test]
    fn pieces_have_all_products_in_their_order_and_no_more_than_fit() {
        let words = vec![0; 1 << 14];
        let row = |i: usize| &words[i..][..1 << 13];
        let max = rows_at_a_time(row(0).len());
        let job = |(out, matrix)| MatVecJob { matrix, acts: [Codes::new(row(out), 0)], inv_k: [1.0], out };
        let sizes = [(0, max - 1), (1, 1), (2, 2), (3, 2 * max + 1), (4, 1)];
        let matrices = sizes.into_iter().flat_map(|(matrix, n)| std::iter::repeat_n(matrix, n));
        let jobs: Vec<MatVecJob<1>> = matrices.enumerate().map(job).collect();
        let found = pieces(&jobs);
        assert_eq!(found.iter().map(|piece| piece.len()).collect::<Vec<_>>(), [max, 2, max, max, 1, 1]);
        assert!(found.concat().iter().map(|job| job.out).eq(0..jobs.len()));
        // Many products of few rows stay together.
        let few: Vec<MatVecJob<1>> =
            (0..jobs.len()).map(|i| MatVecJob { acts: [Codes::new(row(i % 2), 0)], ..jobs[i] }).collect();
        assert_eq!(pieces(&few).iter().map(|piece| piece.len()).collect::<Vec<_>>(), [few.len()]);
        // Pairs have two rows of codes each.
        let pairs: Vec<MatVecJob<2>> = jobs.windows(2).map(|of| MatVecJob::pair(of[0], of[1])).collect();
        let found = pieces(&pairs);
        assert!(
            found.iter().all(|piece| piece.len() <= max / 2),
            "{:?}",
            found.iter().map(|piece| piece.len()).collect::<Vec<_>>()
        );
        assert!(found.concat().iter().map(|job| job.out).eq(0..pairs.len()));
    }

    #[test]
    fn every_tile_kernel_sums_like_the_codes() {
        for (cols, zeros) in [(16, true), (40, false), (96, true), (100, false), (580, false), (580, true)] {
            let codes: Vec<i8> = (0..TILE_ROWS * cols)
                .map(|i| if zeros { (i * 7 % 3) as i8 - 1 } else { (i * 5 % 7 % 2) as i8 * 2 - 1 })
                .collect();
            let words = stack(&[Packed::new(TILE_ROWS, cols, &codes, 1.0)]);
            let act = |a: usize| -> Vec<i8> {
                (0..cols.next_multiple_of(32))
                    .map(|c| match a {
                        _ if c >= cols => 0,
                        2 => i8::MAX,
                        3 => i8::MIN,
                        _ => (c * 37 + a * 91) as u8 as i8,
                    })
                    .collect()
            };
            let acts: Vec<Vec<i8>> = (0..BATCH).map(act).collect();
            let act_words: Vec<Vec<u32>> = acts.iter().map(|a| bytemuck::pod_collect_to_vec(a)).collect();
            let ways = |kernel: TileKernel| [Some((kernel, false)), kernel.lay_out.map(|_| (kernel, true))];
            for (k, (kernel, laid_out)) in kernels().into_iter().flat_map(ways).flatten().enumerate() {
                let mut words = words.clone();
                if let Some(by) = kernel.lay_out.filter(|_| laid_out) {
                    lay_out_stack(&mut words, |words, n| lay_out_matrix(by, ORDER, (words, n), &ThreadPool::one()));
                }
                let part = Stack(&words).part(0);
                let tile = TileWords::new(part.words, part.words).in_order(ORDER, part.laid_out);
                let rows: Vec<&[u32]> = act_words.iter().map(|a| &a[..]).collect();
                let of =
                    |a: usize| Codes { words: rows[a], sum: acts[a].iter().map(|&v| i32::from(v)).sum(), tables: &[] };
                let check = |acts_of: &[Codes]| {
                    for (n, passes) in (1..=BATCH).flat_map(|n| [(n, 1), (n, 2)]) {
                        let mut sums = [[0; TILE_ROWS]; BATCH];
                        kernel.for_passes(tile, part.bits, passes, |words| {
                            (kernel.run)(&words, part.bits, &acts_of[..n], &mut sums);
                        });
                        for ((act, sums), r) in
                            acts[..n].iter().zip(&sums).flat_map(|of| (0..TILE_ROWS).map(move |r| (of, r)))
                        {
                            let row = &codes[r * cols..][..cols];
                            let want: i32 = row.iter().zip(act).map(|(&w, &x)| i32::from(w) * i32::from(x)).sum();
                            assert_eq!(sums[r], want, "kernel {k}, row {r} of {cols} columns");
                        }
                    }
                };
                match kernel.make_tables {
                    None => check(&[0, 1, 2, 3].map(of)),
                    Some(make) => with_tables(make, &rows, None, |tables| {
                        check(&[0, 1, 2, 3].map(|a| Codes { tables: tables[a], ..of(a) }));
                    }),
                }
            }
        }
    }
}
