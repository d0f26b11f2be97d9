//! The sizes of a causal language model, by the keys of Hugging Face's `config.json`. A GGUF file's keys are read into the
//! same ones.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::models::HiddenAct;
use crate::models::causal_lm::quantisation::FileQuantisation;
use crate::models::causal_lm::rope::{RopeSpec, Scaling};
use crate::models::section::Section;
use crate::ops::Pairing;

/// Largest number of positions.
const MAX_POSITIONS: usize = 1 << 24;
/// Largest head width.
const MAX_HEAD_DIM: usize = 1024;

/// Sizes and rules that `config.json` names.
#[derive(Debug, Clone, PartialEq)]
pub struct CausalLmConfig {
    /// Tokens of the vocabulary.
    pub vocab_size: usize,
    /// Width of a token's vector.
    pub hidden_size: usize,
    /// Width inside the feed-forward part.
    pub intermediate_size: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Width of a head; heads need not fill the hidden size.
    pub head_dim: usize,
    /// What is added to the mean square in norms.
    pub norm_eps: f32,
    /// Rotary positions.
    pub rope: RopeSpec,
    /// Maximum number of positions.
    pub max_positions: usize,
    /// Whether the head is the embedding table.
    pub tied_head: bool,
    /// The activation of feed-forward parts; none where the configuration does not name it.
    pub hidden_act: Option<HiddenAct>,
    /// Whether the configuration says that nothing tells the activation, for which no default must stand in.
    pub hidden_act_unknown: bool,
    /// How the file's matrices are quantised.
    pub quantisation: FileQuantisation,
    /// Begins a text, if the model knows such a token.
    pub bos: Option<u32>,
    /// End a text.
    pub eos: Vec<u32>,
}

impl CausalLmConfig {
    /// Reads the sizes of the configuration `map` in `file`.
    ///
    /// # Errors
    /// [`Error::Config`] with the file and the key.
    pub fn read(file: &str, map: &Map<String, Value>) -> Result<Self> {
        let root = Section { file, name: "", map };
        let (hidden_size, num_heads) = (root.size("hidden_size", 1 << 16)?, root.size("num_attention_heads", 1024)?);
        let head_dim = match root.value("head_dim") {
            Some(_) => root.size("head_dim", MAX_HEAD_DIM)?,
            None if hidden_size.is_multiple_of(num_heads) => hidden_size / num_heads,
            None => {
                let problem = format!("is missing, and {num_heads} heads do not divide a hidden size of {hidden_size}");
                return Err(Error::config(root.key("head_dim"), problem));
            }
        };
        if let Some(v) = root.value("v_head_dim").filter(|v| v.as_u64() != Some(head_dim as u64)) {
            let problem =
                format!("is {v}, but heads of queries and keys have {head_dim} elements; equal widths are read");
            return Err(Error::config(root.key("v_head_dim"), problem));
        }
        let num_kv_heads = root.size_or("num_key_value_heads", num_heads, num_heads)?;
        if !num_heads.is_multiple_of(num_kv_heads) {
            let problem = format!("is {num_kv_heads}, which does not divide {num_heads} query heads");
            return Err(Error::config(root.key("num_key_value_heads"), problem));
        }
        let eps = root.number("rms_norm_eps", 0.0..=1.0)?;
        let max_positions = root.size("max_position_embeddings", MAX_POSITIONS)?;
        Ok(CausalLmConfig {
            vocab_size: root.size("vocab_size", 1 << 24)?,
            hidden_size,
            intermediate_size: root.size("intermediate_size", 1 << 18)?,
            num_layers: root.size("num_hidden_layers", 1024)?,
            num_heads,
            num_kv_heads,
            head_dim,
            norm_eps: eps.ok_or_else(|| Error::config(root.key("rms_norm_eps"), "is missing"))? as f32,
            rope: rope(&root, head_dim, max_positions)?,
            max_positions,
            tied_head: root.truth("tie_word_embeddings")?.unwrap_or(false),
            hidden_act: hidden_act(&root)?,
            hidden_act_unknown: map.get("hidden_act").is_some_and(Value::is_null),
            quantisation: FileQuantisation::read(&root)?,
            bos: root.tokens("bos_token_id")?.first().copied(),
            eos: root.tokens("eos_token_id")?,
        })
    }
}

/// The rotary positions: `rope_theta`, `partial_rotary_factor` and `rope_scaling`.
fn rope(root: &Section, head_dim: usize, max_positions: usize) -> Result<RopeSpec> {
    let base = root.number("rope_theta", 1.0..=1e12)?.unwrap_or(10_000.0);
    let part = root.number("partial_rotary_factor", 0.0..=1.0)?.unwrap_or(1.0);
    let dims = (head_dim as f64 * part) as usize;
    if dims < 2 || !dims.is_multiple_of(2) {
        let problem = format!("turns {dims} of {head_dim} elements of a head, expected an even number");
        return Err(Error::config(root.key("partial_rotary_factor"), problem));
    }
    let scaling = match root.value("rope_scaling") {
        None => Scaling::None,
        Some(Value::Object(map)) => scaling(&Section { file: root.file, name: "rope_scaling", map }, max_positions)?,
        Some(value) => return Err(Error::config(root.key("rope_scaling"), format!("is {value}, expected an object"))),
    };
    let interleaved = root.truth("rope_interleave")?.unwrap_or(false);
    let pairing = if interleaved { Pairing::Interleaved } else { Pairing::HalfSplit };
    Ok(RopeSpec { base, dims, scaling, pairing })
}

/// The activation by its name.
fn hidden_act(root: &Section) -> Result<Option<HiddenAct>> {
    match root.text("hidden_act")? {
        None => Ok(None),
        Some("silu" | "swish") => Ok(Some(HiddenAct::SiLu)),
        Some("relu2") => Ok(Some(HiddenAct::Relu2)),
        Some(other) => Err(Error::config(root.key("hidden_act"), format!("is {other:?}, expected silu or relu2"))),
    }
}

/// The object `rope_scaling`.
fn scaling(of: &Section, max_positions: usize) -> Result<Scaling> {
    let kind = of.text("rope_type")?.map_or_else(|| of.text("type"), |kind| Ok(Some(kind)))?.unwrap_or("default");
    let needed = |key: &str, low: f64| {
        let number = of.number(key, low..=1e6)?;
        number.ok_or_else(|| Error::config(of.key(key), format!("is missing, and {kind} scaling needs it")))
    };
    let original =
        || -> Result<f64> { Ok(of.size_or("original_max_position_embeddings", MAX_POSITIONS, max_positions)? as f64) };
    match kind {
        "default" | "none" => Ok(Scaling::None),
        "linear" => Ok(Scaling::Linear { factor: needed("factor", 1e-6)? }),
        "yarn" => Ok(Scaling::Yarn {
            factor: needed("factor", 1.0)?,
            original_context: original()?,
            beta_fast: of.number("beta_fast", 1e-6..=1e6)?.unwrap_or(32.0),
            beta_slow: of.number("beta_slow", 1e-6..=1e6)?.unwrap_or(1.0),
            extrapolation: of.number("extrapolation_factor", 0.0..=1.0)?.unwrap_or(1.0),
            attention: of.number("attention_factor", 1e-6..=1e6)?,
        }),
        "llama3" => Ok(Scaling::Llama3 {
            factor: needed("factor", 1.0)?,
            low_freq_factor: needed("low_freq_factor", 1e-6)?,
            high_freq_factor: needed("high_freq_factor", 1e-6)?,
            original_context: original()?,
        }),
        other => {
            let problem = format!("is {other:?}; the kinds are default, linear, yarn and llama3");
            Err(Error::config(of.key("rope_type"), problem))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(change: Value) -> Result<CausalLmConfig> {
        let mut config = json!({
            "vocab_size": 480, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
            "num_attention_heads": 4, "rms_norm_eps": 1e-6, "max_position_embeddings": 512
        });
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        CausalLmConfig::read("config.json", config.as_object().unwrap())
    }

    #[test]
    fn what_is_missing_has_the_defaults_of_the_original() {
        let config = read(json!({})).unwrap();
        assert_eq!((config.num_kv_heads, config.head_dim, config.tied_head), (4, 64, false));
        assert_eq!(
            config.rope,
            RopeSpec { base: 10_000.0, dims: 64, scaling: Scaling::None, pairing: Pairing::HalfSplit }
        );
        let wide = read(json!({"head_dim": 128, "num_key_value_heads": 2, "eos_token_id": [7, 9]})).unwrap();
        assert_eq!((wide.head_dim, wide.num_kv_heads, wide.eos), (128, 2, vec![7, 9]));
    }

    #[test]
    fn both_spellings_of_a_scaling_are_read() {
        for key in ["rope_type", "type"] {
            let config = read(json!({"rope_scaling": {key: "linear", "factor": 2.5}})).unwrap();
            assert_eq!(config.rope.scaling, Scaling::Linear { factor: 2.5 }, "{key}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_with_its_key() {
        for (change, key) in [
            (json!({"vocab_size": 0}), "vocab_size"),
            (json!({"hidden_size": 255}), "head_dim"),
            (json!({"num_key_value_heads": 3}), "num_key_value_heads"),
            (json!({"rms_norm_eps": null}), "rms_norm_eps"),
            (json!({"rms_norm_eps": 1e300}), "rms_norm_eps"),
            (json!({"rope_theta": -1.0}), "rope_theta"),
            (json!({"partial_rotary_factor": 0.0}), "partial_rotary_factor"),
            (json!({"rope_scaling": {"rope_type": "dynamic"}}), "rope_scaling.rope_type"),
            (json!({"rope_scaling": {"rope_type": "yarn"}}), "rope_scaling.factor"),
            (json!({"rope_scaling": []}), "rope_scaling"),
            (json!({"eos_token_id": "</s>"}), "eos_token_id"),
            (json!({"hidden_act": "gelu"}), "hidden_act"),
            (json!({"v_head_dim": 32}), "v_head_dim"),
        ] {
            let error = read(change.clone()).unwrap_err().to_string();
            assert!(error.starts_with(&format!("config.json: {key}")), "{change}: {error}");
        }
    }
}
