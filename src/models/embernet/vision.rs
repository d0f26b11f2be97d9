//! EmberNet's way from SigLIP's patches to image tokens: compressor, pooler, projector.

use crate::models::ImageTrace;
use crate::models::decoder::bit_linear::{BitLinearSpec, BitLinearStack};
use crate::models::embernet::config::{EmberNetConfig, SIGLIP};
use crate::models::embernet::spec;
use crate::models::layers::Linear;
use crate::models::load::{Tensor, TensorScope};
use crate::models::vision::siglip::SigLip;
use crate::ops::{AttentionShape, Columns, RmsNorm, UnaryKind};
use crate::plan::{Plan, PlanBuilder, Slot};

/// Tokens of a compressed block's side.
const FACTOR: usize = 2;
/// Heads of the pooler and the projector.
const HEADS: usize = 8;
/// Cross attentions of the projector.
const CROSS: usize = 2;
/// The pooler's attention in a trace.
const POOLER: &str = "pooler";
/// Factor of image tokens before they are merged with text.
const IMAGE_SCALE: f32 = 0.1;
const NORM: RmsNorm = spec::norm(1e-5);

/// The projector's cross attention `i` in tags and in a trace.
fn cross(i: usize) -> String {
    format!("projector.cross_attn.{i}")
}

/// The whole image side.
#[derive(Debug)]
pub struct Vision {
    siglip: SigLip,
    compressor: Compressor,
    pooler: Pooler,
    projector: Projector,
}

impl Vision {
    /// Takes the tensors below `vision_encoder`.
    pub fn load(root: &TensorScope, c: &EmberNetConfig) -> Self {
        let w = root.at("vision_encoder");
        let (dv, d, n) = (c.vision.hidden_size, c.hidden_size, c.num_image_tokens);
        Vision {
            siglip: SigLip::load(&root.at(SIGLIP), c.vision),
            compressor: Compressor::load(&w.at("compressor"), dv, dv),
            pooler: Pooler::load(&w.at("pooler"), n, dv),
            projector: Projector::load(&w.at("projector"), n, dv, d, spec::linear(c)),
        }
    }

    /// How a traced plan's image tokens come from the `grid × grid` patches: both cross attentions read the pooled
    /// tokens, and the pooler reads the compressor's blocks.
    pub fn trace(plan: Plan, grid: usize) -> ImageTrace {
        let stages = vec![(0..CROSS).map(cross).collect(), vec![POOLER.to_owned()]];
        ImageTrace { plan, stages, grid, block: FACTOR }
    }

    /// Pixels `[3, s, s]` → image tokens `[n, d]`.
    pub fn record(&self, p: &PlanBuilder, pixels: Slot) -> Slot {
        let x = self.siglip.record(p, pixels);
        let x = self.compressor.record(p, x);
        let x = self.pooler.record(p, x);
        let x = p.tag("image_embeds.raw", self.projector.record(p, x));
        p.tag("image_embeds.scaled", p.unary(x, UnaryKind::Scale(IMAGE_SCALE)))
    }
}

/// Four neighbouring patches become one token.
#[derive(Debug)]
struct Compressor {
    pre_norm: Tensor,
    proj: Linear,
    post_norm: Tensor,
}

impl Compressor {
    fn load(w: &TensorScope, dv: usize, d: usize) -> Self {
        let wide = FACTOR * FACTOR * dv;
        Compressor {
            pre_norm: w.vector("pre_norm.weight", wide),
            proj: Linear::load(&w.at("proj"), d, wide),
            post_norm: w.vector("post_norm.weight", d),
        }
    }

    fn record(&self, p: &PlanBuilder, x: Slot) -> Slot {
        let x = p.pixel_shuffle(x, FACTOR); // [t², 4·d]
        let x = p.tag("compressor.pre_norm", p.rms_norm(x, self.pre_norm.slot(p), NORM));
        let x = self.proj.apply(p, x, None); // [t², d]
        p.tag("compressor.out", p.rms_norm(x, self.post_norm.slot(p), NORM))
    }
}

/// Multi-head attention of learned or projected queries over other tokens.
#[derive(Debug)]
struct CrossAttention {
    q: Linear,
    kv: Linear,
    out: Linear,
    d: usize,
}

impl CrossAttention {
    /// PyTorch's `MultiheadAttention`: q, k and v stacked in `in_proj`.
    fn load(w: &TensorScope, d: usize) -> Self {
        let Linear { weight, bias } = Linear::in_proj(w, d);
        let part = |rows: std::ops::Range<usize>| Linear { weight: weight.rows(rows.clone()), bias: bias.rows(rows) };
        CrossAttention { q: part(0..d), kv: part(d..3 * d), out: Linear::load(&w.at("out_proj"), d, d), d }
    }

    /// `x + attention(x, tokens, tokens)`, x `[n, d]`, tokens `[m, d]`. Traced as `name`: its weights `[n, m]`.
    fn record_add(&self, p: &PlanBuilder, x: Slot, tokens: Slot, name: &str) -> Slot {
        let q = self.q.apply(p, x, None);
        let kv = self.kv.apply(p, tokens, None); // [m, 2·d]
        let shape = AttentionShape { heads: HEADS, kv_heads: HEADS, d: self.d / HEADS };
        let columns = |slot, at| Columns { slot, at };
        p.trace(name, |p| p.attention_weights(columns(q, 0), columns(kv, 0), shape));
        let a = p.attention(columns(q, 0), columns(kv, 0), columns(kv, self.d), shape);
        self.out.apply(p, a, Some(x))
    }
}

/// Learned queries gather the tokens into a fixed number.
#[derive(Debug)]
struct Pooler {
    queries: Tensor,
    attention: CrossAttention,
    norm: Tensor,
}

/// A learned table stored as `[1, n, d]`.
fn learned(w: &TensorScope, name: &str, n: usize, d: usize) -> Tensor {
    let mut tensor = w.exact(name, &[1, n, d]);
    tensor.shape = vec![n, d];
    tensor
}

impl Pooler {
    fn load(w: &TensorScope, n: usize, d: usize) -> Self {
        Pooler {
            queries: learned(w, "queries", n, d),
            attention: CrossAttention::load(&w.at("attn"), d),
            norm: w.vector("norm.weight", d),
        }
    }

    fn record(&self, p: &PlanBuilder, tokens: Slot) -> Slot {
        let x = self.attention.record_add(p, self.queries.slot(p), tokens, POOLER);
        p.tag("pooler.out", p.rms_norm(x, self.norm.slot(p), NORM)) // [n, d]
    }
}

/// Into the decoder's space: two cross attentions over the projected tokens, then a ternary feed-forward part.
#[derive(Debug)]
struct Projector {
    vision_proj: BitLinearStack,
    query_tokens: Tensor,
    layers: Vec<CrossAttention>,
    ln_q: Tensor,
    up: BitLinearStack,
    down: BitLinearStack,
    ln_ff: Tensor,
}

impl Projector {
    fn load(w: &TensorScope, n: usize, dv: usize, d: usize, linear: BitLinearSpec) -> Self {
        let wide = 4 * d;
        Projector {
            vision_proj: BitLinearStack::load(w, &["vision_proj"], &[d], dv, linear),
            query_tokens: learned(w, "query_tokens", n, d),
            layers: (0..CROSS).map(|i| CrossAttention::load(&w.at("cross_attn_layers").at(i), d)).collect(),
            ln_q: w.vector("ln_q.weight", d),
            up: BitLinearStack::load(w, &["ffn.0"], &[wide], d, linear),
            down: BitLinearStack::load(w, &["ffn.2"], &[d], wide, linear),
            ln_ff: w.vector("ln_ff.weight", d),
        }
    }

    fn record(&self, p: &PlanBuilder, pooled: Slot) -> Slot {
        let v = p.tag("projector.vision_proj", self.vision_proj.record(p, pooled, None, None)); // [n, d]
        let mut q = self.query_tokens.slot(p);
        for (i, layer) in self.layers.iter().enumerate() {
            let name = cross(i);
            p.tag(format!("{name}.in"), q);
            let sum = p.tag(format!("{name}.sum"), layer.record_add(p, q, v, &name));
            q = p.rms_norm(sum, self.ln_q.slot(p), NORM);
        }
        let q = p.tag("projector.q", q);
        let f = self.up.record(p, q, None, None); // [n, 4·d]
        let f = p.unary(f, UnaryKind::GeluErf);
        let sum = p.tag("projector.sum", self.down.record(p, f, None, Some(q)));
        p.rms_norm(sum, self.ln_ff.slot(p), NORM)
    }
}
