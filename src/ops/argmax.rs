//! The most likely token.

use crate::error::Result;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// Number of each row's largest element, the lowest of equal ones; `u32::MAX` if any element is NaN or infinite.
/// x `[n, d]` F32 → `[n, 1]` U32.
#[derive(Debug)]
struct ArgMax;

params!(ArgMaxParams { width: u32 });

impl PlanBuilder {
    /// Number of the largest element of each row.
    #[track_caller]
    pub fn argmax(&self, x: Slot) -> Slot {
        self.push(ArgMax, &[x])
    }
}

impl Op for ArgMax {
    fn name(&self) -> &'static str {
        "argmax"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        require("x", x, x.dtype == DType::F32 && x.shape.len() == 2, "[n, d] F32")?;
        Ok(vec![x.with_last(1, DType::U32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, width) = (io.f32s(0), io.spec(0).width());
        let n = step.leading(io.spec(0));
        for (out, x) in io.out_u32s(0).iter_mut().zip(x.chunks_exact(width)).take(n) {
            let mut best = 0;
            for (i, &v) in x.iter().enumerate() {
                if v > x[best] {
                    best = i;
                }
            }
            *out = if x.iter().all(|v| v.is_finite()) { best as u32 } else { u32::MAX };
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let params = ArgMaxParams { width: x.width() as u32 };
        let grid = Grid::x(Extent::rows(x, 1, 1));
        Kernel { source: shader!("argmax"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
