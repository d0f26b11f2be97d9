//! DINOv2's vision transformer. Source: Oquab et al. 2023; Hugging Face `Dinov2Model`.

use crate::models::layers::{EncoderLayer, LayerNorm, Linear};
use crate::models::load::{ComputedTensor, Tensor, TensorScope};
use crate::ops::{AttentionShape, Pixels, UnaryKind, Window};
use crate::plan::{PlanBuilder, Slot};

/// Epsilon of all norms.
const EPS: f32 = 1e-6;
/// Mean and deviation of ImageNet's colours, by which images are normalised.
pub const IMAGENET_MEAN: [f32; 3] = [0.485, 0.456, 0.406];
pub const IMAGENET_STD: [f32; 3] = [0.229, 0.224, 0.225];

/// Sizes of a DINOv2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DinoConfig {
    /// Width of a token.
    pub d: usize,
    /// Width of a feed-forward part.
    pub d_ff: usize,
    /// Heads of an attention.
    pub heads: usize,
    /// Layers.
    pub layers: usize,
    /// Pixels per side of a patch.
    pub patch: usize,
    /// Positions per side of the learned grid.
    pub grid: usize,
}

/// The encoder, for images of one size.
#[derive(Debug)]
pub struct DinoV2 {
    config: DinoConfig,
    patches: Tensor,
    /// What is added to the patches' products `[1 + g², d]`: in row 0 the class token with its position, in each other row
    /// the projection's bias with the position interpolated from the learned grid.
    table: ComputedTensor,
    layers: Vec<EncoderLayer>,
    norm: LayerNorm,
}

impl DinoV2 {
    /// Takes the tensors below `w`, for pictures of `size` pixels per side.
    pub fn load(w: &TensorScope, config: DinoConfig, size: usize) -> Self {
        let DinoConfig { d, patch, grid, .. } = config;
        let embeddings = w.at("embeddings");
        let projection = embeddings.at("patch_embeddings.projection");
        let (class, bias) = (embeddings.values("cls_token", &[1, 1, d]), projection.values("bias", &[d]));
        let learned = embeddings.values("position_embeddings", &[1, grid * grid + 1, d]);
        let mut table: Vec<f32> = class.iter().zip(&learned).map(|(c, p)| c + p).collect();
        for position in bicubic(&learned[d..], grid, size / patch, d).chunks_exact(d) {
            table.extend(position.iter().zip(&bias).map(|(p, b)| p + b));
        }
        DinoV2 {
            config,
            patches: projection.dense("weight", &[d, 3, patch, patch]),
            table: ComputedTensor::new("dinov2.positions", &[table.len() / d, d], table),
            layers: (0..config.layers).map(|i| layer(&w.at("encoder.layer").at(i), config)).collect(),
            norm: LayerNorm::load(&w.at("layernorm"), d, EPS),
        }
    }

    /// Pixels `[n, 3, s, s]` → `[n, 1 + g², d]`, the class token first.
    pub fn record(&self, p: &PlanBuilder, pixels: Slot) -> Slot {
        let table = self.table.for_rows(p, p.spec(pixels).shape[0]);
        let patch = self.config.patch;
        let patches = p.patches(pixels, Pixels::Planes, Window::tiles(patch), 1, 3 * patch * patch); // [n, 1 + g², 3·patch²]
        let x = p.matmul(patches, self.patches.slot(p), None, Some(table)); // [n, 1 + g², d]
        let mut x = p.tag("dinov2.embeddings", x);
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = p.scope(format!("dinov2.{i}"));
            x = p.tag(format!("dinov2.layer.{i}.out"), layer.record(p, x, None));
        }
        p.tag("dinov2.last_hidden_state", self.norm.apply(p, x))
    }
}

/// A layer, its norms in front, its two parts scaled before they are added.
fn layer(w: &TensorScope, DinoConfig { d, d_ff, heads, .. }: DinoConfig) -> EncoderLayer {
    EncoderLayer {
        heads: AttentionShape { heads, kv_heads: heads, d: d / heads },
        qkv: Linear::side_by_side(&w.at("attention.attention"), &["query", "key", "value"], d, d),
        out: Linear::load(&w.at("attention.output.dense"), d, d),
        ff: [Linear::load(&w.at("mlp.fc1"), d_ff, d), Linear::load(&w.at("mlp.fc2"), d, d_ff)],
        activation: UnaryKind::GeluErf,
        norms: ["norm1", "norm2"].map(|name| LayerNorm::load(&w.at(name), d, EPS)),
        norm_first: true,
        scales: Some(["layer_scale1.lambda1", "layer_scale2.lambda1"].map(|name| w.vector(name, d))),
    }
}

/// `[from², d]` → `[to², d]`: each axis by the cubic convolution with a = −0.75 around `(o + 0.5) · from / to − 0.5`, rows
/// and columns outside taken from the border, as PyTorch's `interpolate(mode="bicubic", align_corners=False)` does.
/// Source: Keys 1981.
fn bicubic(x: &[f32], from: usize, to: usize, d: usize) -> Vec<f32> {
    let taps: Vec<[(usize, f64); 4]> = (0..to).map(|o| cubic_taps(o, from, to)).collect();
    let mut y = Vec::with_capacity(to * to * d);
    for row in &taps {
        for column in &taps {
            for i in 0..d {
                let value = |r: usize, c: usize| f64::from(x[(r * from + c) * d + i]);
                let along = |r: usize| -> f64 { column.iter().map(|&(c, w)| w * value(r, c)).sum() };
                y.push(row.iter().map(|&(r, w)| w * along(r)).sum::<f64>() as f32);
            }
        }
    }
    y
}

/// Places and weights of the four elements that make element `o`.
fn cubic_taps(o: usize, from: usize, to: usize) -> [(usize, f64); 4] {
    const A: f64 = -0.75;
    let at = (o as f64 + 0.5) * from as f64 / to as f64 - 0.5;
    let t = at - at.floor();
    let near = |x: f64| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f64| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let weights = [far(t + 1.0), near(t), near(1.0 - t), far(2.0 - t)];
    let place = |i: usize| (at.floor() + i as f64 - 1.0).clamp(0.0, from as f64 - 1.0) as usize;
    std::array::from_fn(|i| (place(i), weights[i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_of_the_same_size_stays_and_a_constant_one_stays_constant() {
        let x: Vec<f32> = (0..18).map(|v| v as f32).collect();
        assert_eq!(bicubic(&x, 3, 3, 2), x);
        assert!(bicubic(&[2.5; 9], 3, 7, 1).iter().all(|v| (v - 2.5).abs() < 1e-6));
    }
}
