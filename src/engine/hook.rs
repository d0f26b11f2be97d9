//! What may change logits before a token is chosen.

use std::fmt;

use crate::error::Result;

/// Sees the logits of every step of one generation, and may change them. The host then chooses each token, one at a time.
pub trait LogitsHook: fmt::Debug + Send {
    /// Layers whose shared expert's hidden vector it reads; those that the model does not have are left out. The engine
    /// must have been opened for them ([`Options::probed_layers`](crate::engine::Options::probed_layers)).
    fn layers(&self) -> Vec<usize> {
        Vec::new()
    }

    /// Whether it wants the logits after the prompt without the first image: one more pass over the prompt, in rows of
    /// the KV cache that one more session would take; one must be free when the generation begins.
    fn wants_baseline(&self) -> bool {
        false
    }

    /// Takes these logits, before the first step; none for a prompt without an image.
    fn set_baseline(&mut self, _logits: Option<Vec<f32>>) {}

    /// Takes a step's logits `[vocab]`, and the hidden vectors of [`LogitsHook::layers`] by layer; `text` gives a token's
    /// text without special tokens.
    ///
    /// # Errors
    /// Its own, and those of `text`: they end the generation.
    fn adjust(
        &mut self,
        logits: &mut [f32],
        hidden: &[(usize, Vec<f32>)],
        text: &dyn Fn(u32) -> Result<String>,
    ) -> Result<()>;
}
