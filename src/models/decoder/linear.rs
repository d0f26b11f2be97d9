//! The matrices of a decoder, in the forms that there are, and the norms in front of them.

use crate::models::decoder::bit_linear::{BitLinearSpec, BitLinearStack};
use crate::models::decoder::stored_linear::{StoredSpec, StoredStack};
use crate::models::load::{Tensor, TensorScope};
use crate::ops::{Act, RmsNorm};
use crate::plan::{PlanBuilder, Slot};

/// A root-mean-square norm with its weight.
#[derive(Debug)]
pub struct Norm {
    rule: RmsNorm,
    weight: Tensor,
}

impl Norm {
    /// Takes the tensor `name`.
    pub fn load(w: &TensorScope, name: &str, d: usize, rule: RmsNorm) -> Self {
        Norm { rule, weight: w.vector(name, d) }
    }

    /// The norm of x.
    pub fn record(&self, p: &PlanBuilder, x: Slot) -> Slot {
        p.rms_norm(x, self.weight.slot(p), self.rule)
    }

    /// Its weight.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What an op with a norm in front reads.
    pub fn input(&self, p: &PlanBuilder) -> (RmsNorm, Slot) {
        (self.rule, self.weight.slot(p))
    }
}

/// What the matrices of a decoder are.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum LinearSpec {
    /// Ternary, each with a norm of its own.
    BitLinear(BitLinearSpec),
    /// As the file holds them: codes with scales by group, or floats.
    Stored(StoredSpec),
}

/// Matrices that read the same input, their outputs side by side.
#[derive(Debug)]
pub enum LinearStack {
    /// Ternary, each with a norm of its own.
    BitLinear(BitLinearStack),
    /// As the file holds them.
    Stored(StoredStack),
}

impl LinearStack {
    /// Takes the matrix of each name, `[d_out, d_in]` with the `outs` in turn.
    pub fn load(w: &TensorScope, names: &[&str], outs: &[usize], d_in: usize, spec: LinearSpec) -> Self {
        match spec {
            LinearSpec::BitLinear(spec) => LinearStack::BitLinear(BitLinearStack::load(w, names, outs, d_in, spec)),
            LinearSpec::Stored(spec) => LinearStack::Stored(StoredStack::load(w, names, outs, d_in, spec)),
        }
    }

    /// x `[rows, d_in]` → `[rows, Σ d_out]`, behind a norm and plus a residual if given.
    pub fn record(&self, p: &PlanBuilder, x: Slot, norm: Option<&Norm>, residual: Option<Slot>) -> Slot {
        match self {
            LinearStack::BitLinear(stack) => stack.record(p, x, norm, residual),
            LinearStack::Stored(stack) => stack.record(p, x, None, norm, residual),
        }
    }

    /// The same of `act(gate) · up`, of gate and up side by side, `[rows, 2·d_in]`.
    pub fn record_gated(
        &self,
        p: &PlanBuilder,
        gate_up: Slot,
        act: Act,
        norm: Option<&Norm>,
        residual: Option<Slot>,
    ) -> Slot {
        match self {
            LinearStack::BitLinear(stack) => stack.record(p, p.swiglu(gate_up, act), norm, residual),
            LinearStack::Stored(stack) => stack.record(p, gate_up, Some(act), norm, residual),
        }
    }
}
