//! The router of a mixture of experts: softmax, the k most probable, renormalised.

use crate::error::Result;
use crate::ops::embed::ROW_WORDS;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `p = softmax(logits)`; the k largest (ties to the lower number) with weights `p_i / (Σ p + 1e-8)`. NaN counts as above
/// or below every number, by its sign, and makes all weights of its row NaN.
///
/// logits `[n, experts]` F32, rows `[n, 4]` → expert_ids `[n, k]` U32, expert_weights `[n, k]` F32, and the choices in the state
/// log `[capacity, k]` U32 at `seq_base + pos`, from which statistics are read when they are asked for.
#[derive(Debug)]
pub(super) struct Router {
    pub(super) k: usize,
}

params!(RouterParams { counted_by: u32, rows: u32, experts: u32, k: u32 });

/// Maximum number of experts, as many as the fused kernel keeps the logits of.
pub const MAX_EXPERTS: usize = 512;
/// What the renormalisation adds to the sum of the chosen probabilities.
const EPS: f32 = 1e-8;
/// Threads of a workgroup, one per row.
const THREADS: usize = 64;

impl PlanBuilder {
    /// `[expert_ids, expert_weights]` of each row.
    #[track_caller]
    pub fn router(&self, logits: Slot, rows: Slot, log: Slot, k: usize) -> [Slot; 2] {
        let spec = self.spec(logits);
        let expert_ids = self.temp(Spec::counted(&[spec.shape[0], k], DType::U32, spec.counted_by));
        let expert_weights = self.temp(Spec::counted(&[spec.shape[0], k], DType::F32, spec.counted_by));
        self.push_into(Router { k }, &[logits, rows], &[expert_ids, expert_weights, log]);
        [expert_ids, expert_weights]
    }
}

/// Checks the outputs of a router: expert_ids and expert_weights as `own`, and the log, whose rows have as many columns.
pub(super) fn check_choices(own: &[Spec], outputs: &[&Spec]) -> Result<()> {
    expect("expert_ids", outputs[0], &own[0].shape, &[DType::U32])?;
    expect("expert_weights", outputs[1], &own[1].shape, &[DType::F32])?;
    expect("log", outputs[2], &[outputs[2].shape[0], own[0].width()], &[DType::U32])
}

impl Op for Router {
    fn name(&self) -> &'static str {
        "router"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (logits, n) = (inputs[0], inputs[0].shape[0]);
        expect("logits", logits, &[n, logits.width()], &[DType::F32])?;
        let few = (self.k..=MAX_EXPERTS).contains(&logits.width()) && self.k > 0;
        require("logits", logits, few, "at least k and at most 512 experts")?;
        expect("rows", inputs[1], &[n, ROW_WORDS], &[DType::U32])?;
        Ok([DType::U32, DType::F32].map(|dtype| Spec::counted(&[n, self.k], dtype, logits.counted_by)).to_vec())
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        check_choices(&self.infer(inputs)?, outputs)
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (logits, rows, experts) = (io.f32s(0), io.u32s(1), io.spec(0).width());
        for r in 0..step.rows_in_use(io.spec(0)) {
            let logits = &logits[r * experts..][..experts];
            let max = logits.iter().fold(f32::MIN, |a, &b| a.max(b));
            let mut p: Vec<f32> = logits.iter().map(|l| (l - max).exp()).collect();
            let total: f32 = p.iter().sum();
            p.iter_mut().for_each(|p| *p /= total);
            let mut order: Vec<usize> = (0..experts).collect();
            // By logits: probabilities of far lower logits are all 0. Adding 0 makes the two zeros equal.
            order.sort_by(|&a, &b| (logits[b] + 0.0).total_cmp(&(logits[a] + 0.0)));
            let chosen: f32 = order[..self.k].iter().map(|&e| p[e]).sum();
            let at = (rows[r * ROW_WORDS + 1] + rows[r * ROW_WORDS + 2]) as usize;
            for (i, &e) in order[..self.k].iter().enumerate() {
                io.out_u32s(0)[r * self.k + i] = e as u32;
                io.out_f32s(1)[r * self.k + i] = p[e] / (chosen + EPS);
                io.out_u32s(2)[at * self.k + i] = e as u32;
            }
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let logits = inputs[0];
        let params = RouterParams {
            counted_by: logits.counted_by as u32,
            rows: logits.shape[0] as u32,
            experts: logits.width() as u32,
            k: self.k as u32,
        };
        let grid = Grid::x(Extent::rows(&outputs[0].leading_only(), 1, THREADS));
        Kernel { source: shader!("moe/router"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
