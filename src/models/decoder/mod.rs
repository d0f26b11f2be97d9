//! EmberNet's decoder: rows in, logits out.

pub(crate) mod moe;
pub(crate) mod ternary_stack;

use crate::models::decoder::moe::{BitLinearStack, CLAMP, Moe, Quant};
use crate::models::embernet::config::EmberNetConfig;
use crate::models::load::{Tensor, TensorScope};
use crate::models::{TextShape, slots};
use crate::ops::{AttentionShape, DRAW_WORDS, ROW_WORDS, RmsNorm, Rope, Sampled, seen_words};
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::{DType, Lead, Spec};

/// Base of the rotary angles.
const THETA: f64 = 10000.0;
/// Bound on embeddings of text and images that meet.
const MERGE_BOUND: f32 = 10.0;
const NORM: RmsNorm = RmsNorm { eps: 1e-6, clamp: Some(CLAMP) };

/// The decoder; its head is the embedding table, maybe in fewer bits.
#[derive(Debug)]
pub struct Decoder {
    table: Vec<Tensor>,
    head: Vec<Tensor>,
    layers: Vec<Layer>,
    norm: Tensor,
    width: usize,
}

#[derive(Debug)]
struct Layer {
    name: String,
    number: usize,
    input_norm: Tensor,
    qkv: BitLinearStack,
    out: BitLinearStack,
    post_norm: Tensor,
    moe: Moe,
    heads: AttentionShape,
    experts_per_token: usize,
    quant: Quant,
}

impl Decoder {
    /// Takes the tensors below `decoder`.
    pub fn load(w: &TensorScope, c: &EmberNetConfig) -> Self {
        let (table, vocab) = ("embed_tokens.weight", [c.vocab_size, c.hidden_size]);
        Decoder {
            table: w.sharded(table, vocab),
            head: w.head(table, vocab),
            layers: (0..c.num_layers).map(|i| Layer::load(&w.at("layers").at(i), i, c)).collect(),
            norm: w.vector("norm.weight", c.hidden_size),
            width: c.hidden_size,
        }
    }

    /// One step: embeds the input rows, runs all layers, and gives logits of the rows that `outputs` names.
    pub fn record(&self, p: &PlanBuilder, shape: &TextShape) {
        let rows = p.input(slots::ROWS, Spec::led(&[shape.max_rows, ROW_WORDS], DType::U32, Lead::Rows));
        let outputs = p.input(slots::OUTPUTS, Spec::led(&[shape.max_outputs, 1], DType::U32, Lead::Outputs));
        let image_spec = Spec::led(&[shape.max_rows, self.width], DType::F32, Lead::Rows);
        let image = shape.images.then(|| p.input(slots::IMAGE_ROWS, image_spec));
        let table: Vec<Slot> = self.table.iter().map(|t| t.slot(p)).collect();
        let x = p.embed(rows, &table, image, MERGE_BOUND); // [rows, d]
        let mut x = p.tag("merged_embeds", x);
        for layer in &self.layers {
            x = layer.record(p, x, rows, shape);
        }
        let x = p.select_rows(x, outputs); // [outputs, d]
        let x = p.tag("final_norm.out", p.rms_norm(x, self.norm.slot(p), NORM));
        let head: Vec<Slot> = self.head.iter().map(|t| t.slot(p)).collect();
        let logits = p.matmul_sharded(x, &head); // [outputs, vocab]
        p.output(slots::LOGITS, logits);
        p.tag(slots::LOGITS, logits);
        self.sample(p, logits, outputs, rows, shape);
    }

    /// Chooses each output's next token, and makes its row read it in the next step.
    fn sample(&self, p: &PlanBuilder, logits: Slot, outputs: Slot, rows: Slot, shape: &TextShape) {
        let draws = p.input(slots::DRAWS, Spec::led(&[shape.max_outputs, DRAW_WORDS], DType::U32, Lead::Outputs));
        let seen = Spec::fixed(&[shape.sessions, seen_words(p.spec(logits).width())], DType::U32);
        let to = Sampled {
            sampled: p.state(slots::SAMPLED, Spec::fixed(&[shape.kv_rows, 1], DType::U32)),
            seen: p.state(slots::SEEN, seen),
        };
        p.sample(logits, outputs, draws, rows, to);
    }
}

impl Layer {
    fn load(w: &TensorScope, number: usize, c: &EmberNetConfig) -> Self {
        let d = c.hidden_size;
        let heads =
            AttentionShape { heads: c.num_attention_heads, kv_heads: c.num_kv_heads, d: d / c.num_attention_heads };
        let d_kv = heads.kv_heads * heads.d;
        let attention = w.at("attention");
        Layer {
            name: format!("layer.{number}"),
            number,
            input_norm: w.vector("input_layernorm.weight", d),
            qkv: BitLinearStack::load(&attention, &["q_proj", "k_proj", "v_proj"], &[d, d_kv, d_kv], d),
            out: BitLinearStack::load(&attention, &["o_proj"], &[d], d),
            post_norm: w.vector("post_attention_layernorm.weight", d),
            moe: Moe::load(&w.at("moe"), c),
            heads,
            experts_per_token: c.num_experts_per_tok,
            quant: Quant::new(c),
        }
    }

    fn record(&self, p: &PlanBuilder, x: Slot, rows: Slot, shape: &TextShape) -> Slot {
        let _scope = p.scope(&self.name);
        let tag = |what: &str, slot| p.tag(format!("{}.{what}", self.name), slot);
        tag("in", x);
        let d_kv = self.heads.kv_heads * self.heads.d;
        let kv = slots::kv(self.number).map(|name| p.state(&name, Spec::fixed(&[shape.kv_rows, d_kv], shape.kv_dtype)));
        let log_spec = Spec::fixed(&[shape.kv_rows, self.experts_per_token], DType::U32);
        let log = p.state(&slots::routing(self.number), log_spec);

        let qkv = self.qkv.record_behind(p, x, Some((NORM, &self.input_norm)), self.quant, None); // [rows, (heads + 2·kv_heads)·d_head]
        let q = p.rope_kv_write(qkv, rows, Rope { theta: THETA, positions: shape.context() }, self.heads, kv);
        p.trace(&slots::attention(self.number), |p| p.cached_attention_weights(q, kv[0], rows, self.heads));
        let a = p.cached_attention(q, kv[0], kv[1], rows, self.heads); // [rows, heads·d_head]
        let x = tag("mid", self.out.record(p, a, self.quant, Some(x)));
        tag("out", self.moe.record_add(p, x, (NORM, &self.post_norm), rows, log, &self.name))
    }
}
