//! Some rows of a matrix.

use crate::error::Result;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y[i] = x[which[i]]`; x `[n, d]` F32, which `[m, 1]` U32 → y `[m, d]` F32, counted as `which` is.
#[derive(Debug)]
struct SelectRows;

params!(SelectRowsParams { counted_by: u32, rows: u32, width: u32 });

impl PlanBuilder {
    /// The rows of x that `which` names.
    #[track_caller]
    pub fn select_rows(&self, x: Slot, which: Slot) -> Slot {
        self.push(SelectRows, &[x, which])
    }
}

impl Op for SelectRows {
    fn name(&self) -> &'static str {
        "select_rows"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, which) = (inputs[0], inputs[1]);
        require("x", x, x.dtype == DType::F32 && x.shape.len() == 2, "[n, d] F32")?;
        expect("row numbers", which, &[which.shape[0], 1], &[DType::U32])?;
        Ok(vec![which.with_last(x.width(), DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, which, width) = (io.f32s(0), io.u32s(1), io.spec(0).width());
        let n = step.rows_in_use(io.out_spec(0));
        for (y, &r) in io.out_f32s(0).chunks_exact_mut(width).zip(which).take(n) {
            y.copy_from_slice(&x[r as usize * width..][..width]);
        }
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let [(x, bytes), which] = [inputs[0], inputs[1]];
        bytes * step.rows_in_use(which.0).min(x.shape[0]) as u64 / x.shape[0] as u64 + step.used(which.0, which.1)
    }

    fn kernel(&self, _: &Caps, _: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let y = outputs[0];
        let params =
            SelectRowsParams { counted_by: y.counted_by as u32, rows: y.shape[0] as u32, width: y.width() as u32 };
        let grid = Grid::x(Extent::rows(y, y.width(), 64));
        Kernel {
            source: shader!("rows/select_rows"),
            defines: vec![],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
