//! Vectors of length 1.

use crate::bounds::at_least;
use crate::error::Result;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y = x / max(|x|, floor)`, row by row, with the Euclidean length; x `[.., d]` F32 → y like x.
#[derive(Debug)]
struct L2Norm {
    floor: f32,
}

params!(L2NormParams { width: u32, floor: f32 });

impl PlanBuilder {
    /// The rows of x divided by their lengths, each length at least `floor`.
    #[track_caller]
    pub fn l2_norm(&self, x: Slot, floor: f32) -> Slot {
        self.push(L2Norm { floor }, &[x])
    }
}

/// The Euclidean length of a vector.
pub(super) fn length(x: &[f32]) -> f64 {
    x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt()
}

impl Op for L2Norm {
    fn name(&self) -> &'static str {
        "l2_norm"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        require("x", inputs[0], inputs[0].dtype == DType::F32, "F32")?;
        Ok(vec![inputs[0].clone()])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, width, rows) = (io.f32s(0), io.spec(0).width(), step.rows_of(io.spec(0)));
        for (x, y) in x.chunks_exact(width).zip(io.out_f32s(0).chunks_exact_mut(width)).take(rows) {
            let length = at_least(length(x), f64::from(self.floor));
            y.iter_mut().zip(x).for_each(|(y, &v)| *y = (f64::from(v) / length) as f32);
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let params = L2NormParams { width: x.width() as u32, floor: self.floor };
        let grid = Grid::x(Extent::rows(x, 1, 1));
        Kernel { source: shader!("norm/l2_norm"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
