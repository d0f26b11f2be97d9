//! What a tokenizer.json may ask for. The `tokenizers` library reads and runs a file as it is: a few bytes of it make a text
//! grow a thousand times over, four times in a row, or name a length that is not there.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::files::text;

/// Most steps of a normalizer, a decoder or the splitting of words; those in use have up to ten.
const MAX_STEPS: usize = 256;
/// By which a text may grow before it is cut into tokens: what SentencePiece's table of characters does, and a mark of three
/// bytes for each space, are below 1000.
const MAX_GROWTH: usize = 4096;
/// By which a token may grow when it becomes text.
const MAX_TOKEN_GROWTH: usize = 64;

/// The parts of a tokenizer.json that run; the vocabulary is the library's own matter.
#[derive(Deserialize)]
struct Parts {
    normalizer: Option<Value>,
    pre_tokenizer: Option<Value>,
    decoder: Option<Value>,
    #[serde(rename = "model")]
    _model: IgnoredAny,
}

/// By how many times a text grows at most before the tokenizer of this file cuts it; 1 if it does not.
///
/// # Errors
/// [`Error::Format`] on `name` for what is not JSON of a tokenizer, or asks for more than any tokenizer in use does.
pub(super) fn growth(name: &str, json: &[u8]) -> Result<usize> {
    let parts: Parts = text::json(name, json, "a tokenizer")?;
    let bounded = |part: &str, value: Option<Value>, most: usize| -> Result<usize> {
        let mut steps = Steps { left: MAX_STEPS, growth: 1 };
        steps
            .add(&value.unwrap_or_default())
            .map_err(|problem| Error::format(name, format!("its {part} {problem}")))?;
        if steps.growth > most {
            let problem = format!("its {part} makes a text more than {most} times as long; no tokenizer in use does");
            return Err(Error::format(name, problem));
        }
        Ok(steps.growth)
    };
    bounded("pre_tokenizer", parts.pre_tokenizer, MAX_GROWTH)?;
    bounded("decoder", parts.decoder, MAX_TOKEN_GROWTH)?;
    bounded("normalizer", parts.normalizer, MAX_GROWTH)
}

/// The steps of a part, which lie in one another.
struct Steps {
    left: usize,
    growth: usize,
}

impl Steps {
    /// Adds all steps of a value, which JSON's reader has bounded in depth.
    fn add(&mut self, value: &Value) -> std::result::Result<(), String> {
        match value {
            Value::Array(all) => all.iter().try_for_each(|value| self.add(value)),
            Value::Object(step) => {
                self.left = self.left.checked_sub(1).ok_or(format!("has more than {MAX_STEPS} steps"))?;
                self.growth = self.growth.saturating_mul(growth_of(step)?);
                step.values().try_for_each(|value| self.add(value))
            }
            _ => Ok(()),
        }
    }
}

/// By how many times a text grows by one step, at least 1.
fn growth_of(step: &Map<String, Value>) -> std::result::Result<usize, String> {
    let text = |key: &str| step.get(key).and_then(Value::as_str);
    let pattern = step.get("pattern").and_then(|pattern| pattern.get("String")).and_then(Value::as_str);
    if pattern == Some("") {
        return Err("looks for an empty text".to_owned());
    }
    let replaced = text("content").map_or(1, |content| content.len().div_ceil(pattern.map_or(1, str::len)));
    let with_front = text("prepend").map_or(1, |front| front.len() + 1);
    let mapped = text("precompiled_charsmap").map_or(Ok(1), longest_mapping)?;
    Ok(replaced.max(1).saturating_mul(with_front).saturating_mul(mapped.max(1)))
}

/// The longest text that SentencePiece's table of characters puts in the place of one: the length of a trie, the trie, and
/// texts that end with a zero.
fn longest_mapping(table: &str) -> std::result::Result<usize, String> {
    let bytes =
        STANDARD.decode(table).map_err(|error| format!("has a precompiled_charsmap that is not base64: {error}"))?;
    let texts = bytes.split_first_chunk().and_then(|(length, rest)| rest.get(u32::from_le_bytes(*length) as usize..));
    let texts =
        texts.ok_or(format!("has a precompiled_charsmap of {} bytes, which is shorter than it says", bytes.len()))?;
    Ok(texts.split(|&byte| byte == 0).map(<[u8]>::len).max().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn of(part: &str, value: Value) -> Result<usize> {
        growth("t", json!({"model": {"vocab": {"a": 1}}, part: value}).to_string().as_bytes())
    }

    fn replace(pattern: &str, content: &str) -> Value {
        json!({"type": "Replace", "pattern": {"String": pattern}, "content": content})
    }

    #[test]
    fn what_is_in_use_is_within_bounds() {
        assert_eq!(of("normalizer", json!(null)).unwrap(), 1);
        let spaces = json!([{"type": "Prepend", "prepend": "\u{2581}"}, replace(" ", "\u{2581}")]);
        assert_eq!(of("normalizer", json!({"type": "Sequence", "normalizers": spaces})).unwrap(), 12);
        let table = STANDARD.encode(b"\x04\0\0\0TRIEab\0cde\0f");
        assert_eq!(of("normalizer", json!({"type": "Precompiled", "precompiled_charsmap": table})).unwrap(), 3);
        assert_eq!(of("normalizer", replace("long", "ab")).unwrap(), 1);
        assert!(of("decoder", json!({"decoders": [replace("\u{2581}", " "), {"type": "Fuse"}]})).is_ok());
    }

    #[test]
    fn what_grows_without_bounds_is_refused() {
        let says = |part: &str, value: Value, want: &str| {
            let error = of(part, value).unwrap_err().to_string();
            assert!(error.starts_with("t: ") && error.contains(want), "{error}");
        };
        let long = "a".repeat(1000);
        let twice = json!({"normalizers": [replace("a", &long), {"normalizers": [replace("a", &long)]}]});
        says("normalizer", twice, "4096 times");
        says("decoder", replace("a", &long), "its decoder makes a text more than 64 times");
        says("normalizer", json!({"pattern": {"Regex": "."}, "content": "a".repeat(5000)}), "4096 times");
        says("normalizer", replace("", "x"), "an empty text");
        says("normalizer", json!({"precompiled_charsmap": "/////w=="}), "shorter than it says");
        says("normalizer", json!({"precompiled_charsmap": "?"}), "not base64");
        says("pre_tokenizer", json!(vec![json!({"type": "Digits"}); MAX_STEPS + 1]), "more than 256 steps");
        says("decoder", json!({"decoders": vec![replace("a", "aa"); 40]}), "64 times");
        assert!(growth("t", b"{\"model\": {}, \"decoder\": null, \"decoder\": null}").is_err(), "a key twice");
        assert!(growth("t", b"{\"model\": {}").unwrap_err().to_string().contains("line 1 column 12"));
    }
}
