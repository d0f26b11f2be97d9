//! Two matrices side by side.

use crate::error::Result;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y[r] = [a[r], b[r]]`; a `[n, da]`, b `[n, db]` F32 → y `[n, da + db]` F32.
#[derive(Debug)]
struct Concat;

params!(ConcatParams { counted_by: u32, rows: u32, width_a: u32, width_b: u32 });

impl PlanBuilder {
    /// The columns of a, then those of b.
    #[track_caller]
    pub fn concat(&self, a: Slot, b: Slot) -> Slot {
        self.push(Concat, &[a, b])
    }
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (a, b) = (inputs[0], inputs[1]);
        require("a", a, a.dtype == DType::F32 && a.shape.len() == 2, "[n, d] F32")?;
        expect("b", b, &[a.shape[0], b.width()], &[DType::F32])?;
        require("b", b, b.counted_by == a.counted_by, "rows that are counted as a's are")?;
        Ok(vec![a.with_last(a.width() + b.width(), DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (a, b, rows) = (io.f32s(0), io.f32s(1), step.rows_in_use(io.spec(0)));
        let (wa, wb) = (io.spec(0).width(), io.spec(1).width());
        for (r, y) in io.out_f32s(0).chunks_exact_mut(wa + wb).enumerate().take(rows) {
            y[..wa].copy_from_slice(&a[r * wa..][..wa]);
            y[wa..].copy_from_slice(&b[r * wb..][..wb]);
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let (a, b, y) = (inputs[0], inputs[1], outputs[0]);
        let params = ConcatParams {
            counted_by: y.counted_by as u32,
            rows: y.shape[0] as u32,
            width_a: a.width() as u32,
            width_b: b.width() as u32,
        };
        let grid = Grid::x(Extent::rows(y, y.width(), 64));
        Kernel { source: shader!("rows/concat"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
