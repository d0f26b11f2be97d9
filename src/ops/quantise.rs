//! From floats to 8-bit activation codes with one scale for a whole tensor.

use crate::bounds::at_least;
use crate::error::Result;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec, code_words};

/// `a = max(absmax, floor) / 127`, code `clamp(round(x / a), −128, 127)`, ties to even.
///
/// x `[rows, d]` F32, absmax `[1]` F32 (of these rows or of more) → codes `[rows, 1, d]`, scale_and_sum
/// `[rows, 1, 2]` F32: a and the sum of the codes. Error: a code may differ by 1 from `cpu` where rounding is on an edge.
#[derive(Debug)]
struct Quantise {
    floor: f32,
}

/// Largest code.
const MAX_CODE: f32 = 127.0;

params!(QuantiseParams { width: u32, max_code: f32, floor: f32 });

impl PlanBuilder {
    /// `[codes, scale_and_sum]` of x, whose largest magnitude, or that of a larger tensor, is `absmax`. See
    /// [`PlanBuilder::ternary_matmul`], which reads them.
    #[track_caller]
    pub fn quantise(&self, x: Slot, absmax: Slot, floor: f32) -> [Slot; 2] {
        self.push_all(Quantise { floor }, &[x, absmax])
    }
}

impl Op for Quantise {
    fn name(&self) -> &'static str {
        "quantise"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        require("x", x, x.dtype == DType::F32 && x.shape.len() == 2, "[rows, d] F32")?;
        expect("absmax", inputs[1], &[1], &[DType::F32])?;
        let rows = x.shape[0];
        Ok(vec![
            Spec::counted(&[rows, 1, x.width()], DType::Codes, x.counted_by),
            Spec::counted(&[rows, 1, 2], DType::F32, x.counted_by),
        ])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, absmax, width, rows) = (io.f32s(0), io.f32s(1)[0], io.spec(0).width(), step.rows_in_use(io.spec(0)));
        let (a, stride) = (at_least(absmax, self.floor) / MAX_CODE, 4 * code_words(width));
        for (r, x) in x.chunks_exact(width).enumerate().take(rows) {
            let codes = &mut io.out_codes(0)[r * stride..][..stride];
            codes.fill(0);
            for (code, v) in codes.iter_mut().zip(x) {
                *code = (v / a).round_ties_even().clamp(-MAX_CODE - 1.0, MAX_CODE) as i8;
            }
            let sum: i32 = codes.iter().map(|&c| i32::from(c)).sum();
            io.out_f32s(1)[2 * r..][..2].copy_from_slice(&[a, sum as f32]);
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let params = QuantiseParams { width: x.width() as u32, max_code: MAX_CODE, floor: self.floor };
        let grid = Grid::x(Extent::rows(x, 1, 1));
        Kernel {
            source: shader!("quantise/quantise"),
            defines: vec![],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
