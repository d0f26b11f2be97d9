//! What a decoder is, as data. An architecture reads its configuration into a [`DecoderSpec`] and gives the [`Names`] of its
//! tensors; it needs no code of its own for the forward pass.

use crate::models::decoder::bit_linear::BitLinearSpec;
use crate::models::decoder::linear::LinearSpec;
use crate::models::decoder::stored_linear::StoredSpec;
use crate::ops::{Act, AttentionShape, Experts, RmsNorm, Rotation};

/// A decoder.
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
    /// The matrices of all layers, but those of experts.
    pub linear: LinearSpec,
    /// The embedding table and the matrix that gives the logits.
    pub head: HeadSpec,
}

/// The embedding table and the matrix that gives the logits.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum HeadSpec {
    /// The table in full precision; it gives the logits, maybe in fewer bits.
    Dense,
    /// The table as the file holds it, and a matrix of its own, or the same one.
    Stored {
        /// How both are quantised, and what the head reads if it holds codes.
        spec: StoredSpec,
        /// Whether the table gives the logits.
        tied: bool,
    },
}

/// A layer: `x += mixer(norm(x))`, then `x += ffn(norm(x))`.
#[derive(Debug, Clone, PartialEq)]
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
#[derive(Debug, Clone, PartialEq)]
pub enum Mixer {
    /// Attention with a cache of keys and values.
    Attention(AttentionSpec),
}

/// Attention with rotary positions.
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionSpec {
    /// Query heads, key and value heads, and the width of one.
    pub heads: AttentionShape,
    /// The rotary positions.
    pub rotation: Rotation,
    /// The norm of each query's and key's head, in front of the rotation, if there is one.
    pub qk_norm: Option<RmsNorm>,
    /// The norm of all heads' results, in front of the output's matrix, if there is one.
    pub sub_norm: Option<RmsNorm>,
}

/// The feed-forward part of a layer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Ffn {
    /// One gated layer for all rows.
    Gated {
        /// Its matrices.
        gated: GatedSpec,
        /// The norm in front of the last of them, if there is one.
        sub_norm: Option<RmsNorm>,
    },
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
    /// Their matrices.
    pub linear: BitLinearSpec,
    /// Bound on the sum of their outputs; infinite for none.
    pub bound: f32,
}

/// Names of a decoder's tensors, below its root. A matrix is the tensor `NAME.weight`, a norm is named whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    /// The embedding table, named whole.
    pub table: &'static str,
    /// The matrix that gives the logits, where it is not the table.
    pub head: &'static str,
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
    /// Queries, keys and values in one matrix, in their place where a file has it.
    pub fused_qkv: &'static str,
    /// The norms of queries' and of keys' heads, in the attention's folder.
    pub qk_norms: [&'static str; 2],
    /// The attention's output, in its folder.
    pub out: &'static str,
    /// The norm in front of it, in the same folder.
    pub out_norm: &'static str,
    /// The norm in front of the feed-forward part.
    pub ffn_norm: &'static str,
    /// The folder of the feed-forward part.
    pub ffn: &'static str,
    /// Gate and up, in the feed-forward part's folder or in an expert's.
    pub gate_up: [&'static str; 2],
    /// The output, in the same folder.
    pub down: &'static str,
    /// The norm in front of it, in the same folder.
    pub down_norm: &'static str,
    /// The folder of a mixture's router, with `weight` and `bias`, in the feed-forward part's.
    pub router: &'static str,
    /// The folder of the experts, which are in folders named by their numbers.
    pub experts: &'static str,
    /// The folder of a shared expert, if there is one.
    pub shared_expert: &'static str,
    /// The folder of the shared experts, if there are several, which are in folders named by their numbers.
    pub shared_experts: &'static str,
}
