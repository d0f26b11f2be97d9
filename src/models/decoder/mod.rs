//! Decoders: rows in, logits out. One forward pass for every architecture that a [`DecoderSpec`] describes.
//!
//! * [`spec`]: what a decoder is, as data, and the names of its tensors.
//! * [`linear`]: norms, and matrices in the forms that there are: [`bit_linear`] (ternary, each with its norm),
//!   [`stored_linear`] (as the file holds them); [`head`]: the embedding table and what gives the logits.
//! * [`attention`]: a mixer. [`gated`], [`moe`]: feed-forward parts. Another one is a file, a variant of
//!   [`Mixer`] or [`Ffn`] and of its weights' enum here, and its place in [`Layer`]'s `load` (a `match`, but a `let`
//!   for the one mixer) and `record`.

pub(crate) mod attention;
pub(crate) mod bit_linear;
pub(crate) mod gated;
pub(crate) mod head;
pub(crate) mod linear;
pub(crate) mod moe;
pub(crate) mod spec;
pub(crate) mod stored_linear;

use crate::models::decoder::attention::Attention;
use crate::models::decoder::gated::Gated;
use crate::models::decoder::head::Head;
use crate::models::decoder::linear::Norm;
use crate::models::decoder::moe::Moe;
use crate::models::decoder::spec::{DecoderSpec, Ffn, LayerSpec, Mixer, Names};
use crate::models::load::TensorScope;
use crate::models::{TextShape, slots};
use crate::ops::{ROW_WORDS, SAMPLE_PARAM_WORDS, Sampled, adjustment_words};
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::{CountedBy, DType, Spec};

/// A decoder as far as names and shapes.
#[derive(Debug)]
pub struct Decoder {
    head: Head,
    layers: Vec<Layer>,
    norm: Norm,
    width: usize,
    embed_bound: f32,
}

#[derive(Debug)]
struct Layer {
    mixer_norm: Norm,
    mixer: MixerWeights,
    ffn_norm: Norm,
    ffn: FfnWeights,
}

#[derive(Debug)]
enum MixerWeights {
    Attention(Attention),
}

#[derive(Debug)]
enum FfnWeights {
    Gated(Gated),
    Moe(Moe),
}

impl Decoder {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, names: &Names, spec: &DecoderSpec) -> Self {
        let layers = spec.layers.iter().enumerate();
        Decoder {
            head: Head::load(w, names, [spec.vocab, spec.width], spec.head),
            layers: layers.map(|(i, layer)| Layer::load(&w.at(names.layers).at(i), names, spec, layer)).collect(),
            norm: Norm::load(w, names.norm, spec.width, spec.norm),
            width: spec.width,
            embed_bound: spec.embed_bound,
        }
    }

    /// One step: embeds the input rows, runs all layers, and gives logits of the rows that `outputs` names.
    pub fn record(&self, p: &PlanBuilder, shape: &TextShape) {
        let rows = p.input(slots::ROWS, Spec::counted(&[shape.max_rows, ROW_WORDS], DType::U32, CountedBy::Rows));
        let outputs = p.input(slots::OUTPUTS, Spec::counted(&[shape.max_outputs, 1], DType::U32, CountedBy::Outputs));
        let image_spec = Spec::counted(&[shape.max_rows, self.width], DType::F32, CountedBy::Rows);
        let image = shape.images.then(|| p.input(slots::IMAGE_ROWS, image_spec));
        let x = p.embed(rows, &self.head.table(p), image, self.embed_bound); // [rows, d]
        let mut x = p.tag("merged_embeds", x);
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.record(p, x, rows, i, shape);
        }
        let x = p.select_rows(x, outputs); // [outputs, d]
        let x = p.tag("final_norm.out", self.norm.record(p, x));
        let logits = self.head.record(p, x); // [outputs, vocab]
        p.output(slots::LOGITS, logits);
        p.tag(slots::LOGITS, logits);
        self.sample(p, logits, outputs, rows, shape);
    }

    /// Chooses each output's next token, and makes its row read it in the next step.
    fn sample(&self, p: &PlanBuilder, logits: Slot, outputs: Slot, rows: Slot, shape: &TextShape) {
        let params = p.input(
            slots::SAMPLE_PARAMS,
            Spec::counted(&[shape.max_outputs, SAMPLE_PARAM_WORDS], DType::U32, CountedBy::Outputs),
        );
        let adjustments = Spec::fixed(&[shape.sessions, adjustment_words(p.spec(logits).width())], DType::U32);
        let to = Sampled {
            sampled: p.state(slots::SAMPLED, Spec::fixed(&[shape.kv_rows, 1], DType::U32)),
            adjustments: p.state(slots::ADJUSTMENTS, adjustments),
        };
        p.sample(logits, outputs, params, rows, to);
    }
}

impl Layer {
    fn load(w: &TensorScope, names: &Names, decoder: &DecoderSpec, layer: &LayerSpec) -> Self {
        let (d, linear, ffn) = (decoder.width, decoder.linear, w.at(names.ffn));
        let Mixer::Attention(attention) = layer.mixer.clone();
        Layer {
            mixer_norm: Norm::load(w, names.mixer_norm, d, layer.mixer_norm),
            mixer: MixerWeights::Attention(Attention::load(&w.at(names.attention), names, d, attention, linear)),
            ffn_norm: Norm::load(w, names.ffn_norm, d, layer.ffn_norm),
            ffn: match layer.ffn {
                Ffn::Gated { gated, sub_norm } => {
                    FfnWeights::Gated(Gated::load(&ffn, names, d, (gated, sub_norm), linear))
                }
                Ffn::Moe(moe) => FfnWeights::Moe(Moe::load(&ffn, names, d, moe)),
            },
        }
    }

    /// Layer `i`, x `[rows, d]`.
    fn record(&self, p: &PlanBuilder, x: Slot, rows: Slot, i: usize, shape: &TextShape) -> Slot {
        let name = format!("layer.{i}");
        let tag = |what: &str, slot| p.tag(format!("{name}.{what}"), slot);
        let _scope = p.scope(&name);
        tag("in", x);
        let x = match &self.mixer {
            MixerWeights::Attention(mixer) => mixer.record_add(p, x, &self.mixer_norm, rows, i, shape),
        };
        tag("mid", x);
        let x = match &self.ffn {
            FfnWeights::Gated(ffn) => ffn.record_add(p, x, &self.ffn_norm),
            FfnWeights::Moe(ffn) => ffn.record_add(p, x, &self.ffn_norm, rows, i, shape),
        };
        tag("out", x)
    }
}
