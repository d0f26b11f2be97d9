//! The ternary layers of both BitGens, whose activations have one scale for a whole tensor: BitNetLinears, and the text
//! decoder with its embeddings.

use crate::error::Result;
use crate::models::decoder::bit_linear::TernaryStack;
use crate::models::layers::LayerNorm;
use crate::models::load::{Tensor, TensorScope};
use crate::models::slots;
use crate::ops::{AttentionShape, Columns, ROW_WORDS, UnaryKind};
use crate::plan::{Plan, PlanBuilder, Slot};
use crate::tensor::{CountedBy, DType, Spec};

/// Epsilon of all norms but DINOv2's.
pub const EPS: f32 = 1e-5;
/// Minimum of the largest magnitude of activations, by which they are divided.
const ACT_FLOOR: f32 = 1e-8;

/// Input `[max_rows, d]` of a decoder plan: the mean embedding of each row's sample.
pub const CONTEXT: &str = "context";

/// The rows of a step.
pub fn rows(p: &PlanBuilder, max: usize) -> Slot {
    p.input(slots::ROWS, Spec::counted(&[max, ROW_WORDS], DType::U32, CountedBy::Rows))
}

/// The embeddings of tokens and of positions.
#[derive(Debug)]
pub struct Embedding {
    tokens: Vec<Tensor>,
    positions: Tensor,
}

impl Embedding {
    /// Takes the tables, from the root of the tree.
    pub fn load(w: &TensorScope, vocab: usize, positions: usize, d: usize) -> Self {
        Embedding {
            tokens: w.sharded("token_embedding.weight", [vocab, d]),
            positions: w.dense("pos_embedding.weight", &[positions, d]),
        }
    }

    /// Tokens with their positions, `[rows, d]`.
    pub fn record(&self, p: &PlanBuilder, rows: Slot) -> Slot {
        let table: Vec<Slot> = self.tokens.iter().map(|t| t.slot(p)).collect();
        let x = p.embed(rows, &table, None, f32::INFINITY);
        p.affine(x, None, None, Some(p.embed_positions(rows, self.positions.slot(p))))
    }
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
        let max = p.absmax(x);
        self.product(p, p.quantise(p.select_rows(x, which), max, ACT_FLOOR), None)
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
    norm: LayerNorm,
    output: BitNet,
    d: usize,
}

#[derive(Debug)]
struct Layer {
    ln1: LayerNorm,
    qkv: BitNet,
    out: BitNet,
    context: BitNet,
    ln3: LayerNorm,
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
            norm: LayerNorm::load(&w.at("layer_norm"), d, EPS),
            output: BitNet::load(w, &["output_projection"], c.vocab, d),
            d,
        }
    }

    /// Records a step over all tokens so far. The activations have one scale over all rows, so that logits depend on which
    /// rows there are.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    pub fn plan(&self, embedding: &Embedding, max_rows: usize, max_outputs: usize) -> Result<Plan> {
        let p = PlanBuilder::new();
        let rows = rows(&p, max_rows);
        let outputs = p.input(slots::OUTPUTS, Spec::counted(&[max_outputs, 1], DType::U32, CountedBy::Outputs));
        let contexts = p.input(CONTEXT, Spec::counted(&[max_rows, self.d], DType::F32, CountedBy::Rows));
        let logits = self.record(&p, embedding.record(&p, rows), contexts, rows, outputs); // [outputs, vocab]
        p.output(slots::LOGITS, p.tag("decoder_logits", logits));
        p.finish()
    }

    /// y `[rows, d]` of the tokens so far, contexts `[rows, d]`, each row's sample's mean embedding → logits
    /// `[outputs, vocab]` of the rows that `outputs` names.
    fn record(&self, p: &PlanBuilder, mut y: Slot, contexts: Slot, rows: Slot, outputs: Slot) -> Slot {
        for (i, layer) in self.layers.iter().enumerate() {
            let _scope = p.scope(format!("decoder.{i}"));
            y = layer.record(p, y, contexts, rows, i);
        }
        let y = p.tag("decoder.final_ln.out", self.norm.apply(p, y));
        self.output.apply_to(p, y, outputs)
    }
}

impl Layer {
    fn load(w: &TensorScope, c: &DecoderSizes) -> Self {
        let (d, inner, attention) = (c.d, c.heads.heads * c.heads.d, w.at("self_attn"));
        Layer {
            ln1: LayerNorm::load(&w.at("ln1"), d, EPS),
            qkv: BitNet::load(&attention, &["q_proj", "k_proj", "v_proj"], inner, d),
            out: BitNet::load(&attention, &["out_proj"], d, inner),
            context: BitNet::load(w, &["encoder_proj"], d, d),
            ln3: LayerNorm::load(&w.at("ln3"), d, EPS),
            up: BitNet::load(w, &["ffn.0"], c.d_ff, d),
            down: BitNet::load(w, &["ffn.3"], d, c.d_ff),
            heads: c.heads,
        }
    }

    fn record(&self, p: &PlanBuilder, y: Slot, contexts: Slot, rows: Slot, i: usize) -> Slot {
        let tag = |what: &str, slot| p.tag(format!("decoder.{i}.{what}"), slot);
        let inner = self.heads.heads * self.heads.d;
        tag("ln1.in", y);
        let h = tag("ln1.out", self.ln1.apply(p, y));
        let qkv = self.qkv.apply(p, h, None); // [rows, 3·inner]
        let [q, k, v] = [0, 1, 2].map(|part| Columns { slot: qkv, at: part * inner });
        let a = p.row_attention(q, k, v, rows, self.heads);
        let y = self.out.apply(p, a, Some(y));
        // The original norms y here, and throws the result away: there is no attention over the encoder's rows.
        let y = self.context.apply(p, contexts, Some(y));
        let h = self.up.apply(p, self.ln3.apply(p, y), None); // [rows, d_ff]
        let h = p.unary(h, UnaryKind::GeluErf);
        self.down.apply(p, h, Some(y))
    }
}
