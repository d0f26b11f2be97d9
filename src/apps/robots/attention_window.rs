//! Which keys BitGenModel's attention layers see and keep, call by call.

use std::str::FromStr;

use crate::engine::options::NamedValues;
use crate::error::{Error, Result};

/// Which keys attention sees and keeps, call by call.
///
/// Both ways keep sinks, the first keys of a text, and a window, the last ones (Xiao et al. 2023, StreamingLLM). With `s`
/// sinks, a window of `w`, and a call of `n` tokens behind `c` keys of the cache:
///
/// | | [`RobotAttention::Original`] | [`RobotAttention::Streaming`] |
/// |---|---|---|
/// | keys of a call | the first: all n; later, of the c + n, the first s and the last w if they are more than s + w, before attention | all c + n |
/// | token i sees | the first i + 1 of those keys; if n is 1: all of them | of the whole text up to itself, itself included, the first s tokens and the last w |
/// | so that | behind a cache, tokens of a call of several see the cache's keys rather than themselves | texts may be cut into calls anywhere |
/// | the cache afterwards | the last w of the call's keys: sinks are dropped behind the first call | the text's first s tokens and its last w |
/// | position of token i | i, in every call | its place among the keys that a token could have kept: min(tokens before it, s + w − 1), or the last one that the model has learned |
///
/// StreamingLLM rotates keys anew in each step by their places in the cache. This model adds learned positions to
/// embeddings, long before keys are made of them, so that a key keeps the position which its token had when it came. In
/// both ways the rest of a call depends on that call alone: scales of activations are those of all its tokens, and
/// reasoning and the choice of robots see the mean of its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum RobotAttention {
    /// As the original's code does.
    #[default]
    Original,
    /// Attention sinks with a sliding window as published: the text's first tokens are kept for good.
    Streaming,
}

impl NamedValues for RobotAttention {
    const OPTION: &'static str = "attention";
    const VALUES: &'static [(&'static str, Self, &'static str)] = &[
        ("original", RobotAttention::Original, "As the original's code does"),
        ("streaming", RobotAttention::Streaming, "The text's first tokens are kept, and a window slides"),
    ];
}

impl FromStr for RobotAttention {
    type Err = Error;

    /// `original` or `streaming`.
    fn from_str(s: &str) -> Result<Self> {
        Self::named(s)
    }
}

/// Sizes of the sinks and of the window.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WindowSizes {
    pub sinks: usize,
    pub window: usize,
    /// Positions that the model has learned.
    pub positions: usize,
}

/// What one call's attention does. Keys are numbered: those of the cache, then those of the call's tokens.
#[derive(Debug, PartialEq)]
pub(crate) struct AttentionSpan {
    /// The keys that are there, in order.
    pub keys: Vec<usize>,
    /// Of each token: which of `keys` it sees.
    pub sees: Vec<Vec<bool>>,
    /// Of each token: its position.
    pub positions: Vec<usize>,
    /// The keys that the next call finds in the cache, all of them among `keys`.
    pub next: Vec<usize>,
}

impl RobotAttention {
    /// A call of `n` tokens behind `cached` keys of a text of `before` tokens.
    pub(crate) fn call(self, sizes: WindowSizes, before: usize, cached: usize, n: usize) -> AttentionSpan {
        match self {
            RobotAttention::Original => original(sizes, cached, n),
            RobotAttention::Streaming => streaming(sizes, before, cached, n),
        }
    }
}

fn original(WindowSizes { sinks, window, .. }: WindowSizes, cached: usize, n: usize) -> AttentionSpan {
    let total = cached + n;
    let keys: Vec<usize> = match cached > 0 && total > sinks + window {
        true => (0..sinks).chain(total - window..total).collect(),
        false => (0..total).collect(),
    };
    let sees = |i: usize| (0..keys.len()).map(|key| n == 1 || key <= i).collect();
    let next = keys[keys.len().saturating_sub(window)..].to_vec();
    AttentionSpan { sees: (0..n).map(sees).collect(), positions: (0..n).collect(), next, keys }
}

fn streaming(
    WindowSizes { sinks, window, positions }: WindowSizes,
    before: usize,
    cached: usize,
    n: usize,
) -> AttentionSpan {
    let total = before + n;
    // Where in the text each key comes from: the cache holds its first tokens, and its last ones.
    let first = cached.min(sinks);
    let token = |key: usize| if key < first { key } else { key + before - cached };
    let kept = |key: &usize, end: usize| token(*key) < sinks || token(*key) + window >= end;
    let keys: Vec<usize> = (0..cached + n).collect();
    let sees = |i: usize| keys.iter().map(|key| token(*key) <= before + i && kept(key, before + i + 1)).collect();
    let last = (sinks + window).min(positions) - 1;
    AttentionSpan {
        sees: (0..n).map(sees).collect(),
        positions: (0..n).map(|i| (before + i).min(last)).collect(),
        next: keys.iter().filter(|key| kept(key, total)).copied().collect(),
        keys,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A text's tokens one after the other: which tokens each one sees, and which are left at the end.
    fn one_by_one(sinks: usize, window: usize, n: usize) -> (Vec<Vec<usize>>, Vec<usize>) {
        let (mut cache, mut seen): (Vec<usize>, Vec<Vec<usize>>) = Default::default();
        for token in 0..n {
            cache.push(token);
            if cache.len() > sinks + window {
                cache.remove(sinks);
            }
            seen.push(cache.clone());
        }
        (seen, cache)
    }

    #[test]
    fn a_stream_in_pieces_sees_what_it_sees_token_by_token() {
        for (sinks, window) in [(0, 1), (0, 4), (1, 1), (2, 3), (4, 9)] {
            let sizes = WindowSizes { sinks, window, positions: 8 };
            for pieces in [&[1; 14][..], &[14], &[3, 1, 7, 3], &[2, 12], &[13, 1], &[5, 5, 4]] {
                let (want, left) = one_by_one(sinks, window, 14);
                let (mut cache, mut before): (Vec<usize>, usize) = Default::default();
                for &n in pieces {
                    let call = RobotAttention::Streaming.call(sizes, before, cache.len(), n);
                    let all: Vec<usize> = cache.iter().copied().chain(before..before + n).collect();
                    for (i, sees) in call.sees.iter().enumerate() {
                        let seen = call.keys.iter().zip(sees).filter(|(_, sees)| **sees);
                        let seen: Vec<usize> = seen.map(|(&key, _)| all[key]).collect();
                        assert_eq!(seen, want[before + i], "{sinks} sinks, window {window}, {pieces:?}");
                        let place = want[before + i].len() - 1;
                        assert_eq!(call.positions[i], place.min(sizes.positions - 1));
                    }
                    cache = call.next.iter().map(|&key| all[key]).collect();
                    before += n;
                }
                assert_eq!(cache, left, "{sinks} sinks, window {window}, {pieces:?}");
            }
        }
    }

    #[test]
    fn the_original_drops_its_sinks_and_does_not_shift_its_mask() {
        let sizes = WindowSizes { sinks: 2, window: 3, positions: 64 };
        let first = RobotAttention::Original.call(sizes, 0, 0, 7);
        assert_eq!((first.keys.len(), &first.next), (7, &vec![4, 5, 6]), "the first call sees all");
        let step = RobotAttention::Original.call(sizes, 7, 3, 1);
        assert_eq!((step.keys, step.sees, step.next), (vec![0, 1, 2, 3], vec![vec![true; 4]], vec![1, 2, 3]));
        let chunk = RobotAttention::Original.call(sizes, 8, 3, 3);
        assert_eq!(chunk.keys, [0, 1, 3, 4, 5], "the sinks of the cache, which are none of the text's");
        assert_eq!(chunk.sees[0], [true, false, false, false, false], "not itself, which is number 3");
        assert_eq!((chunk.positions, chunk.next), (vec![0, 1, 2], vec![3, 4, 5]));
    }
}
