//! A multiply-add of columns, and a residual: biases, layer scales, sums.

use crate::error::Result;
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y[r, i] = x[r, i] · scale[i] + bias[i] + residual[r, i]`, each of the three where it is given.
///
/// x `[.., d]`, scale `[d]`, bias `[d]`, residual like x, all F32 → y like x. A layer scale (Touvron et al. 2021) is a
/// scale with a residual. Error: ≤ 1e-6 relative against `cpu`, where a multiply-add is one operation.
#[derive(Debug)]
struct Affine(Terms);

/// What is there beside x.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Terms {
    scale: bool,
    bias: bool,
    residual: bool,
}

params!(AffineParams { counted_by: u32, rows: u32, per_row: u32, width: u32 });

impl PlanBuilder {
    /// `x · scale + bias + residual`, scale and bias by columns.
    #[track_caller]
    pub fn affine(&self, x: Slot, scale: Option<Slot>, bias: Option<Slot>, residual: Option<Slot>) -> Slot {
        let terms = Terms { scale: scale.is_some(), bias: bias.is_some(), residual: residual.is_some() };
        let inputs: Vec<Slot> = [Some(x), scale, bias, residual].into_iter().flatten().collect();
        self.push(Affine(terms), &inputs)
    }
}

impl Terms {
    /// Scale, bias and residual among the inputs behind x.
    fn of<'a>(self, io: &Io<'a>) -> [Option<&'a [f32]>; 3] {
        let mut rest = 1..io.inputs.len();
        [self.scale, self.bias, self.residual].map(|there| if there { rest.next().map(|i| io.f32s(i)) } else { None })
    }
}

impl Op for Affine {
    fn name(&self) -> &'static str {
        "affine"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let Terms { scale, bias, residual } = self.0;
        let x = inputs[0];
        require("x", x, x.dtype == DType::F32, "F32")?;
        let mut rest = inputs[1..].iter();
        for (what, _) in [("scale", scale), ("bias", bias)].into_iter().filter(|(_, there)| *there) {
            expect(what, rest.next().unwrap_or(&x), &[x.width()], &[DType::F32])?;
        }
        if residual {
            expect("residual", rest.next().unwrap_or(&x), &x.shape, &[DType::F32])?;
        }
        Ok(vec![x.clone()])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, width, rows) = (io.f32s(0), io.spec(0).width(), step.rows_of(io.spec(0)));
        let [scale, bias, residual] = self.0.of(io);
        for (at, y) in io.out_f32s(0).iter_mut().enumerate().take(rows * width) {
            let term = |of: Option<&[f32]>, at: usize, none: f32| of.map_or(none, |v| v[at]);
            *y = x[at] * term(scale, at % width, 1.0) + term(bias, at % width, 0.0) + term(residual, at, 0.0);
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (x, width, rows, threads) = (io.f32s(0), io.spec(0).width(), step.rows_of(io.spec(0)), io.threads);
        let [scale, bias, residual] = self.0.of(io);
        let y = simd::Shared::new(io.out_f32s(0));
        threads.chunks(rows, simd::rows_a_task(width), |range| {
            for at in range.map(|r| r * width) {
                // SAFETY: each row belongs to one task.
                let y = unsafe { y.slice(at, width) };
                y.copy_from_slice(&x[at..][..width]);
                if let Some(scale) = scale {
                    y.iter_mut().zip(scale).for_each(|(y, v)| *y *= v);
                }
                if let Some(bias) = bias {
                    y.iter_mut().zip(bias).for_each(|(y, v)| *y += v);
                }
                if let Some(residual) = residual {
                    y.iter_mut().zip(&residual[at..]).for_each(|(y, v)| *y += v);
                }
            }
        });
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let (x, Terms { scale, bias, residual }) = (inputs[0], self.0);
        let flags = [(scale, "SCALE"), (bias, "BIAS"), (residual, "RESIDUAL")];
        let params = AffineParams {
            counted_by: x.counted_by as u32,
            rows: x.shape[0] as u32,
            per_row: (x.vectors_per_row() * x.width()) as u32,
            width: x.width() as u32,
        };
        Kernel {
            source: shader!("elements/affine"),
            defines: flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect(),
            overrides: vec![],
            params: params.params(),
            grid: Grid::x(Extent::rows(x, x.width(), 64)),
        }
    }
}
