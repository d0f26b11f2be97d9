//! The dense product with f32, f16 or 8-bit weights.

use std::ops::Range;

use crate::error::Result;
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y[r, col0 + o] = Σ_i x[r, i] · w[o, i] + bias[o] + residual[r, o]`.
///
/// x `[.., d_in]` F32, w `[d_out, d_in]` F32, F16 or Int8, bias `[d_out]` F32, residual like y F32
/// → y `[.., width]` F32, of which columns `col0..col0 + d_out` are written: a weight above the binding limit is cut
/// into several ops. Integers of an Int8 row are added up as they are, and the row's scale multiplies the sum. Error: ≤ 1e-5
/// of the largest product sum; only the order of the sum differs.
#[derive(Debug)]
pub(super) struct MatMul {
    pub(super) bias: bool,
    pub(super) residual: bool,
    pub(super) col0: usize,
    pub(super) width: usize,
}

params!(MatMulParams { lead: u32, rows: u32, per_lead: u32, d_in: u32, d_out: u32, col0: u32, width: u32 });

/// Rows up to which a workgroup works on dot products; beyond, each thread keeps several rows of outputs.
const MATVEC_ROWS: usize = 4;
/// Outputs of a lane of the matvec kernel (its `OUTS`).
const MATVEC_OUTS: usize = 4;
/// Outputs and rows of a workgroup of the kernel whose lanes pass words on (its `WORKERS` times 4, its `ROWS`).
const LANE_BLOCK: [usize; 2] = [128, 8];
/// Outputs and rows of a workgroup of the kernel with workgroup memory (its `OUTS` and `ROWS`).
const TILE_BLOCK: [usize; 2] = [64, 32];

impl PlanBuilder {
    /// `x · wᵀ (+ bias) (+ residual)`.
    #[track_caller]
    pub fn matmul(&self, x: Slot, w: Slot, bias: Option<Slot>, residual: Option<Slot>) -> Slot {
        let width = self.spec(w).shape[0];
        let op = MatMul { bias: bias.is_some(), residual: residual.is_some(), col0: 0, width };
        let inputs: Vec<Slot> = [x, w].into_iter().chain(bias).chain(residual).collect();
        self.push(op, &inputs)
    }

    /// `x · wᵀ` for a weight that is cut into several by rows, side by side.
    #[track_caller]
    pub fn matmul_sharded(&self, x: Slot, shards: &[Slot]) -> Slot {
        let d_out = |s: Slot| self.spec(s).shape[0];
        let width = shards.iter().map(|&s| d_out(s)).sum();
        let op = |col0| MatMul { bias: false, residual: false, col0, width };
        let y = self.push(op(0), &[x, shards[0]]);
        let mut col0 = d_out(shards[0]);
        for &shard in &shards[1..] {
            self.push_into(op(col0), &[x, shard], &[y]);
            col0 += d_out(shard);
        }
        y
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, w) = (inputs[0], inputs[1]);
        require("x", x, x.dtype == DType::F32, "F32")?;
        let d_out = w.shape[0];
        expect("weight", w, &[d_out, x.width()], &[DType::F32, DType::F16, DType::Int8])?;
        require("weight", w, self.col0 + d_out <= self.width, "rows that fit the output")?;
        let y = x.with_last(self.width, DType::F32);
        let mut rest = inputs[2..].iter();
        if self.bias {
            expect("bias", rest.next().unwrap_or(&x), &[d_out], &[DType::F32])?;
        }
        if self.residual {
            expect("residual", rest.next().unwrap_or(&x), &y.shape, &[DType::F32])?;
        }
        Ok(vec![y])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (d, x, w, ends) = (self.sizes(step, io), io.f32s(0), io.floats(1), self.ends(io));
        for (r, y) in io.out_f32s(0).chunks_exact_mut(d.y_width).enumerate().take(d.rows) {
            let y = &mut y[d.col0..][..d.d_out];
            for (o, y) in y.iter_mut().enumerate() {
                let product = |i| f64::from(x[r * d.d_in + i]) * f64::from(w.get(o * d.d_in + i));
                *y = (0..d.d_in).map(product).sum::<f64>() as f32;
            }
            ends.add(r, 0..d.d_out, y);
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (d, x, w, ends) = (self.sizes(step, io), io.f32s(0), io.floats(1), self.ends(io));
        let threads = io.threads;
        simd::dense(d, threads, x, w, io.out_f32s(0), |r, outs, y| ends.add(r, outs, y));
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let (x, w) = (inputs[0], inputs[1]);
        let params = MatMulParams {
            lead: x.lead as u32,
            rows: x.shape[0] as u32,
            per_lead: x.rows_per_lead() as u32,
            d_in: x.width() as u32,
            d_out: w.shape[0] as u32,
            col0: self.col0 as u32,
            width: self.width as u32,
        };
        // The other kernels read four columns at a time.
        let whole = x.width().is_multiple_of(4);
        let flags = [
            (self.bias, "BIAS"),
            (self.residual, "RESIDUAL"),
            (w.dtype == DType::F16, "F16"),
            (w.dtype == DType::Int8, "INT8"),
            (!whole, "ANY"),
        ];
        let mut defines: Vec<_> = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        let outs = |per| Extent::Fixed(w.shape[0].div_ceil(per));
        let rows = |per| Extent::rows(x, 1, per);
        let lanes = caps.shuffles && x.width().is_multiple_of(8);
        if x.rows() <= MATVEC_ROWS && whole && !lanes {
            if w.dtype != DType::F32 && x.width().is_multiple_of(8) {
                defines.push("WIDE");
            }
            let [width, groups] = caps.tuning.dense;
            let overrides = vec![("LANES", width as f64), ("GROUPS", groups as f64)];
            let grid = Grid::x(outs(groups * MATVEC_OUTS));
            return Kernel { source: shader!("matvec"), defines, overrides, params: params.params(), grid };
        }
        let (source, grid) = if lanes {
            (shader!("matmul_lanes"), Grid::xy(rows(LANE_BLOCK[1]), outs(LANE_BLOCK[0])))
        } else {
            (shader!("matmul"), Grid::xy(outs(TILE_BLOCK[0]), rows(TILE_BLOCK[1])))
        };
        Kernel { source, defines, overrides: vec![], params: params.params(), grid }
    }
}

impl MatMul {
    fn sizes(&self, step: &Step, io: &Io) -> simd::Dense {
        simd::Dense {
            rows: step.rows_of(io.spec(0)),
            d_out: io.spec(1).shape[0],
            d_in: io.spec(0).width(),
            col0: self.col0,
            y_width: self.width,
        }
    }

    fn ends<'a>(&self, io: &Io<'a>) -> Ends<'a> {
        Ends {
            scales: (io.spec(1).dtype == DType::Int8).then(|| io.int8(1).1),
            bias: self.bias.then(|| io.f32s(2)),
            residual: self.residual.then(|| io.f32s(2 + usize::from(self.bias))),
            col0: self.col0,
            width: self.width,
        }
    }
}

/// What follows a sum of products: the scales of 8-bit weights, bias and residual.
struct Ends<'a> {
    scales: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    col0: usize,
    width: usize,
}

impl Ends<'_> {
    /// Adds them to the outputs `outs` of row `r`.
    fn add(&self, r: usize, outs: Range<usize>, y: &mut [f32]) {
        let add = |y: &mut [f32], more: &[f32]| y.iter_mut().zip(more).for_each(|(y, v)| *y += v);
        if let Some(scales) = self.scales {
            y.iter_mut().zip(&scales[outs.clone()]).for_each(|(y, scale)| *y *= scale);
        }
        if let Some(bias) = self.bias {
            add(y, &bias[outs.clone()]);
        }
        if let Some(residual) = self.residual {
            add(y, &residual[r * self.width + self.col0 + outs.start..][..outs.len()]);
        }
    }
}
