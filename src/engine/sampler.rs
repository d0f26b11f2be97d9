//! The host's sampler, for what the device does not sample, and the strings that end an answer.

use crate::error::{Error, Result};
use crate::files::SamplingDefaults;
use crate::ops::check_logits;
pub use crate::ops::{Sampling, uniform};

impl Sampling {
    /// This sampling with the values that `values` has in place of its own, as with what a model's files recommend.
    pub fn with(self, values: &SamplingDefaults) -> Self {
        Sampling {
            temperature: values.temperature.unwrap_or(self.temperature),
            top_k: values.top_k.unwrap_or(self.top_k),
            top_p: values.top_p.unwrap_or(self.top_p),
            min_p: values.min_p.unwrap_or(self.min_p),
            repetition_penalty: values.repetition_penalty.unwrap_or(self.repetition_penalty),
            presence_penalty: values.presence_penalty.unwrap_or(self.presence_penalty),
            frequency_penalty: values.frequency_penalty.unwrap_or(self.frequency_penalty),
            ..self
        }
    }
}

/// Chooses the tokens of one answer, with a random number for each.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    draws: u64,
}

impl Sampler {
    /// A sampler at its first draw.
    ///
    /// # Errors
    /// Those of [`Sampling::validate`].
    pub fn new(sampling: Sampling) -> Result<Self> {
        sampling.validate()?;
        Ok(Self { sampling, draws: 0 })
    }

    /// Chooses the next token from `logits`, one per token, after bias and penalties have been written into them, with
    /// `history` as the tokens that occurred (ids beyond the logits are passed over).
    ///
    /// With u = [`uniform`] of the seed and the number of draws before, the token is the first, likeliest first and
    /// lower ids first among equals, at which the sum of the probabilities exceeds u. Greedy sampling needs no u.
    ///
    /// # Errors
    /// [`Error::NonFiniteLogits`] for NaN or an infinity ([`Sampling::logit_bias`] bans a token), [`Error::Argument`] when
    /// there are no logits, or none for a token with a bias. The sampler stays usable.
    pub fn next(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32> {
        check_logits(logits)?;
        self.sampling.check_vocab(logits.len())?;
        self.sampling.adjust(logits, history);
        let token = self.sampling.draw(logits, self.draws);
        self.draws = self.draws.wrapping_add(1);
        Ok(token)
    }
}

/// Finds stop strings in text that arrives in pieces, across their borders.
#[derive(Clone, Debug)]
pub struct StopStrings {
    stops: Vec<String>,
    /// The end of the text so far, which may be the beginning of a stop string.
    held: String,
    stopped: bool,
}

impl StopStrings {
    /// Watches for any of `stops`.
    ///
    /// # Errors
    /// [`Error::Argument`] when one is empty, for it would end every answer before it begins.
    pub fn new(stops: Vec<String>) -> Result<Self> {
        if stops.iter().any(String::is_empty) {
            return Err(Error::argument("stop", "an empty stop string, expected at least one character"));
        }
        Ok(Self { stops, held: String::new(), stopped: false })
    }

    /// Takes the next piece; gives the text that may be shown, and whether a stop string is complete.
    ///
    /// Text from the first stop string on is never shown, and an end that may become one is held back. After a stop,
    /// there is no more text.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        if self.stopped {
            return (String::new(), true);
        }
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.stopped = true;
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// Gives the text that is held back, at the end of an answer.
    pub fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// How many bytes at the end of `text` are the beginning of `stop`, the most there are, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let starts = stop.char_indices().map(|(at, _)| at);
    starts.rev().find(|&len| stop.get(..len).is_some_and(|start| text.ends_with(start))).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sampling(temperature: f32, top_k: usize, top_p: f32) -> Sampling {
        Sampling { temperature, top_k, top_p, ..Sampling::greedy() }
    }

    #[test]
    fn bad_values_are_refused() {
        let good = Sampling::original();
        good.validate().unwrap();
        let bad = [
            Sampling { temperature: f32::NAN, ..good.clone() },
            Sampling { temperature: -0.1, ..good.clone() },
            Sampling { temperature: f32::INFINITY, ..good.clone() },
            Sampling { top_p: 0.0, ..good.clone() },
            Sampling { top_p: 1.1, ..good.clone() },
            Sampling { top_p: f32::NAN, ..good.clone() },
            Sampling { repetition_penalty: 0.0, ..good.clone() },
            Sampling { repetition_penalty: f32::NAN, ..good.clone() },
            Sampling { repetition_penalty: f32::INFINITY, ..good.clone() },
            Sampling { min_p: -0.1, ..good.clone() },
            Sampling { min_p: 1.5, ..good.clone() },
            Sampling { min_p: f32::NAN, ..good.clone() },
            Sampling { presence_penalty: f32::NAN, ..good.clone() },
            Sampling { frequency_penalty: f32::NEG_INFINITY, ..good.clone() },
            Sampling { logit_bias: [(3, f32::NAN)].into(), ..good.clone() },
            Sampling { logit_bias: [(3, f32::INFINITY)].into(), ..good.clone() },
            Sampling { logit_bias: (0..257).map(|token| (token, 1.0)).collect(), ..good.clone() },
        ];
        for bad in bad {
            assert!(matches!(bad.validate(), Err(Error::Argument { .. })), "{bad:?}");
            assert!(Sampler::new(bad.clone()).is_err() && bad.probabilities(&[1.0]).is_err());
        }
    }

    #[test]
    fn recommended_values_take_the_place_of_others() {
        let all = SamplingDefaults {
            file: None,
            temperature: Some(0.5),
            top_k: Some(20),
            top_p: Some(0.25),
            min_p: Some(0.125),
            repetition_penalty: Some(1.5),
            presence_penalty: Some(0.75),
            frequency_penalty: Some(-0.5),
        };
        let own = Sampling { seed: 9, logit_bias: [(1, 2.0)].into(), ..Sampling::original() };
        let expected = Sampling {
            temperature: 0.5,
            top_k: 20,
            top_p: 0.25,
            min_p: 0.125,
            repetition_penalty: 1.5,
            presence_penalty: 0.75,
            frequency_penalty: -0.5,
            logit_bias: [(1, 2.0)].into(),
            seed: 9,
        };
        assert_eq!(own.clone().with(&all), expected);
        assert_eq!(own.clone().with(&SamplingDefaults::default()), own);
    }

    #[test]
    fn broken_logits_are_refused_and_the_sampler_goes_on() {
        let mut sampler = Sampler::new(Sampling::original()).unwrap();
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            assert!(matches!(sampler.next(&mut [0.0, bad], &[]), Err(Error::NonFiniteLogits(_))));
        }
        assert!(matches!(sampler.next(&mut [], &[]), Err(Error::Argument { .. })));
        assert_eq!(sampler.next(&mut [-1e9, 4.0, -1e9], &[]).unwrap(), 1);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut sampler = Sampler::new(Sampling::greedy()).unwrap();
        assert_eq!(sampler.next(&mut [1.0, 5.0, 5.0], &[]).unwrap(), 1);
        assert_eq!(sampler.next(&mut [-0.0, 0.0], &[]).unwrap(), 0);
        assert_eq!(sampler.next(&mut [f32::MIN], &[]).unwrap(), 0);
    }

    #[test]
    fn a_bias_raises_and_bans_tokens_of_the_vocabulary() {
        let with = |logit_bias: &[(u32, f32)]| {
            let logit_bias = logit_bias.iter().copied().collect();
            Sampler::new(Sampling { logit_bias, ..Sampling::greedy() }).unwrap()
        };
        assert_eq!(with(&[(0, 2.0)]).next(&mut [1.0, 2.5, 2.0], &[]).unwrap(), 0);
        let mut banned = with(&[(1, f32::NEG_INFINITY)]);
        assert_eq!(banned.next(&mut [-3e38, 2.5, f32::MIN], &[]).unwrap(), 0);
        assert!(matches!(banned.next(&mut [1.0], &[]), Err(Error::Argument { .. })), "token 1 of 1");
        assert_eq!(banned.next(&mut [1.0, 9.0], &[]).unwrap(), 0, "the sampler goes on");
        with(&(0..256).map(|token| (token, f32::NEG_INFINITY)).collect::<Vec<_>>());
    }

    #[test]
    fn the_repetition_penalty_counts_each_id_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut logits = [4.0, -1.0, 3.0, f32::MIN];
        let id = Sampler::new(sampling).unwrap().next(&mut logits, &[0, 0, 1, 3, 77, 0]).unwrap();
        assert_eq!((id, logits), (2, [2.0, -2.0, 3.0, f32::MIN]));
    }

    #[test]
    fn draws_repeat_and_follow_the_probabilities() {
        let sampling = Sampling { seed: 3, ..sampling(0.8, 3, 0.95) };
        let logits = [0.5, 1.5, 1.0, -2.0];
        let expected = sampling.probabilities(&logits).unwrap();
        let draw = || {
            let mut sampler = Sampler::new(sampling.clone()).unwrap();
            (0..20000).map(|_| sampler.next(&mut logits.clone(), &[]).unwrap()).collect::<Vec<_>>()
        };
        let tokens = draw();
        assert_eq!(tokens, draw());
        for (id, p) in expected.iter().enumerate() {
            let share = tokens.iter().filter(|&&t| t as usize == id).count() as f32 / tokens.len() as f32;
            assert!((share - p).abs() < 0.015, "token {id}: {share} drawn, {p} expected");
        }
    }

    fn stop(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut watch = StopStrings::new(stops.iter().map(|s| s.to_string()).collect()).unwrap();
        let mut stopped = false;
        let mut shown: Vec<String> = pieces
            .iter()
            .map(|piece| {
                let (text, end) = watch.push(piece);
                stopped = end;
                text
            })
            .collect();
        shown.push(watch.flush());
        (shown, stopped)
    }

    #[test]
    fn stop_strings_are_found_across_pieces() {
        let (shown, stopped) = stop(&["\nUser:", "END"], &["a red", " disc\n", "Us", "er: more", "x"]);
        assert_eq!((shown.concat().as_str(), stopped), ("a red disc", true));
        let (shown, stopped) = stop(&["\nUser:"], &["a\nUs", "ed", "\nUser"]);
        assert_eq!((shown, stopped), (vec!["a".into(), "\nUsed".into(), "".into(), "\nUser".into()], false));
        let (shown, _) = stop(&["aab"], &["aa", "a", "b", "c"]);
        assert_eq!(shown.concat(), "a");
        let (shown, _) = stop(&["xyz", "y"], &["wxyz"]);
        assert_eq!(shown.concat(), "w", "the earliest stop wins");
        let (shown, stopped) = stop(&["é漢"], &["caféé", "漢!"]);
        assert_eq!((shown.concat().as_str(), stopped), ("café", true));
        assert_eq!(stop(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert!(StopStrings::new(vec![String::new()]).is_err());
    }
}
