//! Which texts a tokenizer takes.

use crate::error::{Error, Result};
use crate::files::tokenizer::{MAX_TEXT_BYTES, Tokenizer};

/// The longest text that is cut into tokens, which may be longer than what [`Tokenizer::encode`] takes: 256 MiB.
const MAX_GROWN_BYTES: usize = 256 << 20;
/// By which a normalizer may make a text shorter: letters of three bytes become plain ones.
const SHRINKING: usize = 4;
/// Characters of a text, about as many as it takes to see whether a tokenizer has tokens for it.
const HEAD: usize = 64;

impl Tokenizer {
    /// Refuses a text above [`MAX_TEXT_BYTES`], or one that would become longer than [`MAX_GROWN_BYTES`].
    pub(super) fn check_length(&self, text: &str) -> Result<()> {
        let most = MAX_TEXT_BYTES.min(MAX_GROWN_BYTES / self.growth);
        if text.len() <= most {
            return Ok(());
        }
        Err(Error::Limit {
            what: "the prompt".into(),
            wanted: format!("{} bytes", text.len()),
            available: format!("{most} bytes"),
            advice: "no model has a context that long, shorten it".into(),
        })
    }

    /// Refuses a text that a context of so many tokens cannot hold, by its length alone, since cutting a text takes hundreds of
    /// bytes for each of its own; and one of which this tokenizer makes no tokens at all.
    ///
    /// # Errors
    /// [`Error::ContextFull`], [`Error::Argument`], and those of [`Tokenizer::encode`].
    pub(crate) fn check_text(&self, text: &str, context: usize) -> Result<()> {
        self.check_length(text)?;
        // A token has a byte at least; finding the longest of a large vocabulary takes milliseconds.
        let least = if text.len() > context { text.len() / self.longest_token() } else { 0 };
        if least > context {
            let what = format!("a text of {} bytes", text.len());
            return Err(Error::ContextFull { what, needed: least as u64, available: context as u64 });
        }
        let head = text.char_indices().nth(HEAD).map_or(text, |(end, _)| &text[..end]);
        let is_blank = text.chars().all(char::is_whitespace);
        if is_blank || !self.encode(head, false)?.is_empty() || !self.encode(text, false)?.is_empty() {
            return Ok(());
        }
        let problem =
            format!("{} makes no tokens of its {} bytes; it is not this model's tokenizer", self.name, text.len());
        Err(Error::argument("text", problem))
    }

    /// Bytes of the longest text that may be one token, at least 1.
    fn longest_token(&self) -> usize {
        let longest = || self.inner.get_vocab(true).into_keys().map(|token| token.len()).max().unwrap_or(0);
        let times = if self.inner.get_normalizer().is_some() { SHRINKING } else { 1 };
        (times * self.longest.get_or_init(longest)).max(1)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn words(normalizer: serde_json::Value) -> Tokenizer {
        let json = json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
            "pre_tokenizer": {"type": "WhitespaceSplit"}, "post_processor": null, "decoder": null,
            "model": {"type": "WordLevel", "vocab": {"unk": 0, "word": 1, "abcdefgh": 2}, "unk_token": "unk"},
        });
        Tokenizer::from_bytes("words", json.to_string().into_bytes()).unwrap()
    }

    #[test]
    fn a_text_that_cannot_fit_is_refused_before_it_is_cut() {
        let tokenizer = words(json!(null));
        assert!(tokenizer.check_text(&"a".repeat(87), 10).is_ok());
        let error = tokenizer.check_text(&"a".repeat(88), 10).unwrap_err();
        assert!(matches!(error, Error::ContextFull { needed: 11, available: 10, .. }), "{error}");
        let lower = words(json!({"type": "Lowercase"}));
        assert!(lower.check_text(&"a".repeat(300), 10).is_ok() && lower.check_text(&"a".repeat(352), 10).is_err());
    }

    #[test]
    fn a_text_that_becomes_nothing_is_refused() {
        let dropping = words(json!({"type": "Replace", "pattern": {"Regex": "[a-z]"}, "content": ""}));
        let error = dropping.check_text("what is it", 100).unwrap_err().to_string();
        assert!(error.contains("no tokens of its 10 bytes"), "{error}");
        assert!(dropping.check_text("", 100).is_ok() && dropping.check_text(" \n", 100).is_ok());
        assert!(dropping.check_text(&("a".repeat(HEAD) + "WORD"), 100).is_ok());
    }

    #[test]
    fn a_text_that_would_grow_beyond_memory_is_refused() {
        let growing = words(json!({"type": "Replace", "pattern": {"String": "a"}, "content": "a".repeat(4096)}));
        assert!(growing.encode(&"a".repeat(100), false).is_ok());
        assert!(matches!(growing.encode(&"b".repeat(1 << 17), false), Err(Error::Limit { .. })));
    }
}
