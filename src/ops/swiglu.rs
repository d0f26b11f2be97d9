//! The gated activation of an expert.

use crate::error::Result;
use crate::ops::{require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `h = clamp(silu(clamp(gate, ±20)) · up, ±1000)`, `silu(g) = g / (1 + e^−g)`.
///
/// x `[.., 2·d]` F32 (gate, then up) → `[.., d]` F32. Source: Shazeer 2020, with EmberNet's clamps.
#[derive(Debug)]
pub(super) struct SwiGlu;

params!(SwiGluParams { lead: u32, rows: u32, per_lead: u32, width: u32 });

/// Bound on the gate.
const GATE_BOUND: f32 = 20.0;
/// Bound on the product.
const OUT_BOUND: f32 = 1000.0;

impl PlanBuilder {
    /// `silu(gate) · up` with EmberNet's clamps, of gate and up side by side.
    #[track_caller]
    pub fn swiglu(&self, gate_up: Slot) -> Slot {
        self.push(SwiGlu, &[gate_up])
    }
}

impl Op for SwiGlu {
    fn name(&self) -> &'static str {
        "swiglu"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        require("gate and up", x, x.dtype == DType::F32 && x.width().is_multiple_of(2), "F32 of even width")?;
        Ok(vec![x.with_last(x.width() / 2, DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, width) = (io.f32s(0), io.out_spec(0).width());
        let rows = step.rows_of(io.spec(0));
        for (x, y) in x.chunks_exact(2 * width).zip(io.out_f32s(0).chunks_exact_mut(width)).take(rows) {
            for i in 0..width {
                let g = x[i].clamp(-GATE_BOUND, GATE_BOUND);
                y[i] = (g / (1.0 + (-g).exp()) * x[width + i]).clamp(-OUT_BOUND, OUT_BOUND);
            }
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (x, width) = (io.f32s(0), io.out_spec(0).width());
        let (rows, threads) = (step.rows_of(io.spec(0)), io.threads);
        let y = simd::Shared::new(io.out_f32s(0));
        threads.chunks(rows, simd::rows_a_task(width), |range| {
            for r in range {
                let (gate, up) = x[2 * r * width..][..2 * width].split_at(width);
                // SAFETY: each row belongs to one task.
                simd::swiglu(gate, up, GATE_BOUND, OUT_BOUND, unsafe { y.slice(r * width, width) });
            }
        });
    }

    fn kernel(&self, _: &Caps, _: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let y = outputs[0];
        let params = SwiGluParams {
            lead: y.lead as u32,
            rows: y.shape[0] as u32,
            per_lead: y.rows_per_lead() as u32,
            width: y.width() as u32,
        };
        let grid = Grid::x(Extent::rows(y, y.width(), 64));
        Kernel { source: shader!("swiglu"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
