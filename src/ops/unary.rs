//! Functions of single elements: GELU in both forms, ReLU, tanh, and scaling.

use crate::bounds::at_least;
use crate::error::Result;
use crate::ops::{require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// Which function.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum UnaryKind {
    /// `x/2 · (1 + erf(x/√2))`. Source: Hendrycks & Gimpel 2016.
    GeluErf,
    /// `x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`, its approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `tanh(x)`.
    Tanh,
    /// `x · factor`.
    Scale(f32),
}

/// `y = f(x)` element by element, F32. Error: ≤ 1e-6 absolute on |x| ≤ 10.
#[derive(Debug)]
struct Unary(UnaryKind);

params!(UnaryParams { counted_by: u32, rows: u32, per_row: u32, factor: f32 });

impl PlanBuilder {
    /// A function of every element.
    #[track_caller]
    pub fn unary(&self, x: Slot, kind: UnaryKind) -> Slot {
        self.push(Unary(kind), &[x])
    }
}

impl UnaryKind {
    fn apply(self, x: f32) -> f32 {
        let v = f64::from(x);
        match self {
            UnaryKind::GeluErf => (0.5 * v * (1.0 + libm::erf(v * std::f64::consts::FRAC_1_SQRT_2))) as f32,
            UnaryKind::GeluTanh => {
                // sqrt(2/π), the constant of the approximation.
                let inner = 0.797_884_560_802_865_4 * (v + 0.044715 * v * v * v);
                (0.5 * v * (1.0 + inner.tanh())) as f32
            }
            UnaryKind::Relu => at_least(x, 0.0),
            UnaryKind::Tanh => v.tanh() as f32,
            UnaryKind::Scale(factor) => x * factor,
        }
    }
}

impl Op for Unary {
    fn name(&self) -> &'static str {
        "unary"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        require("x", inputs[0], inputs[0].dtype == DType::F32, "F32")?;
        Ok(vec![inputs[0].clone()])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, n) = (io.f32s(0), step.rows_of(io.spec(0)) * io.spec(0).width());
        io.out_f32s(0).iter_mut().zip(x).take(n).for_each(|(y, &x)| *y = self.0.apply(x));
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        const CHUNK: usize = 4096;
        let (x, n, threads) = (io.f32s(0), step.rows_of(io.spec(0)) * io.spec(0).width(), io.threads);
        let y = simd::Shared::new(io.out_f32s(0));
        threads.chunks(n, CHUNK, |range| {
            // SAFETY: the chunks do not overlap.
            let y = unsafe { y.slice(range.start, range.len()) };
            match self.0 {
                UnaryKind::GeluErf => simd::gelu_erf(&x[range], y),
                UnaryKind::GeluTanh => simd::gelu_tanh(&x[range], y),
                kind => y.iter_mut().zip(&x[range]).for_each(|(y, &x)| *y = kind.apply(x)),
            }
        });
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Kernel {
        let x = inputs[0];
        let (define, factor) = match self.0 {
            UnaryKind::GeluErf => ("GELU_ERF", 0.0),
            UnaryKind::GeluTanh => ("GELU_TANH", 0.0),
            UnaryKind::Relu => ("RELU", 0.0),
            UnaryKind::Tanh => ("TANH", 0.0),
            UnaryKind::Scale(factor) => ("SCALE", factor),
        };
        let per_row = (x.vectors_per_row() * x.width()) as u32;
        let params = UnaryParams { counted_by: x.counted_by as u32, rows: x.shape[0] as u32, per_row, factor };
        let grid = Grid::x(Extent::rows(x, x.width(), 64));
        Kernel {
            source: shader!("elements/unary"),
            defines: vec![define],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
