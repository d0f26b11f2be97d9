//! BitGenModel's sizes: from the tensors' shapes, and from `config.json` what no shape shows.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{ModelFiles, Weights};
use crate::models::bitgen::config::{DECODER_QUERIES, IMAGE_SIZE, MAX_HEADS, Source, check, count, dino, head_width};
use crate::models::bitgen::decoder::DecoderSizes;
use crate::models::load::dims;
use crate::models::vision::dinov2::DinoConfig;
use crate::ops::{AttentionShape, MAX_HEAD};

/// Maximum number of what adds nodes to a plan: reasoning steps, robots, fusion and attention layers.
const MAX_STEPS: usize = 64;
/// Maximum number of sinks, of the window's keys, and of the memory's slots: each row scores them all.
const MAX_KEYS: usize = 8192;
/// The tensors by which a BitGenModel is recognised.
const MARKS: [&str; 2] = ["reasoning_module.reasoning_encoder.weight", "robot_selector.robot_embeddings"];
const MEMORY_KEYS: &str = "episodic_memory.memory_keys";

/// Sizes of a BitGenModel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RobotSizes {
    /// Width of text and of features.
    pub d: usize,
    /// Heads of the attention layers and of the decoder.
    pub n_heads: usize,
    /// Width of a head of the attention layers, and of the decoder: side by side they may be of another width than text.
    pub head: [usize; 2],
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Maximum number of positions of a text.
    pub positions: usize,
    /// Attention layers.
    pub layers: usize,
    /// Layers of the fusion of text and image.
    pub fusion_layers: usize,
    /// Width inside the fusion of text and image.
    pub fusion_ff: usize,
    /// Slots of the episodic memory, and the width of their keys; values are as wide as text.
    pub memory: [usize; 2],
    /// Keys at the front that attention keeps.
    pub sinks: usize,
    /// Keys at the end that attention keeps.
    pub window: usize,
    /// Width of reasoning.
    pub reasoning: usize,
    /// Maximum number of steps of reasoning.
    pub reasoning_steps: usize,
    /// Names of the robots.
    pub robots: Vec<String>,
    /// Width of a robot's embedding.
    pub robot_d: usize,
    /// Robots that are chosen.
    pub top_robots: usize,
    /// Layers of the text decoder.
    pub decoder_layers: usize,
    /// Width of a decoder layer's feed-forward part.
    pub decoder_ff: usize,
    /// Width of image tokens behind the image encoder.
    pub d_vision: usize,
    /// The image encoder.
    pub dino: DinoConfig,
}

impl RobotSizes {
    /// Whether a checkpoint is a BitGenModel's.
    pub fn recognises(weights: &Weights) -> bool {
        MARKS.iter().all(|name| weights.shape(name).is_some())
    }

    /// Heads of the attention layers.
    pub fn heads(&self) -> AttentionShape {
        AttentionShape { heads: self.n_heads, kv_heads: self.n_heads, d: self.head[0] }
    }

    /// Width of a token's keys in an attention layer, and of its values: all heads side by side.
    pub fn kv_width(&self) -> usize {
        self.n_heads * self.head[0]
    }

    /// Tokens that an image becomes.
    pub fn patches(&self) -> usize {
        (IMAGE_SIZE / self.dino.patch).pow(2)
    }

    /// Sizes of the text decoder.
    pub(crate) fn decoder(&self) -> DecoderSizes {
        let heads = AttentionShape { d: self.head[1], ..self.heads() };
        DecoderSizes { d: self.d, heads, layers: self.decoder_layers, d_ff: self.decoder_ff, vocab: self.vocab }
    }

    /// Reads the sizes, and the configuration as a converted model has it. `config.json` lies beside the checkpoint, or one
    /// folder above it.
    ///
    /// # Errors
    /// [`Error::Config`] for values that are missing or do not fit, [`Error::MissingTensors`] and [`Error::Shape`] for
    /// tensors from which no sizes can be read, and those of reading the file.
    pub fn read(files: &ModelFiles, weights: &Weights) -> Result<(Self, Map<String, Value>)> {
        let config = Source::find(files, weights)?;
        let key = |key: &str, range| config.section().required(key, range);
        let shape = |name: &str, rank: usize| dims(weights, name, rank);
        let table = shape("token_embedding.weight", 2)?;
        let robots = shape(MARKS[1], 2)?;
        let keys = shape(MEMORY_KEYS, 2)?;
        let n_heads = config.section().size("num_heads", MAX_HEADS)?;
        let head = |queries| head_width(&config, weights, queries, n_heads);
        let sizes = RobotSizes {
            d: table[1],
            n_heads,
            head: [head("attention_layers.0.q_proj.weight")?, head(DECODER_QUERIES)?],
            vocab: table[0],
            positions: shape("pos_embedding.weight", 2)?[0],
            layers: count(weights, "attention_layers"),
            fusion_layers: count(weights, "cross_modal_fusion.cross_modal_att_layers"),
            fusion_ff: shape("cross_modal_fusion.fusion_mlp.0.weight", 2)?[0],
            memory: [keys[0], keys[1]],
            sinks: key("attention_sinks", 0..=MAX_KEYS)?,
            window: key("window_size", 1..=MAX_KEYS)?,
            reasoning: shape(MARKS[0], 2)?[0],
            reasoning_steps: key("max_reasoning_steps", 1..=MAX_STEPS)?,
            robots: names(config.json.get("robot_types"), robots[0], config.section().key("robot_types"))?,
            robot_d: robots[1],
            top_robots: key("top_k_robots", 1..=robots[0])?,
            decoder_layers: count(weights, "text_decoder.decoder_layers"),
            decoder_ff: shape("text_decoder.decoder_layers.0.ffn.0.weight", 2)?[0],
            d_vision: shape("cross_modal_fusion.dinov2_to_vision.weight", 2)?[0],
            dino: dino(&config, weights)?,
        };
        sizes.validate(weights)?;
        let json = config.converted("bitgen_model", Some(sizes.dino));
        Ok((sizes, json))
    }

    fn validate(&self, weights: &Weights) -> Result<()> {
        let fits = |name, holds, expected, found| check(weights, name, holds, expected, found);
        let (d, max) = (self.d, MAX_STEPS);
        fits(
            "token_embedding.weight",
            // Fusion attends with one head of this width, and lays two halves side by side.
            d.is_multiple_of(2) && d <= MAX_HEAD,
            "an even width of 2 to 2048",
            d.to_string(),
        )?;
        let [slots, width] = self.memory;
        fits(MEMORY_KEYS, slots <= MAX_KEYS, "1 to 8192 slots", slots.to_string())?;
        fits(MEMORY_KEYS, width <= MAX_HEAD, "1 to 2048 columns", width.to_string())?;
        for (name, layers) in [
            ("attention_layers", self.layers),
            ("text_decoder.decoder_layers", self.decoder_layers),
            ("robot_selector.robot_embeddings", self.robots.len()),
        ] {
            fits(name, (1..=max).contains(&layers), "1 to 64", layers.to_string())?;
        }
        let layers = self.fusion_layers;
        fits("cross_modal_fusion.cross_modal_att_layers", layers <= max, "at most 64", layers.to_string())
    }
}

/// The names of `n` robots.
fn names(value: Option<&Value>, n: usize, key: String) -> Result<Vec<String>> {
    let list = value.and_then(Value::as_array).map(Vec::as_slice);
    let names: Option<Vec<String>> = list.and_then(|v| v.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    names.filter(|names| names.len() == n).ok_or_else(|| {
        let found = list.map_or("not a list".to_owned(), |v| format!("a list of {}", v.len()));
        Error::config(key, format!("is {found}, expected a list of {n} names, one for each robot of the checkpoint"))
    })
}
