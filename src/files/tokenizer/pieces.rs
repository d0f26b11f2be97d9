//! Which part of a text each token stands for, and which words a tokenizer does not know.

use std::ops::Range;

use tokenizers::ModelWrapper;

use crate::error::Result;
use crate::files::tokenizer::{Tokenizer, calling};

/// A token, and the part of the text that it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// The token.
    pub id: u32,
    /// Its bytes of the text; none for a token that the tokenizer puts around every text.
    pub span: Range<usize>,
}

impl Tokenizer {
    /// The tokens of `text` with their places in it.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn pieces(&self, text: &str, add_special: bool) -> Result<Vec<Piece>> {
        self.check_length(text)?;
        let encoding = calling(&self.name, "cannot encode the text", || self.inner.encode(text, add_special))?;
        let both = encoding.get_ids().iter().zip(encoding.get_offsets());
        let doubled = self.doubled(encoding.get_ids(), add_special);
        Ok(both.skip(doubled).map(|(&id, &(from, to))| Piece { id, span: from..to.max(from) }).collect())
    }

    /// The words of `text` that become the unknown token, or a part of which does, in order and each once. A tokenizer
    /// that knows every byte knows every word.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn unknown_words(&self, text: &str) -> Result<Vec<String>> {
        let Some(unknown) = self.unknown_token() else { return Ok(Vec::new()) };
        let mut words: Vec<String> = Vec::new();
        for piece in self.pieces(text, false)?.iter().filter(|piece| piece.id == unknown) {
            let word = word_at(text, &piece.span);
            if !word.is_empty() && !words.iter().any(|w| w == word) {
                words.push(word.to_owned());
            }
        }
        Ok(words)
    }

    /// The token that stands for all that the vocabulary does not have.
    pub fn unknown_token(&self) -> Option<u32> {
        match self.inner.get_model() {
            ModelWrapper::WordLevel(model) => self.token_id(&model.unk_token),
            ModelWrapper::WordPiece(model) => self.token_id(&model.unk_token),
            ModelWrapper::BPE(model) => model.unk_token.as_deref().and_then(|token| self.token_id(token)),
            // The library keeps its number to itself; this is the name in use.
            ModelWrapper::Unigram(_) => self.token_id("<unk>"),
        }
    }
}

/// The word of `text` around some of its bytes, up to the spaces on either side.
fn word_at<'a>(text: &'a str, span: &Range<usize>) -> &'a str {
    let (Some(before), Some(inside), Some(behind)) =
        (text.get(..span.start), text.get(span.clone()), text.get(span.end..))
    else {
        return "";
    };
    let from = before.trim_end_matches(|c: char| !c.is_whitespace()).len();
    let to = text.len() - behind.trim_start_matches(|c: char| !c.is_whitespace()).len();
    if inside.trim().is_empty() { "" } else { text.get(from..to).unwrap_or_default().trim() }
}
