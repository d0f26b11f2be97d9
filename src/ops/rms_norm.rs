//! Root-mean-square normalisation, plain or with bounds.

use crate::bounds::at_least;
use crate::error::Result;
use crate::ops::few_rows::with_a_group_per_row;
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step, Variants};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y = w · x / sqrt(mean(x²) + eps)`, row by row; x `[.., d]` F32, w `[d]` F32 → y `[.., d]` F32.
/// Source: Zhang & Sennrich 2019.
///
/// With a [`NormClamp`], x and `x / sqrt(…)` are clamped, and the mean of squares is at least eps. Error: ≤ 1e-6 relative
/// against `cpu`; only the order of the sum differs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RmsNorm {
    /// Added to the mean of squares.
    pub eps: f32,
    /// Bounds, if there are any.
    pub clamp: Option<NormClamp>,
}

/// Bounds of an [`RmsNorm`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormClamp {
    /// x is clamped to ± this.
    pub input: f32,
    /// The normalised value is clamped to ± this, before it is multiplied by the weight.
    pub output: f32,
}

impl RmsNorm {
    /// Without bounds.
    pub const fn new(eps: f32) -> Self {
        RmsNorm { eps, clamp: None }
    }

    /// `sqrt(mean(x²) + eps)` of one row.
    pub(super) fn rms(&self, x: &[f32]) -> f32 {
        let bound = self.in_bound();
        let sum: f64 = x.iter().map(|&v| f64::from(v.clamp(-bound, bound)).powi(2)).sum();
        let mean = (sum / x.len() as f64) as f32;
        (at_least(mean, self.floor()) + self.eps).sqrt()
    }

    /// One element, given the row's [`RmsNorm::rms`].
    pub(super) fn apply(&self, x: f32, rms: f32, w: f32) -> f32 {
        let (bound, out) = (self.in_bound(), self.out_bound());
        w * (x.clamp(-bound, bound) / rms).clamp(-out, out)
    }

    /// One row with SIMD.
    pub(super) fn fast(&self, x: &[f32], w: &[f32], y: &mut [f32]) {
        simd::norm(x, w, self.normed(x, f32::INFINITY), y);
    }

    /// What [`simd::norm`] needs to know of a row whose products with the weights are bounded by `act_bound`.
    pub(super) fn normed(&self, x: &[f32], act_bound: f32) -> simd::Normed {
        let mean = at_least(simd::sum_of_squares(x, self.in_bound()) / x.len() as f32, self.floor());
        let rms = (mean + self.eps).sqrt();
        simd::Normed { rms, in_bound: self.in_bound(), out_bound: self.out_bound(), act_bound }
    }

    /// Bound on the input; infinite without one.
    pub(super) fn in_bound(&self) -> f32 {
        self.clamp.map_or(f32::INFINITY, |clamp| clamp.input)
    }

    /// Bound on the normalised value; infinite without one.
    pub(super) fn out_bound(&self) -> f32 {
        self.clamp.map_or(f32::INFINITY, |clamp| clamp.output)
    }

    /// Minimum of the mean of squares.
    pub(super) fn floor(&self) -> f32 {
        self.clamp.map_or(0.0, |_| self.eps)
    }
}

params!(RmsNormParams { width: u32, eps: f32, floor: f32, in_bound: f32, out_bound: f32 });

impl PlanBuilder {
    /// [`RmsNorm`] of x with weight w.
    #[track_caller]
    pub fn rms_norm(&self, x: Slot, w: Slot, norm: RmsNorm) -> Slot {
        self.push(norm, &[x, w])
    }
}

impl Op for RmsNorm {
    fn name(&self) -> &'static str {
        "rms_norm"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        require("x", inputs[0], inputs[0].dtype == DType::F32, "F32")?;
        expect("weight", inputs[1], &[inputs[0].width()], &[DType::F32])?;
        Ok(vec![inputs[0].clone()])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, w, width) = (io.f32s(0), io.f32s(1), io.spec(0).width());
        let rows = step.rows_of(io.spec(0));
        for (x, y) in x.chunks_exact(width).zip(io.out_f32s(0).chunks_exact_mut(width)).take(rows) {
            let rms = self.rms(x);
            for i in 0..width {
                y[i] = self.apply(x[i], rms, w[i]);
            }
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (x, w, width) = (io.f32s(0), io.f32s(1), io.spec(0).width());
        let (rows, threads) = (step.rows_of(io.spec(0)), io.threads);
        let y = simd::Shared::new(io.out_f32s(0));
        threads.chunks(rows, simd::rows_a_task(width), |range| {
            for r in range {
                // SAFETY: each row belongs to one task.
                let y = unsafe { y.slice(r * width, width) };
                self.fast(&x[r * width..][..width], w, y);
            }
        });
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Variants {
        let x = inputs[0];
        let params = RmsNormParams {
            width: x.width() as u32,
            eps: self.eps,
            floor: self.floor(),
            in_bound: self.in_bound(),
            out_bound: self.out_bound(),
        };
        let grid = Grid::x(Extent::rows(x, 1, 1));
        let source = shader!("norm/rms_norm");
        let kernel = Kernel { source, defines: vec![], overrides: vec![], params: params.params(), grid };
        with_a_group_per_row(caps, x, kernel)
    }
}
