//! Rotary position embedding of queries and keys, and the write of keys and values into the cache.

use half::f16;
use half::slice::HalfFloatSliceExt;

use crate::error::Result;
use crate::ops::embed::ROW_WORDS;
use crate::ops::{AttentionShape, expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// The angles of a rotary position embedding: `pos · theta^(−2j/d)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// Positions that a row may have: those of one sequence, however many share the cache.
    pub positions: usize,
}

/// Rotates q and k by each row's position and stores k and v at `seq_base + pos`.
///
/// qkv `[n, (heads + 2·kv_heads)·d]` F32 (q, k, v side by side), rows `[n, 4]`, table `[positions, d/2, 2]` F32 (cosine,
/// sine) → q `[n, heads·d]` F32, and the caches k, v `[capacity, kv_heads·d]` F32 or F16. Element j < d/2 of a head
/// pairs with j + d/2: `(a·cos − b·sin, b·cos + a·sin)`; d is even. Source: Su et al. 2021, in the half-split form.
#[derive(Debug)]
struct RopeKvWrite {
    shape: AttentionShape,
}

params!(RopeParams { heads: u32, kv_heads: u32, d: u32 });

impl PlanBuilder {
    /// Rotated queries `[n, heads·d]`; keys and values go into the caches.
    #[track_caller]
    pub fn rope_kv_write(&self, qkv: Slot, rows: Slot, rope: Rope, shape: AttentionShape, kv: [Slot; 2]) -> Slot {
        let table = self.rope_table(rope, shape.d);
        let q = self.temp(Spec::counted(
            &[self.spec(rows).shape[0], shape.heads * shape.d],
            DType::F32,
            self.spec(qkv).counted_by,
        ));
        self.push_into(RopeKvWrite { shape }, &[qkv, rows, table], &[q, kv[0], kv[1]]);
        q
    }

    /// Cosines and sines of `pos · theta^(−2j/d)`, rounded to f32 where the original rounds.
    fn rope_table(&self, Rope { theta, positions }: Rope, d: usize) -> Slot {
        let spec = Spec::fixed(&[positions, d / 2, 2], DType::F32);
        self.constant(&format!("rope {theta} {d} {positions}"), spec, move || {
            let freq = |j: usize| (1.0 / theta.powf((2 * j) as f64 / d as f64)) as f32;
            let freqs: Vec<f32> = (0..d / 2).map(freq).collect();
            let angles = (0..positions).flat_map(|p| freqs.iter().map(move |freq| f64::from(p as f32 * freq)));
            let pair = |angle: f64| [angle.cos() as f32, angle.sin() as f32];
            angles.flat_map(pair).map(f32::to_bits).collect()
        })
    }
}

/// Minimum number of elements for which threads share the heads.
const SHARED_FROM: usize = 4096;

/// A cache row in its stored dtype.
fn store(io: &mut Io, output: usize, at: usize, values: &[f32]) {
    if io.out_spec(output).dtype == DType::F16 {
        io.out_f16s(output)[at..at + values.len()].convert_from_f32_slice(values);
    } else {
        io.out_f32s(output)[at..at + values.len()].copy_from_slice(values);
    }
}

/// One head rotated by row `p` of the table.
fn rotate(x: &[f32], table: &[f32], out: &mut [f32]) {
    let half = x.len() / 2;
    for j in 0..half {
        let (cos, sin) = (table[2 * j], table[2 * j + 1]);
        out[j] = x[j] * cos - x[j + half] * sin;
        out[j + half] = x[j + half] * cos + x[j] * sin;
    }
}

/// Puts values into a cache of one dtype.
type Put<T> = fn(&mut [T], &[f32]);

impl RopeKvWrite {
    /// The definition, heads among threads: for any rows, no two heads write to the same elements.
    fn shared<T: bytemuck::Pod + Send>(&self, step: &Step, io: &mut Io, put: Put<T>) {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let (qkv, rows, table, threads) = (io.f32s(0), io.u32s(1), io.f32s(2), io.threads);
        let (n, all) = (step.rows_in_use(io.spec(0)), heads + 2 * kv_heads);
        let [q, k, v] = &mut io.outputs[..] else { unreachable!("the outputs are q, keys and values") };
        let q = simd::Shared::new(bytemuck::cast_slice_mut::<u32, f32>(q.1));
        let [k, v] = [k, v].map(|out| simd::Shared::new(bytemuck::cast_slice_mut::<u32, T>(out.1)));
        let grain = if n * all * d < SHARED_FROM { all } else { all.div_ceil(2 * threads.count()) };
        threads.chunks(all, grain, |some| {
            let mut turned = vec![0.0; d];
            for (r, h) in (0..n).flat_map(|r| some.clone().map(move |h| (r, h))) {
                let row = &rows[r * ROW_WORDS..][..ROW_WORDS];
                let (pos, cache) = (row[1] as usize, (row[1] + row[2]) as usize);
                let (x, table) = (&qkv[(r * all + h) * d..][..d], &table[pos * d..][..d]);
                let place = |h: usize| (cache * kv_heads + h) * d;
                // SAFETY: a head's columns of each output belong to one task, and its slices live one at a time.
                unsafe {
                    if h < heads {
                        rotate(x, table, q.slice((r * heads + h) * d, d));
                    } else if h < heads + kv_heads {
                        rotate(x, table, &mut turned);
                        put(k.slice(place(h - heads), d), &turned);
                    } else {
                        put(v.slice(place(h - heads - kv_heads), d), x);
                    }
                }
            }
        });
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
        require("heads", qkv, d > 0 && d.is_multiple_of(2), "an even head width, whose halves rotate together")?;
        expect("qkv", qkv, &[n, (heads + 2 * kv_heads) * d], &[DType::F32])?;
        expect("rows", rows, &[n, ROW_WORDS], &[DType::U32])?;
        expect("table", table, &[table.shape[0], d / 2, 2], &[DType::F32])?;
        Ok(vec![Spec::counted(&[n, heads * d], DType::F32, qkv.counted_by)])
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        let (q, width) = (self.infer(inputs)?, self.shape.kv_heads * self.shape.d);
        expect("q", outputs[0], &q[0].shape, &[DType::F32])?;
        let capacity = outputs[1].shape[0];
        for (what, cache) in [("k cache", outputs[1]), ("v cache", outputs[2])] {
            expect(what, cache, &[capacity, width], &[outputs[1].dtype])?;
            require(what, cache, matches!(cache.dtype, DType::F32 | DType::F16), "F32 or F16")?;
        }
        Ok(())
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let (qkv, rows, table) = (io.f32s(0), io.u32s(1), io.f32s(2));
        let width = (heads + 2 * kv_heads) * d;
        let mut head = vec![0.0; d];
        for r in 0..step.rows_in_use(io.spec(0)) {
            let row = &rows[r * ROW_WORDS..][..ROW_WORDS];
            let (pos, cache) = (row[1] as usize, (row[1] + row[2]) as usize);
            let table = &table[pos * d..][..d];
            let x = |h: usize| &qkv[r * width + h * d..][..d];
            for h in 0..heads {
                rotate(x(h), table, &mut io.out_f32s(0)[(r * heads + h) * d..][..d]);
            }
            for h in 0..kv_heads {
                let at = (cache * kv_heads + h) * d;
                rotate(x(heads + h), table, &mut head);
                store(io, 1, at, &head);
                store(io, 2, at, x(heads + kv_heads + h));
            }
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        match io.out_spec(1).dtype {
            DType::F16 => self.shared::<f16>(step, io, |to, from| to.convert_from_f32_slice(from)),
            _ => self.shared::<f32>(step, io, |to, from| to.copy_from_slice(from)),
        }
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let [qkv, rows, (table, bytes)] = [0, 1, 2].map(|i| (inputs[i].0, inputs[i].1));
        let angles = bytes * step.rows_in_use(rows.0).min(table.shape[0]) as u64 / table.shape[0] as u64;
        step.used(qkv.0, qkv.1) + step.used(rows.0, rows.1) + angles
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let AttentionShape { heads, kv_heads, d } = self.shape;
        let params = RopeParams { heads: heads as u32, kv_heads: kv_heads as u32, d: d as u32 };
        let flags = [(outputs[1].dtype == DType::F16, "F16"), (!d.is_multiple_of(4), "PAIRS")];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        let grid = Grid::x(Extent::rows(&inputs[0].leading_only(), 1, 1));
        Kernel { source: shader!("attention/rope_kv_write"), defines, overrides: vec![], params: params.params(), grid }
    }
}
