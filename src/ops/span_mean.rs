//! Means over consecutive rows.

use crate::error::Result;
use crate::ops::{expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y[s] = Σ_{r < count} x[first + r] / count`; x `[.., d]` F32, rows counted through, spans `[m, 2]` U32 (first, count ≥ 1) → y `[m, d]` F32.
#[derive(Debug)]
struct SpanMean;

params!(SpanMeanParams { counted_by: u32, spans: u32, width: u32 });

impl PlanBuilder {
    /// The mean of each span's rows of x.
    #[track_caller]
    pub fn span_mean(&self, x: Slot, spans: Slot) -> Slot {
        self.push(SpanMean, &[x, spans])
    }
}

impl Op for SpanMean {
    fn name(&self) -> &'static str {
        "span_mean"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, spans) = (inputs[0], inputs[1]);
        require("x", x, x.dtype == DType::F32 && x.shape.len() >= 2, "[.., d] F32")?;
        expect("spans", spans, &[spans.shape[0], 2], &[DType::U32])?;
        Ok(vec![spans.with_last(x.width(), DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, spans, width) = (io.f32s(0), io.u32s(1), io.spec(0).width());
        let n = step.rows_in_use(io.spec(1));
        for (s, y) in io.out_f32s(0).chunks_exact_mut(width).enumerate().take(n) {
            let (first, count) = (spans[2 * s] as usize, spans[2 * s + 1]);
            for (i, y) in y.iter_mut().enumerate() {
                let sum: f64 = (0..count as usize).map(|r| f64::from(x[(first + r) * width + i])).sum();
                *y = (sum / f64::from(count)) as f32;
            }
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let (spans, width) = (inputs[1], inputs[0].width());
        let params =
            SpanMeanParams { counted_by: spans.counted_by as u32, spans: spans.shape[0] as u32, width: width as u32 };
        let grid = Grid::x(Extent::rows(outputs[0], width, 64));
        Kernel { source: shader!("rows/span_mean"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
