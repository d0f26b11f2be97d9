//! BitGen's text decoder: ternary layers whose activations have one scale for a whole tensor.

use crate::models::decoder::linear::TernaryStack;
use crate::models::load::{Tensor, TensorScope};
use crate::models::slots;
use crate::models::vision::layers::NormWeights;
use crate::ops::{AttentionShape, Columns, ROW_WORDS, UnaryKind};
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::{CountedBy, DType, Spec};

/// Of all norms but DINOv2's.
const EPS: f32 = 1e-5;
/// Least largest magnitude of activations.
const ACT_FLOOR: f32 = 1e-8;

/// The rows of a step.
pub fn rows(p: &PlanBuilder, max: usize) -> Slot {
    p.input(slots::ROWS, Spec::counted(&[max, ROW_WORDS], DType::U32, CountedBy::Rows))
}

/// Tokens with their positions, `[rows, d]`.
pub fn embed(p: &PlanBuilder, rows: Slot, tokens: &[Tensor], positions: &Tensor) -> Slot {
    let table: Vec<Slot> = tokens.iter().map(|t| t.slot(p)).collect();
    let x = p.embed(rows, &table, None, f32::INFINITY);
    p.affine(x, None, None, Some(p.embed_positions(rows, positions.slot(p))))
}

/// Layer norm of x.
pub fn norm(p: &PlanBuilder, x: Slot, weights: &NormWeights) -> Slot {
    weights.layer_norm_eps(p, x, EPS)
}

/// BitNetLinears that read the same input, their outputs side by side. The rule for weights, `sign(W)` where
/// `|W| > 0.5 · max(mean |W|, 1e-5)`, gives the codes of [`crate::quant::WeightQuant::Absmean`].
#[derive(Debug)]
pub struct BitNet {
    weights: TernaryStack,
    bias: Tensor,
}

impl BitNet {
    /// Takes `NAME.weight` and `NAME.bias` of each name, `d_in` wide and `d_out` high.
    pub fn load(w: &TensorScope, names: &[&str], d_out: usize, d_in: usize) -> Self {
        let all = || names.iter().map(|name| w.at(name));
        let weights: Vec<Tensor> = all().map(|w| w.ternary("weight", [d_out, d_in])).collect();
        let biases: Vec<Tensor> = all().map(|w| w.vector("bias", d_out)).collect();
        BitNet {
            weights: TernaryStack::new(&weights, &vec![d_out; names.len()], w.max_binding()),
            bias: Tensor::stack(&biases, &[names.len() * d_out]),
        }
    }

    /// x `[rows, d_in]` → `[rows, n · d_out]`, plus a residual if given. All rows of x that the step uses share a scale.
    pub fn apply(&self, p: &PlanBuilder, x: Slot, residual: Option<Slot>) -> Slot {
        self.product(p, p.quantise(x, p.absmax(x), ACT_FLOOR), residual)
    }

    /// [`BitNet::apply`] of some rows of x, with the scale of all of them.
    pub fn apply_to(&self, p: &PlanBuilder, x: Slot, which: Slot) -> Slot {
        let top = p.absmax(x);
        self.product(p, p.quantise(p.select_rows(x, which), top, ACT_FLOOR), None)
    }

    fn product(&self, p: &PlanBuilder, codes: [Slot; 2], residual: Option<Slot>) -> Slot {
        let y = p.ternary_pieces(codes, &self.weights.pieces(p), residual);
        p.affine(y, None, Some(self.bias.slot(p)), None)
    }
}

/// Sizes of a decoder.
#[derive(Debug, Clone, Copy)]
pub struct DecoderSizes {
    /// Width of text.
    pub d: usize,
    /// Heads, side by side of any width.
    pub heads: AttentionShape,
    /// Layers.
    pub layers: usize,
    /// Width of a feed-forward part.
    pub d_ff: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
}

/// The decoder, without its embeddings.
#[derive(Debug)]
pub struct TextDecoder {
    layers: Vec<Layer>,
    norm: NormWeights,
    output: BitNet,
}

#[derive(Debug)]
struct Layer {
    ln1: NormWeights,
    qkv: BitNet,
    out: BitNet,
    context: BitNet,
    ln3: NormWeights,
    up: BitNet,
    down: BitNet,
    heads: AttentionShape,
}

impl TextDecoder {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, c: &DecoderSizes) -> Self {
        let d = c.d;
        TextDecoder {
            layers: (0..c.layers).map(|i| Layer::load(&w.at("decoder_layers").at(i), c)).collect(),
            norm: NormWeights::load(&w.at("layer_norm"), d),
            output: BitNet::load(w, &["output_projection"], c.vocab, d),
        }
    }

    /// y `[rows, d]` of the tokens so far, contexts `[rows, d]`, each row's sample's mean embedding → logits
    /// `[outputs, vocab]` of the rows that `outputs` names.
    pub fn record(&self, p: &PlanBuilder, mut y: Slot, contexts: Slot, rows: Slot, outputs: Slot) -> Slot {
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = p.scope(format!("decoder.{i}"));
            y = layer.record(p, y, contexts, rows, i);
        }
        let y = p.tag("decoder.final_ln.out", norm(p, y, &self.norm));
        self.output.apply_to(p, y, outputs)
    }
}

impl Layer {
    fn load(w: &TensorScope, c: &DecoderSizes) -> Self {
        let (d, inner, attention) = (c.d, c.heads.heads * c.heads.d, w.at("self_attn"));
        Layer {
            ln1: NormWeights::load(&w.at("ln1"), d),
            qkv: BitNet::load(&attention, &["q_proj", "k_proj", "v_proj"], inner, d),
            out: BitNet::load(&attention, &["out_proj"], d, inner),
            context: BitNet::load(w, &["encoder_proj"], d, d),
            ln3: NormWeights::load(&w.at("ln3"), d),
            up: BitNet::load(w, &["ffn.0"], c.d_ff, d),
            down: BitNet::load(w, &["ffn.3"], d, c.d_ff),
            heads: c.heads,
        }
    }

    fn record(&self, p: &PlanBuilder, y: Slot, contexts: Slot, rows: Slot, i: usize) -> Slot {
        let tag = |what: &str, slot| p.tag(format!("decoder.{i}.{what}"), slot);
        let inner = self.heads.heads * self.heads.d;
        tag("ln1.in", y);
        let h = tag("ln1.out", norm(p, y, &self.ln1));
        let qkv = self.qkv.apply(p, h, None); // [rows, 3·inner]
        let [q, k, v] = [0, 1, 2].map(|part| Columns { slot: qkv, at: part * inner });
        let a = p.row_attention(q, k, v, rows, self.heads);
        let y = self.out.apply(p, a, Some(y));
        // The original norms y here, and throws the result away: there is no attention over the encoder's rows.
        let y = self.context.apply(p, contexts, Some(y));
        let h = self.up.apply(p, norm(p, y, &self.ln3), None); // [rows, d_ff]
        let h = p.unary(h, UnaryKind::GeluErf);
        self.down.apply(p, h, Some(y))
    }
}
