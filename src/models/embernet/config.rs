//! EmberNet's configuration, in the nested form that is published and in the flat one.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::files::config::read_json;
use crate::files::{ModelFiles, Weights};
use crate::models::load::dims;
use crate::models::section::Section;
use crate::models::vision::siglip::SigLipConfig;
use crate::ops::MAX_EXPERTS;
use crate::quant::WeightQuant;

/// Maximum number of experts that all rows share.
const MAX_SHARED: usize = 4;

/// Sizes of an EmberNet. Taken from the model's code; from `config.json` only where the two agree.
#[derive(Debug, Clone, PartialEq)]
pub struct EmberNetConfig {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Width inside an expert.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Maximum number of positions.
    pub max_position_embeddings: usize,
    /// Experts to choose from.
    pub num_experts: usize,
    /// Experts chosen per token.
    pub num_experts_per_tok: usize,
    /// Experts that every token uses beside the chosen ones: one is `shared_expert` in a checkpoint, several are
    /// `shared_experts.0` and so on.
    pub num_shared_experts: usize,
    /// Names of the experts.
    pub expert_domains: Vec<String>,
    /// Tokens that an image becomes.
    pub num_image_tokens: usize,
    /// Replaces `<image>` tokens.
    pub pad_token_id: u32,
    /// Begins a text.
    pub bos_token_id: u32,
    /// Ends a text.
    pub eos_token_id: u32,
    /// Stands for an image in a prompt.
    pub image_token_id: u32,
    /// How weights become ternary.
    pub weight_quant: WeightQuant,
    /// 8, or 4 where the configuration overrides it.
    pub activation_bits: usize,
    /// The image encoder.
    pub vision: SigLipConfig,
}

/// How many experts all tokens share: `num_shared_experts`, which published files lack, else one unless
/// `use_shared_expert` says that there is none.
fn shared_experts(of: &Section) -> Result<usize> {
    let used = of.truth("use_shared_expert")?;
    let key = "num_shared_experts";
    let Some(value) = of.value(key) else { return Ok(usize::from(used != Some(false))) };
    let n = of.integer(key, value, 0..=MAX_SHARED)?;
    match used {
        Some(used) if used != (n > 0) => {
            Err(Error::config(of.key(key), format!("is {n}, but use_shared_expert is {used}")))
        }
        _ => Ok(n),
    }
}

impl EmberNetConfig {
    /// Whether a `config.json` is EmberNet's, in either form.
    pub fn recognises(config: &Map<String, Value>) -> bool {
        let named = config.get("model_type").and_then(Value::as_str) == Some("embernet_vlm");
        let flat = ["num_image_tokens", "num_experts_per_tok", "vision_model_name"];
        named || flat.iter().all(|k| config.contains_key(*k))
    }

    /// Reads the sizes: from `config.json`, from `embernet_config.json` and `siglip_vision_config.json` beside it where
    /// they exist (the published file lacks the special tokens and SigLIP's heads), the rest from the tensors' shapes.
    ///
    /// # Errors
    /// [`Error::Config`] with the file and the key, [`Error::MissingTensors`] and [`Error::Shape`] for tensors from which
    /// no sizes can be read, and those of reading the files.
    pub fn read(files: &ModelFiles, config: &Map<String, Value>, weights: &Weights) -> Result<Self> {
        let names = ["config.json", "embernet_config.json", "siglip_vision_config.json"];
        let [main, flat, siglip] = names.map(|name| files.path(name).display().to_string());
        let optional = |name: &str| if files.has(name) { read_json(files, name) } else { Ok(Map::new()) };
        let (flat_map, siglip_map) = (optional(names[1])?, optional(names[2])?);
        let root = || Section { file: &main, name: "", map: config };
        let decoder = root().inner("language_decoder", "language_decoder").unwrap_or_else(root);
        let encoder = root().inner("vision_encoder", "vision_encoder").unwrap_or_else(root);
        let flat = Section { file: &flat, name: "", map: &flat_map };
        let beside = || if flat.map.is_empty() { root() } else { flat };
        let special = root().inner("embernet_config", "embernet_config").unwrap_or_else(beside);
        let vision = root().inner("vision_config", "vision_config");
        let vision = vision.or_else(|| encoder.inner("siglip_vision_config", "vision_encoder.siglip_vision_config"));
        let vision = vision.unwrap_or(Section { file: &siglip, name: "", map: &siglip_map });
        let num_experts = decoder.size("num_experts", MAX_EXPERTS)?;
        let this = EmberNetConfig {
            vocab_size: decoder.size("vocab_size", 1 << 24)?,
            hidden_size: decoder.size("hidden_size", 1 << 16)?,
            intermediate_size: decoder.size("intermediate_size", 1 << 18)?,
            num_layers: decoder.size("num_layers", 1024)?,
            num_attention_heads: decoder.size("num_attention_heads", 1024)?,
            num_kv_heads: decoder.size("num_kv_heads", 1024)?,
            max_position_embeddings: decoder.size("max_position_embeddings", 1 << 20)?,
            num_experts,
            num_experts_per_tok: decoder.size("num_experts_per_tok", num_experts)?,
            num_shared_experts: shared_experts(&decoder)?,
            expert_domains: expert_names(decoder.map, num_experts),
            num_image_tokens: encoder.size("num_image_tokens", 1 << 16)?,
            pad_token_id: special.token("pad_token_id", 0)?,
            bos_token_id: special.token("bos_token_id", 1)?,
            eos_token_id: special.token("eos_token_id", 2)?,
            image_token_id: special.token("image_token_id", 32000)?,
            weight_quant: weight_quant(&root())?,
            activation_bits: activation_bits(&root())?,
            vision: siglip_config(&vision, &root(), weights)?,
        };
        this.validate(&decoder)?;
        Ok(this)
    }

    /// The published model's: 16 layers of 9 experts, SigLIP base of 16 x 16 patches.
    pub fn published() -> Self {
        let domains = [
            "vision_ocr",
            "vision_diagram",
            "code_math_chart",
            "code_math_formula",
            "spatial_scene",
            "spatial_reasoning",
            "agentic_knowledge",
            "agentic_reasoning",
        ];
        EmberNetConfig {
            vocab_size: 32002,
            hidden_size: 768,
            intermediate_size: 2048,
            num_layers: 16,
            num_attention_heads: 12,
            num_kv_heads: 6,
            max_position_embeddings: 4096,
            num_experts: domains.len(),
            num_experts_per_tok: 2,
            num_shared_experts: 1,
            expert_domains: domains.map(str::to_owned).to_vec(),
            num_image_tokens: 64,
            pad_token_id: 0,
            bos_token_id: 1,
            eos_token_id: 2,
            image_token_id: 32000,
            weight_quant: WeightQuant::SignMean,
            activation_bits: 8,
            vision: SigLipConfig {
                hidden_size: 768,
                intermediate_size: 3072,
                num_hidden_layers: 12,
                num_attention_heads: 12,
                image_size: 224,
                patch_size: 16,
            },
        }
    }

    fn validate(&self, decoder: &Section) -> Result<()> {
        let place = |key: &str| format!("{}: {key}", decoder.file);
        let whole = |key: &str, n: usize, by: usize, what: &str| {
            if n.is_multiple_of(by) {
                Ok(())
            } else {
                Err(Error::config(place(key), format!("is {n}, not a multiple of {what} {by}")))
            }
        };
        whole("hidden_size", self.hidden_size, self.num_attention_heads, "num_attention_heads")?;
        whole("num_attention_heads", self.num_attention_heads, self.num_kv_heads, "num_kv_heads")?;
        let head = self.hidden_size / self.num_attention_heads;
        whole("hidden_size / num_attention_heads", head, 2, "the 2 halves of a head that rotate together:")?;
        // The projector and the pooler have 8 heads each.
        whole("hidden_size", self.hidden_size, 8, "the projector's heads,")?;
        whole("vision hidden_size", self.vision.hidden_size, 8, "the pooler's heads,")?;
        Ok(())
    }

    /// The configuration in the flat form with the encoder's sizes, as [`EmberNetConfig::read`] reads it.
    pub fn to_json(&self) -> Value {
        let v = &self.vision;
        let mut all = json!({
            "model_type": "embernet_vlm",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_layers": self.num_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_kv_heads": self.num_kv_heads,
            "max_position_embeddings": self.max_position_embeddings,
            "num_experts": self.num_experts,
            "num_experts_per_tok": self.num_experts_per_tok,
            "use_shared_expert": self.num_shared_experts > 0,
            "expert_domains": self.expert_domains,
            "num_image_tokens": self.num_image_tokens,
            "pad_token_id": self.pad_token_id,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "image_token_id": self.image_token_id,
            "weight_quant": self.weight_quant,
            "activation_bits_override": self.activation_bits,
            "vision_config": {
                "hidden_size": v.hidden_size,
                "intermediate_size": v.intermediate_size,
                "num_hidden_layers": v.num_hidden_layers,
                "num_attention_heads": v.num_attention_heads,
                "image_size": v.image_size,
                "patch_size": v.patch_size,
            },
        });
        // Published files say no more than whether there is one.
        if self.num_shared_experts > 1 {
            all["num_shared_experts"] = self.num_shared_experts.into();
        }
        all
    }
}

fn expert_names(decoder: &Map<String, Value>, n: usize) -> Vec<String> {
    let listed = decoder.get("expert_domains").and_then(Value::as_array);
    let name = |i: usize| listed.and_then(|l| l.get(i)?.as_str().map(str::to_owned));
    (0..n).map(|i| name(i).unwrap_or_else(|| format!("expert {i}"))).collect()
}

fn weight_quant(config: &Section) -> Result<WeightQuant> {
    let Some(value) = config.map.get("weight_quant") else { return Ok(WeightQuant::SignMean) };
    let problem =
        |_| Error::config(config.key("weight_quant"), format!("is {value}, expected \"sign_mean\" or \"absmean\""));
    serde_json::from_value(value.clone()).map_err(problem)
}

/// The published file's `activation_bits: 4` is wrong: the model's code computes with 8. Only the override counts.
fn activation_bits(config: &Section) -> Result<usize> {
    const KEY: &str = "activation_bits_override";
    match config.map.get(KEY) {
        None | Some(Value::Null) => Ok(8),
        Some(v) if v == 4 => Ok(4),
        Some(v) if v == 8 => Ok(8),
        Some(v) => Err(Error::config(config.key(KEY), format!("is {v}, expected 4 or 8"))),
    }
}

/// The largest side of the pictures that an encoder reads, in pixels.
const MAX_IMAGE_SIDE: usize = 4096;
/// Where the encoder's tensors begin.
pub(crate) const SIGLIP: &str = "vision_encoder.encoder.vision_model";

/// Sizes of the image encoder, from the tensors' shapes; the heads, which no shape shows, from `config` or from SigLIP's
/// published widths. `main` is where missing heads may be put.
fn siglip_config(config: &Section, main: &Section, weights: &Weights) -> Result<SigLipConfig> {
    let place = |name: &str| format!("{SIGLIP}.{name}");
    let dims = |name: &str, rank| dims(weights, &place(name), rank);
    let (patches, positions) = ("embeddings.patch_embedding.weight", "embeddings.position_embedding.weight");
    let misfit = |name: &str, expected: String, found: &[usize]| {
        let object = format!("{}: tensor {}", weights.path().display(), place(name));
        Err(Error::shape(object, expected, format!("{found:?}")))
    };
    let (patch, learned) = (dims(patches, 4)?, dims(positions, 2)?);
    let (hidden_size, patch_size, grid) = (patch[0], patch[2], learned[0].isqrt());
    if grid * grid != learned[0] {
        return misfit(positions, format!("[n², {hidden_size}]"), &learned);
    }
    if grid * patch_size > MAX_IMAGE_SIDE {
        let expected = format!("patches of which {grid} are at most {MAX_IMAGE_SIDE} pixels");
        return misfit(patches, expected, &patch);
    }
    let layer = |i: usize| format!("encoder.layers.{i}.layer_norm1.weight");
    dims(&layer(0), 1)?;
    let layers = (0..1024).take_while(|&i| weights.shape(&place(&layer(i))).is_some()).count();
    let key = "num_attention_heads";
    let heads = match (config.map.is_empty(), hidden_size) {
        (false, _) => config.size(key, 1024)?,
        (true, 768) => 12,
        (true, 1024 | 1152) => 16,
        (true, other) => {
            let problem = format!("is missing; SigLIP of width {other} is not known, put it into \"vision_config\"");
            return Err(Error::config(main.key(&format!("vision_config.{key}")), problem));
        }
    };
    if !hidden_size.is_multiple_of(heads) {
        let problem = format!("is {heads}, which does not divide the encoder's width {hidden_size}");
        return Err(Error::config(config.key(key), problem));
    }
    Ok(SigLipConfig {
        hidden_size,
        intermediate_size: dims("encoder.layers.0.mlp.fc1.weight", 2)?[0],
        num_hidden_layers: layers,
        num_attention_heads: heads,
        image_size: grid * patch_size,
        patch_size,
    })
}
