//! The tokens that begin and end a text, and all that end an answer.

use std::fmt::Display;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::tokenizer::Tokenizer;
use crate::files::tokenizer::gguf::{CONTROL, USER_DEFINED};
use crate::files::{GgufMetadata, ModelFiles, text};

/// Keys of GGUF files.
pub(crate) const BOS: &str = "tokenizer.ggml.bos_token_id";
pub(crate) const EOS: &str = "tokenizer.ggml.eos_token_id";
/// Keys of tokens that end a turn or a message beside the end of the text.
const ENDS: [&str; 2] = ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];

/// Texts of tokens that end a turn, by the names in use. Many files give one token as the end and write another.
const END_TEXTS: [&str; 14] = [
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<|end_of_text|>",
    "<EOT>",
    "[EOT]",
    "[EOS]",
    "<end_of_turn>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
];

/// Files of Hugging Face's models beside tokenizer.json.
pub(crate) const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
pub(crate) const GENERATION_CONFIG: &str = "generation_config.json";
const CONFIG: &str = "config.json";
/// Maximum number of bytes of such a file.
const MAX_CONFIG: u64 = 64 << 20;

/// Tokens with a part in every conversation.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialTokens {
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// All that end an answer, in rising order; the end of a text among them.
    pub stop: Vec<u32>,
}

impl SpecialTokens {
    /// The special tokens of a model: by the keys of its GGUF file, else by tokenizer_config.json and
    /// generation_config.json (config.json where that is missing) and what the tokenizer adds to its vocabulary.
    ///
    /// # Errors
    /// [`Error::Config`] for keys of another type, [`Error::Format`] for broken JSON, [`Error::Io`].
    pub fn of(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Self> {
        match GgufMetadata::of(files) {
            Ok(Some(keys)) => Self::in_gguf(&keys),
            _ => Self::in_files(files, tokenizer),
        }
    }

    /// Those of a GGUF file's keys.
    ///
    /// # Errors
    /// [`Error::Config`] for keys of another type.
    pub fn in_gguf(keys: &GgufMetadata) -> Result<Self> {
        let id = |key: &str| -> Result<Option<u32>> {
            let Some(id) = keys.integer(key)? else { return Ok(None) };
            // All bits set stand for none.
            Ok(u32::try_from(id).ok().filter(|&id| id != u32::MAX))
        };
        let (bos, eos) = (id(BOS)?, id(EOS)?);
        let texts = keys.texts("tokenizer.ggml.tokens")?.unwrap_or_default();
        let types = keys.integers("tokenizer.ggml.token_type")?.unwrap_or_default();
        let ends = texts
            .iter()
            .zip(&types)
            .enumerate()
            .filter(|(_, (text, kind))| matches!(**kind, CONTROL | USER_DEFINED) && END_TEXTS.contains(*text));
        let mut stop: Vec<u32> = ends.filter_map(|(id, _)| u32::try_from(id).ok()).chain(eos).collect();
        for key in ENDS {
            stop.extend(id(key)?);
        }
        Ok(SpecialTokens { bos, eos, stop: sorted(stop) })
    }

    /// Those of Hugging Face's files.
    fn in_files(files: &ModelFiles, tokenizer: &Tokenizer) -> Result<Self> {
        let config = read(files, TOKENIZER_CONFIG)?.unwrap_or_default();
        let token = |key: &str| config.get(key).and_then(token_text).and_then(|text| tokenizer.token_id(text));
        let (mut bos, mut eos) = (token("bos_token"), token("eos_token"));
        let added = tokenizer.inner.get_added_tokens_decoder();
        let ends = added.iter().filter(|(_, token)| END_TEXTS.contains(&token.content.as_str()));
        let mut stop: Vec<u32> = ends.map(|(&id, _)| id).chain(eos).collect();
        for file in [GENERATION_CONFIG, CONFIG] {
            let Some(config) = read(files, file)? else { continue };
            let name = files.path(file);
            let ids = |key: &str| ids(name.display(), &config, key);
            let ends = ids("eos_token_id")?;
            bos = bos.or(ids("bos_token_id")?.first().copied());
            eos = eos.or(ends.first().copied());
            stop.extend(ends);
            // The second is what the first is made of where it is missing.
            break;
        }
        Ok(SpecialTokens { bos, eos, stop: sorted(stop) })
    }

    /// The texts of the tokens that begin and end a text, empty where there are none: what chat templates write.
    pub fn texts(&self, tokenizer: &Tokenizer) -> [String; 2] {
        [self.bos, self.eos].map(|id| id.and_then(|id| tokenizer.inner.id_to_token(id)).unwrap_or_default())
    }
}

fn sorted(mut ids: Vec<u32>) -> Vec<u32> {
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The text of a token: by itself, or as `content` of a map that says more.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

/// One id, several, or none.
fn ids(file: impl Display, config: &Map<String, Value>, key: &str) -> Result<Vec<u32>> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    let found = match config.get(key) {
        None | Some(Value::Null) => Some(Vec::new()),
        Some(Value::Array(all)) => all.iter().map(id).collect(),
        Some(one) => id(one).map(|id| vec![id]),
    };
    found.ok_or_else(|| Error::config(format!("{file}: {key:?}"), "is not the id of a token, or a list of ids"))
}

/// The JSON object in a file beside a checkpoint; none without the file.
pub(crate) fn read(files: &ModelFiles, file: &str) -> Result<Option<Map<String, Value>>> {
    if !files.has(file) {
        return Ok(None);
    }
    let bytes = files.read(file, MAX_CONFIG)?;
    let name = files.path(file).display().to_string();
    if bytes.len() as u64 > MAX_CONFIG {
        return Err(Error::format(name, format!("has more than {MAX_CONFIG} bytes; it is not a configuration")));
    }
    text::json(&name, &bytes, "a JSON object").map(Some)
}
