//! EmberNet: SigLIP → compressor → pooler → projector → ternary decoder with a mixture of experts.
//!
//! In reading order: this file (the family, and the model of these parts); `config` (sizes); `spec` (the decoder as data);
//! `vision` (from patches to image tokens); `prompt` (the text around a question).

pub(crate) mod config;
pub(crate) mod prompt;
pub(crate) mod spec;
pub(crate) mod vision;

use crate::error::Result;
use crate::files::config::ModelConfig;
use crate::files::{ModelFiles, Weights};
use crate::models::check_steps;
use crate::models::check_steps::CheckStep;
use crate::models::decoder::Decoder;
use crate::models::embernet::config::EmberNetConfig;
use crate::models::embernet::vision::Vision;
use crate::models::load::{LoadOptions, Reads, TensorRequest, TensorScope, load_model, requests};
use crate::models::{
    ChatModel, Component, Family, FamilyPrompt, ImageInfo, ImageTrace, Model, ModelInfo, TextShape, slots,
};
use crate::ops::TOKEN_CLAMP;
use crate::plan::{Plan, PlanBuilder};
use crate::tensor::{DType, Spec};

/// EmberNet checkpoints are recognised by `config.json`.
pub static EMBERNET: Family = Family {
    name: "EmberNet",
    identified_by: "model_type embernet_vlm in config.json",
    open_with: "Engine::open",
    tokenizer_note: "EmberNet was trained with TinyLlama's tokenizer, although phi-2's files are published beside it: give \
                     TinyLlama's tokenizer.json with the option `tokenizer`",
    recognises: |files, w| Ok(EmberNetConfig::recognises(&ModelConfig::of(files, w.checkpoint())?.keys)),
    open: |files, weights, options| {
        options.check_fixed(EMBERNET.name)?;
        Ok(Box::new(EmberNet::open(files, weights, options)?))
    },
};

/// The model, as far as names and shapes.
#[derive(Debug)]
pub struct EmberNet {
    config: EmberNetConfig,
    info: ModelInfo,
    reads: Reads,
    vision: Vision,
    decoder: Decoder,
}

impl EmberNet {
    fn open(files: &ModelFiles, weights: &Weights, options: LoadOptions) -> Result<Self> {
        let config = EmberNetConfig::read(files, &ModelConfig::of(files, weights.checkpoint())?.keys, weights)?;
        let ((vision, decoder), reads) =
            load_model(weights, options, config.weight_quant, |w| Self::parts(w, &config))?;
        Ok(EmberNet { info: info(&config), config, reads, vision, decoder })
    }

    /// The tensors that a model of these sizes reads, given an empty checkpoint; some are listed twice.
    pub fn tensors(config: EmberNetConfig, nothing: &Weights) -> Vec<TensorRequest> {
        requests(nothing, config.weight_quant, |w| Self::parts(w, &config))
    }

    fn parts(w: &TensorScope, config: &EmberNetConfig) -> (Vision, Decoder) {
        (Vision::load(w, config), Decoder::load(&w.at("decoder"), &spec::NAMES, &spec::decoder(config)))
    }
}

fn info(c: &EmberNetConfig) -> ModelInfo {
    ModelInfo {
        family: EMBERNET.name,
        vocab: c.vocab_size,
        max_positions: c.max_position_embeddings,
        layers: c.num_layers,
        eos: vec![c.eos_token_id],
        image: Some(ImageInfo {
            size: c.vision.image_size,
            tokens: c.num_image_tokens,
            width: c.hidden_size,
            mean: [0.5; 3],
            std: [0.5; 3],
        }),
        experts: c.expert_domains.clone(),
        experts_per_token: c.num_experts_per_tok,
    }
}

impl Model for EmberNet {
    fn family(&self) -> &'static Family {
        &EMBERNET
    }

    fn vocab(&self) -> usize {
        self.config.vocab_size
    }

    fn reads(&self) -> &Reads {
        &self.reads
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

    fn check_steps(&self, kv_dtype: DType) -> Result<Vec<CheckStep>> {
        check_steps::chat_steps(self, kv_dtype)
    }

    fn into_chat(self: Box<Self>) -> Option<Box<dyn ChatModel>> {
        Some(self)
    }
}

impl ChatModel for EmberNet {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn text_plan(&self, p: PlanBuilder, shape: &TextShape) -> Result<Plan> {
        self.decoder.record(&p, shape);
        p.finish()
    }

    fn image_plan(&self, p: PlanBuilder) -> Result<Plan> {
        let size = self.config.vision.image_size;
        let pixels = p.input(slots::PIXELS, Spec::fixed(&[3, size, size], DType::F32));
        p.tag(slots::PIXELS, pixels);
        p.output(slots::IMAGE, self.vision.record(&p, pixels));
        p.finish()
    }

    fn trace_image(&self) -> Result<ImageTrace> {
        let c = &self.config.vision;
        Ok(Vision::trace(self.image_plan(PlanBuilder::traced())?, c.image_size / c.patch_size))
    }

    fn prompt_token(&self, id: u32, with_image: bool) -> u32 {
        if !with_image {
            return id;
        }
        let id = if id == self.config.image_token_id { self.config.pad_token_id } else { id };
        id | TOKEN_CLAMP
    }

    fn prompt(&self) -> FamilyPrompt {
        FamilyPrompt::Own(&prompt::EmberNetPrompt)
    }
}
