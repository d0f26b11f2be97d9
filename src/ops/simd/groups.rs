//! Products with low-bit codes that have scales by row and group: the work cut into tiles, each by the best kernel of this
//! processor.

use crate::ops::simd::low_bit::{
    BATCH, Kernel, MakeTables, Order, Table, TileWords, lay_out_matrix, of_a_task, own_rows, rows_at_a_time,
    with_tables,
};
use crate::ops::simd::tiles::{Run, Tiles};
use crate::ops::simd::{Shared, portable};
use crate::quant::groups::{GroupPart, GroupStack, lay_out_stack};
use crate::quant::{Bits, TILE_ROWS};
use crate::threads::ThreadPool;
use half::f16;

/// One row of activation codes.
#[derive(Debug, Clone, Copy)]
pub struct GroupActs<'a> {
    /// The codes, four per word, padded to a multiple of 32.
    pub words: &'a [u32],
    /// `1/k` and the sum of the codes, of each group of them.
    pub scale_and_sum: &'a [f32],
    /// What a kernel looks up; see [`Kernel`].
    pub(super) tables: &'a [Table],
}

impl<'a> GroupActs<'a> {
    /// A row, without tables.
    pub fn new(words: &'a [u32], scale_and_sum: &'a [f32]) -> Self {
        GroupActs { words, scale_and_sum, tables: &[] }
    }
}

/// What each row of y is made of.
#[derive(Debug, Clone, Copy)]
pub enum GroupInput<'a> {
    /// Codes, in groups of `group` columns: 32, or as many as the weights'.
    Codes { acts: &'a [GroupActs<'a>], group: usize },
    /// Numbers, a row each.
    Floats(&'a [&'a [f32]]),
}

impl<'a> GroupInput<'a> {
    fn rows(self) -> usize {
        match self {
            GroupInput::Codes { acts, .. } => acts.len(),
            GroupInput::Floats(rows) => rows.len(),
        }
    }

    /// Calls `with` with the input whose codes have tables; see [`with_tables`].
    fn with_tables(self, make: MakeTables, threads: Option<&ThreadPool>, with: impl FnOnce(GroupInput)) {
        let GroupInput::Codes { acts, group } = self else { return with(self) };
        let rows: Vec<&[u32]> = acts.iter().map(|act| act.words).collect();
        with_tables(make, &rows, threads, |tables| {
            let acts = acts.iter().zip(tables);
            let acts: Vec<GroupActs> = acts.map(|(act, tables)| GroupActs { tables, ..*act }).collect();
            with(GroupInput::Codes { acts: &acts, group });
        });
    }

    fn part(self, from: usize, n: usize) -> Self {
        match self {
            GroupInput::Codes { acts, group } => GroupInput::Codes { acts: &acts[from..from + n], group },
            GroupInput::Floats(rows) => GroupInput::Floats(&rows[from..from + n]),
        }
    }
}

/// Where the outputs of a stack are in y: its first column, of so many.
#[derive(Debug, Clone, Copy)]
pub struct GroupPlace {
    /// The first column.
    pub first_out: usize,
    /// Columns of y.
    pub width: usize,
}

/// Outputs of one tile, for up to [`BATCH`] rows.
pub(super) type TileOuts = [[f32; TILE_ROWS]; BATCH];

/// A tile of a matrix.
#[derive(Debug, Clone, Copy)]
pub(super) struct GroupTile<'a> {
    /// Its words.
    pub words: TileWords<'a>,
    /// Its scales, of 128 rows for each group.
    pub scales: &'a [f16],
    /// Words of a group in a row.
    pub group_words: usize,
    /// Words of a row whose activations are one group of codes; all of them lie in one group of weights.
    pub act_words: usize,
}

/// Adds the products of a tile, whose codes have so many bits, with rows of codes to outputs.
pub(super) type GroupRun = fn(&GroupTile, Bits, &[GroupActs], &mut TileOuts);

/// A [`GroupRun`] with its tables.
pub(super) type GroupKernel = Kernel<GroupRun>;

/// The best kernel for this processor.
fn group_kernel() -> GroupKernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::x86::groups::kernels().pop() {
        return kernel;
    }
    #[cfg(target_arch = "aarch64")]
    if let Some(kernel) = super::arm::low_bit::group_kernels().pop() {
        return kernel;
    }
    PORTABLE
}

/// The kernel in plain Rust.
const PORTABLE: GroupKernel = Kernel { run: portable::groups::tile, make_tables: None, lay_out: None };

/// Lays a stack out as the best kernel uses it.
pub fn lay_out(stack: &mut [u32], threads: &ThreadPool) {
    if let Some(lay_out) = group_kernel().lay_out {
        lay_out_stack(stack, |words, of_a_tile| lay_out_matrix(lay_out, ORDER, (words, of_a_tile), threads));
    }
}

/// The order of matrices that are laid out: products read all rows of a group before those of the next.
const ORDER: Order = Order::Blocks;

/// A tile, and the column of y that its first row is.
#[derive(Clone, Copy)]
struct Work<'a> {
    part: GroupPart<'a>,
    tile: usize,
    out: usize,
}

impl<'a> Work<'a> {
    fn words(&self) -> &'a [u32] {
        let words = self.part.shape.row_words() * TILE_ROWS;
        &self.part.words[self.tile * words..][..words]
    }

    fn tile(&self, input: &GroupInput, after: &'a [u32]) -> GroupTile<'a> {
        let (part, shape) = (&self.part, self.part.shape);
        let of_acts = if let GroupInput::Codes { group, .. } = input { *group } else { shape.group };
        let [group_words, act_words] = [shape.group, of_acts].map(|cols| shape.bits.words_within(cols));
        let scales = shape.groups() * TILE_ROWS;
        GroupTile {
            words: TileWords::new(self.words(), after).in_order(ORDER, part.laid_out),
            scales: &part.scales[self.tile * scales..][..scales],
            group_words,
            act_words,
        }
    }
}

/// The products of all rows with all matrices of the stack, side by side: `y[r, first_out + o] = factor · Σ … (+ residual)`.
pub fn group_products(
    stack: GroupStack,
    input: GroupInput,
    place: GroupPlace,
    threads: &ThreadPool,
    residual: &[f32],
    y: &mut [f32],
) {
    let kernel = group_kernel();
    let any_bits = || (0..stack.len()).any(|i| stack.part(i).shape.bits == Bits::One);
    let (GroupInput::Codes { acts, .. }, Some(make)) = (input, kernel.make_tables.filter(|_| any_bits())) else {
        return run_tiles((stack, place), kernel, None, input, Some(threads), residual, y);
    };
    let (n, width) = (input.rows(), place.width);
    if n <= BATCH {
        return run_tiles((stack, place), kernel, Some(make), input, Some(threads), residual, y);
    }
    let y = Shared::new(y);
    let run = |from: usize, n: usize, threads: Option<&ThreadPool>| {
        // SAFETY: each row's outputs belong to one call.
        let y = unsafe { y.slice(from * width, n * width) };
        let residual = if residual.is_empty() { residual } else { &residual[from * width..][..y.len()] };
        let input = input.part(from, n);
        input.with_tables(make, threads, |input| {
            run_tiles((stack, place), kernel, None, input, threads, residual, y);
        });
    };
    match own_rows(n, threads.count()).map(|most| of_a_task(n, most, threads.count())) {
        Some(rows) => threads.chunks(n, rows, |rows| run(rows.start, rows.len(), None)),
        None => {
            let most = rows_at_a_time(acts[0].words.len());
            (0..n).step_by(most).for_each(|from| run(from, most.min(n - from), Some(threads)));
        }
    }
}

/// [`group_products`] with what the input is looked up in; or each thread makes that for itself.
fn run_tiles(
    (stack, place): (GroupStack, GroupPlace),
    kernel: GroupKernel,
    make: Option<MakeTables>,
    input: GroupInput,
    threads: Option<&ThreadPool>,
    residual: &[f32],
    y: &mut [f32],
) {
    let tiles = || {
        let rows = (0..stack.len()).map(|i| stack.part(i).shape.rows);
        let runs = rows.map(|rows| Run { tiles: rows.div_ceil(TILE_ROWS), cost: 1 });
        Tiles::new(runs, threads.map_or(1, ThreadPool::count))
    };
    let y = Shared::new(y);
    tiles().share(threads, |mine| {
        let (tiles, parts) = (tiles(), (0..stack.len()).map(|i| stack.part(i)).collect::<Vec<_>>());
        let work = |tile: usize| {
            let (part, tile) = tiles.place(tile);
            let before = parts[..part].iter().map(|part| part.shape.rows).sum::<usize>();
            Work { part: parts[part], tile, out: place.first_out + before + tile * TILE_ROWS }
        };
        let run = |input: GroupInput| {
            for (tile, after) in tiles.of_tasks(mine) {
                let after = after.map_or(&[][..], |after| work(after).words());
                run_passes(kernel, &work(tile), (input, after), place.width, residual, y);
            }
        };
        match make {
            Some(make) => input.with_tables(make, None, run),
            None => run(input),
        }
    });
}

/// All products of a tile; `after` are the words that are read next.
fn run_passes(
    kernel: GroupKernel,
    work: &Work,
    (input, after): (GroupInput, &[u32]),
    y_width: usize,
    residual: &[f32],
    y: Shared<'_, f32>,
) {
    let (rows, tile) = (input.rows(), work.tile(&input, after));
    let passes = rows.div_ceil(BATCH).max(1);
    // Floats are multiplied with the words as they lie.
    let of_codes = if let GroupInput::Codes { .. } = input { passes } else { 1 };
    kernel.for_passes(tile.words, work.part.shape.bits, of_codes, |words| {
        let mut tile = GroupTile { words, ..tile };
        for pass in 0..passes {
            // Passes of about the same size.
            let (from, to) = (rows * pass / passes, rows * (pass + 1) / passes);
            run_tile(kernel, work, &tile, (from, input.part(from, to - from)), y_width, residual, y);
            tile.words.after = None;
        }
    });
}

/// A tile's products with some rows of the input, and the number of the first of them.
fn run_tile(
    kernel: GroupKernel,
    work: &Work,
    tile: &GroupTile,
    (from, input): (usize, GroupInput),
    y_width: usize,
    residual: &[f32],
    y: Shared<'_, f32>,
) {
    let (bits, rows) = (work.part.shape.bits, from..from + input.rows());
    let mut outs = [[0.0; TILE_ROWS]; BATCH];
    match input {
        GroupInput::Codes { acts, .. } => (kernel.run)(tile, bits, acts, &mut outs),
        GroupInput::Floats(x) => portable::groups::float_tile(tile, bits, x, &mut outs),
    }
    let used = TILE_ROWS.min(work.part.shape.rows - work.tile * TILE_ROWS);
    for (r, outs) in rows.zip(&outs) {
        let at = r * y_width + work.out;
        // SAFETY: each row's outputs of a tile belong to one task.
        let y = unsafe { y.slice(at, used) };
        y.iter_mut().zip(outs).for_each(|(y, out)| *y = work.part.factor * out);
        if !residual.is_empty() {
            y.iter_mut().zip(&residual[at..at + used]).for_each(|(y, r)| *y += r);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;

    use super::*;
    use crate::quant::groups::{GroupPacked, GroupShape, stack};
    use crate::quant::six_bits;

    /// Every kernel that this processor can run.
    fn kernels() -> Vec<GroupKernel> {
        let mut all = vec![PORTABLE];
        #[cfg(target_arch = "x86_64")]
        all.extend(super::super::x86::groups::kernels());
        #[cfg(target_arch = "aarch64")]
        all.extend(super::super::arm::low_bit::group_kernels());
        all
    }

    /// A tile of the extremes of each form: all codes that it has, and rows of one alone, the largest among them.
    fn matrix(cols: usize, bits: Bits, group: usize) -> GroupPacked<'static> {
        let codes: &[i8] = match bits {
            Bits::One => &[-1, 1, 1],
            Bits::Two => &[-1, 0, 1, 2, 2, 2],
            Bits::Six => &[-32, 31, -32, 3, 0, -32],
            Bits::Eight => &[-128, 127, -128, 3, 0, -128],
        };
        let packed = GroupPacked::from_codes(GroupShape { rows: TILE_ROWS, cols, bits, group }, |row, to, scales| {
            to.iter_mut().enumerate().for_each(|(c, code)| *code = codes[(row * 7 + c * (1 + row % 6)) % codes.len()]);
            scales.iter_mut().enumerate().for_each(|(g, s)| *s = f16::from_f32((row + 3 * g) as f32 * 0.25 - 9.0));
            Ok(())
        });
        let mut packed = packed.unwrap();
        if bits == Bits::Six {
            let integers = packed.words.to_mut().chunks_mut(TILE_ROWS).step_by(six_bits::WORDS).flatten();
            integers.enumerate().for_each(|(i, to)| *to = [0x8080_8080, 0x7f80_057f, 0x80ff_8001][i / 6 % 3]);
        }
        packed
    }

    /// Rows of codes of all 8 bits in groups of `group` with their scales and sums, and the numbers that they stand for.
    struct Rows {
        group: usize,
        words: Vec<Vec<u32>>,
        scale_and_sum: Vec<Vec<f32>>,
        floats: Vec<Vec<f32>>,
    }

    fn rows(cols: usize, group: usize) -> Rows {
        let act = |a: usize, c: usize| if a == 3 { -128 } else { (c * 37 + a * 91) as u8 as i8 };
        let codes: Vec<Vec<i8>> = (0..BATCH).map(|a| (0..cols).map(|c| act(a, c)).collect()).collect();
        let words = |codes: &Vec<i8>| {
            let mut codes = codes.clone();
            codes.resize(cols.next_multiple_of(32), 0);
            bytemuck::pod_collect_to_vec(&codes)
        };
        let sum = |codes: &[i8]| codes.iter().map(|&c| f32::from(c)).sum::<f32>();
        let inv_k = |g: usize| (g + 1) as f32 * 0.5;
        let of_groups = |codes: &Vec<i8>| {
            codes.chunks(group).enumerate().flat_map(|(g, codes)| [inv_k(g), sum(codes)]).collect::<Vec<f32>>()
        };
        let floats =
            |codes: &Vec<i8>| codes.iter().enumerate().map(|(c, &v)| f32::from(v) * inv_k(c / group)).collect();
        Rows {
            group,
            words: codes.iter().map(words).collect(),
            scale_and_sum: codes.iter().map(of_groups).collect(),
            floats: codes.iter().map(floats).collect(),
        }
    }

    /// The outputs of each kernel, and of that for floats, for some of the rows.
    fn found(tile: &GroupTile, bits: Bits, rows: &Rows, some: Range<usize>) -> Vec<TileOuts> {
        let both = rows.words[some.clone()].iter().zip(&rows.scale_and_sum[some.clone()]);
        let acts: Vec<GroupActs> = both.map(|(words, scale_and_sum)| GroupActs::new(words, scale_and_sum)).collect();
        let mut all: Vec<TileOuts> = Vec::new();
        let laid_out = laid_out(tile, bits);
        let ways = |kernel: GroupKernel| {
            let laid_out = laid_out.as_ref().filter(|_| kernel.lay_out.is_some());
            [
                Some((kernel, 1, tile.words)),
                Some((kernel, 2, tile.words)),
                laid_out.map(|by| (kernel, 1, in_order(tile, by))),
            ]
        };
        for (kernel, passes, words) in kernels().into_iter().flat_map(ways).flatten() {
            let mut outs = [[0.0; TILE_ROWS]; BATCH];
            let mut run = |acts: &[GroupActs]| {
                kernel.for_passes(words, bits, passes, |words| {
                    (kernel.run)(&GroupTile { words, ..*tile }, bits, acts, &mut outs);
                });
            };
            match kernel.make_tables {
                None => run(&acts),
                Some(make) => {
                    let words: Vec<&[u32]> = acts.iter().map(|act| act.words).collect();
                    with_tables(make, &words, None, |tables| {
                        let acts = acts.iter().zip(tables).map(|(act, tables)| GroupActs { tables, ..*act });
                        run(&acts.collect::<Vec<_>>());
                    });
                }
            }
            all.push(outs);
        }
        let x: Vec<&[f32]> = rows.floats[some].iter().map(|x| &x[..]).collect();
        for words in std::iter::once(tile.words).chain(laid_out.as_ref().map(|by| in_order(tile, by))) {
            all.push([[0.0; TILE_ROWS]; BATCH]);
            portable::groups::float_tile(&GroupTile { words, ..*tile }, bits, &x, all.last_mut().unwrap());
        }
        all
    }

    /// The words of a tile of 1-bit codes as a kernel of this processor lays them out, if one does.
    fn laid_out(tile: &GroupTile, bits: Bits) -> Option<Vec<u32>> {
        let lay_out = kernels().into_iter().filter(|_| bits == Bits::One).find_map(|kernel| kernel.lay_out)?;
        let mut words = tile.words.all.to_vec();
        let of_a_tile = words.len();
        lay_out_matrix(lay_out, ORDER, (&mut words, of_a_tile), &ThreadPool::one());
        Some(words)
    }

    fn in_order<'a>(tile: &GroupTile<'a>, all: &'a [u32]) -> TileWords<'a> {
        TileWords { all, ..tile.words.in_order(ORDER, true) }
    }

    #[test]
    fn stacks_that_are_laid_out_keep_their_codes_and_are_so_once() {
        let (shape, threads) = (GroupShape { rows: 300, cols: 100, bits: Bits::One, group: 32 }, ThreadPool::new(2));
        let code = |row: usize, col: usize| [-1, 1, 1, -1, 1][(row * 7 + col * (1 + row % 3)) % 5];
        let one = GroupPacked::from_codes(shape, |row, to, _| {
            to.iter_mut().enumerate().for_each(|(col, to)| *to = code(row, col));
            Ok(())
        });
        let (two, mut words) =
            (matrix(100, Bits::Two, 32), stack(&[one.unwrap(), matrix(100, Bits::Two, 32)]).unwrap());
        for by in kernels().iter().filter_map(|kernel| kernel.lay_out) {
            let mut times = 0;
            let mut lay_out = |words: &mut Vec<u32>| {
                lay_out_stack(words, |words, n| {
                    times += 1;
                    lay_out_matrix(by, ORDER, (words, n), &threads);
                });
            };
            let mut words = words.clone();
            lay_out(&mut words);
            lay_out(&mut words);
            let [first, second] = [0, 1].map(|i| GroupStack(&words).part(i));
            assert_eq!((times, first.laid_out, second.laid_out, second.words), (1, true, false, &two.words[..]));
            assert!((0..300).all(|row| (0..100).all(|col| first.code(row, col) == i16::from(code(row, col)))));
        }
        lay_out(&mut words, &threads);
        let found = GroupStack(&words).part(0);
        assert_eq!(found.laid_out, group_kernel().lay_out.is_some());
        assert!((0..300).all(|row| (0..100).all(|col| found.code(row, col) == i16::from(code(row, col)))));
    }

    #[test]
    fn every_kernel_adds_up_the_products_of_each_group() {
        let whole = crate::quant::groups::whole_row;
        for (cols, group) in [(4, 32), (96, 32), (100, 64), (300, 128), (520, 256), (520, whole(520)), (31, whole(31))]
        {
            let each = Bits::ALL.into_iter().flat_map(|bits| [(bits, 32), (bits, group)]);
            for (bits, act_group) in each.filter(|e| GroupShape { rows: 1, cols, bits: e.0, group }.check().is_ok()) {
                let rows = rows(cols, act_group);
                let words = stack(&[matrix(cols, bits, group)]).unwrap();
                let part = GroupStack(&words).part(0);
                let codes = GroupInput::Codes { acts: &[], group: rows.group };
                let tile = Work { part, tile: 0, out: 0 }.tile(&codes, part.words);
                let sum = |a: usize, r: usize| -> [f64; 2] {
                    let term = |c: usize| f64::from(part.value(r, c)) * f64::from(rows.floats[a][c]);
                    (0..cols).map(term).fold([0.0; 2], |[sum, size], term| [sum + term, size + term.abs()])
                };
                let wanted: Vec<Vec<[f64; 2]>> =
                    (0..BATCH).map(|a| (0..TILE_ROWS).map(|r| sum(a, r)).collect()).collect();
                // The last row, of the smallest code alone, also as the only one.
                for (some, (k, outs)) in
                    (1..=BATCH).map(|n| 0..n).chain(std::iter::once(BATCH - 1..BATCH)).flat_map(|some| {
                        let found = found(&tile, bits, &rows, some.clone());
                        found.into_iter().enumerate().map(move |f| (some.clone(), f))
                    })
                {
                    for (a, r) in some.clone().flat_map(|a| (0..TILE_ROWS).map(move |r| (a, r))) {
                        let ([want, size], found) = (wanted[a][r], f64::from(outs[a - some.start][r]));
                        assert!(
                            (found - want).abs() <= 1e-6 * size,
                            "kernel {k}, {bits:?}, {cols} columns by {group} and {act_group}, row {r}: {found}, expected {want}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn products_of_many_rows_are_those_of_each_alone() {
        let (cols, of_each) = (100, [300, 64]);
        let parts = of_each.map(|rows| {
            let shape = GroupShape { rows, cols, bits: Bits::One, group: 32 };
            let fill = |row: usize, to: &mut [i8], scales: &mut [f16]| {
                to.iter_mut().enumerate().for_each(|(c, code)| *code = [-1, 1, 1][(row * 7 + c) % 3]);
                scales.fill(f16::from_f32(row as f32 * 0.25 - 9.0));
                Ok(())
            };
            GroupPacked::from_codes(shape, fill).unwrap()
        });
        let (words, four) = (stack(&parts).unwrap(), rows(cols, 32));
        let width: usize = of_each.iter().sum();
        let acts: Vec<GroupActs> =
            (0..70).map(|a| GroupActs::new(&four.words[a % 4], &four.scale_and_sum[a * 3 % 4])).collect();
        let run = |from: usize, n: usize, threads: &ThreadPool| {
            let input = GroupInput::Codes { acts: &acts[from..from + n], group: 32 };
            let residual: Vec<f32> = (from * width..(from + n) * width).map(|i| i as f32).collect();
            let mut y = vec![0.0; n * width];
            group_products(GroupStack(&words), input, GroupPlace { first_out: 0, width }, threads, &residual, &mut y);
            y
        };
        assert!(own_rows(acts.len(), 2).is_some() && own_rows(20, 2).is_none());
        let alone: Vec<f32> = (0..acts.len()).flat_map(|a| run(a, 1, &ThreadPool::one())).collect();
        let two = ThreadPool::new(2);
        assert_eq!(run(0, acts.len(), &two), alone);
        assert_eq!([run(0, 20, &two), run(20, 50, &two)].concat(), alone);
    }
}
