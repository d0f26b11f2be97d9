//! How likely a model takes a given text to be.

use crate::engine::jobs::{JobOutput, Work};
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::ops::check_logits;

impl Session {
    /// Pushes tokens as if the model had chosen them one after the other, and returns the probability's logarithm of each
    /// (in nats, unscaled logits) given everything in front of it.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty session or a token outside the vocabulary, [`Error::Limit`] if they do not fit in
    /// the context, [`Error::NonFiniteLogits`] for broken weights, [`Error::Device`] if the device was lost.
    pub fn log_likelihood(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        if self.is_empty() {
            return Err(Error::argument("prompt", "is empty; push text or an image first"));
        }
        let (vocab, room) = (self.engine.model.info().vocab, self.room());
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::argument("token", format!("{id} is outside the vocabulary of {vocab}")));
        }
        if tokens.len() > room {
            return Err(Error::Limit {
                what: "the answer".into(),
                wanted: format!("{} tokens", tokens.len()),
                available: format!("{room} in the context are"),
                advice: "shorten it, or open the engine with a larger context".into(),
            });
        }
        let mut found = Vec::with_capacity(tokens.len());
        for &token in tokens {
            let outcome = self.engine.run(Work::Text(self.pending(true, &[])))?;
            self.mark_cached();
            let JobOutput::Logits(logits, _) = outcome else {
                return Err(Error::format("a job for logits", "gave tokens"));
            };
            check_logits(&logits)?;
            found.push(log_probability(&logits, token as usize));
            self.append(token, false);
        }
        Ok(found)
    }
}

/// The logarithm of the probability of class `i`: `logits[i] − ln Σ exp(logits)`.
pub(crate) fn log_probability(logits: &[f32], i: usize) -> f32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
    (f64::from(logits.get(i).copied().unwrap_or(f32::NEG_INFINITY) - max) - sum.ln()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0f32, 3.0, -2.0];
        let sum: f32 = logits.iter().map(|l| l.exp()).sum();
        for (i, l) in logits.iter().enumerate() {
            assert!((log_probability(&logits, i) - (l.exp() / sum).ln()).abs() < 1e-6);
        }
        assert!((log_probability(&[1000.0, 1000.0], 0) + 2f32.ln()).abs() < 1e-6);
    }
}
