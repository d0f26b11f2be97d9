//! What of a text a BitGen's features are made of: its first token, and nothing behind it.

use crate::apps::bitgen::BitGen;
use crate::error::Result;

/// What of a text the features of [`BitGen::text_features`] are made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureText {
    /// What the first token stands for, as it was written; empty for a token that the tokenizer puts in front of every
    /// text, so that the features of all texts are alike.
    pub read: String,
    /// What the tokens behind it stand for, which nothing is made of; mostly empty.
    pub ignored: String,
    /// Whether the tokenizer does not know what the first token stands for: then features are those of any unknown word,
    /// and tell nothing of the text.
    pub unknown: bool,
}

impl BitGen {
    /// What of a text features are made of.
    ///
    /// # Errors
    /// As [`BitGen::tokens`].
    pub fn feature_text(&self, text: &str) -> Result<FeatureText> {
        let tokenizer = self.required_tokenizer()?;
        let pieces = tokenizer.pieces(text, true)?;
        let part = |from: usize, to: usize| text.get(from..to).unwrap_or_default().trim().to_owned();
        let first = pieces.first();
        // Tokens of a template stand for nothing.
        let rest = || pieces.iter().skip(1).filter(|piece| !piece.span.is_empty());
        let (from, to) = (rest().map(|p| p.span.start).min(), rest().map(|p| p.span.end).max());
        Ok(FeatureText {
            read: first.map_or(String::new(), |piece| part(piece.span.start, piece.span.end)),
            ignored: from.zip(to).map_or(String::new(), |(from, to)| part(from, to)),
            unknown: first.map(|piece| piece.id).is_some_and(|id| tokenizer.unknown_token() == Some(id)),
        })
    }
}
