//! What a decoder is, as data. An architecture reads its configuration into a [`DecoderSpec`] and gives the [`Names`] of its
//! tensors; it needs no code of its own for the forward pass.

use crate::models::decoder::linear::BitLinearSpec;
use crate::ops::{Act, AttentionShape, Experts, RmsNorm};

/// A decoder whose head is the embedding table.
#[derive(Debug, Clone, PartialEq)]
pub struct DecoderSpec {
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Width of a token's vector.
    pub width: usize,
    /// Bound on the vectors of images, and of the text beside them ([`crate::ops::TOKEN_CLAMP`]); infinite for none.
    pub embed_bound: f32,
    /// The layers in order. They may differ.
    pub layers: Vec<LayerSpec>,
    /// The norm behind the last layer.
    pub norm: RmsNorm,
    /// How the matrices of all layers read their input.
    pub linear: BitLinearSpec,
}

/// A layer: `x += mixer(norm(x))`, then `x += ffn(norm(x))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LayerSpec {
    /// The norm in front of the mixer.
    pub mixer_norm: RmsNorm,
    /// How a row reads the rows before it.
    pub mixer: Mixer,
    /// The norm in front of the feed-forward part.
    pub ffn_norm: RmsNorm,
    /// What is done to each row alone.
    pub ffn: Ffn,
}

/// How a row reads the rows before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mixer {
    /// Attention with a cache of keys and values.
    Attention(AttentionSpec),
}

/// Attention with rotary positions.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionSpec {
    /// Query heads, key and value heads, and the width of one.
    pub heads: AttentionShape,
    /// Base of the rotary angles.
    pub theta: f64,
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ffn {
    /// One gated layer for all rows.
    Gated(GatedSpec),
    /// A mixture of gated experts.
    Moe(MoeSpec),
}

/// `down(act(gate(x)) · up(x))`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GatedSpec {
    /// Width between the matrices.
    pub d_ff: usize,
    /// The activation of the gate.
    pub act: Act,
}

/// A mixture of gated experts, each as a [`GatedSpec`] says.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct MoeSpec {
    /// How many there are to choose from, how many are chosen, and how many all rows share.
    pub experts: Experts,
    /// One of them.
    pub expert: GatedSpec,
    /// Bound on the sum of their outputs; infinite for none.
    pub bound: f32,
}

/// Names of a decoder's tensors, below its root. A BitLinear has the tensors `NAME.weight` and `NAME.norm.weight`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The embedding table.
    pub table: &'static str,
    /// The norm behind the last layer.
    pub norm: &'static str,
    /// The folder of the layers; each is in a folder named by its number, and what follows is in there.
    pub layers: &'static str,
    /// The norm in front of the mixer.
    pub mixer_norm: &'static str,
    /// The folder of the attention.
    pub attention: &'static str,
    /// Queries, keys and values, in the attention's folder.
    pub qkv: [&'static str; 3],
    /// The attention's output, in its folder.
    pub out: &'static str,
    /// The norm in front of the feed-forward part.
    pub ffn_norm: &'static str,
    /// The folder of the feed-forward part.
    pub ffn: &'static str,
    /// Gate and up, in the feed-forward part's folder or in an expert's.
    pub gate_up: [&'static str; 2],
    /// The output, in the same folder.
    pub down: &'static str,
    /// The folder of a mixture's router, with `weight` and `bias`, in the feed-forward part's.
    pub router: &'static str,
    /// The folder of the experts, which are in folders named by their numbers.
    pub experts: &'static str,
    /// The folder of a shared expert, if there is one.
    pub shared_expert: &'static str,
    /// The folder of the shared experts, if there are several, which are in folders named by their numbers.
    pub shared_experts: &'static str,
}
