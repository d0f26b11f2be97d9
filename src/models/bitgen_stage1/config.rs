//! BitGen's configuration: heads from `config.json`, sizes from the tensors' shapes.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::{ModelFiles, Weights};
use crate::models::bitgen::config::{
    DECODER_QUERIES, MAX_HEADS, Source, check, count, dino, head_width, patch_weights,
};
use crate::models::bitgen::decoder::DecoderSizes;
use crate::models::load::dims;
use crate::models::vision::cnn::STAGES;
use crate::models::vision::dinov2::DinoConfig;
use crate::ops::{AttentionShape, MAX_HEAD, MAX_MEMORY};

/// Maximum number of positions of a text. Each takes memory when a model is opened.
const MAX_POSITIONS: usize = 1 << 13;
/// The original's `memory_alpha`.
const MEMORY_ALPHA: f32 = 0.2;
/// Tensors below this place are the small image encoder.
pub(crate) const CNN: &str = "cross_modal_fusion.vision_encoder";
/// The tensors by which a BitGen of stage 1 is recognised.
pub(crate) const MARK: &str = "episodic_memory.gpm.memory_mean";
const VISION_MARK: &str = "cross_modal_fusion.vision_to_embed.weight";

/// Which encoder reads images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitGenVision {
    /// DINOv2.
    Dino(DinoConfig),
    /// Three convolutions to this many channels each.
    Cnn([usize; 3]),
}

/// How a BitGen of stage 1 is used, beside its weights and sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct BitGenConfig {
    /// Whether the decoder predicts the next token, as this project's models do. The original's predicts the present one,
    /// so that a caption begins with its first token.
    pub next_token: bool,
    /// Ends a caption; none: the tokenizer's end of text does.
    pub eos: Option<u32>,
    /// `memory_alpha`: how far a write moves a slot of the memory towards what is written, 0 to 1.
    pub memory_alpha: f32,
    /// `direct_writing`: whether the memory is written at all.
    pub direct_writing: bool,
    /// The original configuration, settings of training included, and DINOv2's heads.
    pub json: Map<String, Value>,
}

/// Sizes of a BitGen of stage 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BitGenSizes {
    /// Width of text and of features.
    pub d: usize,
    /// Heads of the encoder's and the decoder's attention.
    pub n_heads: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// Maximum number of positions of a text.
    pub positions: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Width of an encoder layer's feed-forward part.
    pub ff: usize,
    /// Width inside the fusion of text and image.
    pub fusion_ff: usize,
    /// Layers of the text decoder.
    pub decoder_layers: usize,
    /// Width of a head of its attention.
    pub decoder_head: usize,
    /// Width of a decoder layer's feed-forward part.
    pub decoder_ff: usize,
    /// Slots and width of the episodic memory.
    pub memory: [usize; 2],
    /// Width of image tokens in the image encoder, and behind it.
    pub image: [usize; 2],
    /// The image encoder.
    pub vision: BitGenVision,
}

impl BitGenSizes {
    /// Whether a checkpoint is a BitGen's of stage 1.
    pub fn recognises(weights: &Weights) -> bool {
        weights.shape(MARK).is_some() && weights.shape(VISION_MARK).is_some()
    }

    /// Heads of the encoder's and the decoder's attention.
    pub fn heads(&self) -> AttentionShape {
        AttentionShape { heads: self.n_heads, kv_heads: self.n_heads, d: self.d / self.n_heads }
    }

    /// Sizes of the text decoder.
    pub(crate) fn decoder(&self) -> DecoderSizes {
        let heads = AttentionShape { d: self.decoder_head, ..self.heads() };
        DecoderSizes { d: self.d, heads, layers: self.decoder_layers, d_ff: self.decoder_ff, vocab: self.vocab }
    }

    fn read(config: &Source, weights: &Weights) -> Result<Self> {
        let n_heads = config.section().size("num_heads", MAX_HEADS)?;
        let shape = |name: &str, rank: usize| dims(weights, name, rank);
        let table = shape("token_embedding.weight", 2)?;
        let to_embed = shape(VISION_MARK, 2)?;
        let memory = shape(MARK, 2)?;
        let (layers, decoder_layers) =
            (count(weights, "attention_layers"), count(weights, "text_decoder.decoder_layers"));
        let sizes = BitGenSizes {
            d: table[1],
            n_heads,
            vocab: table[0],
            positions: shape("pos_embedding.weight", 2)?[0],
            layers,
            ff: shape("attention_layers.0.linear1.weight", 2)?[0],
            fusion_ff: shape("cross_modal_fusion.fusion_mlp.0.weight", 2)?[0],
            decoder_layers,
            decoder_head: head_width(config, weights, DECODER_QUERIES, n_heads)?,
            decoder_ff: shape("text_decoder.decoder_layers.0.ffn.0.weight", 2)?[0],
            memory: [memory[0], memory[1]],
            image: [to_embed[1], to_embed[0]],
            vision: vision(config, weights)?,
        };
        sizes.validate(weights, &config.section().key("num_heads"))?;
        Ok(sizes)
    }

    fn validate(&self, weights: &Weights, heads: &str) -> Result<()> {
        if !self.d.is_multiple_of(self.n_heads) || self.d / self.n_heads > MAX_HEAD {
            let [n, d] = [self.n_heads, self.d];
            let problem = format!("is {n}, expected a divisor of the width {d}, into at most {MAX_HEAD} columns each");
            return Err(Error::config(heads, problem));
        }
        let (positions, slots) = (self.positions, self.memory[0]);
        let fits = (1..=MAX_POSITIONS).contains(&positions);
        check(weights, "pos_embedding.weight", fits, "1 to 8192 positions", format!("{positions} positions"))?;
        let fits = (READS..=MAX_MEMORY).contains(&slots);
        check(weights, MARK, fits, "5 to 2048 slots", format!("{slots} slots"))
    }
}

/// Slots of the memory that a row reads.
pub(crate) const READS: usize = 5;

impl BitGenConfig {
    /// Reads the sizes and the configuration (`Source` says where it is).
    ///
    /// # Errors
    /// [`Error::Config`] for a number of heads that is missing or does not fit, [`Error::MissingTensors`] and
    /// [`Error::Shape`] for tensors from which no sizes can be read, and those of reading the file.
    pub fn read(files: &ModelFiles, weights: &Weights) -> Result<(BitGenSizes, Self)> {
        let source = Source::find(files, weights)?;
        let sizes = BitGenSizes::read(&source, weights)?;
        let config = source.section();
        let next_token = config.truth("next_token")?.unwrap_or(false);
        let direct_writing = config.truth("direct_writing")?.unwrap_or(true);
        let memory_alpha = config.number("memory_alpha", 0.0..=1.0)?.map_or(MEMORY_ALPHA, |alpha| alpha as f32);
        let eos = config.value("eos_token_id").map(|id| config.integer("eos_token_id", id, 0..=sizes.vocab - 1));
        let eos = eos.transpose()?.map(|id| id as u32);
        let dino = match sizes.vision {
            BitGenVision::Dino(dino) => Some(dino),
            BitGenVision::Cnn(_) => None,
        };
        let json = source.converted("bitgen_stage1", dino);
        Ok((sizes, BitGenConfig { next_token, eos, memory_alpha, direct_writing, json }))
    }
}

/// The image encoder whose tensors are there.
fn vision(config: &Source, weights: &Weights) -> Result<BitGenVision> {
    match weights.shape(&patch_weights()) {
        Some(_) => Ok(BitGenVision::Dino(dino(config, weights)?)),
        None => cnn(weights),
    }
}

/// The channels of the small encoder's convolutions, each of which must be whole: what is computed from them at loading
/// is as large as they say.
fn cnn(weights: &Weights) -> Result<BitGenVision> {
    let (mut channels, mut before) = ([0; 3], 3);
    for (channels, (number, window)) in channels.iter_mut().zip(STAGES) {
        let name = format!("{CNN}.{number}.weight");
        let found = dims(weights, &name, 4)?;
        if found[1..] != [before, window.size, window.size] {
            let object = format!("{}: tensor {name}", weights.path().display());
            return Err(Error::shape(object, format!("[n, {before}, {0}, {0}]", window.size), format!("{found:?}")));
        }
        (*channels, before) = (found[0], found[0]);
    }
    Ok(BitGenVision::Cnn(channels))
}
