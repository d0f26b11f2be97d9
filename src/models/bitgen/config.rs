//! What both BitGens' configurations share: where `config.json` is, heads, and the sizes of DINOv2.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::config::read_json;
use crate::files::{CONFIG_ENTRY, ModelFiles, Weights, text};
use crate::models::load::dims;
use crate::models::section::Section;
use crate::models::vision::dinov2::DinoConfig;
use crate::ops::MAX_HEAD;

/// Pixels per side of the images that BitGen reads.
pub const IMAGE_SIZE: usize = 224;
/// Width of a head in every published DINOv2.
const DINO_HEAD: usize = 64;
/// Maximum number of heads.
pub(crate) const MAX_HEADS: usize = 256;
/// Where DINOv2's heads are, which no shape shows: an object of a converted model's configuration, or a file beside the
/// original's.
const DINO_KEY: &str = "dinov2_config";
const DINO_FILE: &str = "dinov2_config.json";
const DINO_HEADS: &str = "num_attention_heads";
/// The place of its tensors.
pub(crate) const DINO: &str = "cross_modal_fusion.dinov2_model";

/// A configuration, and where it is from: `config.json` beside the checkpoint, or one folder above it, where the trainer
/// puts checkpoints into folders of their own; where there is neither, the checkpoint itself.
pub(crate) struct Source {
    files: ModelFiles,
    name: String,
    pub json: Map<String, Value>,
}

impl Source {
    /// The configuration of a checkpoint.
    ///
    /// # Errors
    /// [`Error::Config`] if there is none, and those of reading the file.
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

    /// Its values.
    pub fn section(&self) -> Section<'_> {
        Section { file: &self.name, name: "", map: &self.json }
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
        let beside;
        let config = match self.json.get(DINO_KEY) {
            Some(Value::Object(map)) => Section { name: DINO_KEY, map, ..self.section() },
            Some(other) => {
                let problem = format!("is {other}, expected an object");
                return Err(Error::config(self.section().key(DINO_KEY), problem));
            }
            None => {
                beside = match self.files.has(DINO_FILE) {
                    true => (self.files.path(DINO_FILE).display().to_string(), read_json(&self.files, DINO_FILE)?),
                    false => {
                        (DINO_FILE.to_owned(), Map::from_iter([(DINO_HEADS.to_owned(), json!(d.div_ceil(DINO_HEAD)))]))
                    }
                };
                Section { file: &beside.0, name: "", map: &beside.1 }
            }
        };
        let heads = config.size(DINO_HEADS, MAX_HEADS)?;
        if !d.is_multiple_of(heads) {
            let problem = format!("is {heads}, expected a divisor of the width {d}");
            return Err(Error::config(config.key(DINO_HEADS), problem));
        }
        Ok(heads)
    }
}

/// Checks what a tensor's shape says.
///
/// # Errors
/// [`Error::Shape`] with the tensor unless it `holds`.
pub(crate) fn check(weights: &Weights, name: &str, holds: bool, expected: &str, found: String) -> Result<()> {
    let object = format!("{}: {name}", weights.path().display());
    if holds { Ok(()) } else { Err(Error::shape(object, expected, found)) }
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
    Err(Error::config(config.section().key("num_heads"), problem))
}

/// Number of numbered places below a name.
pub(crate) fn count(weights: &Weights, place: &str) -> usize {
    let number = |name: &str| name.strip_prefix(place)?.strip_prefix('.')?.split('.').next()?.parse::<usize>().ok();
    let numbers: std::collections::BTreeSet<usize> =
        weights.checkpoint().tensors().filter_map(|t| number(&t.name)).collect();
    numbers.len()
}

/// The tensor that makes vectors of patches in DINOv2.
pub(crate) fn patch_weights() -> String {
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
