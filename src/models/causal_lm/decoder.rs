//! The decoder of a causal language model as data, and the names of its tensors.

use crate::error::{Error, Result};
use crate::files::Weights;
use crate::models::causal_lm::Rules;
use crate::models::causal_lm::config::CausalLmConfig;
use crate::models::decoder::bit_linear::BitLinearSpec;
use crate::models::decoder::linear::LinearSpec;
use crate::models::decoder::spec::{AttentionSpec, DecoderSpec, Ffn, GatedSpec, HeadSpec, LayerSpec, Mixer, Names};
use crate::models::decoder::stored_linear::StoredSpec;
use crate::models::load::{Activations, LoadOptions};
use crate::ops::{Act, ActQuant, AttentionShape, CodeScale, RmsNorm, Rotation};

/// Names of the tensors, as in Hugging Face's checkpoints.
pub const NAMES: Names = Names {
    table: "model.embed_tokens.weight",
    head: "lm_head",
    norm: "model.norm.weight",
    layers: "model.layers",
    mixer_norm: "input_layernorm.weight",
    attention: "self_attn",
    qkv: ["q_proj", "k_proj", "v_proj"],
    fused_qkv: "qkv_proj",
    qk_norms: ["q_norm.weight", "k_norm.weight"],
    out: "o_proj",
    out_norm: "attn_sub_norm.weight",
    ffn_norm: "post_attention_layernorm.weight",
    ffn: "mlp",
    gate_up: ["gate_proj", "up_proj"],
    down: "down_proj",
    down_norm: "ffn_sub_norm.weight",
    router: "gate",
    experts: "experts",
    shared_expert: "shared_expert",
    shared_experts: "shared_experts",
};

/// The tensor of GGUF files whose numbers divide the frequencies of the rotary positions.
pub const ROPE_FREQS: &str = "rope_freqs.weight";
/// The rule of 8-bit activations. Source: the code of transformers' `BitLinear`.
const ACT_QUANT: ActQuant = ActQuant { max_code: 127.0, bound: f32::INFINITY, floor: 1e-5 };

/// The rotation of queries and keys.
///
/// # Errors
/// [`Error::Shape`] and [`Error::Format`] for divisors of the frequencies that are not one positive number a pair.
pub fn rotation(config: &CausalLmConfig, weights: &Weights) -> Result<Rotation> {
    let Some(shape) = weights.shape(ROPE_FREQS) else { return Ok(config.rope.rotation(None)) };
    let (pairs, object) = (config.rope.dims / 2, || format!("{}: tensor {ROPE_FREQS}", weights.path().display()));
    if shape != [pairs] {
        return Err(Error::shape(object(), format!("[{pairs}]"), format!("{shape:?}")));
    }
    let divisors = weights.checkpoint().read_f32(ROPE_FREQS, 0..pairs)?;
    match divisors.iter().find(|d| !(d.is_finite() && **d > 0.0)) {
        Some(d) => Err(Error::format(object(), format!("{d}, expected positive numbers"))),
        None => Ok(config.rope.rotation(Some(&divisors))),
    }
}

/// The decoder.
///
/// # Errors
/// [`Error::Argument`] for options that do not apply to it.
pub fn spec(
    config: &CausalLmConfig,
    rules: Rules,
    act: Act,
    rotation: Rotation,
    options: LoadOptions,
) -> Result<DecoderSpec> {
    let norm = RmsNorm::new(config.norm_eps);
    let heads = AttentionShape { heads: config.num_heads, kv_heads: config.num_kv_heads, d: config.head_dim };
    let sub_norm = rules.sub_norms.then_some(norm);
    let attention = AttentionSpec { heads, rotation, qk_norm: rules.qk_norm.then_some(norm), sub_norm };
    let gated = GatedSpec { d_ff: config.intermediate_size, act };
    let layer = LayerSpec {
        mixer_norm: norm,
        mixer: Mixer::Attention(attention),
        ffn_norm: norm,
        ffn: Ffn::Gated { gated, sub_norm },
    };
    let floats = options.activations == Activations::Floats;
    let codes = |scale| (!floats).then_some((ACT_QUANT, scale));
    let quantisation = &config.quantisation;
    let row = rules.row_activations || quantisation.row_activations;
    let scale = if row { CodeScale::Row } else { CodeScale::Group };
    let head = StoredSpec { quantisation: quantisation.head, act: codes(CodeScale::Group) };
    let linear = match quantisation.own_norms {
        Some(_) if floats => {
            let problem = "are 8-bit integers by the definition of this model; leave the option out";
            return Err(Error::argument("activations", problem));
        }
        Some(eps) => {
            let norm = RmsNorm::new(eps);
            LinearSpec::BitLinear(BitLinearSpec { norm, quant: ACT_QUANT, norm_name: "rms_norm.weight" })
        }
        None => LinearSpec::Stored(StoredSpec { quantisation: quantisation.layers, act: codes(scale) }),
    };
    Ok(DecoderSpec {
        vocab: config.vocab_size,
        width: config.hidden_size,
        embed_bound: f32::INFINITY,
        layers: vec![layer; config.num_layers],
        norm,
        linear,
        head: HeadSpec::Stored { spec: head, tied: config.tied_head },
    })
}
