//! Where model files have their chat templates: keys of a GGUF file, or files beside tokenizer.json.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::chat_template::MAX_TEMPLATE_BYTES;
use crate::files::tokenizer::special::{TOKENIZER_CONFIG, read};
use crate::files::{GgufMetadata, ModelFiles, text};

/// The key of GGUF files; further templates have their name behind it.
const KEY: &str = "tokenizer.chat_template";
/// The file of newer models.
pub(crate) const JINJA: &str = "chat_template.jinja";
/// The file of older models that read pictures.
const JSON: &str = "chat_template.json";
/// The folder of further templates.
const FURTHER: &str = "additional_chat_templates";
/// The name of the template that is meant where none is named.
const DEFAULT: &str = "default";

/// A template as it stands in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TemplateSource {
    /// Where it stands, for messages.
    pub name: String,
    /// Its text.
    pub source: String,
}

impl TemplateSource {
    /// The chat template of a model; `which` names a further one (`tool_use`, `rag`). None where there is none of that name.
    ///
    /// # Errors
    /// [`Error::Config`] for a key of another type, [`Error::Format`] for what is not JSON or not UTF-8, [`Error::Io`].
    pub fn of(files: &ModelFiles, which: Option<&str>) -> Result<Option<Self>> {
        match GgufMetadata::of(files) {
            Ok(Some(keys)) => Self::in_gguf(&keys, which),
            _ => Self::in_files(files, which),
        }
    }

    /// That of a GGUF file's keys.
    ///
    /// # Errors
    /// [`Error::Config`] for a key of another type.
    pub fn in_gguf(keys: &GgufMetadata, which: Option<&str>) -> Result<Option<Self>> {
        let named = |which: &str| format!("{KEY}.{which}");
        let candidates = match which {
            Some(which) => vec![named(which)],
            None => vec![KEY.to_owned(), named(DEFAULT)],
        };
        for key in candidates {
            if let Some(source) = keys.text(&key)? {
                return Ok(Some(TemplateSource {
                    name: format!("{}: {key:?}", keys.file()),
                    source: source.to_owned(),
                }));
            }
        }
        Ok(None)
    }

    /// That of Hugging Face's files: a file of its own comes before the key of tokenizer_config.json.
    fn in_files(files: &ModelFiles, which: Option<&str>) -> Result<Option<Self>> {
        let file = which.map_or_else(|| JINJA.to_owned(), |which| format!("{FURTHER}/{which}.jinja"));
        // A name leads to no file elsewhere.
        let inside =
            which.is_none_or(|which| which.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-')));
        if inside && files.has(&file) {
            let name = files.path(&file).display().to_string();
            let bytes = files.read(&file, MAX_TEMPLATE_BYTES as u64)?;
            let source = text::decode(&name, &bytes)?.to_owned();
            return Ok(Some(TemplateSource { name, source }));
        }
        for file in [TOKENIZER_CONFIG, JSON] {
            let Some(config) = read(files, file)? else { continue };
            let name = files.path(file).display().to_string();
            if let Some(source) = in_config(&name, &config, which)? {
                return Ok(Some(TemplateSource { name: format!("{name}: \"chat_template\""), source }));
            }
        }
        Ok(None)
    }
}

/// The template of a configuration: one, or a list of named ones.
fn in_config(file: &str, config: &Map<String, Value>, which: Option<&str>) -> Result<Option<String>> {
    let wrong = || {
        Error::config(format!("{file}: \"chat_template\""), "is not a text, or a list of maps with name and template")
    };
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(source)) => Ok(which.is_none().then(|| source.clone())),
        Some(Value::Array(all)) => {
            for template in all {
                let text = |key: &str| template.get(key).and_then(Value::as_str).ok_or_else(wrong);
                if text("name")? == which.unwrap_or(DEFAULT) {
                    return text("template").map(|source| Some(source.to_owned()));
                }
            }
            Ok(None)
        }
        Some(_) => Err(wrong()),
    }
}
