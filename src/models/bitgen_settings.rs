//! What BitGen's `config.json` says beside sizes: how it remembers, and what its decoder was taught.

use serde_json::{Map, Value};

use super::bitgen_config::config_files;
use super::embernet_config::read_json;
use crate::error::{Error, Result};
use crate::files::ModelFiles;

/// The original's `memory_alpha`.
const ALPHA: f32 = 0.2;

/// What a BitGen's configuration says beside its sizes; a key that is missing stands for the original's default.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BitGenSettings {
    /// `memory_alpha`: how far a write moves a slot of the memory towards what is written, 0 to 1.
    pub memory_alpha: f32,
    /// `direct_writing`: whether the memory is written at all.
    pub direct_writing: bool,
    /// `next_token`: whether the decoder was taught to say the next token, and not, as the original, the present one.
    pub next_token: bool,
}

impl Default for BitGenSettings {
    /// The original's.
    fn default() -> Self {
        BitGenSettings { memory_alpha: ALPHA, direct_writing: true, next_token: false }
    }
}

impl BitGenSettings {
    /// Reads `config.json` beside the checkpoint or one folder above it; without one the settings are the defaults.
    ///
    /// # Errors
    /// [`Error::Config`] for a value of the wrong kind or out of range, and those of reading the file.
    pub fn read(files: &ModelFiles) -> Result<Self> {
        const FILE: &str = "config.json";
        let files = config_files(files);
        if !files.has(FILE) {
            return Ok(Self::default());
        }
        Self::from_config(&read_json(&files, FILE)?, &files.path(FILE).display().to_string())
    }

    /// Takes the settings out of the configuration `file`.
    fn from_config(config: &Map<String, Value>, file: &str) -> Result<Self> {
        let wrong = |key: &str, value: &Value, expected: &str| {
            Error::config(format!("{file}: {key}"), format!("is {value}, expected {expected}"))
        };
        let flag = |key: &str, default| match config.get(key) {
            None => Ok(default),
            Some(Value::Bool(value)) => Ok(*value),
            Some(other) => Err(wrong(key, other, "true or false")),
        };
        let default = Self::default();
        let memory_alpha = match config.get("memory_alpha") {
            None => default.memory_alpha,
            Some(value) => match value.as_f64().filter(|alpha| (0.0..=1.0).contains(alpha)) {
                Some(alpha) => alpha as f32,
                None => return Err(wrong("memory_alpha", value, "a number in 0..=1")),
            },
        };
        let direct_writing = flag("direct_writing", default.direct_writing)?;
        Ok(BitGenSettings { memory_alpha, direct_writing, next_token: flag("next_token", default.next_token)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> Result<BitGenSettings> {
        BitGenSettings::from_config(&serde_json::from_str(json).expect("JSON"), "config.json")
    }

    #[test]
    fn missing_keys_are_the_originals_defaults() {
        assert_eq!(read("{}").unwrap(), BitGenSettings::default());
        let all = read(r#"{"memory_alpha": 0.5, "direct_writing": false, "next_token": true}"#).unwrap();
        assert_eq!(all, BitGenSettings { memory_alpha: 0.5, direct_writing: false, next_token: true });
    }

    #[test]
    fn values_of_another_kind_are_named() {
        for (json, says) in [
            (r#"{"memory_alpha": 2}"#, "config.json: memory_alpha: is 2"),
            (r#"{"memory_alpha": "0.2"}"#, "expected a number in 0..=1"),
            (r#"{"direct_writing": 1}"#, "config.json: direct_writing: is 1, expected true or false"),
            (r#"{"next_token": null}"#, "next_token: is null"),
        ] {
            let error = read(json).unwrap_err();
            assert!(matches!(error, Error::Config { .. }) && error.to_string().contains(says), "{error}");
        }
    }
}
