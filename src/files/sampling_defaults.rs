//! How a model's publisher recommends to sample: `general.sampling.*` of a GGUF file, or else `generation_config.json`.

use std::fmt;
use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::tokenizer::special::{GENERATION_CONFIG, read};
use crate::files::{GgufMetadata, ModelFiles};

/// The top k of transformers' `GenerationConfig` where it samples; its top p is 1, its temperature 1.
const TRANSFORMERS_TOP_K: usize = 50;

/// What the files recommend; none where they say nothing. Values are as they stand there: whoever samples checks them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SamplingDefaults {
    /// The file that recommends it; none where no file was read.
    pub file: Option<PathBuf>,
    /// Divides the logits; 0 takes the likeliest token, as `do_sample: false` does, and 1 is what `do_sample: true` means.
    pub temperature: Option<f32>,
    /// How many of the likeliest tokens stay; 0 means all.
    pub top_k: Option<usize>,
    /// The likeliest tokens stay that make up this probability.
    pub top_p: Option<f32>,
    /// Tokens stay whose probability is at least this part of the likeliest one's.
    pub min_p: Option<f32>,
    /// Divides positive logits of tokens that occurred, and multiplies negative ones.
    pub repetition_penalty: Option<f32>,
    /// Subtracted from logits of tokens that occurred.
    pub presence_penalty: Option<f32>,
    /// Subtracted from logits for each time that a token occurred.
    pub frequency_penalty: Option<f32>,
}

impl SamplingDefaults {
    /// The recommendation of a model's files.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not a number, [`Error::Format`] for broken JSON, [`Error::Io`].
    pub fn of(files: &ModelFiles) -> Result<Self> {
        let own = match GgufMetadata::of(files) {
            Ok(Some(keys)) => Self::in_gguf(&keys)?,
            _ => Self::default(),
        };
        match read(files, GENERATION_CONFIG) {
            _ if !own.is_empty() => Ok(own),
            Ok(Some(config)) => Self::in_config(files.path(GENERATION_CONFIG), &config),
            beside => beside.map(|_| own),
        }
    }

    /// That of a GGUF file's keys.
    ///
    /// # Errors
    /// [`Error::Config`] for a value that is not a number.
    pub fn in_gguf(keys: &GgufMetadata) -> Result<Self> {
        let number = |key: &str| Ok::<_, Error>(keys.float(&format!("general.sampling.{key}"))?.map(|v| v as f32));
        let top_k = keys.integer("general.sampling.top_k")?;
        Ok(SamplingDefaults {
            file: Some(keys.file().into()),
            temperature: number("temp")?,
            top_k: top_k.map(|k| usize::try_from(k).unwrap_or(usize::MAX)),
            top_p: number("top_p")?,
            min_p: number("min_p")?,
            repetition_penalty: number("penalty_repeat")?,
            presence_penalty: None,
            frequency_penalty: None,
        })
    }

    fn in_config(file: PathBuf, config: &Map<String, Value>) -> Result<Self> {
        let wrong = |key: &str, expected: &str| {
            Error::config(format!("{}: {key:?}", file.display()), format!("is not {expected}"))
        };
        let given = |key: &str| config.get(key).filter(|value| !value.is_null());
        let number = |key: &'static str| -> Result<Option<f32>> {
            given(key).map(|v| v.as_f64().map(|v| v as f32).ok_or_else(|| wrong(key, "a number"))).transpose()
        };
        let top_k =
            given("top_k").map(|v| v.as_u64().ok_or_else(|| wrong("top_k", "a number of tokens"))).transpose()?;
        let temperature = match given("do_sample") {
            Some(Value::Bool(false)) => Some(0.0),
            Some(Value::Bool(true)) => number("temperature")?.or(Some(1.0)),
            _ => number("temperature")?,
        };
        // What is not named has the values of transformers, for which the file is written.
        let samples = temperature.is_some_and(|temperature| temperature > 0.0);
        Ok(SamplingDefaults {
            temperature,
            top_k: top_k.map(|k| usize::try_from(k).unwrap_or(usize::MAX)).or(samples.then_some(TRANSFORMERS_TOP_K)),
            top_p: number("top_p")?.or(samples.then_some(1.0)),
            min_p: number("min_p")?,
            repetition_penalty: number("repetition_penalty")?,
            presence_penalty: number("presence_penalty")?,
            frequency_penalty: number("frequency_penalty")?,
            file: Some(file),
        })
    }

    /// What it is in `generation_config.json`.
    pub(crate) fn to_config(&self) -> Map<String, Value> {
        let numbers = [
            ("temperature", self.temperature),
            ("top_p", self.top_p),
            ("min_p", self.min_p),
            ("repetition_penalty", self.repetition_penalty),
            ("presence_penalty", self.presence_penalty),
            ("frequency_penalty", self.frequency_penalty),
        ];
        // The shortest digits that are the same in 32 bits.
        let shortest = |v: f32| v.to_string().parse::<f64>().ok().map(Value::from);
        let numbers = numbers.into_iter().filter_map(|(key, v)| Some((key.to_owned(), shortest(v?)?)));
        numbers.chain(self.top_k.map(|k| ("top_k".to_owned(), k.into()))).collect()
    }

    /// What is left of it for a user who chooses the values that `given` has.
    pub fn without(&self, given: &Self) -> Self {
        SamplingDefaults {
            file: self.file.clone(),
            temperature: self.temperature.filter(|_| given.temperature.is_none()),
            top_k: self.top_k.filter(|_| given.top_k.is_none()),
            top_p: self.top_p.filter(|_| given.top_p.is_none()),
            min_p: self.min_p.filter(|_| given.min_p.is_none()),
            repetition_penalty: self.repetition_penalty.filter(|_| given.repetition_penalty.is_none()),
            presence_penalty: self.presence_penalty.filter(|_| given.presence_penalty.is_none()),
            frequency_penalty: self.frequency_penalty.filter(|_| given.frequency_penalty.is_none()),
        }
    }

    /// Whether the files recommend nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self { file: self.file.clone(), ..Self::default() }
    }
}

impl fmt::Display for SamplingDefaults {
    /// `temperature 0.7, top k 20`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let numbers = [
            ("temperature", self.temperature),
            ("top p", self.top_p),
            ("min p", self.min_p),
            ("repetition penalty", self.repetition_penalty),
            ("presence penalty", self.presence_penalty),
            ("frequency penalty", self.frequency_penalty),
        ];
        let numbers = numbers.into_iter().filter_map(|(name, value)| value.map(|value| format!("{name} {value}")));
        let all: Vec<String> = numbers.chain(self.top_k.map(|k| format!("top k {k}"))).collect();
        f.write_str(if all.is_empty() { "nothing" } else { "" })?;
        f.write_str(&all.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(json: &str) -> Result<SamplingDefaults> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(GENERATION_CONFIG), json).unwrap();
        SamplingDefaults::of(&dir.path().into())
    }

    #[test]
    fn a_generation_config_recommends_what_it_names() {
        let found =
            of(r#"{"do_sample": true, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": null}"#).unwrap();
        assert_eq!((found.temperature, found.top_k, found.top_p, found.min_p), (Some(0.6), Some(20), Some(0.95), None));
        assert_eq!(found.to_string(), "temperature 0.6, top p 0.95, top k 20");
        let written = Value::Object(found.to_config());
        assert_eq!(written, serde_json::json!({"temperature": 0.6, "top_k": 20, "top_p": 0.95}));
        let read = of(&written.to_string()).unwrap();
        assert_eq!(SamplingDefaults { file: found.file.clone(), ..read }, found);
        assert_eq!(of(r#"{"do_sample": false, "temperature": 0.6}"#).unwrap().temperature, Some(0.0));
        assert_eq!(of(r#"{"do_sample": true}"#).unwrap().to_string(), "temperature 1, top p 1, top k 50");
        let all = of(r#"{"do_sample": true, "temperature": 0.6, "top_k": 0}"#).unwrap();
        assert_eq!(all.to_string(), "temperature 0.6, top p 1, top k 0");
        assert_eq!(of(r#"{"repetition_penalty": 1.5}"#).unwrap().to_string(), "repetition penalty 1.5");
        assert!(found.file.clone().is_some_and(|file| file.ends_with(GENERATION_CONFIG)));
        let given = SamplingDefaults { temperature: Some(0.0), min_p: Some(0.5), ..Default::default() };
        assert_eq!(found.without(&given).to_string(), "top p 0.95, top k 20");
        assert!(found.without(&found).is_empty() && !found.is_empty());
        assert!(of("{}").unwrap().is_empty() && SamplingDefaults::default().to_string() == "nothing");
    }

    #[test]
    fn what_is_not_a_number_is_named() {
        for (json, key) in [(r#"{"top_k": -1}"#, "top_k"), (r#"{"temperature": "hot"}"#, "temperature")] {
            let error = of(json).unwrap_err().to_string();
            assert!(error.contains("generation_config.json") && error.contains(key), "{error}");
        }
        assert!(matches!(of("[]").unwrap_err(), Error::Format { .. }));
        let nowhere = tempfile::tempdir().unwrap();
        assert!(SamplingDefaults::of(&nowhere.path().into()).unwrap().is_empty());
    }
}
