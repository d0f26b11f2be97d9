//! BitGen's configuration: heads from `config.json`, sizes from the tensors' shapes.

use std::ops::RangeInclusive;

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::{CONFIG_ENTRY, ModelFiles, Weights, text};
use crate::models::bitgen::decoder::DecoderSizes;
use crate::models::load::{dims, read_json};
use crate::models::vision::cnn::STAGES;
use crate::models::vision::dinov2::DinoConfig;
use crate::ops::{AttentionShape, MAX_HEAD, MAX_MEMORY};

/// Pixels a side of the images that BitGen reads.
pub const IMAGE_SIZE: usize = 224;
/// Most positions of a text. Each takes memory when a model is opened.
const MOST_POSITIONS: usize = 1 << 13;
/// The original's `memory_alpha`.
const MEMORY_ALPHA: f32 = 0.2;
/// Width of a head in every published DINOv2.
const DINO_HEAD: usize = 64;
/// Where DINOv2's heads are, which no shape shows: an object of a converted model's configuration, or a file beside the
/// original's.
const DINO_KEY: &str = "dinov2_config";
const DINO_FILE: &str = "dinov2_config.json";
const DINO_HEADS: &str = "num_attention_heads";
/// Tensors below these places are the two image encoders.
pub(crate) const DINO: &str = "cross_modal_fusion.dinov2_model";
pub(crate) const CNN: &str = "cross_modal_fusion.vision_encoder";
/// The tensors by which a BitGen is told from other models.
pub(crate) const MARK: &str = "episodic_memory.gpm.memory_mean";
const VISION_MARK: &str = "cross_modal_fusion.vision_to_embed.weight";

/// Which encoder reads images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BitGenVision {
    /// DINOv2.
    Dino(DinoConfig),
    /// Three convolutions to so many channels.
    Cnn([usize; 3]),
}

/// What a BitGen of stage 1 is, its weights and sizes aside.
#[derive(Debug, Clone, PartialEq)]
pub struct BitGenConfig {
    /// Whether the decoder was trained to say the token that follows, as this project's models are. The original's says
    /// the present one, and so a caption begins with its first token.
    pub next_token: bool,
    /// Ends a caption; none: the tokenizer's end of text does.
    pub eos: Option<u32>,
    /// `memory_alpha`: how far a write moves a slot of the memory towards what is written, 0 to 1.
    pub memory_alpha: f32,
    /// `direct_writing`: whether the memory is written at all.
    pub direct_writing: bool,
    /// All that the original says of it, training included, and DINOv2's heads.
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
        let n_heads = config.heads("num_heads")?;
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
        sizes.validate(weights, &config.key("num_heads"))?;
        Ok(sizes)
    }

    fn validate(&self, weights: &Weights, heads: &str) -> Result<()> {
        if !self.d.is_multiple_of(self.n_heads) || self.d / self.n_heads > MAX_HEAD {
            let [n, d] = [self.n_heads, self.d];
            let problem = format!("is {n}, expected a divisor of the width {d}, into at most {MAX_HEAD} columns each");
            return Err(Error::config(heads, problem));
        }
        let fits = |name: &str, expected: &str, holds: bool, found: String| {
            let object = format!("{}: {name}", weights.path().display());
            if holds { Ok(()) } else { Err(Error::shape(object, expected, found)) }
        };
        let positions = self.positions;
        let few = (1..=MOST_POSITIONS).contains(&positions);
        fits("pos_embedding.weight", "1 to 8192 positions", few, format!("{positions} positions"))?;
        let slots = self.memory[0];
        fits(MARK, "5 to 2048 slots", (READS..=MAX_MEMORY).contains(&slots), format!("{slots} slots"))
    }
}

/// Slots of the memory that a row reads.
pub(crate) const READS: usize = 5;

impl BitGenConfig {
    /// Reads the configuration, and the sizes with it: `config.json` lies beside the checkpoint, or one folder above it, where the trainer puts
    /// checkpoints into folders of their own; where there is neither, the checkpoint itself holds it.
    ///
    /// # Errors
    /// [`Error::Config`] for a number of heads that is missing or does not fit, [`Error::MissingTensors`] and
    /// [`Error::Shape`] for tensors from which no sizes can be read, and those of reading the file.
    pub fn read(files: &ModelFiles, weights: &Weights) -> Result<(BitGenSizes, Self)> {
        let source = Source::find(files, weights)?;
        let sizes = BitGenSizes::read(&source, weights)?;
        let (next_token, direct_writing) = (source.flag("next_token", false)?, source.flag("direct_writing", true)?);
        let memory_alpha = source.share("memory_alpha", MEMORY_ALPHA)?;
        let eos = match source.json.get("eos_token_id") {
            None | Some(Value::Null) => None,
            Some(value) => Some(source.integer("eos_token_id", value, 0..=sizes.vocab - 1)? as u32),
        };
        let dino = match sizes.vision {
            BitGenVision::Dino(dino) => Some(dino),
            BitGenVision::Cnn(_) => None,
        };
        let json = source.converted("bitgen_stage1", dino);
        Ok((sizes, BitGenConfig { next_token, eos, memory_alpha, direct_writing, json }))
    }
}

/// A configuration, and where it is from: `config.json` beside the checkpoint, or one folder above it, where the trainer
/// puts checkpoints into folders of their own; where there is neither, the checkpoint itself.
pub(crate) struct Source {
    files: ModelFiles,
    name: String,
    pub json: Map<String, Value>,
}

impl Source {
    pub fn find(files: &ModelFiles, weights: &Weights) -> Result<Self> {
        const FILE: &str = "config.json";
        // A relative path may have no parent to its name.
        let above = files.path(FILE).parent().map(|folder| ModelFiles::from(folder.join("..")));
        let files = match (files.has(FILE), files, above) {
            (false, ModelFiles::Disk(_), Some(above)) if above.has(FILE) => above,
            _ => files.clone(),
        };
        if files.has(FILE) {
            return Ok(Source { name: files.path(FILE).display().to_string(), json: read_json(&files, FILE)?, files });
        }
        let (name, metadata) = (weights.path().display().to_string(), weights.checkpoint().metadata());
        let Some(text) = metadata.get(CONFIG_ENTRY) else {
            let problem =
                "is missing: there is no config.json beside the checkpoint or one folder above it, and none in it";
            return Err(Error::config(format!("{name}: num_heads"), problem));
        };
        let name = format!("{name}: {CONFIG_ENTRY}");
        let json = text::json(&name, text.as_bytes(), "a JSON object")?;
        Ok(Source { files, name, json })
    }

    pub fn problem(&self, key: &str, found: &Value, expected: &str) -> Error {
        Error::config(self.key(key), format!("is {found}, expected {expected}"))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(other) => Err(self.problem(key, other, "true or false")),
        }
    }

    /// A number in 0..=1.
    fn share(&self, key: &str, default: f32) -> Result<f32> {
        match self.json.get(key) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => match value.as_f64().filter(|share| (0.0..=1.0).contains(share)) {
                Some(share) => Ok(share as f32),
                None => Err(self.problem(key, value, "a number in 0..=1")),
            },
        }
    }

    /// The key, for messages.
    pub fn key(&self, key: &str) -> String {
        format!("{}: {key}", self.name)
    }

    fn integer(&self, key: &str, value: &Value, range: RangeInclusive<usize>) -> Result<usize> {
        let fits = value.as_u64().map(|n| n as usize).filter(|n| range.contains(n));
        fits.ok_or_else(|| self.problem(key, value, &format!("an integer in {range:?}")))
    }

    /// An integer that must be there.
    pub fn required(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize> {
        let missing = || Error::config(self.key(key), "is missing");
        self.integer(key, self.json.get(key).ok_or_else(missing)?, range)
    }

    /// A number of heads.
    pub fn heads(&self, key: &str) -> Result<usize> {
        self.required(key, 1..=256)
    }

    /// The configuration of a converted model: all that it says, and what the original keeps elsewhere.
    pub fn converted(self, model_type: &str, dino: Option<DinoConfig>) -> Map<String, Value> {
        let mut json = self.json;
        json.insert("model_type".into(), json!(model_type));
        if let Some(dino) = dino {
            json.insert(DINO_KEY.into(), json!({ DINO_HEADS: dino.heads }));
        }
        json
    }

    /// The heads of a DINOv2 of this width, which they divide.
    fn dino_heads(&self, d: usize) -> Result<usize> {
        let from = |json: Map<String, Value>, name: String| Source { files: self.files.clone(), name, json };
        let source = match self.json.get(DINO_KEY) {
            Some(Value::Object(inner)) => from(inner.clone(), format!("{}: {DINO_KEY}", self.name)),
            Some(other) => return Err(self.problem(DINO_KEY, other, "an object")),
            None if self.files.has(DINO_FILE) => {
                from(read_json(&self.files, DINO_FILE)?, self.files.path(DINO_FILE).display().to_string())
            }
            None => from(Map::from_iter([(DINO_HEADS.to_owned(), json!(d.div_ceil(DINO_HEAD)))]), DINO_FILE.to_owned()),
        };
        let heads = source.heads(DINO_HEADS)?;
        if !d.is_multiple_of(heads) {
            let problem = format!("is {heads}, expected a divisor of the width {d}");
            return Err(Error::config(source.key(DINO_HEADS), problem));
        }
        Ok(heads)
    }
}

/// The queries of the text decoder's first layer.
pub(crate) const DECODER_QUERIES: &str = "text_decoder.decoder_layers.0.self_attn.q_proj.weight";

/// The width of a head of an attention whose queries this tensor makes: together they may be of another width than text.
pub(crate) fn head_width(config: &Source, weights: &Weights, queries: &str, heads: usize) -> Result<usize> {
    let rows = dims(weights, queries, 2)?[0];
    if rows.is_multiple_of(heads) && rows / heads <= MAX_HEAD {
        return Ok(rows / heads);
    }
    let problem =
        format!("is {heads}, expected a divisor of the {rows} rows of {queries}, into at most {MAX_HEAD} each");
    Err(Error::config(config.key("num_heads"), problem))
}

/// How many numbered places there are below a name.
pub(crate) fn count(weights: &Weights, place: &str) -> usize {
    let number = |name: &str| name.strip_prefix(place)?.strip_prefix('.')?.split('.').next()?.parse::<usize>().ok();
    let numbers: std::collections::BTreeSet<usize> =
        weights.checkpoint().tensors().filter_map(|t| number(&t.name)).collect();
    numbers.len()
}

/// The image encoder whose tensors are there.
fn vision(config: &Source, weights: &Weights) -> Result<BitGenVision> {
    match weights.shape(&patch_weights()) {
        Some(_) => Ok(BitGenVision::Dino(dino(config, weights)?)),
        None => cnn(weights),
    }
}

/// The tensor that makes vectors of patches in DINOv2.
fn patch_weights() -> String {
    format!("{DINO}.embeddings.patch_embeddings.projection.weight")
}

/// Sizes of the DINOv2 whose tensors are there.
pub(crate) fn dino(config: &Source, weights: &Weights) -> Result<DinoConfig> {
    let (patches, positions) = (dims(weights, &patch_weights(), 4)?, format!("{DINO}.embeddings.position_embeddings"));
    let (d, learned) = (patches[0], dims(weights, &positions, 3)?);
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
    let heads = config.dino_heads(d)?;
    let d_ff = dims(weights, &format!("{DINO}.encoder.layer.0.mlp.fc1.weight"), 2)?[0];
    Ok(DinoConfig { d, d_ff, heads, layers, patch, grid })
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
