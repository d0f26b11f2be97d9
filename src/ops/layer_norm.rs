//! Layer normalisation.

use crate::error::Result;
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y = (x − mean) / sqrt(var + eps) · w + b`, row by row, var the biased variance;
/// x `[.., d]`, w `[d]`, b `[d]`, all F32 → y like x. Source: Ba et al. 2016.
#[derive(Debug)]
struct LayerNorm {
    eps: f32,
}

params!(LayerNormParams { width: u32, eps: f32 });

impl PlanBuilder {
    /// Layer normalisation of the rows of x: `(x − mean) / sqrt(var + eps) · w + b`.
    #[track_caller]
    pub fn layer_norm(&self, x: Slot, w: Slot, b: Slot, eps: f32) -> Slot {
        self.push(LayerNorm { eps }, &[x, w, b])
    }
}

impl Op for LayerNorm {
    fn name(&self) -> &'static str {
        "layer_norm"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        require("x", inputs[0], inputs[0].dtype == DType::F32, "F32")?;
        expect("weight", inputs[1], &[inputs[0].width()], &[DType::F32])?;
        expect("bias", inputs[2], &[inputs[0].width()], &[DType::F32])?;
        Ok(vec![inputs[0].clone()])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, w, b, width) = (io.f32s(0), io.f32s(1), io.f32s(2), io.spec(0).width());
        let rows = step.rows_of(io.spec(0));
        for (x, y) in x.chunks_exact(width).zip(io.out_f32s(0).chunks_exact_mut(width)).take(rows) {
            let mean = x.iter().map(|&v| f64::from(v)).sum::<f64>() / width as f64;
            let var = x.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / width as f64;
            let inv = 1.0 / (var + f64::from(self.eps)).sqrt();
            for i in 0..width {
                y[i] = ((f64::from(x[i]) - mean) * inv) as f32 * w[i] + b[i];
            }
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (x, w, b, width) = (io.f32s(0), io.f32s(1), io.f32s(2), io.spec(0).width());
        let (rows, threads) = (step.rows_of(io.spec(0)), io.threads);
        let y = simd::Shared::new(io.out_f32s(0));
        threads.chunks(rows, simd::rows_a_task(width), |range| {
            for r in range {
                // SAFETY: each row belongs to one task.
                let y = unsafe { y.slice(r * width, width) };
                simd::layer_norm(&x[r * width..][..width], w, b, self.eps, y);
            }
        });
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let params = LayerNormParams { width: x.width() as u32, eps: self.eps };
        let grid = Grid::x(Extent::rows(x, 1, 1));
        Kernel { source: shader!("norm/layer_norm"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
