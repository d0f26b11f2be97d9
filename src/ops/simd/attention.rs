//! Attention on the CPU in one pass over the keys, in blocks of them: with a running maximum, so that blocks can be
//! taken by different threads and merged. Source: Milakov & Gimelshein 2018; Dao et al. 2022.

use std::ops::Range;

use crate::cpu_level::for_each_level;
use crate::ops::simd::{Shared, maths};
use crate::plan::Floats;
use crate::threads::ThreadPool;

/// Keys that are widened and scored together.
pub(super) const BLOCK: usize = 32;
/// Queries that share a block's widened keys.
const QUERIES: usize = 16;
/// Keys of one partial result, for any number of queries and threads, so that a query's result is the same in every batch.
const PIECE: usize = 8 * BLOCK;
/// Tasks per thread, at least, of few queries.
const TASKS: usize = 4;
/// Minimum number of queries over the same keys for which keys and values are laid out anew.
const WHOLE: usize = 32;

/// Where queries, keys and values lie: a matrix, its width, and the first column of head 0.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<T> {
    /// Elements, row by row.
    pub data: T,
    /// Columns.
    pub width: usize,
    /// First column used.
    pub at: usize,
}

impl<'a> Matrix<Floats<'a>> {
    /// From a row and a column on, with the width.
    fn part(&self, row: usize, at: usize) -> (Floats<'a>, usize) {
        (self.data.part(row * self.width + self.at + at..), self.width)
    }

    /// The matrix, if it is of f32.
    fn f32s(&self) -> Option<Matrix<&'a [f32]>> {
        match self.data {
            Floats::F32(data) => Some(Matrix { data, width: self.width, at: self.at }),
            _ => None,
        }
    }
}

impl<'a> Matrix<&'a [f32]> {
    /// `n` elements of a row from a column on.
    pub(super) fn row(&self, row: usize, at: usize, n: usize) -> &'a [f32] {
        &self.data[row * self.width + self.at + at..][..n]
    }
}

/// Makes a head of a query: `(row, head, to)`.
pub type MakeQuery<'a> = dyn Fn(usize, usize, &mut [f32]) + Sync + 'a;

/// One attention.
pub struct Attention<'a> {
    /// Queries.
    pub q: Matrix<&'a [f32]>,
    /// What makes them instead, of few rows, where the thread that attends with one also makes it.
    pub make_query: Option<&'a MakeQuery<'a>>,
    /// Keys.
    pub k: Matrix<Floats<'a>>,
    /// Values.
    pub v: Matrix<Floats<'a>>,
    /// Of keys and of values that are 8-bit integers, a scale for each head of a row, row by row.
    pub scales: [&'a [f32]; 2],
    /// Query heads.
    pub heads: usize,
    /// Query heads that share a key head.
    pub group: usize,
    /// Width of a head.
    pub d: usize,
    /// What scores are multiplied by.
    pub scale: f32,
    /// Keys of each query: first and count.
    pub spans: &'a [(usize, usize)],
    /// Every run of this many queries reads the same keys; 1 where nothing is known of them.
    pub rows_per_matrix: usize,
}

/// An attention whose keys and values are f32.
pub(super) struct Whole<'a> {
    /// The attention.
    pub of: &'a Attention<'a>,
    /// Keys.
    pub k: Matrix<&'a [f32]>,
    /// Values.
    pub v: Matrix<&'a [f32]>,
}

/// The attention of queries that read the same keys, with one head: `(attention, queries, head, all of y)`.
pub(super) type WholeKernel = fn(&Whole, Range<usize>, usize, Shared<'_, f32>);

/// A kernel of this processor for many queries over the same keys.
fn whole_kernel(d: usize) -> Option<WholeKernel> {
    #[cfg(target_arch = "x86_64")]
    return super::x86::attention_prefill::kernel(d);
    #[cfg(not(target_arch = "x86_64"))]
    return None;
}

/// Keys or values of a block as f32, for a run of kv heads.
#[derive(Default)]
struct Widened(Vec<f32>);

impl Widened {
    /// Rows `rows`, `n` columns from `at` on, side by side; borrowed where they are f32 already. Of integers `scales` has a
    /// scale for each head.
    fn fill<'a>(
        &'a mut self,
        m: &Matrix<Floats<'a>>,
        scales: &[f32],
        rows: Range<usize>,
        (at, n): (usize, usize),
    ) -> (Floats<'a>, usize) {
        let from = rows.start * m.width + m.at + at;
        match m.data {
            Floats::F32(_) => m.part(rows.start, at),
            Floats::Int8(integers) => {
                self.0.resize(rows.len() * n, 0.0);
                let heads = scales.len() * m.width / integers.len().max(1);
                let d = m.width / heads.max(1);
                for (row, out) in rows.zip(self.0.chunks_exact_mut(n)) {
                    let (integers, scales) = (&integers[row * m.width + at..][..n], &scales[row * heads + at / d..]);
                    let all = integers.chunks_exact(d).zip(scales).zip(out.chunks_exact_mut(d));
                    all.for_each(|((integers, &scale), out)| widen_head(integers, scale, out));
                }
                (Floats::F32(&self.0), n)
            }
            stored => {
                self.0.resize(rows.len() * n, 0.0);
                if n == m.width {
                    stored.part(from..from + self.0.len()).widen(&mut self.0);
                } else {
                    for (row, out) in self.0.chunks_exact_mut(n).enumerate() {
                        let at = from + row * m.width;
                        stored.part(at..at + n).widen(out);
                    }
                }
                (Floats::F32(&self.0), n)
            }
        }
    }
}

for_each_level! {
    /// A head of 8-bit integers as f32.
    fn widen_head(integers: &[i8], scale: f32, out: &mut [f32]) {
        out.iter_mut().zip(integers).for_each(|(out, &q)| *out = f32::from(q) * scale);
    }
}

/// The partial result of one query head over some of its keys: the largest score `max`, `Σ e^(score − max)`, and
/// `Σ e^(score − max) · v` behind them.
struct Partial<'a>(&'a mut [f32]);

/// Words in front of the sums of a [`Partial`].
pub(super) const HEAD: usize = 2;

impl Partial<'_> {
    fn reset(&mut self) {
        self.0.fill(0.0);
        self.0[0] = f32::MIN;
    }

    /// Merges the partial result over other keys, such as another thread's.
    fn merge(&mut self, other: &[f32]) {
        let max = self.0[0].max(other[0]);
        let (mine, theirs) = ((self.0[0] - max).exp(), (other[0] - max).exp());
        self.0[0] = max;
        for (a, b) in self.0[1..].iter_mut().zip(&other[1..]) {
            *a = *a * mine + b * theirs;
        }
    }

    fn finish(&self, out: &mut [f32]) {
        // No score is above the lowest number: all are -∞, or there was no key.
        let total = if self.0[0] > f32::MIN { self.0[1] } else { f32::NAN };
        out.iter_mut().zip(&self.0[HEAD..]).for_each(|(o, s)| *o = s / total);
    }
}

/// A block of keys and values of neighbouring key heads, from its first element on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Block<'a> {
    /// Query heads that share a key head.
    pub group: usize,
    /// Keys.
    pub k: Floats<'a>,
    /// Elements from one key to the next.
    pub k_width: usize,
    /// Values.
    pub v: Floats<'a>,
    /// Elements from one value to the next.
    pub v_width: usize,
    /// Of keys and of values that are 8-bit integers, a scale for each head of a row.
    pub scales: [&'a [f32]; 2],
    /// Scales from one row to the next.
    pub scales_width: usize,
    /// How many, at most [`BLOCK`].
    pub n: usize,
    /// Elements from the first key to the first of those that will be read after the block.
    pub ahead: isize,
}

/// Adds a block to the partial results of its query heads: `(q [heads, d], block, scale, partial [heads, 2 + d])`.
pub(super) type Kernel = fn(&[f32], &Block, f32, &mut [f32]);

/// A kernel of this processor for keys and values as they are stored.
fn stored_kernel(d: usize) -> Option<Kernel> {
    #[cfg(target_arch = "x86_64")]
    return super::x86::attention_decode::kernel(d);
    #[cfg(not(target_arch = "x86_64"))]
    return None;
}

/// The kernel for any processor and width, which takes f32 alone.
fn any_kernel(q: &[f32], block: &Block, scale: f32, partial: &mut [f32]) {
    let (Floats::F32(k), Floats::F32(v)) = (block.k, block.v) else {
        unreachable!("f16 and integers are widened for this kernel");
    };
    let heads = (partial.len() - q.len()) / HEAD;
    let d = q.len() / heads;
    for (head, (q, partial)) in q.chunks_exact(d).zip(partial.chunks_exact_mut(HEAD + d)).enumerate() {
        let at = head / block.group * d;
        add_keys(q, (&k[at..], block.k_width), (&v[at..], block.v_width), block.n, scale, partial);
    }
}

for_each_level! {
    /// Adds `n` keys and values, rows of a width, to the partial result of one head.
    fn add_keys(q: &[f32], k: (&[f32], usize), v: (&[f32], usize), n: usize, scale: f32, partial: &mut [f32]) {
        let mut scores = [0.0f32; BLOCK];
        let scores = &mut scores[..n];
        let mut max = partial[0];
        for (j, score) in scores.iter_mut().enumerate() {
            *score = maths::dot_inline(q, &k.0[j * k.1..][..q.len()]) * scale;
            max = max.max(*score);
        }
        let shrink = (partial[0] - max).exp();
        partial[0] = max;
        partial[1] = partial[1] * shrink + maths::exp_all_inline::<FMA>(scores, max);
        let out = &mut partial[HEAD..];
        out.iter_mut().for_each(|a| *a *= shrink);
        for (j, &weight) in scores.iter().enumerate() {
            out.iter_mut().zip(&v.0[j * v.1..]).for_each(|(o, v)| *o += weight * v);
        }
    }
}

impl Attention<'_> {
    /// Queries of the heads that share key heads `kv`, row by row; in `made` where they do not lie so.
    fn queries<'b>(&'b self, rows: Range<usize>, kv: &Range<usize>, made: &'b mut Vec<f32>) -> &'b [f32] {
        let (heads, n) = (kv.start * self.group..kv.end * self.group, kv.len() * self.group * self.d);
        if let Some(make) = self.make_query {
            made.resize(rows.len() * n, 0.0);
            let all = rows.flat_map(|row| heads.clone().map(move |head| (row, head)));
            all.zip(made.chunks_exact_mut(self.d)).for_each(|((row, head), to)| make(row, head, to));
            return made;
        }
        let of_row = |row: usize| self.q.row(row, heads.start * self.d, n);
        if rows.len() == 1 {
            return of_row(rows.start);
        }
        rows.for_each(|row| made.extend_from_slice(of_row(row)));
        made
    }

    /// Words of a [`Partial`].
    fn words(&self) -> usize {
        HEAD + self.d
    }

    /// Adds the keys `keys` to the partial results `[queries, heads]` of queries `rows` with key heads `kv`. Keys are counted from
    /// the queries' first key, which is the same for all. `after` is the key and its first key head that will be read next, if
    /// they do not follow; `q` are the queries `[queries, heads, d]` of those heads.
    fn attend(
        &self,
        rows: Range<usize>,
        kv: Range<usize>,
        keys: Range<usize>,
        after: Option<(usize, usize)>,
        q: &[f32],
        partial: &mut [f32],
    ) {
        let first = self.spans[rows.start].0;
        let (at, n) = (kv.start * self.d, kv.len() * self.d);
        let (stored, scales_width) = (stored_kernel(self.d), self.heads / self.group);
        let (mut wide_k, mut wide_v) = (Widened::default(), Widened::default());
        for from in keys.clone().step_by(BLOCK) {
            let to = keys.end.min(from + BLOCK);
            let here = first + from..first + to;
            let [k_scales, v_scales] = self.scales;
            let (k, v) = match stored {
                Some(_) => (self.k.part(here.start, at), self.v.part(here.start, at)),
                None => (
                    wide_k.fill(&self.k, k_scales, here.clone(), (at, n)),
                    wide_v.fill(&self.v, v_scales, here.clone(), (at, n)),
                ),
            };
            let scales = self.scales.map(|all| all.get(here.start * scales_width + kv.start..).unwrap_or_default());
            let (next, next_kv) = after.filter(|_| to == keys.end).unwrap_or((here.start + BLOCK, kv.start));
            let ahead = (next as isize - here.start as isize) * k.1 as isize
                + (next_kv as isize - kv.start as isize) * self.d as isize;
            let ((k, k_width), (v, v_width), kernel) = (k, v, stored.unwrap_or(any_kernel));
            let block = |group, n| Block { group, k, k_width, v, v_width, scales, scales_width, n, ahead };
            let n_of = |row: usize| self.spans[row].1.min(to).saturating_sub(from);
            // Queries of one key head that see all of a block are as many heads of one query.
            if kv.len() == 1 && rows.len() > 1 && rows.clone().all(|row| n_of(row) == to - from) {
                kernel(q, &block(self.group * rows.len(), to - from), self.scale, partial);
                continue;
            }
            let of_row = [kv.len() * self.group * self.d, kv.len() * self.group * self.words()];
            for ((row, q), partial) in
                rows.clone().zip(q.chunks_exact(of_row[0])).zip(partial.chunks_exact_mut(of_row[1]))
            {
                if n_of(row) > 0 {
                    kernel(q, &block(self.group, n_of(row)), self.scale, partial);
                }
            }
        }
    }

    /// All queries; y `[n, heads · d]`.
    pub fn run(&self, threads: &ThreadPool, y: &mut [f32]) {
        if let (Some(kernel), Some(k), Some(v)) = (whole_kernel(self.d), self.k.f32s(), self.v.f32s())
            && self.rows_per_matrix >= WHOLE
        {
            return self.whole(kernel, &Whole { of: self, k, v }, threads, y);
        }
        let longest = self.spans.iter().map(|s| s.1).max().unwrap_or(0);
        let few = (2..QUERIES).contains(&self.spans.len()) || self.spans.len() == 1 && longest > PIECE;
        if few {
            return self.few(threads, longest, y);
        }
        let (blocks, kv_heads, y) = (self.blocks(), self.heads / self.group, Shared::new(y));
        // A key head of one query is less work than a task costs.
        let of_a_task = if self.spans.len() == 1 { kv_heads.div_ceil(2 * threads.count()) } else { 1 };
        let parts = kv_heads.div_ceil(of_a_task.max(1));
        threads.run(blocks.len() * parts, |task| {
            let kv = task % parts * of_a_task;
            self.block(blocks[task / parts].clone(), kv..kv_heads.min(kv + of_a_task), y);
        });
    }

    /// Neighbouring queries over the same sequence, with the heads that share key heads `kv`.
    fn block(&self, rows: Range<usize>, kv: Range<usize>, y: Shared<'_, f32>) {
        let (heads, words, mut made) = (kv.len() * self.group, self.words(), Vec::new());
        let q = self.queries(rows.clone(), &kv, &mut made);
        let n = rows.len() * heads * words;
        let max_keys = rows.clone().map(|r| self.spans[r].1).max().unwrap_or(0);
        // The first piece is merged with nothing.
        let (mut all, mut piece) = (vec![0.0; n], vec![0.0; if max_keys > PIECE { n } else { 0 }]);
        for from in (0..max_keys.max(1)).step_by(PIECE) {
            let of_piece = if from == 0 { &mut all } else { &mut piece };
            of_piece.chunks_exact_mut(words).for_each(|s| Partial(s).reset());
            self.attend(rows.clone(), kv.clone(), from..max_keys.min(from + PIECE), None, q, of_piece);
            if from > 0 {
                all.chunks_exact_mut(words).zip(piece.chunks_exact(words)).for_each(|(a, p)| Partial(a).merge(p));
            }
        }
        for (i, partial) in all.chunks_exact_mut(words).enumerate() {
            let (row, head) = (rows.start + i / heads, kv.start * self.group + i % heads);
            // SAFETY: each (query, head) belongs to one task.
            Partial(partial).finish(unsafe { y.slice((row * self.heads + head) * self.d, self.d) });
        }
    }

    /// Many queries over the same keys, a head at a time, in pieces where there are more threads than heads.
    fn whole(&self, kernel: WholeKernel, whole: &Whole, threads: &ThreadPool, y: &mut [f32]) {
        let (y, same) = (Shared::new(y), self.spans.len().div_ceil(self.rows_per_matrix));
        let pieces = threads.count().div_ceil(same * self.heads).min(self.rows_per_matrix.div_ceil(WHOLE));
        let height = self.rows_per_matrix.div_ceil(pieces.max(1));
        let pieces = self.rows_per_matrix.div_ceil(height);
        threads.run(same * self.heads * pieces, |task| {
            let (head, part) = (task / pieces % self.heads, task % pieces * height);
            let from = task / pieces / self.heads * self.rows_per_matrix;
            let end = self.spans.len().min(from + self.rows_per_matrix);
            kernel(whole, end.min(from + part)..end.min(from + part + height), head, y);
        });
    }

    /// Neighbouring queries over the same sequence.
    fn blocks(&self) -> Vec<Range<usize>> {
        let mut blocks: Vec<Range<usize>> = Vec::new();
        for row in 0..self.spans.len() {
            match blocks.last_mut() {
                Some(b) if b.len() < QUERIES && self.spans[b.start].0 == self.spans[row].0 => b.end = row + 1,
                _ => blocks.push(row..row + 1),
            }
        }
        blocks
    }

    /// Few queries over many keys: the keys are cut into pieces, and the partial results are merged. Where there are few pieces,
    /// a task has some of the heads alone: of 300 keys, one of two threads would have 256.
    fn few(&self, threads: &ThreadPool, longest: usize, y: &mut [f32]) {
        let (pieces, kv_heads) = (longest.div_ceil(PIECE).max(1), self.heads / self.group);
        let pieces_in_all = self.spans.len() * pieces;
        // Heads lie side by side, and memory is slow where it is read in strips.
        let wanted = (TASKS * threads.count()).div_ceil(pieces_in_all);
        let kv_of_a_task = kv_heads.div_ceil(wanted);
        let parts = kv_heads.div_ceil(kv_of_a_task);
        let (piece_words, head_words) = (self.heads * self.words(), self.group * self.words());
        let mut partial = vec![0.0; pieces_in_all * piece_words];
        partial.chunks_exact_mut(self.words()).for_each(|s| Partial(s).reset());
        let shared = Shared::new(&mut partial);
        let of_task = |task: usize| (task / parts / pieces, task / parts % pieces, task % parts * kv_of_a_task);
        threads.run_ahead(pieces_in_all * parts, |task, next| {
            let (row, piece, kv) = of_task(task);
            let kv = kv..kv_heads.min(kv + kv_of_a_task);
            let keys = piece * PIECE..self.spans[row].1.min((piece + 1) * PIECE);
            let after = next.map(of_task).map(|(row, piece, kv)| (self.spans[row].0 + piece * PIECE, kv));
            let at = task / parts * piece_words + kv.start * head_words;
            // SAFETY: each head of a piece of a query belongs to one task.
            let partial = unsafe { shared.slice(at, kv.len() * head_words) };
            let mut made = Vec::new();
            let q = self.queries(row..row + 1, &kv, &mut made);
            self.attend(row..row + 1, kv.clone(), keys, after, q, partial);
        });
        let of_rows = partial.chunks_exact_mut(pieces * piece_words);
        for (partial, y) in of_rows.zip(y.chunks_exact_mut(self.heads * self.d)) {
            let (first, rest) = partial.split_at_mut(piece_words);
            for (head, (first, y)) in first.chunks_exact_mut(self.words()).zip(y.chunks_exact_mut(self.d)).enumerate() {
                // From nothing, as where one thread sees all pieces.
                let mut all = Partial(first);
                for other in rest.chunks_exact(piece_words) {
                    all.merge(&other[head * self.words()..][..self.words()]);
                }
                all.finish(y);
            }
        }
    }
}
