//! Which part of a text a BitGen's features depend on: the first token only.

use crate::apps::bitgen::BitGen;
use crate::error::Result;

/// Which part of a text [`BitGen::text_features`] depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureText {
    /// What the first token stands for, as it was written; empty for a token that the tokenizer puts in front of every
    /// text, so that the features of all texts are alike.
    pub read: String,
    /// The text of the other tokens, on which nothing depends; usually empty.
    pub ignored: String,
    /// Whether the first token is the unknown token: then the features are those of any unknown word, and say nothing
    /// about the text.
    pub unknown: bool,
}

impl BitGen {
    /// [`BitGen::text_features`] of texts as they are written.
    ///
    /// # Errors
    /// As [`BitGen::tokens`] and [`BitGen::text_features`].
    pub fn features_of(&self, texts: &[impl AsRef<str>]) -> Result<Vec<Vec<f32>>> {
        let tokens: Vec<Vec<u32>> = texts.iter().map(|text| self.tokens(text.as_ref())).collect::<Result<_>>()?;
        self.text_features(&tokens.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }

    /// Which part of a text its features depend on.
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
