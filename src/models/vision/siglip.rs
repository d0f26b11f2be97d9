//! SigLIP's vision transformer. Source: Zhai et al. 2023; Hugging Face `SiglipVisionModel` without its pooling head.

use crate::models::embernet::config::VisionConfig;
use crate::models::load::{Tensor, TensorScope};
use crate::ops::{AttentionShape, Columns, Pixels, UnaryKind, Window};
use crate::plan::{PlanBuilder, Slot};

const EPS: f32 = 1e-6;

/// Weight and bias.
#[derive(Debug)]
pub struct Affine {
    pub weight: Tensor,
    pub bias: Tensor,
}

impl Affine {
    /// A linear layer `[d_out, d_in]` with bias.
    pub fn linear(w: &TensorScope, d_out: usize, d_in: usize) -> Self {
        Affine { weight: w.dense("weight", &[d_out, d_in]), bias: w.vector("bias", d_out) }
    }

    /// Linear layers `[d_out, d_in]` of these names as one, their outputs side by side.
    pub fn side_by_side(w: &TensorScope, names: &[&str], d_out: usize, d_in: usize) -> Self {
        let (weights, biases): (Vec<Tensor>, Vec<Tensor>) =
            names.iter().map(|name| Self::linear(&w.at(name), d_out, d_in)).map(|one| (one.weight, one.bias)).unzip();
        let rows = names.len() * d_out;
        Affine { weight: Tensor::stack(&weights, &[rows, d_in]), bias: Tensor::stack(&biases, &[rows]) }
    }

    /// A layer norm's weight and bias.
    pub fn norm(w: &TensorScope, d: usize) -> Self {
        Affine { weight: w.vector("weight", d), bias: w.vector("bias", d) }
    }

    /// `x · wᵀ + b (+ residual)`.
    pub fn apply(&self, p: &PlanBuilder, x: Slot, residual: Option<Slot>) -> Slot {
        p.matmul(x, self.weight.slot(p), Some(self.bias.slot(p)), residual)
    }

    /// Layer norm of x.
    pub fn normalise(&self, p: &PlanBuilder, x: Slot) -> Slot {
        p.layer_norm(x, self.weight.slot(p), self.bias.slot(p), EPS)
    }
}

/// The encoder.
#[derive(Debug)]
pub struct SigLip {
    config: VisionConfig,
    patches: Affine,
    positions: Tensor,
    layers: Vec<Layer>,
    post_norm: Affine,
}

#[derive(Debug)]
struct Layer {
    norm1: Affine,
    qkv: Affine,
    out: Affine,
    norm2: Affine,
    fc1: Affine,
    fc2: Affine,
}

impl SigLip {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, config: VisionConfig) -> Self {
        let (d, patch) = (config.hidden_size, config.patch_size);
        let grid = config.image_size / patch;
        let embeddings = w.at("embeddings");
        let patches = embeddings.at("patch_embedding");
        SigLip {
            config,
            patches: Affine { weight: patches.dense("weight", &[d, 3, patch, patch]), bias: patches.vector("bias", d) },
            positions: embeddings.exact("position_embedding.weight", &[grid * grid, d]),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&w.at("encoder.layers").at(i), d, config.intermediate_size))
                .collect(),
            post_norm: Affine::norm(&w.at("post_layernorm"), d),
        }
    }

    /// Pixels `[3, s, s]` → `[g², d]`.
    pub fn record(&self, p: &PlanBuilder, pixels: Slot) -> Slot {
        let d = self.config.hidden_size;
        let heads = self.config.num_attention_heads;
        let patch = self.config.patch_size;
        let patches = p.patches(pixels, Pixels::Planes, Window::tiles(patch), 0, 3 * patch * patch); // [g², 3·patch²]
        let x = self.patches.apply(p, patches, Some(self.positions.slot(p))); // [g², d]
        let mut x = p.tag("siglip.embeddings", x);
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = p.scope(format!("siglip.{i}"));
            x = p.tag(format!("siglip.layer.{i}.out"), layer.record(p, x, d, heads));
        }
        p.tag("siglip.last_hidden_state", self.post_norm.normalise(p, x))
    }
}

impl Layer {
    fn load(w: &TensorScope, d: usize, d_ff: usize) -> Self {
        let attention = w.at("self_attn");
        Layer {
            norm1: Affine::norm(&w.at("layer_norm1"), d),
            qkv: Affine::side_by_side(&attention, &["q_proj", "k_proj", "v_proj"], d, d),
            out: Affine::linear(&attention.at("out_proj"), d, d),
            norm2: Affine::norm(&w.at("layer_norm2"), d),
            fc1: Affine::linear(&w.at("mlp.fc1"), d_ff, d),
            fc2: Affine::linear(&w.at("mlp.fc2"), d, d_ff),
        }
    }

    fn record(&self, p: &PlanBuilder, x: Slot, d: usize, heads: usize) -> Slot {
        let h = self.norm1.normalise(p, x);
        let qkv = self.qkv.apply(p, h, None); // [g², 3·d]
        let columns = |at| Columns { slot: qkv, at };
        let shape = AttentionShape { heads, kv_heads: heads, d: d / heads };
        let a = p.attention(columns(0), columns(d), columns(2 * d), shape); // [g², d]
        let x = self.out.apply(p, a, Some(x));
        let h = self.norm2.normalise(p, x);
        let h = self.fc1.apply(p, h, None); // [g², d_ff]
        let h = p.unary(h, UnaryKind::GeluTanh);
        self.fc2.apply(p, h, Some(x))
    }
}
