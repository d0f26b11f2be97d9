//! BitGen's sizes: heads from `config.json`, everything else from the tensors' shapes.

use std::ops::RangeInclusive;
use std::path::Path;

use serde_json::{Map, Value};

use super::bitgen_cnn::STAGES;
use super::bitgen_decoder::DecoderSizes;
use super::dinov2::DinoConfig;
use super::embernet_config::read_json;
use crate::error::{Error, Result};
use crate::files::{ModelFiles, Weights};
use crate::ops::{AttentionShape, MAX_MEMORY};

/// Pixels a side of the images that BitGen reads.
pub const IMAGE_SIZE: usize = 224;
/// Most of anything: the largest vocabularies have 2^18 tokens.
const MOST: usize = 1 << 20;
/// Width of a head in every published DINOv2.
const DINO_HEAD: usize = 64;
/// Tensors below these places are the two image encoders.
pub(super) const DINO: &str = "cross_modal_fusion.dinov2_model";
pub(super) const CNN: &str = "cross_modal_fusion.vision_encoder";
/// The tensor by which a BitGen is told from other models.
const MARK: &str = "episodic_memory.gpm.memory_mean";

/// Which encoder reads images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitGenVision {
    /// DINOv2.
    Dino(DinoConfig),
    /// Three convolutions to so many channels.
    Cnn([usize; 3]),
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
    /// Most positions of a text.
    pub positions: usize,
    /// Encoder layers.
    pub layers: usize,
    /// Width of an encoder layer's feed-forward part.
    pub ff: usize,
    /// Width inside the fusion of text and image.
    pub fusion_ff: usize,
    /// Layers of the text decoder.
    pub decoder_layers: usize,
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
        weights.shape(MARK).is_some() && weights.shape("cross_modal_fusion.vision_to_embed.weight").is_some()
    }

    /// Heads of the encoder's and the decoder's attention.
    pub fn heads(&self) -> AttentionShape {
        AttentionShape { heads: self.n_heads, kv_heads: self.n_heads, d: self.d / self.n_heads }
    }

    /// Sizes of the text decoder.
    pub(super) fn decoder(&self) -> DecoderSizes {
        DecoderSizes { heads: self.heads(), layers: self.decoder_layers, d_ff: self.decoder_ff, vocab: self.vocab }
    }

    /// Reads the sizes. `config.json` lies beside the checkpoint, or one folder above it, where the trainer puts
    /// checkpoints into folders of their own.
    ///
    /// # Errors
    /// [`Error::Config`] for a number of heads that does not fit, [`Error::MissingTensors`] and [`Error::Shape`] for
    /// tensors from which no sizes can be read, and those of reading the file.
    pub fn read(files: &ModelFiles, weights: &Weights) -> Result<Self> {
        let config = config_files(files);
        let n_heads = heads(&config, "config.json", "num_heads")?;
        let shape = |name: &str, rank: usize| shape(weights, name, rank);
        let table = shape("token_embedding.weight", 2)?;
        let to_embed = shape("cross_modal_fusion.vision_to_embed.weight", 2)?;
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
            decoder_ff: shape("text_decoder.decoder_layers.0.ffn.0.weight", 2)?[0],
            memory: [memory[0], memory[1]],
            image: [to_embed[1], to_embed[0]],
            vision: vision(&config, weights)?,
        };
        sizes.validate(weights)?;
        Ok(sizes)
    }

    fn validate(&self, weights: &Weights) -> Result<()> {
        let heads = self.d.is_multiple_of(self.n_heads) && (self.d / self.n_heads).is_multiple_of(4);
        if !heads {
            let problem = format!("is {}, expected heads of a multiple of 4 columns out of {}", self.n_heads, self.d);
            return Err(Error::config("num_heads", problem));
        }
        let fits = |name: &str, expected: &str, holds: bool, found: String| {
            let object = format!("{}: {name}", weights.path().display());
            if holds { Ok(()) } else { Err(Error::shape(object, expected, found)) }
        };
        let four = [self.d, self.ff, self.fusion_ff, self.decoder_ff, self.memory[1], self.image[0], self.image[1]];
        fits("widths", "multiples of 4", four.iter().all(|n| n.is_multiple_of(4)), format!("{four:?}"))?;
        let slots = self.memory[0];
        fits(MARK, "5 to 2048 slots", (READS..=MAX_MEMORY).contains(&slots), format!("{slots} slots"))
    }
}

/// Slots of the memory that a row reads.
pub(super) const READS: usize = 5;

/// The model's files, or those of the folder above if the configuration lies there.
pub(super) fn config_files(files: &ModelFiles) -> ModelFiles {
    let above = || Some(files.path("config.json").parent()?.parent()?.to_owned());
    match (files.has("config.json"), files, above()) {
        (false, ModelFiles::Disk(_), Some(folder)) if folder.join("config.json").exists() => folder.into(),
        _ => files.clone(),
    }
}

/// The number of heads in a file.
fn heads(files: &ModelFiles, file: &str, key: &str) -> Result<usize> {
    integer(&read_json(files, file)?, &files.path(file), key, 1..=256)
}

/// An integer of a configuration that was read from `file`.
pub(super) fn integer(
    config: &Map<String, Value>,
    file: &Path,
    key: &str,
    range: RangeInclusive<u64>,
) -> Result<usize> {
    let name = || format!("{}: {key}", file.display());
    let value = config.get(key).ok_or_else(|| Error::config(name(), "is missing"))?;
    let fits = value.as_u64().filter(|n| range.contains(n)).map(|n| n as usize);
    fits.ok_or_else(|| Error::config(name(), format!("is {value}, expected an integer in {range:?}")))
}

/// The shape of a tensor of so many dimensions.
pub(super) fn shape(weights: &Weights, name: &str, rank: usize) -> Result<Vec<usize>> {
    let file = || weights.path().display().to_string();
    let found =
        weights.shape(name).ok_or_else(|| Error::MissingTensors { file: file(), names: vec![name.to_owned()] })?;
    if found.len() == rank && found.iter().all(|n| (1..=MOST).contains(n)) {
        return Ok(found);
    }
    let expected = format!("{rank} dimensions of 1 to {MOST}");
    Err(Error::shape(format!("{}: tensor {name}", file()), expected, format!("{found:?}")))
}

/// How many numbered places there are below a name.
pub(super) fn count(weights: &Weights, place: &str) -> usize {
    let number = |name: &str| name.strip_prefix(place)?.strip_prefix('.')?.split('.').next()?.parse::<usize>().ok();
    let numbers: std::collections::BTreeSet<usize> =
        weights.checkpoint().tensors().filter_map(|t| number(&t.name)).collect();
    numbers.len()
}

/// The image encoder whose tensors are there.
fn vision(files: &ModelFiles, weights: &Weights) -> Result<BitGenVision> {
    if weights.shape(&patch_weights()).is_some() {
        return Ok(BitGenVision::Dino(dino(files, weights)?));
    }
    let mut channels = [0; 3];
    for (channels, (number, _)) in channels.iter_mut().zip(STAGES) {
        *channels = shape(weights, &format!("{CNN}.{number}.weight"), 4)?[0];
    }
    Ok(BitGenVision::Cnn(channels))
}

/// The tensor that makes vectors of patches in DINOv2.
fn patch_weights() -> String {
    format!("{DINO}.embeddings.patch_embeddings.projection.weight")
}

/// Sizes of the DINOv2 whose tensors are there.
pub(super) fn dino(files: &ModelFiles, weights: &Weights) -> Result<DinoConfig> {
    let (patches, positions) = (shape(weights, &patch_weights(), 4)?, format!("{DINO}.embeddings.position_embeddings"));
    let (d, learned) = (patches[0], shape(weights, &positions, 3)?);
    let (layers, patch, grid) =
        (count(weights, &format!("{DINO}.encoder.layer")), patches[3], (learned[1] - 1).isqrt());
    let object = |name: &str| format!("{}: tensor {name}", weights.path().display());
    if learned != [1, grid * grid + 1, d] || grid == 0 {
        let expected = format!("[1, 1 + n², {d}]");
        return Err(Error::shape(object(&positions), expected, format!("{learned:?}")));
    }
    if !IMAGE_SIZE.is_multiple_of(patch) {
        let found = format!("{patch}");
        return Err(Error::shape(object("patch_embeddings.projection.weight"), "patches that tile 224 pixels", found));
    }
    let heads = match files.has("dinov2_config.json") {
        true => heads(files, "dinov2_config.json", "num_attention_heads")?,
        false => d.div_ceil(DINO_HEAD),
    };
    if !d.is_multiple_of(heads) || !(d / heads).is_multiple_of(4) {
        let problem = format!("is {heads}, expected heads of a multiple of 4 columns out of {d}");
        return Err(Error::config("num_attention_heads", problem));
    }
    let d_ff = shape(weights, &format!("{DINO}.encoder.layer.0.mlp.fc1.weight"), 2)?[0];
    Ok(DinoConfig { d, d_ff, heads, layers, patch, grid })
}
