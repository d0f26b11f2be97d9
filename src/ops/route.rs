//! The router of few rows in one launch: its norm, its logits and its choice.

use crate::error::Result;
use crate::ops::embed::ROW_WORDS;
use crate::ops::matmul::MatMul;
use crate::ops::router::{MAX_EXPERTS, Router, check_choices};
use crate::ops::{Composed, RmsNorm, expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// The composition of `rms_norm`, `matmul` and `router`: x `[n, d]` F32, norm weight `[d]`, w `[experts, d]`, bias
/// `[experts]`, all F32, rows `[n, 4]` → expert_ids `[n, k]` U32, expert_weights `[n, k]` F32, and the choices in the log.
///
/// Of two experts whose logits differ only by rounding either may be chosen.
#[derive(Debug)]
pub(super) struct Route {
    pub(super) norm: RmsNorm,
    pub(super) k: usize,
}

params!(RouteParams { width: u32, experts: u32, k: u32, eps: f32, floor: f32, in_bound: f32, out_bound: f32 });

impl PlanBuilder {
    /// `[expert_ids, expert_weights]` of each row of x, whose norm and router are `weights`: norm, matrix, bias.
    #[track_caller]
    pub fn route(&self, x: Slot, norm: RmsNorm, weights: [Slot; 3], rows: Slot, log: Slot, k: usize) -> [Slot; 2] {
        let spec = self.spec(x);
        let [expert_ids, expert_weights] = [DType::U32, DType::F32].map(|dtype| self.temp(spec.with_last(k, dtype)));
        self.push_into(
            Route { norm, k },
            &[x, weights[0], weights[1], weights[2], rows],
            &[expert_ids, expert_weights, log],
        );
        [expert_ids, expert_weights]
    }
}

impl Route {
    fn compose(&self, step: &Step, io: &mut Io, fast: bool) {
        let width = io.spec(2).shape[0];
        let mut chain = Composed::new(step, fast, io);
        let h = chain.apply(&self.norm, &[0, 1])[0];
        let product = MatMul { bias: true, residual: false, col0: 0, width };
        let logits = chain.apply(&product, &[h, 2, 3])[0];
        chain.finish(&Router { k: self.k }, &[logits, 4], io);
    }
}

impl Op for Route {
    fn name(&self) -> &'static str {
        "route"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, w) = (inputs[0], inputs[2]);
        let (n, d, experts) = (x.shape[0], x.width(), w.shape[0]);
        expect("x", x, &[n, d], &[DType::F32])?;
        require("x", x, d.is_multiple_of(4), "a multiple of 4 columns")?;
        expect("norm weight", inputs[1], &[d], &[DType::F32])?;
        expect("router", w, &[experts, d], &[DType::F32])?;
        require("router", w, (self.k.max(1)..=MAX_EXPERTS).contains(&experts), "at least k and at most 512 experts")?;
        expect("bias", inputs[3], &[experts], &[DType::F32])?;
        expect("rows", inputs[4], &[n, ROW_WORDS], &[DType::U32])?;
        Ok([DType::U32, DType::F32].map(|dtype| x.with_last(self.k, dtype)).to_vec())
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        check_choices(&self.infer(inputs)?, outputs)
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, false);
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, true);
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let params = RouteParams {
            width: inputs[0].width() as u32,
            experts: inputs[2].shape[0] as u32,
            k: self.k as u32,
            eps: self.norm.eps,
            floor: self.norm.floor(),
            in_bound: self.norm.in_bound(),
            out_bound: self.norm.out_bound(),
        };
        let grid = Grid::x(Extent::rows(&outputs[0].leading_only(), 1, 1));
        Kernel { source: shader!("moe/route"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
