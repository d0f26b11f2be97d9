//! From logits to a token: temperature, top k, top p, repetition penalty, and the strings that end an answer.

use crate::error::{Error, Result};

/// How a token is chosen from the logits.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// The logits are divided by it; 0 means greedy: the largest logit wins, and the lowest id among equals.
    pub temperature: f32,
    /// How many of the largest logits stay (and all that equal the last of them); 0 means all.
    pub top_k: usize,
    /// The likeliest tokens stay until their probabilities add up to more than this; 1 means all.
    pub top_p: f32,
    /// Logits of tokens that occurred are divided by it when positive, multiplied when negative; 1 means none.
    pub repetition_penalty: f32,
    /// The seed of the draws; equal seeds give equal draws on every platform.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token at each step.
    pub fn greedy() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 0 }
    }

    /// What the original EmberNet's generate() samples with by default: temperature 0.7, top k 50, top p 0.9.
    ///
    /// There, arguments of 0 fall back to these values; here they mean greedy and no limit.
    pub fn original() -> Self {
        Self { temperature: 0.7, top_k: 50, top_p: 0.9, ..Self::greedy() }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Argument`] for a temperature that is negative or not finite, a top p outside (0, 1], a repetition
    /// penalty that is not positive and finite.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::argument("temperature", format!("{}, expected 0 (greedy) or more", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::argument("top_p", format!("{}, expected above 0, at most 1", self.top_p)));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let problem = format!("{}, expected above 0 (1 is none)", self.repetition_penalty);
            return Err(Error::argument("repetition_penalty", problem));
        }
        Ok(())
    }

    /// The probability of each token, in the order of `logits`; those that cannot be drawn have 0. The repetition
    /// penalty is not applied, for that needs a history.
    ///
    /// # Errors
    /// Those of [`Sampling::validate`]; [`Error::NonFiniteLogits`]; [`Error::Argument`] when there are no logits.
    pub fn probabilities(&self, logits: &[f32]) -> Result<Vec<f32>> {
        self.validate()?;
        check_logits(logits)?;
        let candidates = self.candidates(logits);
        let total: f64 = candidates.iter().map(|c| c.weight).sum();
        let mut probabilities = vec![0.0; logits.len()];
        for candidate in &candidates {
            if let Some(p) = probabilities.get_mut(candidate.id as usize) {
                *p = (candidate.weight / total) as f32;
            }
        }
        Ok(probabilities)
    }

    /// The tokens that can be drawn, likeliest first and lower ids first among equals, at least one. The logits are
    /// finite and not empty.
    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max) / self.temperature;
        if !peak.is_finite() {
            // A temperature of 0, or one so low that the quotients overflow, which has the same limit.
            return vec![Candidate { id: argmax(logits), scaled: 0.0, weight: 1.0 }];
        }
        let scaled: Vec<f32> = logits.iter().map(|l| l / self.temperature).collect();
        let floor = self.smallest_kept(&scaled);
        let mut candidates: Vec<Candidate> = (0u32..)
            .zip(scaled)
            .filter(|&(_, s)| s >= floor)
            .map(|(id, scaled)| Candidate { id, scaled, weight: (f64::from(scaled) - f64::from(peak)).exp() })
            .collect();
        candidates.sort_unstable_by(|a, b| b.scaled.total_cmp(&a.scaled).then(a.id.cmp(&b.id)));
        if self.top_p < 1.0 {
            let total: f64 = candidates.iter().map(|c| c.weight).sum();
            let limit = f64::from(self.top_p) * total;
            let sums_before = candidates.iter().scan(0.0, |sum, c| Some(std::mem::replace(sum, *sum + c.weight)));
            // A token goes when those before it already hold more than top p; so the first always stays.
            let kept = sums_before.take_while(|&before| before <= limit).count();
            candidates.truncate(kept.max(1));
        }
        candidates
    }

    /// The k-th largest value, or minus infinity when all are kept.
    fn smallest_kept(&self, scaled: &[f32]) -> f32 {
        if self.top_k == 0 || self.top_k >= scaled.len() {
            return f32::NEG_INFINITY;
        }
        let mut order = scaled.to_vec();
        *order.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a)).1
    }
}

/// A token that can be drawn.
struct Candidate {
    id: u32,
    /// The logit divided by the temperature.
    scaled: f32,
    /// The probability, up to a factor that all candidates share.
    weight: f64,
}

/// Refuses logits that no token can be chosen from.
pub(super) fn check_logits(logits: &[f32]) -> Result<()> {
    if logits.is_empty() || u32::try_from(logits.len()).is_err() {
        return Err(Error::argument("logits", format!("{} values, expected one per token", logits.len())));
    }
    match logits.iter().position(|l| !l.is_finite()) {
        Some(at) => Err(Error::NonFiniteLogits(format!("token {at} of {}", logits.len()))),
        None => Ok(()),
    }
}

/// The id of the largest logit, the lowest id among equals; 0 when there is none.
pub(super) fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0u32..).zip(logits) {
        if logit > best.1 {
            best = (id, logit);
        }
    }
    best.0
}

/// The random number in [0, 1) of draw `index` (from 0) under `seed`: a multiple of 2^-24, exact in f32.
///
/// It is a function of both alone, so that any step can be repeated without those before it, on any device. In 64-bit
/// arithmetic without overflow checks, which is SplitMix64's output number `index`:
/// ```text
/// z = seed + (index + 1) * 0x9E3779B97F4A7C15
/// z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
/// z = (z ^ (z >> 27)) * 0x94D049BB133111EB
/// z = z ^ (z >> 31)
/// u = (z >> 40) * 2^-24
/// ```
pub fn uniform(seed: u64, index: u64) -> f32 {
    (split_mix(seed, index) >> 40) as f32 / (1u32 << 24) as f32
}

/// Output number `index` of SplitMix64 (Steele, Lea and Flood, 2014) started at `seed`.
fn split_mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
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

    /// Chooses the next token from `logits`, one per token, after the repetition penalty has been written into them
    /// for every id in `history` (each once however often it occurs; ids beyond the logits are passed over).
    ///
    /// With u = [`uniform`] of the seed and the number of draws before, the token is the first, likeliest first and
    /// lower ids first among equals, at which the sum of the probabilities exceeds u. Greedy sampling draws nothing.
    ///
    /// # Errors
    /// [`Error::NonFiniteLogits`] for NaN or an infinity (forbid a token with a large negative value such as -1e9
    /// instead), [`Error::Argument`] when there are no logits. The sampler stays usable.
    pub fn next(&mut self, logits: &mut [f32], history: &[u32]) -> Result<u32> {
        check_logits(logits)?;
        if self.sampling.repetition_penalty != 1.0 {
            penalise(logits, history, self.sampling.repetition_penalty);
        }
        if self.sampling.temperature == 0.0 {
            return Ok(argmax(logits));
        }
        let candidates = self.sampling.candidates(logits);
        let u = f64::from(uniform(self.sampling.seed, self.draws));
        self.draws = self.draws.wrapping_add(1);
        let target = u * candidates.iter().map(|c| c.weight).sum::<f64>();
        let mut sum = 0.0;
        let drawn = candidates.iter().find(|c| {
            sum += c.weight;
            sum > target
        });
        // There is always one, for u is below 1; the likeliest token is the answer in any case.
        Ok(drawn.map_or_else(|| argmax(logits), |c| c.id))
    }
}

/// Makes tokens that occurred less likely, each distinct one once, as transformers does. A value that a small
/// penalty would take out of range stays finite.
fn penalise(logits: &mut [f32], history: &[u32], penalty: f32) {
    let mut seen = vec![false; logits.len()];
    for &id in history {
        let at = id as usize;
        if let (Some(logit), Some(seen @ false)) = (logits.get_mut(at), seen.get_mut(at)) {
            let changed = if *logit > 0.0 { *logit / penalty } else { *logit * penalty };
            *logit = changed.clamp(f32::MIN, f32::MAX);
            *seen = true;
        }
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

    fn kept(sampling: &Sampling, logits: &[f32]) -> Vec<usize> {
        let p = sampling.probabilities(logits).unwrap();
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        (0..p.len()).filter(|&i| p[i] > 0.0).collect()
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
        ];
        for bad in bad {
            assert!(matches!(bad.validate(), Err(Error::Argument { .. })), "{bad:?}");
            assert!(Sampler::new(bad.clone()).is_err() && bad.probabilities(&[1.0]).is_err());
        }
    }

    #[test]
    fn filters_follow_the_original() {
        let logits = [1.0, 3.0, 2.0, 3.0, 2.0, -5.0];
        assert_eq!(kept(&sampling(1.0, 0, 1.0), &logits), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept(&sampling(1.0, 3, 1.0), &logits), [1, 2, 3, 4], "ties with the k-th value stay");
        assert_eq!(kept(&sampling(1.0, 99, 1.0), &logits), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept(&sampling(1.0, 0, 1e-6), &logits), [1], "the first stays, lower ids first among equals");
        assert_eq!(kept(&sampling(1.0, 2, 0.5), &logits), [1, 3], "exactly p before it is not more than p");
        assert_eq!(kept(&sampling(1.0, 2, 0.49), &logits), [1]);
        assert_eq!(kept(&sampling(0.0, 0, 1.0), &logits), [1]);
        assert_eq!(kept(&sampling(1e-45, 0, 1.0), &[1.0, 2.0, -3.0]), [1], "an overflow is the greedy limit");
        assert_eq!(kept(&sampling(1e-45, 0, 1.0), &[-9.0, -2.0, -3.0]), [1]);
        assert_eq!(kept(&sampling(1.0, 0, 0.9), &[f32::MAX, f32::MIN]), [0]);
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
    fn the_penalty_counts_each_id_once() {
        let sampling = Sampling { repetition_penalty: 2.0, ..Sampling::greedy() };
        let mut logits = [4.0, -1.0, 3.0, f32::MIN];
        let id = Sampler::new(sampling).unwrap().next(&mut logits, &[0, 0, 1, 3, 77, 0]).unwrap();
        assert_eq!((id, logits), (2, [2.0, -2.0, 3.0, f32::MIN]));
    }

    #[test]
    fn random_numbers_are_those_of_splitmix() {
        // The reference outputs of the generator for seed 1234567.
        let expected = [6457827717110365317, 3203168211198807973, 9817491932198370423];
        assert_eq!([0, 1, 2].map(|i| split_mix(1234567, i)), expected);
        let mean = (0..10000).map(|i| f64::from(uniform(42, i))).sum::<f64>() / 10000.0;
        assert!((mean - 0.5).abs() < 0.01);
        assert!((0..10000).all(|i| (0.0..1.0).contains(&uniform(u64::MAX, i))));
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
