//! SigLIP's vision transformer. Source: Zhai et al. 2023; Hugging Face `SiglipVisionModel` without its pooling head.

use crate::models::embernet::config::VisionConfig;
use crate::models::load::{Tensor, TensorScope};
use crate::models::vision::layers::{Linear, NormWeights};
use crate::ops::{AttentionShape, Columns, Pixels, UnaryKind, Window};
use crate::plan::{PlanBuilder, Slot};

/// The encoder.
#[derive(Debug)]
pub struct SigLip {
    config: VisionConfig,
    patches: Linear,
    positions: Tensor,
    layers: Vec<Layer>,
    post_norm: NormWeights,
}

#[derive(Debug)]
struct Layer {
    norm1: NormWeights,
    qkv: Linear,
    out: Linear,
    norm2: NormWeights,
    fc1: Linear,
    fc2: Linear,
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
            patches: Linear { weight: patches.dense("weight", &[d, 3, patch, patch]), bias: patches.vector("bias", d) },
            positions: embeddings.exact("position_embedding.weight", &[grid * grid, d]),
            layers: (0..config.num_hidden_layers)
                .map(|i| Layer::load(&w.at("encoder.layers").at(i), d, config.intermediate_size))
                .collect(),
            post_norm: NormWeights::load(&w.at("post_layernorm"), d),
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
        p.tag("siglip.last_hidden_state", self.post_norm.layer_norm(p, x))
    }
}

impl Layer {
    fn load(w: &TensorScope, d: usize, d_ff: usize) -> Self {
        let attention = w.at("self_attn");
        Layer {
            norm1: NormWeights::load(&w.at("layer_norm1"), d),
            qkv: Linear::side_by_side(&attention, &["q_proj", "k_proj", "v_proj"], d, d),
            out: Linear::load(&attention.at("out_proj"), d, d),
            norm2: NormWeights::load(&w.at("layer_norm2"), d),
            fc1: Linear::load(&w.at("mlp.fc1"), d_ff, d),
            fc2: Linear::load(&w.at("mlp.fc2"), d, d_ff),
        }
    }

    fn record(&self, p: &PlanBuilder, x: Slot, d: usize, heads: usize) -> Slot {
        let h = self.norm1.layer_norm(p, x);
        let qkv = self.qkv.apply(p, h, None); // [g², 3·d]
        let columns = |at| Columns { slot: qkv, at };
        let shape = AttentionShape { heads, kv_heads: heads, d: d / heads };
        let a = p.attention(columns(0), columns(d), columns(2 * d), shape); // [g², d]
        let x = self.out.apply(p, a, Some(x));
        let h = self.norm2.layer_norm(p, x);
        let h = self.fc1.apply(p, h, None); // [g², d_ff]
        let h = p.unary(h, UnaryKind::GeluTanh);
        self.fc2.apply(p, h, Some(x))
    }
}
