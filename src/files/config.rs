//! A model's configuration, from whichever of its files holds it. Who reads it does not know from which.

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::checkpoint::gguf::config;
use crate::files::{Checkpoint, ModelFiles, text};

/// Largest configuration file.
const MAX_BYTES: u64 = 16 << 20;

/// The keys of a configuration, and where they are from.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// The file, for messages.
    pub file: String,
    /// Keys as in Hugging Face's files.
    pub keys: Map<String, Value>,
}

impl ModelConfig {
    /// The configuration of a model: from the keys of a GGUF file, else from `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`] if there is none, [`Error::Format`] for what is not a JSON object, [`Error::Config`] for a key of a
    /// GGUF file that does not do.
    pub fn of(files: &ModelFiles, checkpoint: &Checkpoint) -> Result<Self> {
        match checkpoint.gguf() {
            Some(keys) => Ok(ModelConfig { file: keys.file().to_owned(), keys: config::config(keys, checkpoint)? }),
            None => Self::beside(files, "config.json"),
        }
    }

    fn beside(files: &ModelFiles, name: &str) -> Result<Self> {
        Ok(ModelConfig { file: files.path(name).display().to_string(), keys: read_json(files, name)? })
    }
}

/// Reads the JSON object in the file `name` of a model.
///
/// # Errors
/// [`Error::Io`], or [`Error::Format`] for what is not a JSON object.
pub(crate) fn read_json(files: &ModelFiles, name: &str) -> Result<Map<String, Value>> {
    let (bytes, path) = (files.read(name, MAX_BYTES)?, files.path(name));
    if bytes.len() as u64 > MAX_BYTES {
        return Err(Error::format(path.display(), format!("has more than the {MAX_BYTES} bytes allowed")));
    }
    text::json(&path.display().to_string(), &bytes, "a JSON object")
}
