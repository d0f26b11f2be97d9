//! Rotary position embedding of queries and keys, and the write of keys and values into the cache.

use std::sync::Arc;

use crate::error::Result;
use crate::ops::embed::{ROW_WORDS, Row};
use crate::ops::kv_cache::{self, KvWriter};
use crate::ops::{AttentionShape, RmsNorm, expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// Which elements of a head rotate together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairing {
    /// Element j with j + dims/2, of those that rotate.
    HalfSplit,
    /// Element 2j with 2j + 1.
    Interleaved,
}

/// A rotary position embedding whose frequencies are data: plain, of a part of a head, or scaled in any way.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// Radians per position of each pair; the elements behind the pairs pass through.
    pub frequencies: Arc<[f32]>,
    /// What cosines and sines are multiplied by: 1, or the attention factor of YaRN.
    pub factor: f32,
    /// Which elements are pairs.
    pub pairing: Pairing,
}

impl Rotation {
    /// Of `dims` elements of a head, half-split.
    pub fn plain(theta: f64, dims: usize) -> Self {
        let frequency = |j: usize| (1.0 / theta.powf((2 * j) as f64 / dims as f64)) as f32;
        let frequencies = (0..dims / 2).map(frequency).collect();
        Rotation { frequencies, factor: 1.0, pairing: Pairing::HalfSplit }
    }
}

/// A norm of each query's and key's head, in front of the rotation.
#[derive(Debug, Clone, Copy)]
pub struct QkNorm {
    /// Its form.
    pub norm: RmsNorm,
    /// The weights of queries and of keys, `[2, d]`.
    pub weights: Slot,
}

/// Rotates q and k by each row's position and stores k and v at `seq_base + pos`.
///
/// qkv `[n, (heads + 2·kv_heads)·d]` F32 (q, k, v side by side), rows `[n, 4]`, table `[positions, pairs, 2]` F32 (cosine,
/// sine), and with a norm of heads its weights for q and k, `[2, d]` → q `[n, heads·d]` F32, and the caches k, v
/// `[capacity, kv_heads·d]` F32 or F16, or `[capacity, kv_heads, d]` Int8 ([`cache_spec`](crate::ops::cache_spec)). A pair becomes `(a·cos − b·sin, b·cos + a·sin)`; d is even. Sources: Su et al. 2021;
/// the norm is that of [`RmsNorm`], over one head.
#[derive(Debug)]
pub(super) struct RopeKvWrite {
    pub(super) shape: AttentionShape,
    pub(super) pairing: Pairing,
    pub(super) norm: Option<RmsNorm>,
}

params!(RopeParams { heads: u32, kv_heads: u32, d: u32 });

params!(RopeHeadsParams {
    heads: u32,
    kv_heads: u32,
    d: u32,
    pairs: u32,
    eps: f32,
    floor: f32,
    in_bound: f32,
    out_bound: f32,
    scales_at: u32,
});

impl PlanBuilder {
    /// Rotated queries `[n, heads·d]`; keys and values go into the caches. The rotation comes with the number of positions
    /// that a row may have: those of one sequence, however many share the cache. Each head of queries and keys has a norm in
    /// front if one is given.
    #[track_caller]
    pub fn rope_kv_write(
        &self,
        qkv: Slot,
        rows: Slot,
        (rotation, positions): (&Rotation, usize),
        norm: Option<QkNorm>,
        shape: AttentionShape,
        kv: [Slot; 2],
    ) -> Slot {
        let table = self.rotation_table(rotation, positions);
        let q = self.temp(Spec::counted(
            &[self.spec(rows).shape[0], shape.heads * shape.d],
            DType::F32,
            self.spec(qkv).counted_by,
        ));
        let op = RopeKvWrite { shape, pairing: rotation.pairing, norm: norm.map(|n| n.norm) };
        let inputs: Vec<Slot> = [qkv, rows, table].into_iter().chain(norm.map(|n| n.weights)).collect();
        self.push_into(op, &inputs, &[q, kv[0], kv[1]]);
        q
    }

    /// Cosines and sines of `pos · frequency`, rounded to f32 where the original rounds.
    pub(super) fn rotation_table(&self, rotation: &Rotation, positions: usize) -> Slot {
        let Rotation { frequencies, factor, .. } = rotation.clone();
        let spec = Spec::fixed(&[positions, frequencies.len(), 2], DType::F32);
        // All that the table depends on: plans share it by this name.
        let bits: Vec<u32> = frequencies.iter().map(|f| f.to_bits()).collect();
        self.constant(&format!("rotation {bits:x?} {:x} {positions}", factor.to_bits()), spec, move || {
            let angles = (0..positions).flat_map(|p| frequencies.iter().map(move |freq| f64::from(p as f32 * freq)));
            let pair = |angle: f64| [angle.cos() as f32 * factor, angle.sin() as f32 * factor];
            angles.flat_map(pair).map(f32::to_bits).collect()
        })
    }
}

/// Minimum number of elements for which threads share the heads.
const SHARED_FROM: usize = 4096;

/// Rotates a head by its position's row of the table.
fn rotate(head: &mut [f32], table: &[f32], pairing: Pairing) {
    let (head, _) = head.split_at_mut(table.len());
    let turn = |(a, b): (&mut f32, &mut f32), angle: &[f32]| {
        let (cos, sin) = (angle[0], angle[1]);
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    };
    let angles = table.chunks_exact(2);
    match pairing {
        Pairing::HalfSplit => {
            let (first, second) = head.split_at_mut(table.len() / 2);
            first.iter_mut().zip(second).zip(angles).for_each(|(pair, angle)| turn(pair, angle));
        }
        Pairing::Interleaved => {
            let pairs = head.as_chunks_mut::<2>().0.iter_mut();
            pairs.zip(angles).for_each(|([a, b], angle)| turn((a, b), angle));
        }
    }
}

/// The heads of a step's rows, by SIMD.
pub(super) struct Heads<'a> {
    op: &'a RopeKvWrite,
    /// Queries, keys and values side by side.
    qkv: &'a [f32],
    rows: &'a [u32],
    /// Cosines and sines of each position.
    table: &'a [f32],
    /// Their number for a position.
    angles: usize,
    weights: Option<(RmsNorm, [&'a [f32]; 2])>,
}

impl<'a> Heads<'a> {
    /// Of the inputs of a [`RopeKvWrite`].
    pub fn new(op: &'a RopeKvWrite, io: &Io<'a>) -> Self {
        Heads {
            op,
            qkv: io.f32s(0),
            rows: io.u32s(1),
            table: io.f32s(2),
            angles: 2 * io.spec(2).shape[1],
            weights: op.weights(io),
        }
    }

    fn row(&self, r: usize) -> Row {
        bytemuck::cast_slice(self.rows)[r]
    }

    /// Head `h` of row `r` as it lies: first those of queries, then of keys, then of values.
    fn stored(&self, r: usize, h: usize) -> &'a [f32] {
        let AttentionShape { heads, kv_heads, d } = self.op.shape;
        &self.qkv[(r * (heads + 2 * kv_heads) + h) * d..][..d]
    }

    /// A head of queries, or behind them of keys, under its norm and turned.
    pub fn turned(&self, r: usize, h: usize, to: &mut [f32]) {
        let x = self.stored(r, h);
        match self.weights {
            Some((norm, weights)) => norm.fast(x, weights[usize::from(h >= self.op.shape.heads)], to),
            None => to.copy_from_slice(x),
        }
        let table = &self.table[self.row(r).pos as usize * self.angles..][..self.angles];
        rotate(to, table, self.op.pairing);
    }

    /// Writes the keys and values of the first `n` rows into the caches.
    pub fn write_all(&self, n: usize, caches: [&mut (&Spec, &mut [u32]); 2]) {
        let (caches, mut turned) = (caches.map(KvWriter::new), vec![0.0; self.op.shape.d]);
        for (r, h) in (0..n).flat_map(|r| (0..2 * self.op.shape.kv_heads).map(move |h| (r, h))) {
            // SAFETY: there are no other tasks.
            unsafe { self.write(r, h, caches, &mut turned) };
        }
    }

    /// Writes head `h` of keys, or behind them of values, of a row into the caches; `turned` is memory for a head.
    ///
    /// # Safety
    /// No other task writes this head of the row's place in a cache.
    unsafe fn write(&self, r: usize, h: usize, [k, v]: [KvWriter<'_>; 2], turned: &mut [f32]) {
        let AttentionShape { heads, kv_heads, .. } = self.op.shape;
        let Row { pos, seq_base, .. } = self.row(r);
        let place = (pos + seq_base) as usize * kv_heads + h % kv_heads;
        // SAFETY: by the contract.
        unsafe {
            if h < kv_heads {
                self.turned(r, heads + h, turned);
                k.write(place, turned);
            } else {
                v.write(place, self.stored(r, heads + h));
            }
        }
    }
}

impl RopeKvWrite {
    /// The norm, and its weights for queries and keys.
    fn weights<'a>(&self, io: &Io<'a>) -> Option<(RmsNorm, [&'a [f32]; 2])> {
        self.norm.map(|norm| (norm, io.f32s(3).split_at(self.shape.d).into()))
    }

    /// The kernel of every form: one workgroup per head.
    fn heads_kernel(&self, inputs: &[&Spec], outputs: &[&Spec], pairs: usize) -> Kernel {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let norm = self.norm.unwrap_or(RmsNorm::new(0.0));
        let params = RopeHeadsParams {
            heads: heads as u32,
            kv_heads: kv_heads as u32,
            d: d as u32,
            pairs: pairs as u32,
            eps: norm.eps,
            floor: norm.floor(),
            in_bound: norm.in_bound(),
            out_bound: norm.out_bound(),
            scales_at: kv_cache::scales_at(outputs[1]),
        };
        let interleaved = self.pairing == Pairing::Interleaved;
        let flags = [
            (outputs[1].dtype == DType::F16, "F16"),
            (outputs[1].dtype == DType::Int8, "INT8"),
            (interleaved, "INTERLEAVED"),
            (self.norm.is_some(), "NORM"),
        ];
        Kernel {
            source: shader!("attention/rope_heads"),
            defines: flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect(),
            overrides: vec![],
            params: params.params(),
            grid: Grid::xy(Extent::Fixed(heads + 2 * kv_heads), Extent::rows(&inputs[0].leading_only(), 1, 1)),
        }
    }
}

impl Op for RopeKvWrite {
    fn name(&self) -> &'static str {
        "rope_kv_write"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let (qkv, rows, table) = (inputs[0], inputs[1], inputs[2]);
        let n = rows.shape[0];
        require("heads", qkv, d > 0 && d.is_multiple_of(2), "an even head width, whose elements rotate in pairs")?;
        expect("qkv", qkv, &[n, (heads + 2 * kv_heads) * d], &[DType::F32])?;
        expect("rows", rows, &[n, ROW_WORDS], &[DType::U32])?;
        let pairs = table.shape.get(1).copied().unwrap_or(0);
        expect("table", table, &[table.shape[0], pairs, 2], &[DType::F32])?;
        require("table", table, 2 * pairs <= d, "no more pairs than a head has")?;
        if self.norm.is_some() {
            expect("weights of q and k", inputs[3], &[2, d], &[DType::F32])?;
        }
        Ok(vec![Spec::counted(&[n, heads * d], DType::F32, qkv.counted_by)])
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        let (q, heads) = (self.infer(inputs)?, [self.shape.kv_heads, self.shape.d]);
        expect("q", outputs[0], &q[0].shape, &[DType::F32])?;
        let capacity = outputs[1].shape[0];
        for (what, cache) in [("k cache", outputs[1]), ("v cache", outputs[2])] {
            kv_cache::check(what, cache, 0, heads)?;
            expect(what, cache, &kv_cache::cache_spec(capacity, heads, cache.dtype).shape, &[outputs[1].dtype])?;
        }
        Ok(())
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let (qkv, rows, table) = (io.f32s(0), io.u32s(1), io.f32s(2));
        let width = (heads + 2 * kv_heads) * d;
        let (turn, weights) = (2 * io.spec(2).shape[1], self.weights(io));
        let turned = |x: &[f32], which: usize, table: &[f32], to: &mut [f32]| {
            match weights {
                Some((norm, weights)) => {
                    let rms = norm.rms(x);
                    let all = to.iter_mut().zip(x).zip(weights[which]);
                    all.for_each(|((to, &x), &w)| *to = norm.apply(x, rms, w));
                }
                None => to.copy_from_slice(x),
            }
            rotate(to, table, self.pairing);
        };
        let mut head = vec![0.0; d];
        for r in 0..step.rows_in_use(io.spec(0)) {
            let Row { pos, seq_base, .. } = bytemuck::cast_slice(rows)[r];
            let (table, cache) = (&table[pos as usize * turn..][..turn], (pos + seq_base) as usize);
            let x = |h: usize| &qkv[r * width + h * d..][..d];
            for h in 0..heads {
                turned(x(h), 0, table, &mut io.out_f32s(0)[(r * heads + h) * d..][..d]);
            }
            for h in 0..kv_heads {
                turned(x(heads + h), 1, table, &mut head);
                for (output, values) in [(1, &head[..]), (2, x(heads + kv_heads + h))] {
                    // SAFETY: there are no other tasks.
                    unsafe { KvWriter::new(&mut io.outputs[output]).write(cache * kv_heads + h, values) };
                }
            }
        }
    }

    /// The definition, heads among threads: for any rows, no two heads write to the same elements.
    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let (n, all, of, threads) =
            (step.rows_in_use(io.spec(0)), heads + 2 * kv_heads, Heads::new(self, io), io.threads);
        let [q, k, v] = &mut io.outputs[..] else { unreachable!("the outputs are q, keys and values") };
        let q = simd::Shared::new(bytemuck::cast_slice_mut::<u32, f32>(q.1));
        let kv = [k, v].map(KvWriter::new);
        let grain = if n * all * d < SHARED_FROM { all } else { all.div_ceil(2 * threads.count()) };
        threads.chunks(all, grain, |some| {
            let mut turned = vec![0.0; d];
            for (r, h) in (0..n).flat_map(|r| some.clone().map(move |h| (r, h))) {
                // SAFETY: a head's columns of each output belong to one task, and its slices live one at a time.
                unsafe {
                    match h.checked_sub(heads) {
                        None => of.turned(r, h, q.slice((r * heads + h) * d, d)),
                        Some(h) => of.write(r, h, kv, &mut turned),
                    }
                }
            }
        });
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let [qkv, rows, (table, bytes)] = [0, 1, 2].map(|i| (inputs[i].0, inputs[i].1));
        let weights: u64 = inputs[3..].iter().map(|i| i.1).sum();
        let angles = bytes * step.rows_in_use(rows.0).min(table.shape[0]) as u64 / table.shape[0] as u64;
        step.used(qkv.0, qkv.1) + step.used(rows.0, rows.1) + angles + weights
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let pairs = inputs[2].shape[1];
        let whole = outputs[1].dtype != DType::Int8 && 2 * pairs == d; // The scale of integers is of a whole head.
        if self.norm.is_some() || self.pairing == Pairing::Interleaved || !whole {
            return self.heads_kernel(inputs, outputs, pairs);
        }
        let params = RopeParams { heads: heads as u32, kv_heads: kv_heads as u32, d: d as u32 };
        let flags = [(outputs[1].dtype == DType::F16, "F16"), (!d.is_multiple_of(4), "PAIRS")];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        let grid = Grid::x(Extent::rows(&inputs[0].leading_only(), 1, 1));
        Kernel { source: shader!("attention/rope_kv_write"), defines, overrides: vec![], params: params.params(), grid }
    }
}
