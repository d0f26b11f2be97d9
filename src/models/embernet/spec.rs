//! EmberNet's decoder as data: its bounds, its rules, and the names of its tensors. Source: the model's code.

use crate::models::decoder::bit_linear::BitLinearSpec;
use crate::models::decoder::linear::LinearSpec;
use crate::models::decoder::spec::{
    AttentionSpec, DecoderSpec, Ffn, GatedSpec, HeadSpec, LayerSpec, Mixer, MoeSpec, Names,
};
use crate::models::embernet::config::EmberNetConfig;
use crate::ops::{Act, ActQuant, AttentionShape, Experts, GateClamp, NormClamp, RmsNorm, Rotation};

/// Bounds of every norm.
const NORM_CLAMP: NormClamp = NormClamp { input: 100.0, output: 10.0 };
/// The activation of an expert.
const ACT: Act = Act::SiLu { clamp: Some(GateClamp { gate: 20.0, product: 1000.0 }) };
/// Bound on the output of a mixture.
const MOE_BOUND: f32 = 1e4;
/// Bound on embeddings of text and images that meet.
const MERGE_BOUND: f32 = 10.0;
/// Base of the rotary angles.
const THETA: f64 = 10000.0;

/// Names of the decoder's tensors.
pub const NAMES: Names = Names {
    table: "embed_tokens.weight",
    head: "lm_head",
    norm: "norm.weight",
    layers: "layers",
    mixer_norm: "input_layernorm.weight",
    attention: "attention",
    qkv: ["q_proj", "k_proj", "v_proj"],
    fused_qkv: "qkv_proj",
    qk_norms: ["q_norm.weight", "k_norm.weight"],
    out: "o_proj",
    out_norm: "out_norm.weight",
    ffn_norm: "post_attention_layernorm.weight",
    ffn: "moe",
    gate_up: ["gate_proj", "up_proj"],
    down: "down_proj",
    down_norm: "down_norm.weight",
    router: "router",
    experts: "experts",
    shared_expert: "shared_expert",
    shared_experts: "shared_experts",
};

/// A norm with EmberNet's bounds.
pub const fn norm(eps: f32) -> RmsNorm {
    RmsNorm { eps, clamp: Some(NORM_CLAMP) }
}

/// How every ternary matrix reads its input: its own norm, clamp to ±50, floor 1e-4, 8 or 4 bits.
pub fn linear(c: &EmberNetConfig) -> BitLinearSpec {
    let max_code = if c.activation_bits == 4 { 7.0 } else { 127.0 };
    BitLinearSpec { norm: norm(1e-5), quant: ActQuant { max_code, bound: 50.0, floor: 1e-4 }, norm_name: "norm.weight" }
}

/// The decoder.
pub fn decoder(c: &EmberNetConfig) -> DecoderSpec {
    let d = c.hidden_size / c.num_attention_heads;
    let heads = AttentionShape { heads: c.num_attention_heads, kv_heads: c.num_kv_heads, d };
    let experts = Experts { k: c.num_experts_per_tok, n: c.num_experts, shared: c.num_shared_experts };
    let expert = GatedSpec { d_ff: c.intermediate_size, act: ACT };
    let linear = linear(c);
    let attention = AttentionSpec { heads, rotation: Rotation::plain(THETA, d), qk_norm: None, sub_norm: None };
    let layer = LayerSpec {
        mixer_norm: norm(1e-6),
        mixer: Mixer::Attention(attention),
        ffn_norm: norm(1e-6),
        ffn: Ffn::Moe(MoeSpec { experts, expert, linear, bound: MOE_BOUND }),
    };
    DecoderSpec {
        vocab: c.vocab_size,
        width: c.hidden_size,
        embed_bound: MERGE_BOUND,
        layers: vec![layer; c.num_layers],
        norm: norm(1e-6),
        linear: LinearSpec::BitLinear(linear),
        head: HeadSpec::Dense,
    }
}
