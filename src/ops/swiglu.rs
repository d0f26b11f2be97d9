//! The gated activation of a feed-forward layer.

use crate::bounds::at_least;
use crate::error::Result;
use crate::ops::{require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// The activation of a gated layer: what is made of the gate.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Act {
    /// `silu(g) = g / (1 + e^−g)`.
    SiLu {
        /// Bounds, if there are any.
        clamp: Option<GateClamp>,
    },
    /// `relu(g)²`. Source: So et al. 2021, Primer.
    Relu2,
}

/// Bounds of a gated activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GateClamp {
    /// The gate is clamped to ± this.
    pub gate: f32,
    /// The product of both is clamped to ± this.
    pub product: f32,
}

impl Act {
    /// Bounds on the gate and on the product; infinite without any.
    pub(super) fn bounds(self) -> [f32; 2] {
        match self {
            Act::SiLu { clamp: Some(clamp) } => [clamp.gate, clamp.product],
            Act::SiLu { clamp: None } | Act::Relu2 => [f32::INFINITY; 2],
        }
    }

    /// What is made of a gate within its bound.
    fn of(self, g: f32) -> f32 {
        match self {
            Act::SiLu { .. } => g / (1.0 + (-g).exp()),
            Act::Relu2 => at_least(g, 0.0) * at_least(g, 0.0),
        }
    }

    /// `clamp(act(clamp(gate)) · up)` of an element.
    pub(super) fn gated(self, gate: f32, up: f32) -> f32 {
        let [gate_bound, out_bound] = self.bounds();
        (self.of(gate.clamp(-gate_bound, gate_bound)) * up).clamp(-out_bound, out_bound)
    }

    /// [`Act::gated`] of as many elements, with SIMD.
    pub(super) fn all_gated(self, gate: &[f32], up: &[f32], y: &mut [f32]) {
        let [gate_bound, out_bound] = self.bounds();
        match self {
            Act::SiLu { .. } => simd::swiglu(gate, up, gate_bound, out_bound, y),
            Act::Relu2 => simd::relu2_gate(gate, up, y),
        }
    }

    /// 1 for ReLU², for kernels.
    pub(super) fn is_relu2(self) -> u32 {
        u32::from(self == Act::Relu2)
    }
}

/// `h = clamp(act(clamp(gate)) · up)`.
///
/// x `[.., 2·d]` F32 (gate, then up) → `[.., d]` F32. Source: Shazeer 2020.
#[derive(Debug)]
pub(super) struct SwiGlu {
    pub(super) act: Act,
}

params!(SwiGluParams {
    counted_by: u32,
    rows: u32,
    per_row: u32,
    width: u32,
    gate_bound: f32,
    product_bound: f32,
    relu2: u32
});

impl PlanBuilder {
    /// `act(gate) · up` of gate and up side by side.
    #[track_caller]
    pub fn swiglu(&self, gate_up: Slot, act: Act) -> Slot {
        self.push(SwiGlu { act }, &[gate_up])
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
            (0..width).for_each(|i| y[i] = self.act.gated(x[i], x[width + i]));
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
                let y = unsafe { y.slice(r * width, width) };
                self.act.all_gated(gate, up, y);
            }
        });
    }

    fn kernel(&self, _: &Caps, _: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let y = outputs[0];
        let [gate_bound, product_bound] = self.act.bounds();
        let params = SwiGluParams {
            counted_by: y.counted_by as u32,
            rows: y.shape[0] as u32,
            per_row: y.vectors_per_row() as u32,
            width: y.width() as u32,
            gate_bound,
            product_bound,
            relu2: self.act.is_relu2(),
        };
        let grid = Grid::x(Extent::rows(y, y.width(), 64));
        Kernel { source: shader!("elements/swiglu"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
