//! Model definitions: configuration, weights by name, and the recorded forward pass. Models see plans and files, never a
//! device and never the choice of a kernel.
//!
//! In reading order:
//! * this file: the traits [`Model`] and [`ChatModel`], [`ModelInfo`], and the names of the [`slots`] of a text plan;
//! * `prompt`: how a conversation becomes text ([`FamilyPrompt`]);
//! * `registry`: the families, and [`open`];
//! * `load`: tensors by name and shape ([`TensorScope`], [`load_model`]); `section`: objects of a configuration, read with
//!   bounds;
//! * `decoder/`: decoders described by data ([`DecoderSpec`]), with one forward pass for all;
//! * `layers`: linear layers, norms and encoder layers in full precision;
//! * `vision/`: image encoders;
//! * `causal_lm/`: Qwen3, Llama, BitNet, a file for each family;
//! * `embernet/`, `bitgen_stage1/`, `robot/`: a folder for each family; `bitgen/`: what the last two share;
//! * `check_steps`: steps by which `ternion check` compares devices.
//!
//! ## Add a model with a decoder
//! One file is enough, for example `models/foo.rs`. A dense one that differs from Qwen3 and Llama in what
//! `causal_lm::Rules` says is a file as `causal_lm/qwen3.rs`; its configuration, names and forms of matrices are read
//! already. Else:
//! 1. Read the sizes from the configuration, bounded and checked (`embernet/config.rs` is an example; `files/config.rs`
//!    reads the file, `section` its values), and put them into a [`DecoderSpec`] (`embernet/spec.rs`).
//! 2. Write the [`Names`] of the tensors.
//! 3. Load it with [`load_model`] and [`Decoder::load`]; implement [`Model`] for the tools around files, and [`ChatModel`]
//!    for the engine, whose [`ChatModel::text_plan`] calls [`Decoder::record`].
//!    [`Model::check_steps`] calls `check_steps::chat_steps`, and [`Model::into_chat`] gives the model itself.
//! 4. A conversation becomes text by the chat template of the model's files. A family with a form of its own says so in
//!    [`ChatModel::prompt`], with a [`FamilyPrompt`] (`embernet/prompt.rs`).
//! 5. Here: `mod foo;`. In `registry.rs`: a [`Family`] that recognises its files, in [`FAMILIES`]; those that are recognised
//!    by their tensors come before those recognised by `config.json`. The map in `tests/floors.rs` needs no line: a file or
//!    folder that it does not name is a family, which may use `decoder/`, `vision/` and the shared files here.
//! 6. A tiny checkpoint with golden outputs in `tests/golden/FOO/VARIANT/`: the original's files, and `golden_*.safetensors`
//!    with what its code computed, named as the stages that the plan tags (`layer.0.in`, `layer.0.out`, `logits`). A test
//!    as `tests/models.rs` is for EmberNet, which compares stage by stage (`tests/support/model_stages.rs`).
//! 7. In the README: the families at its beginning, under "What it does" and "What it does not do", and the files that it
//!    opens.
//!
//! A layer of a new kind is a file in `decoder/` and a variant of [`Mixer`] or [`Ffn`]. A model that is not a decoder
//! records its forward pass on a [`PlanBuilder`] itself, as `bitgen_stage1/` does: shapes in comments, stages tagged,
//! attention for plots through [`PlanBuilder::trace`].
//!
//! ## Add a weight format
//! Models ask for a packing through a method of [`TensorScope`] (`ternary`, `dense`, `head`) and never see the words.
//! [`architecture`](crate::architecture) has the recipe.

mod bitgen;
mod bitgen_stage1;
mod causal_lm;
pub(crate) mod check_steps;
pub(crate) mod decoder;
mod embernet;
mod layers;
pub(crate) mod load;
mod prompt;
mod registry;
mod robot;
pub(crate) mod section;
mod vision;

pub use bitgen_stage1::config::{BitGenConfig, BitGenSizes, BitGenVision};
pub use bitgen_stage1::file::BITGEN;
pub use bitgen_stage1::{BitGenStage1, EncoderShape, bitgen_slots};
pub use causal_lm::bitnet::BITNET;
pub use causal_lm::llama::LLAMA;
pub use causal_lm::qwen3::QWEN3;
pub use check_steps::CheckStep;
pub use decoder::Decoder;
pub use decoder::bit_linear::BitLinearSpec;
pub use decoder::linear::LinearSpec;
pub use decoder::spec::{AttentionSpec, DecoderSpec, Ffn, GatedSpec, HeadSpec, LayerSpec, Mixer, MoeSpec, Names};
pub use decoder::stored_linear::StoredSpec;
pub use embernet::EMBERNET;
pub(crate) use embernet::EmberNet;
pub use embernet::config::EmberNetConfig;
pub use load::{Activations, HiddenAct, LoadOptions, Reads, Tensor, TensorRequest, TensorScope, load_model, requests};
pub use prompt::{FamilyPrompt, OpenedPrompt, Prompt, TurnPrompt};
pub use registry::{FAMILIES, Family, open, open_chat};
pub use robot::config::RobotSizes;
pub use robot::file::ROBOTS;
pub use robot::{BitGenModel, ForwardShape, robot_slots};
pub use vision::dinov2::DinoConfig;
pub use vision::siglip::SigLipConfig;

use crate::error::{Error, Result};
use crate::plan::{Plan, PlanBuilder};
use crate::tensor::DType;
use serde::Serialize;

/// How text is recorded: the bounds of a step, and the memory that it shares with other plans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TextShape {
    /// Maximum number of rows of a step.
    pub max_rows: usize,
    /// Maximum number of rows of a step whose logits are wanted.
    pub max_outputs: usize,
    /// Rows of the KV cache, for all sessions together.
    pub kv_rows: usize,
    /// Maximum number of tokens of a session, which are the positions that a row may have.
    pub context: usize,
    /// Sessions, each with a row of [`slots::ADJUSTMENTS`].
    pub sessions: usize,
    /// F32, F16 or Int8.
    pub kv_dtype: DType,
    /// Whether rows may take their vector from the input `image_rows`.
    pub images: bool,
}

/// Names of the slots through which an engine talks to a text plan.
pub mod slots {
    /// Input `[max_rows, 4]`: [`crate::ops::Row`]s. After a step, each output's row reads the token that was chosen.
    pub const ROWS: &str = "rows";
    /// Input `[max_outputs, 1]`: numbers of the rows whose logits are wanted.
    pub const OUTPUTS: &str = "outputs";
    /// Input `[max_rows, d]`: vectors of the rows that come from an image.
    pub const IMAGE_ROWS: &str = "image_rows";
    /// Input `[3, s, s]` of an image plan.
    pub const PIXELS: &str = "pixel_values";
    /// Output `[tokens, d]` of an image plan.
    pub const IMAGE: &str = "image";
    /// Output `[max_outputs, vocab]`.
    pub const LOGITS: &str = "logits";
    /// Input `[max_outputs, 13]`: [`crate::ops::SampleParams`]s, how each output's token is chosen.
    pub const SAMPLE_PARAMS: &str = "sample_params";
    /// State `[kv_rows, 1]`: the token that was chosen after each row of the KV cache, `u32::MAX` where logits were not
    /// finite.
    pub const SAMPLED: &str = "sampled";
    /// State `[sessions, vocab + 256]`: what changes the logits of sequences with a bias or a penalty: how often each token
    /// occurred, and the biases ([`crate::ops::adjustments`]).
    pub const ADJUSTMENTS: &str = "adjustments";

    /// Tag `[max_rows, slots, d_ff]`: what the second matrices of layer `i`'s chosen experts read, before their norm; the
    /// shared expert's is the last of a row, and a model without one has no such tag.
    pub fn hidden(i: usize) -> String {
        format!("layer.{i}.hidden")
    }

    /// Output `[max_rows, kv_rows]` of a traced text plan: what each row attends to in layer `i`, its sequence's first
    /// token in front, the mean over heads.
    pub fn attention(i: usize) -> String {
        format!("attention.{i}")
    }

    /// State `[kv_rows, k]`: the experts chosen in layer `i` at each row of the KV cache.
    pub fn routing(i: usize) -> String {
        format!("routing.{i}")
    }

    /// States ([`crate::ops::cache_spec`]): keys and values of layer `i`.
    pub fn kv(i: usize) -> [String; 2] {
        [format!("kv.{i}.k"), format!("kv.{i}.v")]
    }
}

/// Model metadata for the engine.
#[derive(Debug, Clone, Serialize)]
pub struct ModelInfo {
    /// "EmberNet".
    pub family: &'static str,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Maximum number of positions of a sequence.
    pub max_positions: usize,
    /// Decoder layers.
    pub layers: usize,
    /// Tokens any of which ends the text.
    pub eos: Vec<u32>,
    /// What images become, if the model reads any.
    pub image: Option<ImageInfo>,
    /// Names of the experts that rows are routed to; empty without a mixture.
    pub experts: Vec<String>,
    /// Experts chosen for each row.
    pub experts_per_token: usize,
}

/// How a model reads images.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ImageInfo {
    /// Pixels per side.
    pub size: usize,
    /// Tokens that an image becomes.
    pub tokens: usize,
    /// Width of a token.
    pub width: usize,
    /// Subtracted from each channel in 0..1.
    pub mean: [f32; 3],
    /// Divides each channel.
    pub std: [f32; 3],
}

/// The image plan with the attention by which its tokens came from the picture's patches.
///
/// The patches are a square grid. Blocks of them become cells; the attention of [`ImageTrace::stages`], one after the
/// other, leads from image tokens to cells.
#[derive(Debug)]
pub struct ImageTrace {
    /// The plan; the matrices of `stages` are among its outputs.
    pub plan: Plan,
    /// Names of outputs: matrices `[n, m]` of rows that add up to 1. Those of one stage are layers that read the same m
    /// things. The first stage's n is the image's tokens, the last one's m the cells, row by row. Without stages, each
    /// image token is a cell.
    pub stages: Vec<Vec<String>>,
    /// Patches per side of the picture.
    pub grid: usize,
    /// Patches per side of a cell; at the right and at the bottom a cell may have fewer.
    pub block: usize,
}

/// A component of a model and a prefix of its tensors' names, for counting parameters. A component with several prefixes is
/// listed once for each, one after the other.
pub type Component = (&'static str, &'static str);

/// A model of any family, of which names and shapes are loaded: what the tools around files need.
pub trait Model: Send + Sync + std::fmt::Debug {
    /// The family: how its files are recognised, and what opens them.
    fn family(&self) -> &'static Family;

    /// Tokens of the vocabulary.
    fn vocab(&self) -> usize;

    /// The tensors that the model reads.
    fn reads(&self) -> &Reads;

    /// Tensors that only evaluation reads, if the checkpoint has them; a converted model keeps them if they are a small part
    /// of it.
    fn extras(&self) -> &'static [&'static str] {
        &[]
    }

    /// Components, for parameter counts: (name, prefix of the tensors), the longest prefix wins.
    fn components(&self) -> Vec<Component>;

    /// Tensors of the checkpoint that the model does not read, by prefix or suffix.
    fn ignores(&self, name: &str) -> bool;

    /// Whether a tensor holds parameters of its own: it is neither a buffer nor tied to another.
    fn counts(&self, name: &str) -> bool;

    /// The configuration of a converted model, as JSON.
    fn config(&self) -> serde_json::Value;

    /// Steps that run every op of the model, for comparing devices.
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    fn check_steps(&self, kv_dtype: DType) -> Result<Vec<CheckStep>>;

    /// The model as a chat model, if it is one.
    fn into_chat(self: Box<Self>) -> Option<Box<dyn ChatModel>> {
        None
    }
}

/// The error of asking a model without images for an image plan.
fn no_images(info: &ModelInfo) -> Error {
    Error::Unsupported { object: info.family.to_owned(), problem: "the model reads no images".to_owned() }
}

/// A model that generates text, and may read images: what the engine runs.
pub trait ChatModel: Model {
    /// Sizes and special tokens.
    fn info(&self) -> &ModelInfo;

    /// Records a step of text on a builder: a decoder's [`Decoder::record`].
    ///
    /// # Errors
    /// [`crate::Error::Plan`] if operands do not fit.
    fn text_plan(&self, p: PlanBuilder, shape: &TextShape) -> Result<Plan>;

    /// Records the encoding of one image on a builder.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for a model without images, [`crate::Error::Plan`] if operands do not fit.
    fn image_plan(&self, _: PlanBuilder) -> Result<Plan> {
        Err(no_images(self.info()))
    }

    /// The image plan with the attention that leads from image tokens to patches.
    ///
    /// # Errors
    /// As [`ChatModel::image_plan`].
    fn trace_image(&self) -> Result<ImageTrace> {
        Err(no_images(self.info()))
    }

    /// Records a step of text.
    ///
    /// # Errors
    /// As [`ChatModel::text_plan`].
    fn record_text(&self, shape: &TextShape) -> Result<Plan> {
        self.text_plan(PlanBuilder::new(), shape)
    }

    /// [`ChatModel::record_text`] with the outputs [`slots::attention`].
    ///
    /// # Errors
    /// As [`ChatModel::text_plan`].
    fn trace_text(&self, shape: &TextShape) -> Result<Plan> {
        self.text_plan(PlanBuilder::traced(), shape)
    }

    /// Records the encoding of one image.
    ///
    /// # Errors
    /// As [`ChatModel::image_plan`].
    fn record_image(&self) -> Result<Plan> {
        self.image_plan(PlanBuilder::new())
    }

    /// The row token of a prompt's token, beside an image or not.
    fn prompt_token(&self, id: u32, _with_image: bool) -> u32 {
        id
    }

    /// How a conversation becomes text: by the chat template of the model's files, unless the family says otherwise.
    fn prompt(&self) -> FamilyPrompt {
        FamilyPrompt::Template(None)
    }
}
