//! What products with low-bit codes share: the words of a tile, and the tables in which kernels look sums up.

use std::cell::Cell;
use std::ops::Range;

use crate::ops::simd::prefetch::{self, Ahead};
use crate::ops::simd::{Shared, rows_a_task};
use crate::quant::{Bits, LAID_OUT_ROWS, TILE_ROWS};
use crate::threads::ThreadPool;

/// Rows of activation codes that share one pass over a tile's words.
pub(super) const BATCH: usize = 4;

/// The words of a tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileWords<'a> {
    /// All of them.
    pub all: &'a [u32],
    /// Those that are read after them; `None` where all are in a cache, so that nothing need be fetched.
    pub after: Option<&'a [u32]>,
    /// How they are fetched.
    pub ahead: Ahead,
    /// In which order they are.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // No other lays anything out.
    pub order: Order,
}

/// The order of a tile's words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Order {
    /// Word `j` of row `r` at `128 j + r`.
    Plain,
    /// The same, but each block of words is laid out ([`LAID_OUT_ROWS`]).
    Blocks,
    /// Blocks that are laid out, all of the same rows behind each other.
    BlocksByRows,
}

impl Order {
    /// Where the first words of the [`LAID_OUT_ROWS`] rows from `row` on are in a tile, and how far from them the next ones.
    #[inline(always)]
    pub(super) fn blocks(self, tile: &TileWords, row: usize) -> (usize, usize) {
        match self {
            Order::BlocksByRows => (row * tile.of_a_row(), LAID_OUT_ROWS),
            Order::Plain | Order::Blocks => (row, TILE_ROWS),
        }
    }
}

impl<'a> TileWords<'a> {
    /// Words as they lie, and those that are read after them.
    pub(super) fn new(all: &'a [u32], after: &'a [u32]) -> Self {
        TileWords { all, after: Some(after), ahead: Ahead::of_this_processor(), order: Order::Plain }
    }

    /// The same in this order, if they are laid out.
    pub(super) fn in_order(self, order: Order, laid_out: bool) -> Self {
        if laid_out { TileWords { order, ..self } } else { self }
    }

    /// Words of a row.
    pub(super) fn of_a_row(&self) -> usize {
        self.all.len() / TILE_ROWS
    }

    /// Fetches what is read some time after word `j` of some rows.
    #[inline(always)]
    pub(super) fn fetch(&self, j: usize, rows: Range<usize>) {
        self.fetch_by(self.ahead, j, rows);
    }

    /// [`TileWords::fetch`] as `ahead` says.
    #[inline(always)]
    pub(super) fn fetch_by(&self, ahead: Ahead, j: usize, rows: Range<usize>) {
        self.fetch_from(ahead, j * TILE_ROWS + rows.start, rows.len());
    }

    /// Fetches what is read some time after `n` words from word `at` of the tile on, of this tile or of those that are read after it.
    #[inline(always)]
    fn fetch_from(&self, ahead: Ahead, at: usize, n: usize) {
        let Some(after) = self.after else { return };
        let at = at + ahead.bytes / size_of::<u32>();
        let (from, at) = if at < self.all.len() { (self.all, at) } else { (after, at - self.all.len()) };
        prefetch::run(ahead, from, at, n);
    }

    /// The words of a block; fetches what is read some time after them.
    #[inline(always)]
    pub(super) fn block(&self, at: usize) -> &'a [u32] {
        self.fetch_from(self.ahead, at, LAID_OUT_ROWS);
        &self.all[at..][..LAID_OUT_ROWS]
    }
}

/// A kernel, and how the tables are made that it needs of a row of codes to multiply it with 1-bit codes; none where it
/// multiplies.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel<R> {
    /// The kernel.
    pub run: R,
    /// Makes [`WORD_TABLES`] tables of every 8 words of codes, those that one word of a 1-bit matrix is multiplied with.
    pub make_tables: Option<MakeTables>,
    /// Lays the words of a tile of 1-bit codes out, which the kernel else does in each pass; none where it reads them as they lie.
    /// Fetches as a pass does.
    pub lay_out: Option<LayOut>,
}

/// Writes all words of a tile in another order.
pub(super) type LayOut = fn(&TileWords, Order, &mut [u32]);

impl<R> Kernel<R> {
    /// Calls `with` with the words of a tile that a number of passes read, laid out if that is less work.
    pub(super) fn for_passes(&self, mut words: TileWords, bits: Bits, passes: usize, with: impl FnOnce(TileWords)) {
        // What passes look up over and over stays in the first cache.
        if passes > 1 {
            words.ahead = Ahead::SECOND;
        }
        let pays = bits == Bits::One && passes > 1 && words.order == Order::Plain;
        let Some(lay_out) = self.lay_out.filter(|_| pays) else { return with(words) };
        let mut memory = LAID_OUT.take();
        memory.resize(memory.len().max(words.all.len()), 0);
        let all = &mut memory[..words.all.len()];
        lay_out(&words, Order::Blocks, all);
        with(TileWords { all, after: None, order: Order::Blocks, ..words });
        LAID_OUT.set(memory);
    }
}

/// Lays the words of a matrix of 1-bit codes out, so many in each tile, in their place.
pub(super) fn lay_out_matrix(
    lay_out: LayOut,
    order: Order,
    (words, of_a_tile): (&mut [u32], usize),
    threads: &ThreadPool,
) {
    let (tiles, words) = (words.len() / of_a_tile.max(1), Shared::new(words));
    threads.run(tiles, |tile| {
        // SAFETY: each tile belongs to one task.
        let words = unsafe { words.slice(tile * of_a_tile, of_a_tile) };
        let old = words.to_vec();
        lay_out(&TileWords { after: None, ..TileWords::new(&old, &[]) }, order, words);
    });
}

/// Fills the tables of a row of codes.
pub(super) type MakeTables = fn(&[u32], &mut [Table]);

/// Sums of activation codes in bytes. What they mean is the kernel's own.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
pub struct Table(pub(super) [u8; 64]);

/// Tables of the codes that a word of a 1-bit matrix is multiplied with.
pub(super) const WORD_TABLES: usize = 4;

/// Words of codes that a word of a 1-bit matrix is multiplied with.
pub(super) const WORD_CODES: usize = 8;

/// Maximum number of tables at a time: 4 MiB, which an outer cache keeps.
const MAX_TABLES: usize = 1 << 16;

thread_local! {
    /// Memory of tables between calls.
    static TABLES: Cell<Vec<Table>> = const { Cell::new(Vec::new()) };
    /// Memory of words that are laid out, likewise.
    static LAID_OUT: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
}

/// Tables of a row of so many words of codes.
fn tables_of(words: usize) -> usize {
    words.div_ceil(WORD_CODES).max(1) * WORD_TABLES
}

/// Rows of so many words of codes that [`with_tables`] may be called with.
pub(super) fn rows_at_a_time(words: usize) -> usize {
    (MAX_TABLES / tables_of(words)).max(1).next_multiple_of(BATCH)
}

/// Rows of codes, at least and at most, of which one thread makes the tables and looks them up where there are many. They stay
/// in its own cache; tables that threads share are far from half of them where the threads have no cache in common.
const OWN_ROWS: [usize; 2] = [2 * BATCH, 4 * BATCH];

/// Rows of codes of a task, where there are enough for two tasks a thread.
pub(super) fn own_rows(rows: usize, threads: usize) -> Option<usize> {
    let [least, most] = OWN_ROWS;
    Some((rows / (2 * threads)).min(most) / BATCH * BATCH).filter(|&rows| rows >= least)
}

/// How many of some rows of codes a task has: at most `most`, and as many tasks for each thread.
pub(super) fn of_a_task(rows: usize, most: usize, threads: usize) -> usize {
    if rows <= most { rows } else { rows.div_ceil(rows.div_ceil(most).next_multiple_of(threads)) }
}

/// Makes the tables of rows of codes, all of the same length, and calls `with` with those of each. Threads make them together,
/// or the calling one alone, in its own memory.
pub(super) fn with_tables(
    make: MakeTables,
    rows: &[&[u32]],
    threads: Option<&ThreadPool>,
    with: impl FnOnce(&[&[Table]]),
) {
    let words = rows.first().map_or(0, |row| row.len());
    let of_a_row = tables_of(words);
    let mut memory = TABLES.take();
    if memory.len() < rows.len() * of_a_row {
        memory.resize(rows.len() * of_a_row, Table([0; 64]));
    }
    match threads {
        None => rows.iter().zip(memory.chunks_exact_mut(of_a_row)).for_each(|(row, tables)| make(row, tables)),
        Some(threads) => {
            let tables = Shared::new(&mut memory);
            threads.chunks(rows.len(), rows_a_task(4 * words), |range| {
                for row in range {
                    // SAFETY: each row's tables belong to one task.
                    make(rows[row], unsafe { tables.slice(row * of_a_row, of_a_row) });
                }
            });
        }
    }
    with(&memory.chunks_exact(of_a_row).take(rows.len()).collect::<Vec<_>>());
    TABLES.set(memory);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")] // No other lays anything out.
    fn stacks_that_are_laid_out_keep_their_codes_and_are_so_once() {
        use crate::quant::{Packed, Stack, lay_out_stack, stack};

        for by in crate::ops::simd::x86::ternary::kernels().iter().filter_map(|kernel| kernel.lay_out) {
            let lay_out = |words: &mut Vec<u32>, threads: usize| {
                lay_out_stack(words, |words, n| {
                    lay_out_matrix(by, Order::BlocksByRows, (words, n), &ThreadPool::new(threads));
                });
            };
            let codes = |n: usize, all: &[i8]| (0..n).map(|i| all[i * i / 7 % 13 % all.len()]).collect::<Vec<_>>();
            let of = [(300, &[-1, 1][..]), (64, &[-1, 0, 1]), (7, &[1, -1])]
                .map(|(rows, all)| (rows, codes(rows * 100, all)));
            let mut words = stack(&of.each_ref().map(|(rows, codes)| Packed::new(*rows, 100, codes, 0.5)));
            lay_out(&mut words, 2);
            let laid_out = words.clone();
            lay_out(&mut words, 1);
            assert_eq!(words, laid_out);
            for (i, (rows, codes)) in of.iter().enumerate() {
                let part = Stack(&words).part(i);
                assert_eq!(part.laid_out, part.bits == Bits::One);
                let found = (0..rows * 100).map(|at| part.code(at / 100, at % 100));
                assert!(found.eq(codes.iter().copied()), "matrix {i}");
            }
        }
    }

    #[test]
    fn many_rows_make_two_tasks_a_thread_and_few_share_their_tables() {
        assert_eq!([8, 31, 32, 64, 192].map(|n| own_rows(n, 2)), [None, None, Some(8), Some(16), Some(16)]);
        assert_eq!([64, 192, 384].map(|n| own_rows(n, 8)), [None, Some(12), Some(16)]);
        assert_eq!([1, 16, 40, 64, 80].map(|n| of_a_task(n, 16, 2)), [1, 16, 10, 16, 14]);
    }
}
