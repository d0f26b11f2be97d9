//! Products with low-bit codes that have scales by row and group: the work cut into tiles, each by the best kernel of this
//! processor.

use std::ops::Range;

use crate::cpu_level::for_each_level;
use crate::ops::simd::Shared;
use crate::ops::simd::low_bit::{BATCH, Kernel, Table, TileWords, rows_at_a_time, with_tables};
use crate::quant::groups::{GroupPart, GroupStack};
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
const PORTABLE: GroupKernel = Kernel { run: portable_tile, make_tables: None, lay_out: None };

/// Tasks per thread in one call: with 6, a thread that another program slows down kept the others waiting for up to a sixth
/// of its share. Fetching goes on into the next task, so that short ones cost no more.
const TASKS: usize = 24;

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
        let [group_words, act_words] = [shape.group, of_acts].map(|cols| cols / shape.bits.cols_per_word());
        let scales = shape.groups() * TILE_ROWS;
        GroupTile {
            words: TileWords { all: self.words(), after: Some(after), laid_out: false },
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
    let (GroupInput::Codes { acts, group }, Some(make)) = (input, kernel.make_tables.filter(|_| any_bits())) else {
        return run_tiles(stack, kernel, input, place, threads, residual, y);
    };
    let max = rows_at_a_time(acts.first().map_or(0, |act| act.words.len()));
    for (acts, from) in acts.chunks(max).zip((0..).step_by(max * place.width)) {
        let to = from + acts.len() * place.width;
        let residual = if residual.is_empty() { residual } else { &residual[from..to] };
        let rows: Vec<&[u32]> = acts.iter().map(|act| act.words).collect();
        with_tables(make, &rows, threads, |tables| {
            let acts = acts.iter().zip(tables);
            let acts: Vec<GroupActs> = acts.map(|(act, tables)| GroupActs { tables, ..*act }).collect();
            let input = GroupInput::Codes { acts: &acts, group };
            run_tiles(stack, kernel, input, place, threads, residual, &mut y[from..to]);
        });
    }
}

/// [`group_products`] with what the input is looked up in.
fn run_tiles(
    stack: GroupStack,
    kernel: GroupKernel,
    input: GroupInput,
    place: GroupPlace,
    threads: &ThreadPool,
    residual: &[f32],
    y: &mut [f32],
) {
    let mut work: Vec<Work> = Vec::new();
    let mut out = place.first_out;
    for part in (0..stack.len()).map(|i| stack.part(i)) {
        let tiles = part.shape.rows.div_ceil(TILE_ROWS);
        work.extend((0..tiles).map(|tile| Work { part, tile, out: out + tile * TILE_ROWS }));
        out += part.shape.rows;
    }
    let tasks: Vec<&[Work]> = work.chunks(work.len().div_ceil(TASKS * threads.count()).max(1)).collect();
    let (rows, y) = (input.rows(), Shared::new(y));
    let passes = rows.div_ceil(BATCH).max(1);
    threads.run_ahead(tasks.len(), |i, next| {
        let after = next.map_or(&[][..], |next| &tasks[next][..1]);
        for (n, work) in tasks[i].iter().enumerate() {
            let after = tasks[i][n + 1..].first().or(after.first()).map_or(&[][..], Work::words);
            let tile = work.tile(&input, after);
            // Floats are multiplied with the words as they lie.
            let of_codes = if let GroupInput::Codes { .. } = input { passes } else { 1 };
            kernel.for_passes(tile.words, work.part.shape.bits, of_codes, |words| {
                let mut tile = GroupTile { words, ..tile };
                for pass in 0..passes {
                    // Passes of about the same size.
                    let (from, to) = (rows * pass / passes, rows * (pass + 1) / passes);
                    run_tile(kernel, work, &tile, (from, input.part(from, to - from)), place.width, residual, y);
                    tile.words.after = None;
                }
            });
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
        GroupInput::Floats(x) => float_tile(tile, bits, x, &mut outs),
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

/// The kernel in plain Rust, written so that the compiler vectorises it over the tile's rows.
fn portable_tile(tile: &GroupTile, bits: Bits, acts: &[GroupActs], outs: &mut TileOuts) {
    let n = tile.words.of_a_row();
    for (g, first) in (0..n).step_by(tile.group_words.max(1)).enumerate() {
        let end = (first + tile.group_words).min(n);
        let scales = &tile.scales[g * TILE_ROWS..][..TILE_ROWS];
        for (act, outs) in acts.iter().zip(outs.iter_mut()) {
            let mut sums = [0f32; TILE_ROWS];
            for from in (first..end).step_by(tile.act_words.max(1)) {
                add_portable(tile, bits, act, from..end.min(from + tile.act_words), &mut sums);
            }
            for ((out, sum), scale) in outs.iter_mut().zip(sums).zip(scales) {
                *out += sum * scale.to_f32();
            }
        }
    }
}

/// Adds the product of one group of activation codes, those of the words `words` of each row.
fn add_portable(tile: &GroupTile, bits: Bits, act: &GroupActs, words: Range<usize>, to: &mut [f32; TILE_ROWS]) {
    let (fours, count, [times, offset]) = (bits.cols_per_word() / 4, bits.count(), bits.times_and_offset());
    let mask = (1u32 << count) - 1;
    let unit = words.start / tile.act_words;
    let mut sums = [0i32; TILE_ROWS];
    for i in words.start * fours..words.end * fours {
        let bytes = act.words[i].to_le_bytes().map(|b| i32::from(b as i8));
        let shift = (i % fours * count) as u32;
        let words = &tile.words.all[i / fours * TILE_ROWS..][..TILE_ROWS];
        for (sum, &word) in sums.iter_mut().zip(words) {
            let code = |b: u32| (word >> (shift + 8 * b) & mask) as i32;
            *sum += code(0) * bytes[0] + code(1) * bytes[1] + code(2) * bytes[2] + code(3) * bytes[3];
        }
    }
    let (inv_k, less) = (act.scale_and_sum[2 * unit], offset * act.scale_and_sum[2 * unit + 1] as i32);
    to.iter_mut().zip(sums).for_each(|(to, sum)| *to += (times * sum - less) as f32 * inv_k);
}

for_each_level! {
    /// Adds the products of a tile with up to [`BATCH`] rows of floats.
    fn float_tile(tile: &GroupTile, bits: Bits, x: &[&[f32]], outs: &mut TileOuts) {
        match *x {
            [a] => float_rows(tile, bits, [a], outs),
            [a, b] => float_rows(tile, bits, [a, b], outs),
            [a, b, c] => float_rows(tile, bits, [a, b, c], outs),
            [a, b, c, d, ..] => float_rows(tile, bits, [a, b, c, d], outs),
            [] => {}
        }
    }
}

/// Rows of a tile whose sums stay in registers.
const BLOCK: usize = 32;

#[inline(always)]
fn float_rows<const A: usize>(tile: &GroupTile, bits: Bits, x: [&[f32]; A], outs: &mut TileOuts) {
    let (per_word, count, [times, offset]) = (bits.cols_per_word(), bits.count(), bits.times_and_offset());
    let mask = (1u32 << count) - 1;
    let n = tile.words.of_a_row();
    for block in (0..TILE_ROWS).step_by(BLOCK) {
        for (g, first) in (0..n).step_by(tile.group_words.max(1)).enumerate() {
            let mut sums = [[0f32; BLOCK]; A];
            let from = first * per_word;
            for c in from..x[0].len().min((first + tile.group_words).min(n) * per_word) {
                let words = &tile.words.all[c / per_word * TILE_ROWS + block..][..BLOCK];
                let shift = (8 * (c % 4) + count * (c % per_word / 4)) as u32;
                let mut codes = [0f32; BLOCK];
                for i in 0..BLOCK {
                    codes[i] = (times * ((words[i] >> shift) & mask) as i32 - offset) as f32;
                }
                for a in 0..A {
                    let x = x[a][c];
                    for i in 0..BLOCK {
                        sums[a][i] += codes[i] * x;
                    }
                }
            }
            let scales = &tile.scales[g * TILE_ROWS + block..][..BLOCK];
            for (sums, outs) in sums.iter().zip(outs.iter_mut()) {
                for ((out, sum), scale) in outs[block..block + BLOCK].iter_mut().zip(sums).zip(scales) {
                    *out += sum * scale.to_f32();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::groups::{GroupPacked, GroupShape, stack};

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
            Bits::Eight => &[-128, 127, -128, 3, 0, -128],
        };
        GroupPacked::from_codes(GroupShape { rows: TILE_ROWS, cols, bits, group }, |row, to, scales| {
            to.iter_mut().enumerate().for_each(|(c, code)| *code = codes[(row * 7 + c * (1 + row % 6)) % codes.len()]);
            scales.iter_mut().enumerate().for_each(|(g, s)| *s = f16::from_f32((row + 3 * g) as f32 * 0.25 - 9.0));
            Ok(())
        })
        .unwrap()
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
        for (kernel, passes) in kernels().into_iter().flat_map(|kernel| [(kernel, 1), (kernel, 2)]) {
            let mut outs = [[0.0; TILE_ROWS]; BATCH];
            let mut run = |acts: &[GroupActs]| {
                kernel.for_passes(tile.words, bits, passes, |words| {
                    (kernel.run)(&GroupTile { words, ..*tile }, bits, acts, &mut outs);
                });
            };
            match kernel.make_tables {
                None => run(&acts),
                Some(make) => {
                    let words: Vec<&[u32]> = acts.iter().map(|act| act.words).collect();
                    with_tables(make, &words, &ThreadPool::one(), |tables| {
                        let acts = acts.iter().zip(tables).map(|(act, tables)| GroupActs { tables, ..*act });
                        run(&acts.collect::<Vec<_>>());
                    });
                }
            }
            all.push(outs);
        }
        let x: Vec<&[f32]> = rows.floats[some].iter().map(|x| &x[..]).collect();
        all.push([[0.0; TILE_ROWS]; BATCH]);
        float_tile(tile, bits, &x, all.last_mut().unwrap());
        all
    }

    #[test]
    fn every_kernel_adds_up_the_products_of_each_group() {
        let whole = crate::quant::groups::whole_row;
        for (cols, group) in [(4, 32), (96, 32), (100, 64), (300, 128), (520, 256), (520, whole(520)), (31, whole(31))]
        {
            let each = [Bits::One, Bits::Two, Bits::Eight].into_iter().flat_map(|bits| [(bits, 32), (bits, group)]);
            for (bits, act_group) in each {
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
}
