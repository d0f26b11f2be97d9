//! The cell of a long short-term memory.

use crate::error::Result;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `c' = σ(f) · c + σ(i) · tanh(g)`, `h = σ(o) · tanh(c')`, element by element.
///
/// gates `[n, 4 · d]` F32, i, f, g and o side by side, c `[n, d]` F32 → h, c' `[n, d]` F32. Source: Hochreiter &
/// Schmidhuber 1997, with the forget gate of Gers et al. 2000; PyTorch's order of gates. Error: ≤ 2e-6 absolute on
/// |c| ≤ 10.
#[derive(Debug)]
struct LstmCell;

params!(LstmCellParams { counted_by: u32, rows: u32, width: u32 });

impl PlanBuilder {
    /// `[h, c']` of the products of a step's four gates, and of the cells c before it.
    #[track_caller]
    pub fn lstm_cell(&self, gates: Slot, c: Slot) -> [Slot; 2] {
        self.push_all(LstmCell, &[gates, c])
    }
}

impl Op for LstmCell {
    fn name(&self) -> &'static str {
        "lstm_cell"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (gates, c) = (inputs[0], inputs[1]);
        require("c", c, c.dtype == DType::F32 && c.shape.len() == 2, "[n, d] F32")?;
        expect("gates", gates, &[c.shape[0], 4 * c.width()], &[DType::F32])?;
        Ok(vec![gates.with_last(c.width(), DType::F32); 2])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (gates, c, width) = (io.f32s(0), io.f32s(1), io.spec(1).width());
        let sigmoid = |v: f32| 1.0 / (1.0 + f64::from(-v).exp());
        for r in 0..step.rows_in_use(io.spec(0)) {
            for i in 0..width {
                let gate = |which: usize| gates[(4 * r + which) * width + i];
                let kept = sigmoid(gate(1)) * f64::from(c[r * width + i]);
                let next = kept + sigmoid(gate(0)) * f64::from(gate(2)).tanh();
                io.out_f32s(0)[r * width + i] = (sigmoid(gate(3)) * next.tanh()) as f32;
                io.out_f32s(1)[r * width + i] = next as f32;
            }
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let (gates, h) = (inputs[0], outputs[0]);
        let params = LstmCellParams {
            counted_by: gates.counted_by as u32,
            rows: gates.shape[0] as u32,
            width: h.width() as u32,
        };
        let grid = Grid::x(Extent::rows(h, h.width(), 64));
        Kernel {
            source: shader!("elements/lstm_cell"),
            defines: vec![],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
