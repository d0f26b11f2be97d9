//! Layers in full precision that several models share: a linear layer, a layer norm, and the layer of a transformer encoder.

use crate::models::load::{Tensor, TensorScope};
use crate::ops::{AttentionShape, Columns, UnaryKind};
use crate::plan::{PlanBuilder, Slot};

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

    /// PyTorch's `in_proj` of a `MultiheadAttention` of width d: queries, keys and values, `[3·d, d]`.
    pub fn in_proj(w: &TensorScope, d: usize) -> Self {
        Linear { weight: w.dense("in_proj_weight", &[3 * d, d]), bias: w.vector("in_proj_bias", 3 * d) }
    }

    /// `x · wᵀ + b (+ residual)`.
    pub fn apply(&self, p: &PlanBuilder, x: Slot, residual: Option<Slot>) -> Slot {
        p.matmul(x, self.weight.slot(p), Some(self.bias.slot(p)), residual)
    }
}

/// A layer norm with its weight and bias, `[d]` each. Source: Ba et al. 2016.
#[derive(Debug)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    /// Takes `weight` and `bias`.
    pub fn load(w: &TensorScope, d: usize, eps: f32) -> Self {
        LayerNorm { weight: w.vector("weight", d), bias: w.vector("bias", d), eps }
    }

    /// The norm of x.
    pub fn apply(&self, p: &PlanBuilder, x: Slot) -> Slot {
        p.layer_norm(x, self.weight.slot(p), self.bias.slot(p), self.eps)
    }
}

/// A layer of a transformer encoder: attention among rows, then a feed-forward part, each added to what it reads.
/// Source: Vaswani et al. 2017; Xiong et al. 2020 for the places of the norms.
#[derive(Debug)]
pub struct EncoderLayer {
    /// Heads of the attention.
    pub heads: AttentionShape,
    /// Queries, keys and values, side by side.
    pub qkv: Linear,
    /// The attention's output.
    pub out: Linear,
    /// The first and the second matrix of the feed-forward part, and what is between them.
    pub ff: [Linear; 2],
    pub activation: UnaryKind,
    /// The norms of the attention and of the feed-forward part.
    pub norms: [LayerNorm; 2],
    /// Whether the norms are in front (`x + f(norm(x))`) or behind (`norm(x + f(x))`).
    pub norm_first: bool,
    /// What the outputs of the two are multiplied by, element by element, before they are added (Touvron et al. 2021).
    pub scales: Option<[Tensor; 2]>,
}

impl EncoderLayer {
    /// x `[.., d]` → `[.., d]`. Each row attends to all rows of its image, or else to those that `rows` gives it.
    pub fn record(&self, p: &PlanBuilder, x: Slot, rows: Option<Slot>) -> Slot {
        let h = self.before(p, x, 0);
        let qkv = self.qkv.apply(p, h, None); // [.., 3·d]
        let [q, k, v] = [0, 1, 2].map(|part| Columns { slot: qkv, at: part * self.heads.heads * self.heads.d });
        let a = match rows {
            None => p.attention(q, k, v, self.heads),
            Some(rows) => p.row_attention(q, k, v, rows, self.heads),
        }; // [.., d]
        let x = self.add(p, x, &self.out, a, 0);
        let h = self.before(p, x, 1);
        let h = p.unary(self.ff[0].apply(p, h, None), self.activation); // [.., d_ff]
        self.add(p, x, &self.ff[1], h, 1)
    }

    /// What part `i` reads.
    fn before(&self, p: &PlanBuilder, x: Slot, i: usize) -> Slot {
        if self.norm_first { self.norms[i].apply(p, x) } else { x }
    }

    /// x with the output of part `i`, whose last matrix is `last`, added.
    fn add(&self, p: &PlanBuilder, x: Slot, last: &Linear, h: Slot, i: usize) -> Slot {
        let sum = match &self.scales {
            None => last.apply(p, h, Some(x)),
            Some(scales) => p.affine(last.apply(p, h, None), Some(scales[i].slot(p)), None, Some(x)),
        };
        if self.norm_first { sum } else { self.norms[i].apply(p, sum) }
    }
}
