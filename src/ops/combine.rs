//! The weighted sum of experts' outputs.

use crate::error::Result;
use crate::ops::{expect, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `out[r] = x[r] + clamp(Σ_{i<k} weight[r, i] · y[r, i] + Σ_{i≥k} y[r, i], ±bound)`: the chosen experts', then the
/// shared ones'.
///
/// x `[n, d]`, y `[n, slots, d]`, weights `[n, k]`, all F32 → `[n, d]` F32. A gather: no atomics, one order of sums.
#[derive(Debug)]
pub(super) struct Combine {
    pub(super) bound: f32,
}

params!(CombineParams { counted_by: u32, rows: u32, width: u32, slots: u32, k: u32, bound: f32 });

impl PlanBuilder {
    /// Residual x plus the weighted sum of the experts' outputs y, clamped to ±bound.
    #[track_caller]
    pub fn combine(&self, x: Slot, y: Slot, weights: Slot, bound: f32) -> Slot {
        self.push(Combine { bound }, &[x, y, weights])
    }
}

impl Op for Combine {
    fn name(&self) -> &'static str {
        "combine"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, k) = (inputs[0], inputs[2].width());
        let n = x.shape[0];
        expect("x", x, &[n, x.width()], &[DType::F32])?;
        let slots = inputs[1].shape.get(1).map_or(k, |&slots| slots.max(k));
        expect("experts' outputs", inputs[1], &[n, slots, x.width()], &[DType::F32])?;
        expect("weights", inputs[2], &[n, k], &[DType::F32])?;
        Ok(vec![x.clone()])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, y, weights) = (io.f32s(0), io.f32s(1), io.f32s(2));
        let (width, slots, k) = (io.spec(0).width(), io.spec(1).shape[1], io.spec(2).width());
        let rows = step.rows_in_use(io.spec(0));
        let out = io.out_f32s(0);
        for r in 0..rows {
            for i in 0..width {
                let expert = |s: usize| y[(r * slots + s) * width + i];
                let chosen = (0..k).map(|s| weights[r * k + s] * expert(s)).sum::<f32>();
                let sum = (k..slots).fold(chosen, |sum, s| sum + expert(s));
                out[r * width + i] = x[r * width + i] + sum.clamp(-self.bound, self.bound);
            }
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (x, y, weights) = (io.f32s(0), io.f32s(1), io.f32s(2));
        let (width, slots, k) = (io.spec(0).width(), io.spec(1).shape[1], io.spec(2).width());
        let (rows, threads) = (step.rows_in_use(io.spec(0)), io.threads);
        let out = simd::Shared::new(io.out_f32s(0));
        threads.chunks(rows, simd::rows_a_task(width), |range| {
            for r in range {
                let experts = &y[r * slots * width..][..slots * width];
                // SAFETY: each row belongs to one task.
                let out = unsafe { out.slice(r * width, width) };
                simd::combine(&x[r * width..][..width], experts, &weights[r * k..][..k], self.bound, out);
            }
        });
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let params = CombineParams {
            counted_by: x.counted_by as u32,
            rows: x.shape[0] as u32,
            width: x.width() as u32,
            slots: inputs[1].shape[1] as u32,
            k: inputs[2].width() as u32,
            bound: self.bound,
        };
        let grid = Grid::x(Extent::rows(x, x.width(), 64));
        Kernel { source: shader!("moe/combine"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
