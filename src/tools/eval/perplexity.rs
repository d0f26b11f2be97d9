//! What a text surprises a chat model by.

use crate::engine::Engine;
use crate::engine::open::required_tokenizer;
use crate::engine::open::{Progress, proceed};
use crate::engine::session::Session;
use crate::error::{Error, Result};
use std::ops::ControlFlow;

/// Fewest tokens of a window, of which one counts.
const MIN_WINDOW: usize = 4;

/// How a text is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Tokens of a window, at most the engine's context.
    pub window: usize,
    /// Windows that run together, each in a session of the engine.
    pub sessions: usize,
}

impl Default for PerplexityOptions {
    fn default() -> Self {
        PerplexityOptions { window: 512, sessions: 8 }
    }
}

/// What a text surprises a model by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Perplexity {
    /// Windows that ran.
    pub windows: usize,
    /// Tokens that count.
    pub tokens: usize,
    /// The sum of `−ln p` of these tokens.
    pub nats: f64,
    /// The sum of its square.
    pub squares: f64,
}

impl Perplexity {
    /// The mean of `−ln p`, in nats per token.
    pub fn cross_entropy(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// `exp` of the cross-entropy.
    pub fn perplexity(&self) -> f64 {
        self.cross_entropy().exp()
    }

    /// The standard error of the perplexity, as if tokens were independent: that of the mean of `−ln p`, times the
    /// perplexity.
    pub fn standard_error(&self) -> f64 {
        let n = self.tokens as f64;
        let variance = (self.squares / n.max(1.0) - self.cross_entropy().powi(2)).max(0.0);
        self.perplexity() * (variance / (n - 1.0).max(1.0)).sqrt()
    }

    fn add(&mut self, logarithms: &[f32]) {
        self.windows += 1;
        self.tokens += logarithms.len();
        self.nats -= logarithms.iter().map(|&l| f64::from(l)).sum::<f64>();
        self.squares += logarithms.iter().map(|&l| f64::from(l).powi(2)).sum::<f64>();
    }
}

/// The perplexity of a text: `exp` of the mean `−ln p` of its tokens, each given those in front of it in its window.
///
/// The text's tokens are cut into windows that follow each other; what is left at the end does not count. The first half of
/// a window and one token more are read, the others count, so that each has half a window or more in front of it. Where
/// the tokenizer puts a token in front of every text, each window begins with it, in place of its own first token. So does
/// the program `llama-perplexity` of llama.cpp, whose numbers these can be compared with.
///
/// # Errors
/// [`Error::Argument`] without a tokenizer, for a window of fewer than four tokens or more than the engine's context, and
/// for a text that does not fill one; [`Error::SessionsFull`] if the engine has fewer sessions; those of
/// [`Session::log_likelihood`].
pub fn perplexity(
    engine: &Engine,
    text: &str,
    options: PerplexityOptions,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Perplexity> {
    let (window, context) = (options.window, engine.context());
    if window < MIN_WINDOW {
        return Err(Error::argument("window", format!("is {window} tokens, expected {MIN_WINDOW} or more")));
    }
    if window > context {
        return Err(Error::argument(
            "window",
            format!("is {window} tokens, more than the engine's context of {context}"),
        ));
    }
    let tokenizer = required_tokenizer(engine.tokenizer())?;
    let ids = tokenizer.encode(text, true)?;
    let front = tokenizer.encode("", true)?.first().copied().filter(|front| ids.first() == Some(front));
    let windows = windows(&ids, window, front);
    if windows.is_empty() {
        let problem =
            format!("has {} tokens, expected {window} or more; give a longer one or a smaller window", ids.len());
        return Err(Error::argument("text", problem));
    }
    let n = options.sessions.clamp(1, windows.len());
    let mut sessions: Vec<Session> = (0..n).map(|_| engine.session()).collect::<Result<_>>()?;
    let mut found = Perplexity::default();
    for windows in windows.chunks(n).map(|together| together.iter().map(|ids| ids.split_at(window / 2 + 1))) {
        let what = format!("perplexity {:.4}", found.perplexity());
        proceed(progress(Progress { done: found.windows, total: ids.len() / window, what }))?;
        let counted: Vec<&[u32]> = windows.clone().map(|(_, counted)| counted).collect();
        let sessions = &mut sessions[..counted.len()];
        for (session, (read, _)) in sessions.iter_mut().zip(windows) {
            session.reset();
            session.push_tokens(read)?;
        }
        engine.log_likelihoods(sessions, &counted)?.iter().for_each(|logarithms| found.add(logarithms));
    }
    Ok(found)
}

/// Whole windows of a text's tokens, each of which begins with `front` if there is one.
fn windows(ids: &[u32], window: usize, front: Option<u32>) -> Vec<Vec<u32>> {
    let of = |ids: &[u32]| {
        let mut ids = ids.to_vec();
        ids.iter_mut().take(1).zip(front).for_each(|(id, front)| *id = front);
        ids
    };
    ids.chunks_exact(window).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_whole_and_begin_with_the_token_in_front_of_texts() {
        let ids: Vec<u32> = (0..11).collect();
        assert_eq!(windows(&ids, 4, None), [[0, 1, 2, 3], [4, 5, 6, 7]]);
        assert_eq!(windows(&ids, 5, Some(99)), [[99, 1, 2, 3, 4], [99, 6, 7, 8, 9]]);
        assert!(windows(&ids, 12, Some(99)).is_empty());
    }

    #[test]
    fn sums_become_a_perplexity_with_its_error() {
        let mut found = Perplexity::default();
        found.add(&[-1.0, -2.0]);
        found.add(&[-3.0]);
        assert_eq!((found.windows, found.tokens), (2, 3));
        assert!((found.perplexity() - 2f64.exp()).abs() < 1e-9);
        // The mean of squares is 14/3, less 4: 2/3 among two.
        assert!((found.standard_error() - 2f64.exp() * (1.0f64 / 3.0).sqrt()).abs() < 1e-9);
        assert_eq!(Perplexity::default().perplexity(), 1.0);
    }
}
