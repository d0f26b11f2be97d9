//! Fused attention: grouped-query, causal over a KV cache, bidirectional, or cross.

use crate::error::Result;
use crate::ops::embed::ROW_WORDS;
use crate::ops::few_rows::{MAX_DECODE_ROWS, MAX_MATVEC_ROWS};
use crate::ops::kv_cache::{self, KvRows, row_span, row_width, rows_per_matrix};
use crate::ops::{RmsNorm, expect, require, simd};
use crate::params;
use crate::plan::{
    Caps, Extent, FollowUp, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Source, Step, Variant, Variants,
};
use crate::shader;
use crate::tensor::{DType, Spec};

/// Heads of an attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; query head h reads number `h / (heads / kv_heads)` (Ainslie et al. 2023).
    pub kv_heads: usize,
    /// Width of a head.
    pub d: usize,
}

impl AttentionShape {
    /// What scores are multiplied by.
    pub(super) fn scale(self) -> f32 {
        1.0 / (self.d as f32).sqrt()
    }

    /// A kernel of q and k from columns `at` on, and v where it reads them.
    pub(super) fn kernel(self, source: Source, grid: Grid, cached: bool, at: [usize; 3], inputs: &[&Spec]) -> Kernel {
        let [v_width, mask_width] = [2, 4].map(|i| inputs.get(i).map_or(0, |x| row_width(x)));
        let params = AttentionParams {
            counted_by: inputs[0].counted_by as u32,
            rows: inputs[0].shape[0] as u32,
            per_row: inputs[0].vectors_per_row() as u32,
            rows_per_matrix: rows_per_matrix(inputs[0]) as u32,
            heads: self.heads as u32,
            group: (self.heads / self.kv_heads) as u32,
            d: self.d as u32,
            n_keys: rows_per_matrix(inputs[1]) as u32,
            q_at: at[0] as u32,
            q_width: inputs[0].width() as u32,
            k_at: at[1] as u32,
            k_width: row_width(inputs[1]) as u32,
            v_at: at[2] as u32,
            v_width: v_width as u32,
            mask_width: mask_width as u32,
            scale: self.scale(),
            kv_heads: self.kv_heads as u32,
            scales_at: kv_cache::scales_at(inputs[1]),
        };
        let flags = [(cached, "CACHED"), (!self.is_even(at, inputs), "ODD")];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).chain(stored(inputs[1])).collect();
        Kernel { source, defines, overrides: vec![], params: params.params(), grid }
    }

    /// A kernel that holds a whole head of a query, as [`AttentionShape::kernel`] gives it.
    pub(super) fn holding_a_head(self, mut kernel: Kernel) -> Kernel {
        kernel.overrides.extend((self.d > HELD).then_some(("HEAD", self.d as f64)));
        kernel
    }

    /// Whether heads are whole pairs of elements, in q, k and v as they lie.
    fn is_even(self, at: [usize; 3], inputs: &[&Spec]) -> bool {
        let stored = |(x, at): (&&Spec, usize)| x.dtype != DType::F16 || x.width().is_multiple_of(2) && at % 2 == 0;
        self.d.is_multiple_of(2) && inputs.iter().zip(at).all(stored)
    }

    /// Checks queries from column `q_at` on, and keys or values by name, each from a column on.
    pub(super) fn check(self, q: &Spec, q_at: usize, keys: &[(&str, &Spec, usize)]) -> Result<()> {
        let AttentionShape { heads, kv_heads, d } = self;
        require("heads", q, kv_heads > 0 && heads.is_multiple_of(kv_heads), "query heads a multiple of kv heads")?;
        require("heads", q, (1..=MAX_HEAD).contains(&d), "a head width of 1 to 2048")?;
        require("q", q, q.dtype == DType::F32 && q.width() >= q_at + heads * d, "F32 with room for all heads")?;
        for &(what, x, at) in keys {
            kv_cache::check(what, x, at, [kv_heads, d])?;
        }
        Ok(())
    }
}

/// The define that says how keys are stored, but for f32.
fn stored(k: &Spec) -> Option<&'static str> {
    [(DType::F16, "F16"), (DType::Int8, "INT8")]
        .into_iter()
        .find_map(|(dtype, name)| (k.dtype == dtype).then_some(name))
}

/// Some columns of a slot, from `at` on: q, k and v may lie side by side in one matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The slot.
    pub slot: Slot,
    /// First column.
    pub at: usize,
}

/// `softmax(q · kᵀ / sqrt(d)) · v` per head. Source: Vaswani et al. 2017; one pass with a running maximum
/// (Milakov & Gimelshein 2018).
///
/// q `[n, ..]` F32, k and v `[keys, ..]` F32 or F16 (columns of each), or caches of Int8 ([`cache_spec`](crate::ops::cache_spec))
/// → `[n, heads · d]` F32. Cached: with
/// rows `[n, 4]`, row r attends to keys `seq_base .. seq_base + seq_len`. Else every query attends to all keys; with q
/// `[m, n, ..]`, k and v `[m, keys, ..]` to those of its own matrix. With a mask `[n, m]` F32, `mask[r, j]` is added to
/// the score of row r's key number j, in f32 as PyTorch adds it.
/// d is 1 to 2048, odd ones too. Keys that k does not have are not attended to, whatever a row says.
/// Error: ≤ 1e-5 absolute on values of size 1.
#[derive(Debug)]
pub(super) struct Attention {
    shape: AttentionShape,
    at: [usize; 3],
    cached: bool,
    masked: bool,
}

/// What the kernels for few rows do in front of the attention of a new row (`rope_attention`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Front {
    /// Pairs of a head that turn.
    pub pairs: usize,
    /// Whether a pair is two neighbours.
    pub interleaved: bool,
    /// The norm of each head of queries and keys.
    pub norm: Option<RmsNorm>,
}

impl Front {
    /// The defines that bind what it reads.
    fn defines(self) -> impl Iterator<Item = &'static str> {
        ["ROPE"].into_iter().chain(self.norm.map(|_| "NORM"))
    }
}

params!(AttentionParams {
    counted_by: u32,
    rows: u32,
    per_row: u32,
    rows_per_matrix: u32,
    heads: u32,
    group: u32,
    d: u32,
    n_keys: u32,
    q_at: u32,
    q_width: u32,
    k_at: u32,
    k_width: u32,
    v_at: u32,
    v_width: u32,
    mask_width: u32,
    scale: f32,
    kv_heads: u32,
    scales_at: u32,
});

params!(AttentionDecodeParams {
    heads: u32,
    d: u32,
    scale: f32,
    kv_chunk: u32,
    max_chunks: u32,
    n_keys: u32,
    kv_heads: u32,
    scales_at: u32,
    pairs: u32,
    head_eps: f32,
    head_floor: f32,
    head_in_bound: f32,
    head_out_bound: f32,
});

/// Threads of the decode kernel, which computes all query heads of a kv head.
const DECODE_THREADS: usize = 64;
/// Maximum number of chunks of a context; longer contexts have longer chunks.
const MAX_CHUNKS: usize = 64;
/// Head width of the decode kernel for software subgroups.
const KEYS_D: usize = 64;
/// Queries of a workgroup of the kernel for software subgroups: 4 blocks of 8.
const LANE_QUERIES: usize = 32;
/// Queries of a workgroup of the kernel with workgroup memory (its `QUERIES`).
const TILE_QUERIES: usize = 16;
/// Columns of a head that a workgroup of either writes (their `SLICE`).
const SLICE: usize = 64;

/// How the kernel for few rows over the cache divides a context.
#[derive(Debug)]
struct DecodeForm {
    name: &'static str,
    /// Whether neighbouring threads take different keys, not neighbouring parts of one.
    keys_across_threads: bool,
    /// Maximum number of keys of a context that is not cut into chunks.
    kv_chunk: usize,
}

/// The default on GPUs, the default of drivers that compute on the CPU, and others.
const DECODE_FORMS: [DecodeForm; 5] = [
    DecodeForm { name: "parts-128", keys_across_threads: false, kv_chunk: 128 },
    DecodeForm { name: "keys-512", keys_across_threads: true, kv_chunk: 512 },
    DecodeForm { name: "keys-128", keys_across_threads: true, kv_chunk: 128 },
    DecodeForm { name: "parts-512", keys_across_threads: false, kv_chunk: 512 },
    DecodeForm { name: "keys-48", keys_across_threads: true, kv_chunk: 48 },
];

/// Hides a key in a mask: finite, since shaders need not support infinity.
pub const MASKED: f32 = -1e30;
/// Widest head: one of a query fits into the workgroup memory that every adapter has.
pub const MAX_HEAD: usize = 2048;
/// Minimum number of elements of a query that the kernels with a whole head hold (their `HEAD`).
const HELD: usize = 256;
/// Outputs of a workgroup of the kernel for one head of one row (its `SLICE`).
const HEAD_SLICE: usize = 256;
/// Widest head of the kernels for few rows over the cache: 8 elements for each of their threads.
const FEW_D: usize = 8 * DECODE_THREADS;

impl PlanBuilder {
    /// Attention of every query over all keys: bidirectional, or cross; of several matrices, each query over its own.
    #[track_caller]
    pub fn attention(&self, q: Columns, k: Columns, v: Columns, shape: AttentionShape) -> Slot {
        let op = Attention { shape, at: [q.at, k.at, v.at], cached: false, masked: false };
        self.push(op, &[q.slot, k.slot, v.slot])
    }

    /// Causal attention of each row over its sequence in the KV cache.
    #[track_caller]
    pub fn cached_attention(&self, q: Slot, k: Slot, v: Slot, rows: Slot, shape: AttentionShape) -> Slot {
        self.push(Attention::cached(shape), &[q, k, v, rows])
    }

    /// Attention of each row over its sequence among the step's own rows: with `seq_base` the sequence's first row,
    /// bidirectional where `seq_len` is the sequence's length, causal where it is `pos + 1`.
    #[track_caller]
    pub fn row_attention(&self, q: Columns, k: Columns, v: Columns, rows: Slot, shape: AttentionShape) -> Slot {
        let op = Attention { shape, at: [q.at, k.at, v.at], cached: true, masked: false };
        self.push(op, &[q.slot, k.slot, v.slot, rows])
    }

    /// [`PlanBuilder::row_attention`] over keys of any slot, with a mask that is added to the scores:
    /// [`MASKED`] hides a key.
    #[track_caller]
    pub fn masked_attention(&self, qkv: [Columns; 3], rows: Slot, mask: Slot, shape: AttentionShape) -> Slot {
        let op = Attention { shape, at: qkv.map(|x| x.at), cached: true, masked: true };
        let [q, k, v] = qkv.map(|x| x.slot);
        self.push(op, &[q, k, v, rows, mask])
    }
}

impl Attention {
    /// Over the cache.
    pub(super) fn cached(shape: AttentionShape) -> Self {
        Attention { shape, at: [0; 3], cached: true, masked: false }
    }

    /// Keys of query row `r`: first and count.
    fn span(&self, io: &Io, r: usize) -> (usize, usize) {
        if self.cached {
            row_span(&io.u32s(3)[r * ROW_WORDS..], rows_per_matrix(io.spec(1)))
        } else {
            let n = rows_per_matrix(io.spec(1));
            (r / rows_per_matrix(io.spec(0)) * n, n)
        }
    }

    /// The definition of one row of the result, `[heads · d]`.
    fn row(&self, io: &Io, r: usize) -> Vec<f32> {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let (q, q_width) = (io.f32s(0), io.spec(0).width());
        let [keys, values] = [1, 2].map(|i| KvRows::input(io, i, d));
        let mask = if self.masked { &io.f32s(4)[r * io.spec(4).width()..][..io.spec(4).width()] } else { &[] };
        let ((first, n), mut y) = (self.span(io, r), Vec::with_capacity(heads * d));
        for h in 0..heads {
            let [k_at, v_at] = [1, 2].map(|i| self.at[i] + h / (heads / kv_heads) * d);
            let q = &q[r * q_width + self.at[0] + h * d..][..d];
            let score = |key: usize| -> f64 {
                let dot: f64 = (0..d).map(|i| f64::from(q[i]) * f64::from(keys.get(first + key, k_at + i))).sum();
                let score = dot * f64::from(self.shape.scale());
                mask.get(key).map_or(score, |m| f64::from(score as f32 + m))
            };
            let scores: Vec<f64> = (0..n).map(score).collect();
            let max = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let total: f64 = weights.iter().sum();
            for i in 0..d {
                let v = |key: usize| f64::from(values.get(first + key, v_at + i));
                let sum: f64 = weights.iter().enumerate().map(|(key, w)| w * v(key)).sum();
                y.push((sum / total) as f32);
            }
        }
        y
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let AttentionShape { heads, d, .. } = self.shape;
        let (q, k, v) = (inputs[0], inputs[1], inputs[2]);
        self.shape.check(q, self.at[0], &[("k", k, self.at[1]), ("v", v, self.at[2])])?;
        let like = v.rows() == k.rows() && rows_per_matrix(v) == rows_per_matrix(k) && v.dtype == k.dtype;
        require("v", v, like, "as many rows as k, of its dtype")?;
        // A cache of integers is one matrix in three dimensions.
        let matrices = |x: &Spec| match x.shape.len() {
            3 if x.dtype == DType::Int8 => (2, 1),
            3 => (3, x.shape[0]),
            n => (n, 1),
        };
        require("q", q, (2..=3).contains(&q.shape.len()), "[n, d], or [m, n, d] for several matrices")?;
        require("k", k, matrices(k) == matrices(q), "one matrix, or as many as q")?;
        if self.cached {
            require("q", q, q.shape.len() == 2, "one matrix")?;
            expect("rows", inputs[3], &[q.shape[0], ROW_WORDS], &[DType::U32])?;
        }
        if self.masked {
            expect("mask", inputs[4], &[q.shape[0], inputs[4].width()], &[DType::F32])?;
        }
        Ok(vec![q.with_last(heads * d, DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        for r in 0..step.rows_of(io.spec(0)) {
            let y = self.row(io, r);
            io.out_f32s(0)[r * y.len()..][..y.len()].copy_from_slice(&y);
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let n = step.rows_of(io.spec(0));
        if self.masked {
            let (inputs, threads, width) = (io.inputs.clone(), io.threads, self.shape.heads * self.shape.d);
            let y = simd::Shared::new(io.out_f32s(0));
            threads.run(n, |r| {
                let row = self.row(&Io { inputs: inputs.clone(), outputs: vec![], threads }, r);
                // SAFETY: each row belongs to one task.
                unsafe { y.slice(r * width, width) }.copy_from_slice(&row);
            });
            return;
        }
        self.run(n, io, None);
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let columns = |i: usize, heads: usize| {
            let (spec, bytes) = inputs[i];
            let bytes = if self.cached && i > 0 { step.contexts(spec, bytes) } else { step.used(spec, bytes) };
            bytes * (heads * d) as u64 / row_width(spec) as u64
        };
        columns(0, heads) + columns(1, kv_heads) + columns(2, kv_heads)
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Variants {
        if self.is_decode(inputs) {
            self.decode(caps, inputs, None)
        } else {
            Variants::usual(self.queries(caps, inputs))
        }
    }
}

impl Attention {
    /// The kernel for many rows, or for rows without a cache.
    fn queries(&self, caps: &Caps, inputs: &[&Spec]) -> Variant {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let q = inputs[0];
        let slices = Extent::Fixed(kv_heads * d.div_ceil(SLICE));
        let queries = |per| Extent::rows(q, heads / kv_heads, per);
        let one_row = q.rows() <= MAX_MATVEC_ROWS || self.masked;
        let (name, source, grid) = if one_row {
            let columns = Extent::Fixed(d.div_ceil(HEAD_SLICE));
            ("rows", shader!("attention/attention_rows"), Grid([Extent::Fixed(heads), Extent::rows(q, 1, 1), columns]))
        } else if caps.software_subgroups && d.is_multiple_of(4) && self.shape.is_even(self.at, inputs) {
            ("lanes", shader!("attention/attention_lanes"), Grid::xy(slices, queries(LANE_QUERIES)))
        } else {
            ("tiles", shader!("attention/attention_tiles"), Grid::xy(slices, queries(TILE_QUERIES)))
        };
        let mut kernel = self.shape.kernel(source, grid, self.cached, self.at, inputs);
        kernel.defines.extend(self.masked.then_some("MASK"));
        Variant::new(name, caps, if one_row { self.shape.holding_a_head(kernel) } else { kernel })
    }

    /// `n` rows with SIMD, whose queries may be made by a function.
    pub(super) fn run(&self, n: usize, io: &mut Io, make_query: Option<&simd::MakeQuery>) {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let spans: Vec<(usize, usize)> = (0..n).map(|r| self.span(io, r)).collect();
        let attention = simd::Attention {
            make_query,
            q: simd::Matrix { data: io.f32s(0), width: io.spec(0).width(), at: self.at[0] },
            k: simd::Matrix { data: io.floats(1), width: row_width(io.spec(1)), at: self.at[1] },
            v: simd::Matrix { data: io.floats(2), width: row_width(io.spec(2)), at: self.at[2] },
            scales: [1, 2].map(|i| kv_cache::scales(io, i)),
            heads,
            group: heads / kv_heads,
            d,
            scale: self.shape.scale(),
            spans: &spans,
            rows_per_matrix: if self.cached { 1 } else { rows_per_matrix(io.spec(0)) },
        };
        attention.run(io.threads, io.out_f32s(0));
    }

    /// Whether the kernels for few rows over the cache fit.
    pub(super) fn is_decode(&self, inputs: &[&Spec]) -> bool {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let whole = (16..=FEW_D).contains(&d) && d.is_power_of_two() && heads / kv_heads <= 4;
        let widths = [heads * d, kv_heads * d, kv_heads * d];
        let alone = self.at == [0; 3] && inputs.iter().zip(widths).all(|(x, width)| row_width(x) == width);
        self.cached && !self.masked && whole && alone && inputs[0].shape[0] <= MAX_DECODE_ROWS
    }

    /// The variants for few rows over the cache, of q, k and v.
    pub(super) fn decode(&self, caps: &Caps, inputs: &[&Spec], front: Option<Front>) -> Variants {
        let variant = |form: &DecodeForm| self.decode_variant(caps, form, inputs, front);
        let usual = Variants::usual(variant(&DECODE_FORMS[usize::from(caps.cpu_driver)]));
        DECODE_FORMS.iter().fold(usual, |all, form| all.or(variant(form)))
    }

    /// A kernel for few rows over the cache.
    fn decode_kernel(
        &self,
        form: &DecodeForm,
        (inputs, front): (&[&Spec], Option<Front>),
        source: Source,
        overrides: &[(&'static str, usize)],
        grid: Grid,
    ) -> Kernel {
        let norm = front.and_then(|front| front.norm).unwrap_or(RmsNorm::new(0.0));
        let params = AttentionDecodeParams {
            heads: self.shape.heads as u32,
            d: self.shape.d as u32,
            scale: self.shape.scale(),
            kv_chunk: form.kv_chunk as u32,
            max_chunks: MAX_CHUNKS as u32,
            n_keys: inputs[1].shape[0] as u32,
            kv_heads: self.shape.kv_heads as u32,
            scales_at: kv_cache::scales_at(inputs[1]),
            pairs: front.map_or(0, |front| front.pairs as u32),
            head_eps: norm.eps,
            head_floor: norm.floor(),
            head_in_bound: norm.in_bound(),
            head_out_bound: norm.out_bound(),
        };
        Kernel {
            source,
            defines: stored(inputs[1]).into_iter().chain(front.into_iter().flat_map(Front::defines)).collect(),
            overrides: overrides.iter().map(|&(name, value)| (name, value as f64)).collect(),
            params: params.params(),
            grid,
        }
    }

    /// The kernel of chunks of contexts, a row's kv head each, and the one that adds them up.
    fn decode_variant(&self, caps: &Caps, form: &DecodeForm, inputs: &[&Spec], front: Option<Front>) -> Variant {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let read = (inputs, front);
        let (lanes, keys, group) = (d / 8, DECODE_THREADS / (d / 8), heads / kv_heads);
        let chunks = Extent::Context { per: form.kv_chunk, max: MAX_CHUNKS };
        let rows = Extent::rows(&inputs[0].leading_only(), 1, 1);
        let grid = Grid([Extent::Fixed(kv_heads), rows, chunks]);
        let mut kernel = if caps.software_subgroups && d == KEYS_D {
            self.decode_kernel(form, read, shader!("attention/attention_decode_lanes"), &[("GROUP", group)], grid)
        } else {
            let overrides = [("LANES", lanes), ("KEYS", keys), ("GROUP", group), ("TILE", 8 * keys)];
            let mut kernel = self.decode_kernel(form, read, shader!("attention/attention_decode"), &overrides, grid);
            kernel.defines.extend(form.keys_across_threads.then_some("KEYS_ACROSS_THREADS"));
            kernel
        };
        kernel.defines.extend(front.filter(|front| front.interleaved).map(|_| "INTERLEAVED"));
        let grid = Grid([Extent::Fixed(heads), rows, Extent::IfContextOver { keys: form.kv_chunk }]);
        let threads = [("THREADS", (d / 4).max(32))];
        let merge = self.decode_kernel(form, read, shader!("attention/attention_decode_merge"), &threads, grid);
        let words = inputs[0].shape[0] * heads * MAX_CHUNKS * (d + 4);
        Variant::new(form.name, caps, kernel).followed_by(FollowUp { kernel: merge, words })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shaders_have_the_same_blocks() {
        let (one, lanes, tiles) = (
            shader!("attention/attention_rows"),
            shader!("attention/attention_lanes"),
            shader!("attention/attention_tiles"),
        );
        assert_eq!(["HEAD", "SLICE"].map(|n| one.number(n)), [Some(HELD), Some(HEAD_SLICE)]);
        assert_eq!(["QUERIES", "SLICE"].map(|n| lanes.number(n)), [Some(LANE_QUERIES / 4), Some(SLICE)]);
        assert_eq!(["QUERIES", "SLICE"].map(|n| tiles.number(n)), [Some(TILE_QUERIES), Some(SLICE)]);
        assert_eq!(shader!("attention/attention_decode").number("THREADS"), Some(DECODE_THREADS));
    }
}
