//! Layers in full precision that image encoders and BitGens share.

use crate::models::load::{Tensor, TensorScope};
use crate::plan::{PlanBuilder, Slot};

/// Epsilon of the image encoders' norms.
const EPS: f32 = 1e-6;

/// A linear layer with a bias.
#[derive(Debug)]
pub struct Linear {
    /// `[d_out, d_in]`.
    pub weight: Tensor,
    /// `[d_out]`.
    pub bias: Tensor,
}

impl Linear {
    /// Takes `weight` `[d_out, d_in]` and `bias`.
    pub fn load(w: &TensorScope, d_out: usize, d_in: usize) -> Self {
        Linear { weight: w.dense("weight", &[d_out, d_in]), bias: w.vector("bias", d_out) }
    }

    /// Linear layers `[d_out, d_in]` of these names as one, their outputs side by side.
    pub fn side_by_side(w: &TensorScope, names: &[&str], d_out: usize, d_in: usize) -> Self {
        let (weights, biases): (Vec<Tensor>, Vec<Tensor>) =
            names.iter().map(|name| Self::load(&w.at(name), d_out, d_in)).map(|one| (one.weight, one.bias)).unzip();
        let rows = names.len() * d_out;
        Linear { weight: Tensor::stack(&weights, &[rows, d_in]), bias: Tensor::stack(&biases, &[rows]) }
    }

    /// `x · wᵀ + b (+ residual)`.
    pub fn apply(&self, p: &PlanBuilder, x: Slot, residual: Option<Slot>) -> Slot {
        p.matmul(x, self.weight.slot(p), Some(self.bias.slot(p)), residual)
    }
}

/// The weight and the bias of a layer norm, `[d]` each.
#[derive(Debug)]
pub struct NormWeights {
    weight: Tensor,
    bias: Tensor,
}

impl NormWeights {
    /// Takes `weight` and `bias`.
    pub fn load(w: &TensorScope, d: usize) -> Self {
        NormWeights { weight: w.vector("weight", d), bias: w.vector("bias", d) }
    }

    /// Layer norm of x, as image encoders have it.
    pub fn layer_norm(&self, p: &PlanBuilder, x: Slot) -> Slot {
        self.layer_norm_eps(p, x, EPS)
    }

    /// Layer norm of x.
    pub fn layer_norm_eps(&self, p: &PlanBuilder, x: Slot, eps: f32) -> Slot {
        p.layer_norm(x, self.weight.slot(p), self.bias.slot(p), eps)
    }
}
