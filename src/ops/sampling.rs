//! The arithmetic of choosing a token: bias and penalties, which tokens stay, their probabilities, the random numbers.
//!
//! The op `sample` and the host's sampler share it.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// Maximum number of entries of [`Sampling::logit_bias`].
pub const MAX_LOGIT_BIASES: usize = 256;

/// How a token is chosen from the logits.
///
/// First the logits change: the bias is added, then come the repetition penalty, and the presence and frequency penalties.
/// Then tokens go: by top k, of those by top p, of those by min p, all three with the probabilities at this temperature.
/// That is the order of transformers; in llama.cpp the temperature comes last, and the filters see the probabilities at
/// temperature 1. The penalties look at all text tokens of the sequence, those of the prompt too; a picture has none.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampling {
    /// The logits are divided by it; 0 means greedy: the largest logit wins, and the lowest id among equals.
    pub temperature: f32,
    /// How many of the largest logits stay (and all that equal the last of them); 0 means all. Above temperature 0, the
    /// device chooses tokens without the host for values from 1 to 64; for others every step reads all logits back.
    pub top_k: usize,
    /// The likeliest tokens stay until their probabilities add up to more than this; 1 means all.
    pub top_p: f32,
    /// Tokens stay whose probability is at least this part of the likeliest one's; 0 means all.
    pub min_p: f32,
    /// Logits of tokens that occurred are divided by it when positive, multiplied when negative; 1 means none.
    pub repetition_penalty: f32,
    /// Subtracted from the logits of tokens that occurred, as OpenAI's parameter of this name; 0 means none.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit for each time that it occurred, as OpenAI's parameter of this name; 0 means none.
    pub frequency_penalty: f32,
    /// Numbers that are added to the logits of tokens, at most [`MAX_LOGIT_BIASES`] of them. A logit stays finite: minus
    /// infinity counts as the lowest number, and bans the token unless no other has a probability above 0.
    pub logit_bias: BTreeMap<u32, f32>,
    /// The seed of the draws; equal seeds give equal draws on every platform.
    pub seed: u64,
}

impl Sampling {
    /// The most likely token at each step.
    pub fn greedy() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: BTreeMap::new(),
            seed: 0,
        }
    }

    /// The defaults of the original EmberNet's generate(): temperature 0.7, top k 50, top p 0.9.
    ///
    /// There, arguments of 0 fall back to these values; here they mean greedy and no limit.
    pub fn original() -> Self {
        Self { temperature: 0.7, top_k: 50, top_p: 0.9, ..Self::greedy() }
    }

    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Argument`] for a temperature that is negative or not finite, a top p outside (0, 1], a min p outside [0, 1],
    /// a repetition penalty that is not positive and finite, another penalty that is not finite, too many biases, and one
    /// that is NaN or infinity.
    pub fn validate(&self) -> Result<()> {
        if !(self.temperature.is_finite() && self.temperature >= 0.0) {
            return Err(Error::argument("temperature", format!("{}, expected 0 (greedy) or more", self.temperature)));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return Err(Error::argument("top_p", format!("{}, expected above 0, at most 1", self.top_p)));
        }
        if !(self.min_p >= 0.0 && self.min_p <= 1.0) {
            return Err(Error::argument("min_p", format!("{}, expected 0 (none) to 1", self.min_p)));
        }
        if !(self.repetition_penalty.is_finite() && self.repetition_penalty > 0.0) {
            let problem = format!("{}, expected above 0 (1 is none)", self.repetition_penalty);
            return Err(Error::argument("repetition_penalty", problem));
        }
        let penalties = [("presence_penalty", self.presence_penalty), ("frequency_penalty", self.frequency_penalty)];
        if let Some((name, value)) = penalties.into_iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::argument(name, format!("{value}, expected a finite number (0 is none)")));
        }
        let n = self.logit_bias.len();
        if n > MAX_LOGIT_BIASES {
            return Err(Error::argument("logit_bias", format!("{n} tokens, expected at most {MAX_LOGIT_BIASES}")));
        }
        match self.logit_bias.iter().find(|(_, bias)| bias.is_nan() || **bias == f32::INFINITY) {
            None => Ok(()),
            Some((token, bias)) => {
                let problem = format!("{bias} for token {token}, expected a number, or -inf to ban the token");
                Err(Error::argument("logit_bias", problem))
            }
        }
    }

    /// Checks that a vocabulary of this size has the tokens that [`Sampling::logit_bias`] names.
    ///
    /// # Errors
    /// [`Error::Argument`] with the one that is outside.
    pub fn check_vocab(&self, vocab: usize) -> Result<()> {
        match self.logit_bias.last_key_value().filter(|(token, _)| **token as usize >= vocab) {
            None => Ok(()),
            Some((token, _)) => {
                Err(Error::argument("logit_bias", format!("token {token} is outside the vocabulary of {vocab}")))
            }
        }
    }

    /// Whether the tokens that occurred matter.
    pub(crate) fn penalises(&self) -> bool {
        self.repetition_penalty != 1.0 || self.presence_penalty != 0.0 || self.frequency_penalty != 0.0
    }

    /// The logit of a token that occurred `count` times, at least once:
    /// `penalised(logit) − (presence + frequency · count)`, the repetition penalty first. It stays finite.
    pub(crate) fn penalised(&self, logit: f32, count: u32) -> f32 {
        let times = (self.frequency_penalty * count as f32).clamp(f32::MIN, f32::MAX);
        let logit = penalised(logit, self.repetition_penalty) - (self.presence_penalty + times);
        logit.clamp(f32::MIN, f32::MAX)
    }

    /// Adds the bias to the logits, then applies the penalties for the tokens in `history`, each as often as it is there;
    /// ids beyond the logits are passed over.
    pub(crate) fn adjust(&self, logits: &mut [f32], history: &[u32]) {
        for (&id, &bias) in &self.logit_bias {
            if let Some(logit) = logits.get_mut(id as usize) {
                *logit = biased(*logit, bias);
            }
        }
        if !self.penalises() {
            return;
        }
        let mut counts = vec![0u32; logits.len()];
        for &id in history {
            if let Some(count) = counts.get_mut(id as usize) {
                *count = count.saturating_add(1);
            }
        }
        for (logit, count) in logits.iter_mut().zip(counts).filter(|(_, count)| *count > 0) {
            *logit = self.penalised(*logit, count);
        }
    }

    /// What is added to the largest logit to give the smallest that min p keeps: temperature · ln(min p).
    pub(crate) fn min_p_margin(&self) -> f32 {
        let margin = f64::from(self.temperature) * f64::from(self.min_p).ln();
        (margin as f32).max(f32::MIN)
    }

    /// The probability of each token, in the order of `logits`; those that cannot be drawn have 0. Bias and penalties are
    /// not applied: they come before.
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
    ///
    /// The order is that of the logits themselves, the weight is exp((logit − largest) / temperature), and min p compares
    /// logits, so that a device whose division is not exact finds the same tokens in the same order.
    fn candidates(&self, logits: &[f32]) -> Vec<Candidate> {
        if self.temperature == 0.0 {
            return vec![Candidate { id: argmax(logits), logit: 0.0, weight: 1.0 }];
        }
        let peak = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let floor = self.smallest_kept(logits);
        let weight = |logit: f32| ((f64::from(logit) - f64::from(peak)) / f64::from(self.temperature)).exp();
        let kept = (0u32..).zip(logits).filter(|&(_, &l)| l >= floor);
        // Adding 0 makes both zeros equal in the order.
        let mut candidates: Vec<Candidate> =
            kept.map(|(id, &l)| Candidate { id, logit: l + 0.0, weight: weight(l) }).collect();
        candidates.sort_unstable_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
        if self.top_p < 1.0 {
            let total: f64 = candidates.iter().map(|c| c.weight).sum();
            let limit = f64::from(self.top_p) * total;
            let sums_before = candidates.iter().scan(0.0, |sum, c| Some(std::mem::replace(sum, *sum + c.weight)));
            // A token goes when those before it already hold more than top p; so the first always stays.
            let kept = sums_before.take_while(|&before| before <= limit).count();
            candidates.truncate(kept.max(1));
        }
        if self.min_p > 0.0 {
            let least = peak + self.min_p_margin();
            let kept = candidates.iter().take_while(|c| c.logit >= least).count();
            candidates.truncate(kept.max(1));
        }
        candidates
    }

    /// The k-th largest value, or minus infinity when all are kept.
    fn smallest_kept(&self, logits: &[f32]) -> f32 {
        if self.top_k == 0 || self.top_k >= logits.len() {
            return f32::NEG_INFINITY;
        }
        let mut order = logits.to_vec();
        *order.select_nth_unstable_by(self.top_k - 1, |a, b| b.total_cmp(a)).1
    }

    /// Draws token number `index` (from 0) from logits that are finite and not empty, behind bias and penalties.
    ///
    /// With u = [`uniform`] of the seed and the index, the token is the first, likeliest first and lower ids first among
    /// equals, at which the sum of the probabilities exceeds u.
    pub(crate) fn draw(&self, logits: &[f32], index: u64) -> u32 {
        if self.temperature == 0.0 {
            return argmax(logits);
        }
        let candidates = self.candidates(logits);
        let target = f64::from(uniform(self.seed, index)) * candidates.iter().map(|c| c.weight).sum::<f64>();
        let mut sum = 0.0;
        let drawn = candidates.iter().find(|c| {
            sum += c.weight;
            sum > target
        });
        // There is always one, for u is below 1; the likeliest token is the answer in any case.
        drawn.map_or_else(|| argmax(logits), |c| c.id)
    }
}

/// A token that can be drawn.
struct Candidate {
    id: u32,
    logit: f32,
    /// The probability, up to a factor that all candidates share.
    weight: f64,
}

/// Refuses logits that no token can be chosen from.
pub(crate) fn check_logits(logits: &[f32]) -> Result<()> {
    if logits.is_empty() || u32::try_from(logits.len()).is_err() {
        return Err(Error::argument("logits", format!("{} values, expected one per token", logits.len())));
    }
    match logits.iter().position(|l| !l.is_finite()) {
        Some(at) => Err(Error::NonFiniteLogits(format!("token {at} of {}", logits.len()))),
        None => Ok(()),
    }
}

/// The id of the largest logit, the lowest id among equals; 0 when there is none.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
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

/// Output number `index` of SplitMix64 (Steele, Lea and Flood, 2014) started at `seed`: any of them can be computed on any
/// thread.
pub fn split_mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A logit with its bias; it stays finite.
pub(crate) fn biased(logit: f32, bias: f32) -> f32 {
    (logit + bias.max(f32::MIN)).clamp(f32::MIN, f32::MAX)
}

/// Makes a token that occurred less likely: its logit is divided by the penalty when positive, else multiplied.
///
/// The division is a product with the penalty's reciprocal, which every device rounds alike. A value that a small
/// penalty would take out of range stays finite.
fn penalised(logit: f32, penalty: f32) -> f32 {
    let changed = if logit > 0.0 { logit * (1.0 / penalty) } else { logit * penalty };
    changed.clamp(f32::MIN, f32::MAX)
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
    fn filters_follow_the_original() {
        let logits = [1.0, 3.0, 2.0, 3.0, 2.0, -5.0];
        assert_eq!(kept(&sampling(1.0, 0, 1.0), &logits), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept(&sampling(1.0, 3, 1.0), &logits), [1, 2, 3, 4], "ties with the k-th value stay");
        assert_eq!(kept(&sampling(1.0, 99, 1.0), &logits), [0, 1, 2, 3, 4, 5]);
        assert_eq!(kept(&sampling(1.0, 0, 1e-6), &logits), [1], "the first stays, lower ids first among equals");
        assert_eq!(kept(&sampling(1.0, 2, 0.5), &logits), [1, 3], "exactly p before it is not more than p");
        assert_eq!(kept(&sampling(1.0, 2, 0.49), &logits), [1]);
        assert_eq!(kept(&sampling(0.0, 0, 1.0), &logits), [1]);
        assert_eq!(kept(&sampling(1e-45, 0, 1.0), &[1.0, 2.0, -3.0]), [1], "nearly greedy");
        assert_eq!(kept(&sampling(1e-45, 0, 1.0), &[-9.0, -2.0, -3.0]), [1]);
        assert_eq!(kept(&sampling(1.0, 0, 0.9), &[f32::MAX, f32::MIN]), [0]);
    }

    #[test]
    fn min_p_keeps_what_is_near_the_likeliest() {
        // Probabilities 8 : 4 : 2 : 1 : 4 at temperature 1.
        let logits = [8.0f32, 4.0, 2.0, 1.0, 4.0].map(f32::ln);
        let min_p = |temperature, min_p| Sampling { min_p, ..sampling(temperature, 0, 1.0) };
        assert_eq!(kept(&min_p(1.0, 0.0), &logits), [0, 1, 2, 3, 4]);
        assert_eq!(kept(&min_p(1.0, 0.24), &logits), [0, 1, 2, 4]);
        assert_eq!(kept(&min_p(1.0, 0.26), &logits), [0, 1, 4]);
        assert_eq!(kept(&min_p(1.0, 1.0), &logits), [0]);
        assert_eq!(kept(&min_p(1.0, 1.0), &[1.0, 3.0, 3.0]), [1, 2], "equals of the likeliest");
        // The temperature comes first: 64 : 16 : 4 : 1 : 16.
        assert_eq!(kept(&min_p(0.5, 0.24), &logits), [0, 1, 4]);
        assert_eq!(kept(&min_p(1e30, 0.99), &[f32::MAX, f32::MIN]), [0]);
        // Top p looks at all that top k left: 8 and 4 are 12 of 19, and one more is let in.
        let both = |top_p, min_p| Sampling { min_p, ..sampling(1.0, 0, top_p) };
        assert_eq!(kept(&both(0.5, 0.5), &logits), [0, 1]);
        assert_eq!(kept(&both(0.7, 0.1), &logits), [0, 1, 4], "min p first would leave two");
    }

    #[test]
    fn bias_and_penalties_come_in_order_and_keep_logits_finite() {
        let all = Sampling {
            repetition_penalty: 2.0,
            presence_penalty: 0.5,
            frequency_penalty: 0.25,
            logit_bias: [(0, 2.0), (3, f32::NEG_INFINITY), (4, 1.0), (5, f32::NEG_INFINITY), (6, f32::MAX)].into(),
            ..Sampling::greedy()
        };
        let mut logits = [2.0, 4.0, -1.0, 5.0, -2.0, -7.0, f32::MAX, 1.0];
        all.adjust(&mut logits, &[0, 1, 1, 2, 4, 5, 77, 1]);
        // (2 + 2) / 2 − 0.75, 4 / 2 − 1.25, −1 · 2 − 0.75, banned, (−2 + 1) · 2 − 0.75, banned, largest, untouched.
        assert_eq!(logits, [1.25, 0.75, -2.75, f32::MIN, -2.75, f32::MIN, f32::MAX, 1.0]);
        let large = Sampling { presence_penalty: f32::MAX, frequency_penalty: f32::MAX, ..Sampling::greedy() };
        assert_eq!((large.penalised(f32::MAX, 9), large.penalised(f32::MIN, 1)), (f32::MIN, f32::MIN));
        let grows = Sampling { presence_penalty: f32::MIN, frequency_penalty: f32::MIN, ..Sampling::greedy() };
        assert_eq!(grows.penalised(0.0, 9), f32::MAX);
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
}
