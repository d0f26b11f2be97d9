//! How likely a model takes a given text to be.

use std::sync::Arc;

use crate::engine::Engine;
use crate::engine::jobs::{JobOutput, Work};
use crate::engine::resident::Resident;
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::ops::check_logits;
use crate::threads;

impl Session {
    /// Pushes tokens as if the model had chosen them one after the other, and returns the probability's logarithm of each
    /// (in nats, unscaled logits) given everything in front of it.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty session or a token outside the vocabulary, [`Error::ContextFull`] if they do not fit in
    /// the context, [`Error::NonFiniteLogits`] for broken weights, [`Error::DeviceLost`] if the device was lost.
    pub fn log_likelihood(&mut self, tokens: &[u32]) -> Result<Vec<f32>> {
        let engine = self.engine.clone();
        Ok(log_likelihoods(&engine, &mut [self], &[tokens])?.pop().unwrap_or_default())
    }

    /// Checks that tokens can be pushed behind what is there.
    fn check_chosen(&self, tokens: &[u32]) -> Result<()> {
        if self.is_empty() {
            return Err(Error::argument("prompt", "is empty; push text or an image first"));
        }
        let (vocab, room) = (self.engine.model.info().vocab, self.room());
        if let Some(id) = tokens.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::argument("token", format!("{id} is outside the vocabulary of {vocab}")));
        }
        if tokens.len() > room {
            let (needed, available) = ((self.len() + tokens.len()) as u64, self.engine.states.context() as u64);
            return Err(Error::ContextFull { what: "the answer".into(), needed, available });
        }
        Ok(())
    }
}

impl Engine {
    /// [`Session::log_likelihood`] in several sessions, whose next tokens run together.
    ///
    /// # Errors
    /// [`Error::Argument`] unless each session is of this engine and has tokens of its own; those of
    /// [`Session::log_likelihood`], before anything runs if a session cannot take its tokens.
    pub fn log_likelihoods(&self, sessions: &mut [Session], tokens: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        if tokens.len() != sessions.len() {
            let problem = format!("{} texts for {} sessions, expected one for each", tokens.len(), sessions.len());
            return Err(Error::argument("tokens", problem));
        }
        if sessions.iter().any(|s| !Arc::ptr_eq(&s.engine, self.resident())) {
            return Err(Error::argument("sessions", "one belongs to another engine"));
        }
        log_likelihoods(self.resident(), &mut sessions.iter_mut().collect::<Vec<_>>(), tokens)
    }
}

/// The logarithms of each session's tokens.
fn log_likelihoods(engine: &Resident, sessions: &mut [&mut Session], tokens: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
    sessions.iter().zip(tokens).try_for_each(|(session, tokens)| session.check_chosen(tokens))?;
    let mut found: Vec<Vec<f32>> = tokens.iter().map(|tokens| Vec::with_capacity(tokens.len())).collect();
    for i in 0..tokens.iter().map(|tokens| tokens.len()).max().unwrap_or(0) {
        let next: Vec<(usize, u32)> =
            tokens.iter().enumerate().filter_map(|(s, tokens)| Some((s, *tokens.get(i)?))).collect();
        let jobs: Vec<Work> = next.iter().map(|&(s, _)| Work::Text(sessions[s].pending(true, &[]))).collect();
        let outputs: Vec<JobOutput> = engine.run_all(jobs).into_iter().collect::<Result<_>>()?;
        next.iter().for_each(|&(s, _)| sessions[s].mark_cached());
        let logarithms = threads::shared().map(outputs.into_iter().zip(&next), |(output, &(_, token))| {
            let JobOutput::Logits(logits, _) = output else {
                return Err(Error::format("a job for logits", "gave tokens"));
            };
            check_logits(&logits)?;
            Ok(log_probability(&logits, token as usize))
        });
        for ((s, token), logarithm) in next.into_iter().zip(logarithms) {
            found[s].push(logarithm?);
            sessions[s].append(token, false);
        }
    }
    Ok(found)
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
