//! What a model that chats is, at a glance.

use std::collections::BTreeSet;

use serde::Serialize;

use crate::engine::open::open_tokenizer;
use crate::engine::options::{DeviceChoice, Options};
use crate::engine::recorded::{Estimate, Recorded};
use crate::files::{ModelFiles, Weights};
use crate::models::{ChatModel, Prompt};
use crate::tools::inspect::InspectOptions;

/// The GGUF key of the licence.
const LICENSE: &str = "general.license";

/// The sizes of a model that chats, and how one talks with it.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[non_exhaustive]
pub struct Card {
    /// Layers of the decoder.
    pub layers: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Maximum number of tokens of a conversation.
    pub max_context: usize,
    /// Names of the experts, of a mixture.
    pub experts: Vec<String>,
    /// Experts chosen for each token.
    pub experts_per_token: usize,
    /// The side of the square pictures that it reads, and tokens of one; none for a model of text.
    pub image: Option<[usize; 2]>,
    /// How conversations are written: the name of the chat template, or "its own form"; none without a tokenizer beside it.
    pub conversations: Option<String>,
    /// Numbers of the tokens that end an answer.
    pub stop_tokens: Vec<u32>,
    /// The licence, where the file says it.
    pub license: Option<String>,
    /// What it needs of memory, for one session of the usual length.
    pub memory: Option<Estimate>,
}

impl Card {
    /// The card of a model of `files`. What cannot be told is left out.
    pub(super) fn of(model: &dyn ChatModel, files: &ModelFiles, weights: &Weights, options: InspectOptions) -> Self {
        let info = model.info();
        let tokenizer = open_tokenizer(files, None, model.vocab(), model.family()).ok().flatten();
        let opened = model.prompt().open(files, tokenizer.as_ref()).ok().flatten();
        let form = opened.as_ref().map(|opened| match &opened.prompt {
            Prompt::Template(template) => template.name().to_owned(),
            Prompt::Turns(_) => "its own form".to_owned(),
        });
        let told = opened.into_iter().flat_map(|opened| opened.stop);
        let stop_tokens: BTreeSet<u32> = info.eos.iter().copied().chain(told).collect();
        let InspectOptions { precision, hidden_act } = options;
        let device = DeviceChoice::Cpu;
        let estimated = Options { device, precision, hidden_act, sessions: 1, ..Options::default() };
        let license = weights.checkpoint().gguf().and_then(|keys| keys.text(LICENSE).ok().flatten());
        Card {
            layers: info.layers,
            vocab: info.vocab,
            max_context: info.max_positions,
            experts: info.experts.clone(),
            experts_per_token: info.experts_per_token,
            image: info.image.map(|image| [image.size, image.tokens]),
            conversations: form,
            stop_tokens: stop_tokens.into_iter().collect(),
            license: license.map(str::to_owned),
            memory: Recorded::new(files.clone(), &estimated).and_then(|recorded| recorded.estimate()).ok(),
        }
    }
}
