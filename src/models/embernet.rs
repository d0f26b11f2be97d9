//! EmberNet: SigLIP → compressor → pooler → projector → ternary decoder with a mixture of experts.

use std::cell::RefCell;

use super::cursor::{Cursor, Faults, LoadOptions, Wanted};
use super::decoder::Decoder;
use super::embernet_config::EmberNetConfig;
use super::vision::Vision;
use super::{Component, ImageInfo, ImageTrace, Model, ModelInfo, TextShape, slots};
use crate::error::Result;
use crate::files::{Weights, chat};
use crate::ops::TOKEN_CLAMP;
use crate::plan::{Plan, PlanBuilder};
use crate::tensor::{DType, Pack, Spec};

/// The model, as far as names and shapes.
#[derive(Debug)]
pub struct EmberNet {
    config: EmberNetConfig,
    info: ModelInfo,
    vision: Vision,
    decoder: Decoder,
}

impl EmberNet {
    /// Finds every tensor and checks its shape.
    ///
    /// # Errors
    /// [`crate::Error::MissingTensors`] with all missing names, [`crate::Error::Shape`] for the first misfit.
    pub fn load(config: EmberNetConfig, weights: &Weights, options: LoadOptions) -> Result<Self> {
        let faults = RefCell::new(Faults::default());
        let w = Cursor::new(weights, options, config.weight_quant, &faults);
        let (vision, decoder) = (Vision::load(&w, &config), Decoder::load(&w.at("decoder"), &config));
        faults.take().into_result(weights)?;
        let model = EmberNet { info: info(&config), config, vision, decoder };
        let unread = weights.checkpoint().tensors().filter(|t| !model.reads(&t.name) && !model.ignores(&t.name));
        let unread: Vec<&str> = unread.map(|t| t.name.as_str()).collect();
        if let Some(first) = unread.first() {
            log::warn!("{} tensors are not part of EmberNet and are not read, {first} for one", unread.len());
        }
        Ok(model)
    }

    /// The tensors that a model of these sizes reads, given an empty checkpoint; some are listed twice.
    pub fn tensors(config: EmberNetConfig, nothing: &Weights) -> Vec<Wanted> {
        let faults = RefCell::new(Faults::default());
        let options = LoadOptions { dense: Pack::F16, head: Pack::F16, max_binding: u64::MAX };
        let w = Cursor::new(nothing, options, config.weight_quant, &faults);
        Vision::load(&w, &config);
        Decoder::load(&w.at("decoder"), &config);
        faults.take().missing()
    }

    fn text(&self, p: PlanBuilder, shape: &TextShape) -> Result<Plan> {
        self.decoder.record(&p, shape);
        p.finish()
    }

    fn image(&self, p: PlanBuilder) -> Result<Plan> {
        let size = self.config.vision.image_size;
        let pixels = p.input(slots::PIXELS, Spec::fixed(&[3, size, size], DType::F32));
        p.tag(slots::PIXELS, pixels);
        p.output(slots::IMAGE, self.vision.record(&p, pixels));
        p.finish()
    }

    /// Whether a name lies where the model takes its tensors from.
    fn reads(&self, name: &str) -> bool {
        name.starts_with("decoder.") || name.starts_with("vision_encoder.")
    }
}

fn info(c: &EmberNetConfig) -> ModelInfo {
    ModelInfo {
        family: "EmberNet",
        vocab: c.vocab_size,
        max_positions: c.max_position_embeddings,
        layers: c.num_layers,
        eos: c.eos_token_id,
        image: Some(ImageInfo {
            size: c.vision.image_size,
            tokens: c.num_image_tokens,
            width: c.hidden_size,
            mean: [0.5; 3],
            std: [0.5; 3],
        }),
        experts: c.expert_domains.clone(),
        experts_per_token: c.num_experts_per_tok,
        tokenizer_note: "EmberNet was trained with TinyLlama's tokenizer, although phi-2's files are pushed beside it: \
                         give TinyLlama's tokenizer.json with --tokenizer",
    }
}

impl Model for EmberNet {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn record_text(&self, shape: &TextShape) -> Result<Plan> {
        self.text(PlanBuilder::new(), shape)
    }

    fn record_image(&self) -> Result<Plan> {
        self.image(PlanBuilder::new())
    }

    fn trace_text(&self, shape: &TextShape) -> Result<Plan> {
        self.text(PlanBuilder::traced(), shape)
    }

    fn trace_image(&self) -> Result<ImageTrace> {
        let c = &self.config.vision;
        Ok(Vision::trace(self.image(PlanBuilder::traced())?, c.image_size / c.patch_size))
    }

    fn prompt_token(&self, id: u32, with_image: bool) -> u32 {
        if !with_image {
            return id;
        }
        let id = if id == self.config.image_token_id { self.config.pad_token_id } else { id };
        id | TOKEN_CLAMP
    }

    fn prompt(&self, question: &str, with_image: bool) -> String {
        chat::embernet_prompt(question, with_image)
    }

    fn follow_up(&self, question: &str) -> String {
        chat::embernet_follow_up(question)
    }

    fn components(&self) -> Vec<Component> {
        vec![
            ("vision encoder (SigLIP)", "vision_encoder.encoder."),
            ("compressor", "vision_encoder.compressor."),
            ("pooler", "vision_encoder.pooler."),
            ("projector", "vision_encoder.projector."),
            ("decoder", "decoder."),
        ]
    }

    fn ignores(&self, name: &str) -> bool {
        !self.counts(name) || name == "image_newline" || name.contains(".vision_model.head.")
    }

    fn counts(&self, name: &str) -> bool {
        name != "decoder.lm_head.weight" && !name.contains(".rotary_emb.") && !name.ends_with(".expert_usage")
    }

    fn config(&self) -> serde_json::Value {
        self.config.to_json()
    }
}
