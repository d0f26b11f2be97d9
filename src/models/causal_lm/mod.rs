//! Causal language models as Hugging Face and GGUF files hold them: attention and a gated feed-forward part in each layer.
//!
//! In reading order: this file (the model, and the rules in which families differ); `qwen3`, `llama`, `bitnet` (a family
//! each); `config` (sizes), `quantisation` (how a file's matrices are quantised), `rope` (rotary positions); `decoder` (the
//! decoder as data).

pub(crate) mod bitnet;
mod config;
mod decoder;
pub(crate) mod llama;
mod quantisation;
pub(crate) mod qwen3;
mod rope;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::chat_template::builtin::Builtin;
use crate::files::config::ModelConfig;
use crate::files::{ModelFiles, Weights};
use crate::models::causal_lm::config::CausalLmConfig;
use crate::models::check_steps::{self, CheckStep};
use crate::models::decoder::Decoder;
use crate::models::load::{HiddenAct, LoadOptions, Reads, load_model};
use crate::models::{ChatModel, Component, Family, FamilyPrompt, Model, ModelInfo, TextShape};
use crate::ops::Act;
use crate::plan::{Plan, PlanBuilder};
use crate::quant::WeightQuant;
use crate::tensor::{DType, Pack};

/// What sets a family apart from the others.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether each head of queries and keys has a norm.
    pub qk_norm: bool,
    /// Whether the last matrices of attention and feed-forward part have norms in front.
    pub sub_norms: bool,
    /// The activation of feed-forward parts where the configuration does not name one.
    pub default_act: HiddenAct,
    /// Whether the models were trained with 8-bit activations, a scale a row.
    pub row_activations: bool,
    /// The template of conversations for GGUF files of a vocabulary of so many tokens, whose own is known to be wrong.
    pub gguf_template: Option<(usize, Builtin)>,
}

/// Whether a model's configuration has this type.
///
/// # Errors
/// Those of [`ModelConfig::of`].
fn is_model_type(files: &ModelFiles, weights: &Weights, model_type: &str) -> Result<bool> {
    let config = ModelConfig::of(files, weights.checkpoint())?;
    Ok(config.keys.get("model_type").and_then(Value::as_str) == Some(model_type))
}

/// The model, as far as names and shapes.
#[derive(Debug)]
pub struct CausalLm {
    family: &'static Family,
    keys: Map<String, Value>,
    info: ModelInfo,
    reads: Reads,
    decoder: Decoder,
    tied: bool,
    prompt: FamilyPrompt,
}

impl CausalLm {
    /// Opens a model of `family`, whose `rules` are these.
    ///
    /// # Errors
    /// As [`crate::models::open`].
    pub fn open(
        family: &'static Family,
        rules: Rules,
        files: &ModelFiles,
        weights: &Weights,
        options: LoadOptions,
    ) -> Result<Box<dyn Model>> {
        let ModelConfig { file, keys } = ModelConfig::of(files, weights.checkpoint())?;
        let config = CausalLmConfig::read(&file, &keys)?;
        let act = act(&file, &config, rules, options)?;
        let spec = decoder::spec(&config, rules, act, decoder::rotation(&config, weights)?, options)?;
        let load = |w: &crate::models::TensorScope| Decoder::load(w, &decoder::NAMES, &spec);
        let (decoder, mut reads) = load_model(weights, options, WeightQuant::Absmean, load)?;
        if weights.shape(decoder::ROPE_FREQS).is_some() {
            reads.insert(decoder::ROPE_FREQS.to_owned(), Pack::F32);
        }
        let prompt = match rules.gguf_template {
            Some((vocab, template)) if weights.checkpoint().gguf().is_some() && vocab == config.vocab_size => {
                FamilyPrompt::Builtin(template)
            }
            _ => FamilyPrompt::Template(None),
        };
        Ok(Box::new(CausalLm {
            family,
            keys,
            info: info(family, &config),
            reads,
            decoder,
            tied: config.tied_head,
            prompt,
        }))
    }
}

/// The activation: the one asked for, else the configuration's, else the family's. With the wrong one answers are fluent and
/// wrong, so that none stands in for one that nothing tells.
fn act(file: &str, config: &CausalLmConfig, rules: Rules, options: LoadOptions) -> Result<Act> {
    let told = options.hidden_act.or(config.hidden_act);
    match told.or((!config.hidden_act_unknown).then_some(rules.default_act)) {
        Some(HiddenAct::SiLu) => Ok(Act::SiLu { clamp: None }),
        Some(HiddenAct::Relu2) => Ok(Act::Relu2),
        None => {
            let problem = "is not told by anything in the file; with the wrong one answers are fluent and wrong: choose \
                           silu (the first reproductions) or relu2 (BitNet b1.58 2B-4T) with the option `hidden_act`";
            Err(Error::config(format!("{file}: hidden_act"), problem))
        }
    }
}

fn info(family: &Family, config: &CausalLmConfig) -> ModelInfo {
    ModelInfo {
        family: family.name,
        vocab: config.vocab_size,
        max_positions: config.max_positions,
        layers: config.num_layers,
        eos: config.eos.clone(),
        image: None,
        experts: Vec::new(),
        experts_per_token: 0,
    }
}

impl Model for CausalLm {
    fn family(&self) -> &'static Family {
        self.family
    }

    fn vocab(&self) -> usize {
        self.info.vocab
    }

    fn reads(&self) -> &Reads {
        &self.reads
    }

    fn components(&self) -> Vec<Component> {
        vec![
            ("embedding", "model.embed_tokens."),
            ("layers", "model.layers."),
            ("final norm", "model.norm."),
            ("LM head", "lm_head."),
        ]
    }

    fn ignores(&self, name: &str) -> bool {
        !self.counts(name)
    }

    fn counts(&self, name: &str) -> bool {
        // What belongs to a matrix is read with it.
        const BESIDE: [&str; 5] = [".scale", ".weight_scale", ".scales", ".biases", ".input_scale"];
        let tied = self.tied && name == "lm_head.weight";
        !(tied || name.ends_with(".rotary_emb.inv_freq") || BESIDE.iter().any(|end| name.ends_with(end)))
    }

    fn config(&self) -> Value {
        Value::Object(self.keys.clone())
    }

    fn check_steps(&self, kv_dtype: DType) -> Result<Vec<CheckStep>> {
        check_steps::chat_steps(self, kv_dtype)
    }

    fn into_chat(self: Box<Self>) -> Option<Box<dyn ChatModel>> {
        Some(self)
    }
}

impl ChatModel for CausalLm {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn text_plan(&self, p: PlanBuilder, shape: &TextShape) -> Result<Plan> {
        self.decoder.record(&p, shape);
        p.finish()
    }

    fn prompt(&self) -> FamilyPrompt {
        self.prompt
    }
}
