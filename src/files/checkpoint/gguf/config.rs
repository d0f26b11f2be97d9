//! A model's configuration from the keys of its GGUF file, under the keys that Hugging Face's `config.json` has.

use serde_json::{Map, Value, json};

use crate::error::Result;
use crate::files::Checkpoint;
use crate::files::checkpoint::gguf::metadata::GgufMetadata;
use crate::files::checkpoint::gguf::value::GgufValue;

/// The key of the architecture.
pub(crate) const ARCHITECTURE: &str = "general.architecture";
/// Architectures whose query and key rows stand in the order in which neighbours (2i, 2i + 1) turn together: the conversion
/// of Hugging Face's llama reorders them. In all others i and i + n/2 do.
const INTERLEAVED: [&str; 1] = ["llama"];
/// Architectures that are one family, with its name.
const SAME: [(&str, &str); 2] = [("bitnet-b1.58", "bitnet"), ("bitnet-25", "bitnet")];
/// Vocabularies that tell which activation a bitnet was trained with, where no key does: BitNet b1.58 2B-4T's is that of
/// Llama 3, the first reproductions' that of Llama 2.
const BITNET_ACTIVATIONS: [(u64, &str); 2] = [(128_256, "relu2"), (32_002, "silu")];
/// Keys that are copied as they are, behind the architecture's name: Hugging Face's and the file's.
const SIZES: [(&str, &str); 5] = [
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("max_position_embeddings", "context_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
];

/// The configuration of a GGUF checkpoint. A key that the file lacks and that has no default is not there either.
///
/// Beside Hugging Face's keys: `rope_interleave` says which dimensions of queries and keys turn together (2i and 2i + 1, or
/// i and i + n/2); `hidden_act` is null where nothing tells it, for which no default must stand in.
///
/// # Errors
/// [`crate::Error::Config`] with the file and the key, for values of other types and for what has no meaning here.
pub(crate) fn config(keys: &GgufMetadata, checkpoint: &Checkpoint) -> Result<Map<String, Value>> {
    let architecture = keys.text(ARCHITECTURE)?.ok_or_else(|| keys.missing(ARCHITECTURE))?;
    let family = SAME.iter().find(|(name, _)| *name == architecture).map_or(architecture, |(_, family)| family);
    let reader = Reader { keys, architecture };
    let has = |name: &str| checkpoint.get(name).is_some() || checkpoint.unreadable().contains_key(name);
    let mut map = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            map.insert(key.to_owned(), value);
        }
    };
    put("model_type", Some(family.into()));
    for (key, name) in SIZES {
        put(key, reader.sizes(name)?);
    }
    let heads = reader.sizes("attention.head_count")?;
    put("num_key_value_heads", reader.sizes("attention.head_count_kv")?.or_else(|| heads.clone()));
    let (head, value_head) = reader.head_dims(heads.and_then(|n| n.as_u64()))?;
    put("head_dim", head.map(Into::into));
    put("v_head_dim", value_head.filter(|&n| Some(n) != head).map(Into::into));
    put("rms_norm_eps", reader.float("attention.layer_norm_rms_epsilon")?.map(Into::into));
    put("rope_theta", Some(reader.float("rope.freq_base")?.unwrap_or(10_000.0).into()));
    let rotated = reader.integer("rope.dimension_count")?.filter(|&n| Some(n) != head).zip(head);
    put("partial_rotary_factor", rotated.map(|(n, head)| (n as f64 / head.max(1) as f64).into()));
    put("rope_interleave", Some(INTERLEAVED.contains(&architecture).into()));
    put("rope_scaling", reader.rope_scaling()?);
    let vocab = reader.vocab(checkpoint)?;
    put("vocab_size", vocab.map(Into::into));
    put("tie_word_embeddings", Some((!has("lm_head.weight")).into()));
    put("attention_bias", Some(has("model.layers.0.self_attn.q_proj.bias").into()));
    put("mlp_bias", Some(has("model.layers.0.mlp.up_proj.bias").into()));
    put("hidden_act", Some(reader.activation(family, vocab)?));
    put("bos_token_id", keys.integer("tokenizer.ggml.bos_token_id")?.map(Into::into));
    put("pad_token_id", keys.integer("tokenizer.ggml.padding_token_id")?.map(Into::into));
    put("eos_token_id", keys.integer("tokenizer.ggml.eos_token_id")?.map(Into::into));
    Ok(map)
}

/// The number that is written with the fewest digits among those that are the same in 32 bits: 0.7, not 0.699999988.
fn shortest(x: f64) -> f64 {
    let narrow = x as f32;
    if f64::from(narrow) == x { narrow.to_string().parse().unwrap_or(x) } else { x }
}

/// The keys that have the architecture's name in front.
struct Reader<'a> {
    keys: &'a GgufMetadata,
    architecture: &'a str,
}

impl Reader<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.architecture)
    }

    fn integer(&self, name: &str) -> Result<Option<u64>> {
        self.keys.integer(&self.key(name))
    }

    fn float(&self, name: &str) -> Result<Option<f64>> {
        Ok(self.keys.float(&self.key(name))?.map(shortest))
    }

    /// A number, or one for each layer; one where all layers have the same.
    fn sizes(&self, name: &str) -> Result<Option<Value>> {
        let key = self.key(name);
        let Some(GgufValue::Array(_)) = self.keys.get(&key) else {
            return Ok(self.keys.integer(&key)?.map(Value::from));
        };
        let all = self.keys.integers(&key)?.unwrap_or_default();
        let same = all.first().filter(|first| all.iter().all(|n| n == *first)).copied();
        Ok(Some(same.map_or_else(|| Value::from(all), Value::from)))
    }

    /// Widths of a head of queries and keys, and of values.
    fn head_dims(&self, heads: Option<u64>) -> Result<(Option<u64>, Option<u64>)> {
        let width = self.integer("embedding_length")?;
        let even = width.zip(heads).filter(|(width, heads)| *heads > 0 && width.is_multiple_of(*heads));
        let even = even.map(|(width, heads)| width / heads);
        Ok((self.integer("attention.key_length")?.or(even), self.integer("attention.value_length")?.or(even)))
    }

    fn vocab(&self, checkpoint: &Checkpoint) -> Result<Option<u64>> {
        if let Some(n) = self.integer("vocab_size")? {
            return Ok(Some(n));
        }
        if let Some(GgufValue::Array(tokens)) = self.keys.get("tokenizer.ggml.tokens") {
            return Ok(Some(tokens.len() as u64));
        }
        let table = checkpoint.get("model.embed_tokens.weight").and_then(|t| t.shape.first());
        Ok(table.map(|&n| n as u64))
    }

    /// The activation of the feed-forward part: bitnet's later forms have squared ReLU, which programs that read every
    /// bitnet as the first reproductions miss: their answers are fluent and wrong.
    fn activation(&self, family: &str, vocab: Option<u64>) -> Result<Value> {
        if let Some(name) = self.keys.text(&self.key("hidden_activation"))? {
            return Ok(name.into());
        }
        Ok(match (family, self.architecture) {
            ("bitnet", "bitnet") => {
                let known = BITNET_ACTIVATIONS.iter().find(|(n, _)| Some(*n) == vocab);
                known.map_or(Value::Null, |(_, name)| (*name).into())
            }
            ("bitnet", _) => "relu2".into(),
            _ => "silu".into(),
        })
    }

    /// How positions are scaled, in the terms of Hugging Face; none if they are not.
    fn rope_scaling(&self) -> Result<Option<Value>> {
        let factor = match self.float("rope.scaling.factor")? {
            None => self.float("rope.scale_linear")?,
            factor => factor,
        };
        let kind_key = self.key("rope.scaling.type");
        let kind = match (self.keys.text(&kind_key)?, factor) {
            (Some("none"), _) | (None, None) => return Ok(None),
            (Some(kind), _) => kind,
            (None, Some(_)) => "linear",
        };
        let Some(factor) = factor else {
            return Err(self.keys.wrong(&kind_key, format!("is {kind:?}, but there is no factor beside it")));
        };
        if !(factor.is_finite() && factor > 0.0) {
            return Err(self
                .keys
                .wrong(&self.key("rope.scaling.factor"), format!("is {factor}, expected more than 0")));
        }
        match kind {
            "linear" => Ok((factor != 1.0).then(|| json!({"rope_type": "linear", "factor": factor}))),
            "yarn" => self.yarn(factor).map(Some),
            other => Err(self.keys.wrong(&kind_key, format!("is {other:?}, expected none, linear or yarn"))),
        }
    }

    fn yarn(&self, factor: f64) -> Result<Value> {
        let original = "rope.scaling.original_context_length";
        let length = self.integer(original)?.ok_or_else(|| self.keys.missing(&self.key(original)))?;
        let or = |name: &str, default: f64| Ok::<_, crate::Error>(self.float(name)?.unwrap_or(default));
        let multiplier = or("rope.scaling.yarn_log_multiplier", 0.0)?;
        if multiplier != 0.0 {
            let key = self.key("rope.scaling.yarn_log_multiplier");
            return Err(self.keys.wrong(&key, format!("is {multiplier}, which {} does not have", self.architecture)));
        }
        let attention = or("rope.scaling.attn_factor", 1.0)? * or("rope.scaling.yarn_attn_factor", 1.0)?;
        Ok(json!({
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": length,
            "beta_fast": or("rope.scaling.yarn_beta_fast", 32.0)?,
            "beta_slow": or("rope.scaling.yarn_beta_slow", 1.0)?,
            "extrapolation_factor": or("rope.scaling.yarn_ext_factor", 1.0)?,
            "attention_factor": attention * (1.0 + 0.1 * factor.ln()),
        }))
    }
}
