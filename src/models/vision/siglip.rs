//! SigLIP's vision transformer. Source: Zhai et al. 2023; Hugging Face `SiglipVisionModel` without its pooling head.

use crate::models::layers::{EncoderLayer, LayerNorm, Linear};
use crate::models::load::{Tensor, TensorScope};
use crate::ops::{AttentionShape, Pixels, UnaryKind, Window};
use crate::plan::{PlanBuilder, Slot};

/// Epsilon of all norms.
const EPS: f32 = 1e-6;

/// Sizes of a SigLIP encoder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SigLipConfig {
    /// Width of a patch's vector.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Pixels per side.
    pub image_size: usize,
    /// Pixels per side of a patch.
    pub patch_size: usize,
}

/// The encoder.
#[derive(Debug)]
pub struct SigLip {
    config: SigLipConfig,
    patches: Linear,
    positions: Tensor,
    layers: Vec<EncoderLayer>,
    post_norm: LayerNorm,
}

impl SigLip {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, config: SigLipConfig) -> Self {
        let (d, patch) = (config.hidden_size, config.patch_size);
        let grid = config.image_size / patch;
        let embeddings = w.at("embeddings");
        let patches = embeddings.at("patch_embedding");
        SigLip {
            config,
            patches: Linear { weight: patches.dense("weight", &[d, 3, patch, patch]), bias: patches.vector("bias", d) },
            positions: embeddings.exact("position_embedding.weight", &[grid * grid, d]),
            layers: (0..config.num_hidden_layers).map(|i| layer(&w.at("encoder.layers").at(i), config)).collect(),
            post_norm: LayerNorm::load(&w.at("post_layernorm"), d, EPS),
        }
    }

    /// Pixels `[3, s, s]` → `[g², d]`.
    pub fn record(&self, p: &PlanBuilder, pixels: Slot) -> Slot {
        let patch = self.config.patch_size;
        let patches = p.patches(pixels, Pixels::Planes, Window::tiles(patch), 0, 3 * patch * patch); // [g², 3·patch²]
        let x = self.patches.apply(p, patches, Some(self.positions.slot(p))); // [g², d]
        let mut x = p.tag("siglip.embeddings", x);
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = p.scope(format!("siglip.{i}"));
            x = p.tag(format!("siglip.layer.{i}.out"), layer.record(p, x, None));
        }
        p.tag("siglip.last_hidden_state", self.post_norm.apply(p, x))
    }
}

/// A layer, its norms in front.
fn layer(w: &TensorScope, c: SigLipConfig) -> EncoderLayer {
    let (d, d_ff, heads, attention) = (c.hidden_size, c.intermediate_size, c.num_attention_heads, w.at("self_attn"));
    EncoderLayer {
        heads: AttentionShape { heads, kv_heads: heads, d: d / heads },
        qkv: Linear::side_by_side(&attention, &["q_proj", "k_proj", "v_proj"], d, d),
        out: Linear::load(&attention.at("out_proj"), d, d),
        ff: [Linear::load(&w.at("mlp.fc1"), d_ff, d), Linear::load(&w.at("mlp.fc2"), d, d_ff)],
        activation: UnaryKind::GeluTanh,
        norms: ["layer_norm1", "layer_norm2"].map(|name| LayerNorm::load(&w.at(name), d, EPS)),
        norm_first: true,
        scales: None,
    }
}
