//! Writing rows to places of a state.

use crate::error::Result;
use crate::ops::{Columns, expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y[which[r]] = x[r]`; x `[n, ..]` or `[i, n, ..]` F32 (some of its columns), which `[all rows, 1]` U32 → y `[m, d]` F32, a state. Numbers from
/// m on store nothing; no two rows have the same number below m.
#[derive(Debug)]
struct StoreRows {
    at: usize,
}

params!(StoreRowsParams { counted_by: u32, rows: u32, per_row: u32, x_width: u32, at: u32, width: u32, places: u32 });

impl PlanBuilder {
    /// Writes the rows of x, as many columns as the state is wide, to the rows of `state` that `which` names.
    #[track_caller]
    pub fn store_rows(&self, x: Columns, which: Slot, state: Slot) {
        self.push_into(StoreRows { at: x.at }, &[x.slot, which], &[state]);
    }
}

impl Op for StoreRows {
    fn name(&self) -> &'static str {
        "store_rows"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        require(
            "x",
            x,
            x.dtype == DType::F32 && (2..=3).contains(&x.shape.len()) && self.at < x.width(),
            "[n, d] or [i, n, d] F32",
        )?;
        expect("row numbers", inputs[1], &[x.rows(), 1], &[DType::U32])?;
        Ok(vec![Spec::fixed(&[x.rows(), x.width() - self.at], DType::F32)])
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        let (max_width, state) = (self.infer(inputs)?[0].width(), outputs[0]);
        expect("state", state, &[state.shape[0], state.width()], &[DType::F32])?;
        require("state", state, state.width() <= max_width, "at most as wide as x has columns")
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, which, x_width) = (io.f32s(0), io.u32s(1), io.spec(0).width());
        let (n, places, width) = (step.rows_of(io.spec(0)), io.out_spec(0).shape[0], io.out_spec(0).width());
        let y = io.out_f32s(0);
        for (x, &place) in x.chunks_exact(x_width).zip(which).take(n) {
            if (place as usize) < places {
                y[place as usize * width..][..width].copy_from_slice(&x[self.at..][..width]);
            }
        }
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        // Of x, the columns that the state holds are not known here: all behind the first one are counted.
        let [(x, bytes), which] = [inputs[0], inputs[1]];
        step.used(x, bytes) * (x.width() - self.at) as u64 / x.width() as u64 + step.used(which.0, which.1)
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let (x, y) = (inputs[0], outputs[0]);
        let params = StoreRowsParams {
            counted_by: x.counted_by as u32,
            rows: x.shape[0] as u32,
            per_row: x.vectors_per_row() as u32,
            x_width: x.width() as u32,
            at: self.at as u32,
            width: y.width() as u32,
            places: y.shape[0] as u32,
        };
        let grid = Grid::x(Extent::rows(x, y.width(), 64));
        Kernel { source: shader!("rows/store_rows"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
