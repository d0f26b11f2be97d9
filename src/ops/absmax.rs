//! The largest magnitude of a whole tensor.

use crate::bounds::largest_magnitude;
use crate::error::Result;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y = max |x|` over all rows that the step uses; x `[.., d]` F32 → y `[1]` F32, NaN if one
/// element is. Exact.
#[derive(Debug)]
struct AbsMax;

params!(AbsMaxParams { counted_by: u32, rows: u32, per_row: u32 });

impl PlanBuilder {
    /// The largest magnitude in the used rows of x: the scale of [`PlanBuilder::quantise`].
    #[track_caller]
    pub fn absmax(&self, x: Slot) -> Slot {
        self.push(AbsMax, &[x])
    }
}

impl Op for AbsMax {
    fn name(&self) -> &'static str {
        "absmax"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        require("x", inputs[0], inputs[0].dtype == DType::F32, "F32")?;
        Ok(vec![Spec::fixed(&[1], DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, n) = (io.f32s(0), step.rows_of(io.spec(0)) * io.spec(0).width());
        io.out_f32s(0)[0] = largest_magnitude(&x[..n]);
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let per_row = (x.vectors_per_row() * x.width()) as u32;
        let params = AbsMaxParams { counted_by: x.counted_by as u32, rows: x.shape[0] as u32, per_row };
        let grid = Grid::x(Extent::Fixed(1));
        Kernel { source: shader!("quantise/absmax"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
