//! The weights of an attention: its softmax, which the fused kernel never stores.

use crate::error::Result;
use crate::ops::attention::{AttentionShape, Columns};
use crate::ops::embed::ROW_WORDS;
use crate::ops::kv_cache::{KvRows, row_span};
use crate::ops::{expect, simd};
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `softmax(q · kᵀ / sqrt(d))`, the mean over the query heads: each row adds up to 1. Source: Vaswani et al. 2017.
///
/// q `[n, ..]` F32, k `[keys, ..]` F32 or F16 (columns of each), or a cache of Int8 → `[n, keys]` F32. Cached: with rows `[n, 4]`, row r
/// attends to keys `seq_base .. seq_base + seq_len`, whose weights come first; the rest of its row is 0.
/// Error: ≤ 1e-5 absolute.
#[derive(Debug)]
struct AttentionWeights {
    shape: AttentionShape,
    at: [usize; 2],
    cached: bool,
}

impl PlanBuilder {
    /// The weights of [`PlanBuilder::attention`], the mean over heads: q `[n, ..]`, k `[keys, ..]` → `[n, keys]`.
    #[track_caller]
    pub fn attention_weights(&self, q: Columns, k: Columns, shape: AttentionShape) -> Slot {
        self.push(AttentionWeights { shape, at: [q.at, k.at], cached: false }, &[q.slot, k.slot])
    }

    /// The weights of [`PlanBuilder::cached_attention`], the mean over heads: `[n, keys of the cache]`, those of a row's
    /// sequence first.
    #[track_caller]
    pub fn cached_attention_weights(&self, q: Slot, k: Slot, rows: Slot, shape: AttentionShape) -> Slot {
        self.push(AttentionWeights { shape, at: [0; 2], cached: true }, &[q, k, rows])
    }
}

impl Op for AttentionWeights {
    fn name(&self) -> &'static str {
        "attention_weights"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (q, k) = (inputs[0], inputs[1]);
        self.shape.check(q, self.at[0], &[("k", k, self.at[1])])?;
        if self.cached {
            expect("rows", inputs[2], &[q.shape[0], ROW_WORDS], &[DType::U32])?;
        }
        Ok(vec![Spec::counted(&[q.shape[0], k.shape[0]], DType::F32, q.counted_by)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let AttentionShape { heads, d, .. } = self.shape;
        let (q, k, q_width) = (io.f32s(0), KvRows::input(io, 1, d), io.spec(0).width());
        let (n_keys, rows) = (io.spec(1).shape[0], self.cached.then(|| io.u32s(2)));
        let used = step.rows_in_use(io.spec(0));
        for (r, out) in io.out_f32s(0).chunks_exact_mut(n_keys).take(used).enumerate() {
            let (first, n) = rows.map_or((0, n_keys), |rows| row_span(&rows[r * ROW_WORDS..], n_keys));
            let mut mean = vec![0.0f64; n_keys];
            for h in 0..heads {
                let q = &q[r * q_width + self.at[0] + h * d..][..d];
                let k_at = self.at[1] + h / (heads / self.shape.kv_heads) * d;
                let score = |key: usize| -> f64 {
                    let dot: f64 = (0..d).map(|i| f64::from(q[i]) * f64::from(k.get(first + key, k_at + i))).sum();
                    dot * f64::from(self.shape.scale())
                };
                let scores: Vec<f64> = (0..n).map(score).collect();
                let max = scores.iter().fold(f64::MIN, |a, &b| a.max(b));
                let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
                let total: f64 = weights.iter().sum();
                mean.iter_mut().zip(&weights).for_each(|(m, w)| *m += w / total / heads as f64);
            }
            out.iter_mut().zip(mean).for_each(|(o, m)| *o = m as f32);
        }
    }

    /// Of one head over whole matrices a dense product, and the softmax of its rows.
    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (d, q, k) = (self.shape.d, io.spec(0), io.spec(1));
        let (rows, n_keys, scale) = (step.rows_in_use(q), k.shape[0], self.shape.scale());
        let whole = self.at == [0; 2] && [q.width(), k.width()] == [d; 2] && k.dtype != DType::Int8;
        if self.cached || self.shape.heads > 1 || !whole {
            return self.cpu(step, io);
        }
        let (q, k, threads) = (io.f32s(0), io.floats(1), io.threads);
        let product = simd::Dense { rows, d_out: n_keys, d_in: d, col0: 0, y_width: n_keys };
        let scaled = |_, _, y: &mut [f32]| y.iter_mut().for_each(|y| *y *= scale);
        simd::dense(product, threads, q, k, io.out_f32s(0), scaled);
        let y = simd::Shared::new(io.out_f32s(0));
        threads.run(rows, |r| {
            // SAFETY: each row belongs to one task.
            let row = unsafe { y.slice(r * n_keys, n_keys) };
            let max = row.iter().copied().fold(f32::MIN, f32::max);
            row.iter_mut().for_each(|y| *y = (*y - max).exp());
            let total: f64 = row.iter().map(|&y| f64::from(y)).sum();
            row.iter_mut().for_each(|y| *y = (f64::from(*y) / total) as f32);
        });
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let grid = Grid::x(Extent::rows(&inputs[0].leading_only(), 1, 1));
        let [q_at, k_at] = self.at;
        let kernel =
            self.shape.kernel(shader!("attention/attention_weights"), grid, self.cached, [q_at, k_at, 0], inputs);
        self.shape.holding_a_head(kernel)
    }
}
