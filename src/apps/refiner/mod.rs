//! EmberNet's "VA refiner": it estimates at each step how little the next token depends on the image, and makes a
//! token that depends little on it less likely.
//!
//! The score of a step lies between 0 (seen) and 1 (made up). It comes from two estimates:
//! * the neuron score, `σ(L2 · gelu(L1 · f + b1) + b2)`, a classifier on values f inside the shared experts;
//! * the logit score, `1 − tanh(mean|logits − baseline| / logit_scale)`, where the baseline is the logits of the prompt
//!   with the first image's rows zero: logits that do not depend on the image score high.
//!
//! In reading order: this file; `words` (words and digits that mark a visually sensitive token).
//!
//! Nothing here knows a device: [`Refiner`] sees numbers and texts. In an engine it is the hook of a generation:
//! [`Session::generate_with`](crate::engine::Session::generate_with).

mod words;

use std::collections::VecDeque;

use crate::apps::refiner::words::{VISUAL_WORDS, is_digit};
use crate::engine::LogitsHook;
use crate::error::{Error, Result};
use crate::files::Tokenizer;
use crate::ops::{argmax, check_logits};

/// Units of the classifier's middle layer.
pub const CLASSIFIER_UNITS: usize = 64;
/// The value of an estimate without data.
const UNKNOWN: f32 = 0.5;
/// The value of [`RefinerOptions::p_threshold`] that changes nothing.
const NEUTRAL_P_THRESHOLD: f32 = 0.70;
/// Bound on the values watched: more than any model has in all its layers.
const MAX_NEURONS: usize = 1 << 20;
/// The logit of a token that a burst forbids.
const FORBIDDEN: f32 = -1e9;

/// Weights of the neuron score: `σ(output · gelu(hidden · f + hidden_bias) + output_bias)` in full precision.
#[derive(Debug, Clone, PartialEq)]
pub struct Classifier {
    /// `[64, n · layers]`, row after row.
    pub hidden: Vec<f32>,
    /// `[64]`.
    pub hidden_bias: Vec<f32>,
    /// `[1, 64]`.
    pub output: Vec<f32>,
    /// The bias of the one output.
    pub output_bias: f32,
}

impl Classifier {
    /// The probability that the token is made up, from as many features as the classifier has columns.
    pub fn score(&self, features: &[f32]) -> f32 {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let gelu = |v: f64| 0.5 * v * (1.0 + libm::erf(v * std::f64::consts::FRAC_1_SQRT_2));
        let rows = self.hidden.chunks_exact(features.len().max(1)).zip(&self.hidden_bias);
        let units: Vec<f32> = rows.map(|(row, &bias)| gelu(dot(row, features) + f64::from(bias)) as f32).collect();
        let logit = dot(&self.output, &units) + f64::from(self.output_bias);
        (1.0 / (1.0 + (-logit).exp())) as f32
    }
}

/// Settings of the refiner; [`RefinerOptions::default`] has the original's values.
#[derive(Debug, Clone, PartialEq)]
pub struct RefinerOptions {
    /// Share of the neuron score in `alpha · neuron + (1 − alpha) · logit`.
    pub alpha: f32,
    /// Minimum score from which a visually sensitive token is penalised.
    pub tau_visual: f32,
    /// Minimum score from which any other token is penalised.
    pub tau_non_visual: f32,
    /// Other than 0.70, it sets both thresholds: `tau_visual = 0.85 · p_threshold`, `tau_non_visual = p_threshold`.
    pub p_threshold: f32,
    /// Layers whose shared experts are watched, in the order of the classifier's columns. Layers that the model does
    /// not have count as zeros; the others must be in [`Options::probed_layers`](crate::engine::Options::probed_layers).
    pub layers: Vec<usize>,
    /// Values watched in all layers together, at most 2^20: `max(1, neuron_k / layers)` of each.
    pub neuron_k: usize,
    /// Number of steps over whose mean score a burst is detected.
    pub window: usize,
    /// Minimum of the mean score of a burst.
    pub burst_threshold: f32,
    /// Subtracted from the most likely token's logit outside bursts.
    pub soft_penalty: f32,
    /// In a burst all logits are multiplied by `1 − decay_factor`.
    pub decay_factor: f32,
    /// Divides the mean distance of the logits from the baseline.
    pub logit_scale: f32,
    /// Whether the neuron score counts; it needs a classifier.
    pub use_neuron: bool,
    /// Whether the logit score counts. Then a generation about an image begins with one more pass over the prompt, in
    /// rows of the KV cache that one more session would take: one must be free at that time.
    pub use_logit: bool,
    /// The classifier. EmberNet checkpoints do not have one: the original's is random at every start and never
    /// trained, so that its score is meaningless. Without a classifier of your own leave `use_neuron` off.
    pub classifier: Option<Classifier>,
}

impl Default for RefinerOptions {
    /// The original's values, without its untrained classifier.
    fn default() -> Self {
        RefinerOptions {
            alpha: 0.5,
            tau_visual: 0.60,
            tau_non_visual: 0.75,
            p_threshold: NEUTRAL_P_THRESHOLD,
            layers: (6..12).collect(),
            neuron_k: 128,
            window: 8,
            burst_threshold: 0.70,
            soft_penalty: 5.0,
            decay_factor: 0.2,
            logit_scale: 2.0,
            use_neuron: false,
            use_logit: true,
            classifier: None,
        }
    }
}

impl RefinerOptions {
    /// Checks every value.
    ///
    /// # Errors
    /// [`Error::Argument`] for a value out of range, for a classifier of the wrong size, and for `use_neuron` without
    /// one.
    pub fn validate(&self) -> Result<()> {
        let check = |fine: bool, name: &str, problem: String| match fine {
            true => Ok(()),
            false => Err(Error::argument(format!("refiner.{name}"), problem)),
        };
        for (name, value) in [("alpha", self.alpha), ("decay_factor", self.decay_factor)] {
            check((0.0..=1.0).contains(&value), name, format!("is {value}, expected 0 to 1"))?;
        }
        let finite = [
            ("tau_visual", self.tau_visual),
            ("tau_non_visual", self.tau_non_visual),
            ("p_threshold", self.p_threshold),
            ("burst_threshold", self.burst_threshold),
            ("soft_penalty", self.soft_penalty),
        ];
        for (name, value) in finite {
            check(value.is_finite(), name, format!("is {value}, expected a finite number"))?;
        }
        let scale = self.logit_scale;
        check(scale.is_finite() && scale > 0.0, "logit_scale", format!("is {scale}, expected above 0"))?;
        check(self.window > 0, "window", "is 0, expected at least one step".into())?;
        let k = self.neuron_k;
        check(k <= MAX_NEURONS, "neuron_k", format!("is {k}, expected at most {MAX_NEURONS}"))?;
        if !self.use_neuron {
            return Ok(());
        }
        let Some(classifier) = &self.classifier else {
            return check(false, "use_neuron", "is on without a classifier; give one, or turn it off".into());
        };
        let columns = self.neurons_per_layer().saturating_mul(self.layers.len());
        let found = [classifier.hidden.len(), classifier.hidden_bias.len(), classifier.output.len()];
        let wanted = [columns.saturating_mul(CLASSIFIER_UNITS), CLASSIFIER_UNITS, CLASSIFIER_UNITS];
        let fits = columns > 0 && found == wanted;
        check(fits, "classifier", format!("has {found:?} weights, expected {wanted:?} for {columns} features"))
    }

    /// Values taken from each layer: `max(1, neuron_k / layers)`.
    pub fn neurons_per_layer(&self) -> usize {
        (self.neuron_k / self.layers.len().max(1)).max(1)
    }

    /// Thresholds for visually sensitive tokens and for others.
    pub fn thresholds(&self) -> (f32, f32) {
        let p = self.p_threshold;
        if p == NEUTRAL_P_THRESHOLD { (self.tau_visual, self.tau_non_visual) } else { (0.85 * p, p) }
    }

    /// The classifier's input: the first values of each watched layer's vector, zeros for what is not there. `hidden`
    /// has, by layer, the last token's input of the shared expert's second matrix before its norm. None if no watched
    /// layer is among them.
    pub fn features(&self, hidden: &[(usize, Vec<f32>)]) -> Option<Vec<f32>> {
        let find = |layer: &usize| hidden.iter().find(|(l, _)| l == layer).map(|(_, v)| v.as_slice());
        if !self.layers.iter().any(|l| find(l).is_some()) {
            return None;
        }
        let n = self.neurons_per_layer();
        let values = |layer| find(layer).unwrap_or_default().iter().copied().chain(std::iter::repeat(0.0)).take(n);
        Some(self.layers.iter().flat_map(values).collect())
    }
}

/// `1 − tanh(mean|logits − baseline| / scale)`, within 0 and 1.
pub fn logit_score(logits: &[f32], baseline: &[f32], scale: f32) -> f32 {
    let pairs = logits.iter().zip(baseline);
    let n = pairs.len().max(1) as f64;
    let mean = pairs.map(|(l, b)| f64::from((l - b).abs())).sum::<f64>() / n;
    (1.0 - (mean / f64::from(scale)).tanh()).clamp(0.0, 1.0) as f32
}

/// Whether a token's text names something seen: it contains a digit of any script, or a word of the original's list,
/// wherever it lies in the text ("bone" has "one").
pub fn is_visually_sensitive(text: &str) -> bool {
    let text = text.to_lowercase();
    text.chars().any(is_digit) || VISUAL_WORDS.iter().any(|word| text.contains(word))
}

/// The text in front of an answer whose steps had these scores; may be empty. `tokens` are the texts of the
/// answer's tokens, if they are known; then the scores of visually sensitive ones count alone, if there are any.
pub fn answer_prefix(scores: &[f32], tokens: Option<&[String]>) -> &'static str {
    let mean = |scores: &[f32]| scores.iter().map(|&s| f64::from(s)).sum::<f64>() as f32 / scores.len() as f32;
    let sensitive = |(text, score): (&String, &f32)| is_visually_sensitive(text).then_some(*score);
    let some: Vec<f32> = tokens.unwrap_or_default().iter().zip(scores).filter_map(sensitive).collect();
    if scores.is_empty() {
        return "";
    }
    match if some.is_empty() { mean(scores) } else { mean(&some) } {
        score if score < 0.40 => "",
        score if score < 0.70 => "I might be wrong, but ",
        _ => "I cannot see that clearly in the image, but ",
    }
}

/// An answer with the text in front of it ([`answer_prefix`]). The original takes spaces off both ends of it first.
///
/// # Errors
/// Those of [`Tokenizer::encode`] and [`Tokenizer::decode`].
pub fn calibrated_answer(answer: &str, scores: &[f32], tokenizer: Option<&Tokenizer>) -> Result<String> {
    let texts = |t: &Tokenizer| -> Result<Vec<String>> {
        t.encode(answer, false)?.into_iter().map(|id| t.decode(&[id], true)).collect()
    };
    let tokens = tokenizer.map(texts).transpose()?;
    Ok(answer_prefix(scores, tokens.as_deref()).to_owned() + answer)
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Refinement {
    /// The neuron score, 0.5 if it does not count.
    pub neuron: f32,
    /// The logit score, 0.5 if it does not count.
    pub logit: f32,
    /// Both combined.
    pub score: f32,
    /// The most likely token before the change.
    pub top: u32,
    /// Whether its text is visually sensitive.
    pub sensitive: bool,
    /// Mean score of the last steps, this one included.
    pub window_mean: f32,
    /// Whether the mean reaches the burst threshold.
    pub burst: bool,
    /// Whether the logits were changed.
    pub changed: bool,
}

/// The refiner of one generation.
#[derive(Debug, Clone)]
pub struct Refiner {
    options: RefinerOptions,
    baseline: Option<Vec<f32>>,
    scores: Vec<f32>,
    window: VecDeque<f32>,
}

impl Refiner {
    /// A refiner before its first step.
    ///
    /// # Errors
    /// Those of [`RefinerOptions::validate`].
    pub fn new(options: RefinerOptions) -> Result<Self> {
        options.validate()?;
        Ok(Refiner { options, baseline: None, scores: Vec::new(), window: VecDeque::new() })
    }

    /// The settings.
    pub fn options(&self) -> &RefinerOptions {
        &self.options
    }

    /// The combined score of each step so far.
    pub fn scores(&self) -> &[f32] {
        &self.scores
    }

    /// Takes a step's logits and [features](RefinerOptions::features), and changes the logits if the score asks for it:
    /// ```text
    /// score < tau:  logits
    /// burst:        logits · (1 − decay_factor), the most likely token's −1e9
    /// else:         the most likely token's logit − soft_penalty
    /// ```
    /// tau depends on the most likely token's text, which `text` gives without special tokens.
    ///
    /// # Errors
    /// [`Error::NonFiniteLogits`], [`Error::Argument`] without logits or for another number of features than watched, and
    /// what `text` returns; then no step is counted.
    pub fn refine(
        &mut self,
        logits: &mut [f32],
        features: Option<&[f32]>,
        text: impl FnOnce(u32) -> Result<String>,
    ) -> Result<Refinement> {
        check_logits(logits)?;
        let o = &self.options;
        let columns = o.neurons_per_layer() * o.layers.len();
        if let Some(f) = features.filter(|f| f.len() != columns) {
            return Err(Error::argument("features", format!("are {}, expected {columns}", f.len())));
        }
        let top = argmax(logits);
        let sensitive = is_visually_sensitive(&text(top)?);
        let classifier = o.classifier.as_ref().filter(|_| o.use_neuron);
        let neuron = classifier.zip(features).map_or(UNKNOWN, |(c, f)| c.score(f));
        let baseline = self.baseline.as_ref().filter(|_| o.use_logit);
        let logit = baseline.map_or(UNKNOWN, |b| logit_score(logits, b, o.logit_scale));
        let score = match (o.use_neuron, o.use_logit) {
            (false, _) => logit,
            (true, false) => neuron,
            (true, true) => o.alpha * neuron + (1.0 - o.alpha) * logit,
        };
        self.scores.push(score);
        self.window.push_back(score);
        if self.window.len() > o.window {
            self.window.pop_front();
        }
        let sum: f64 = self.window.iter().map(|&s| f64::from(s)).sum();
        let window_mean = (sum / self.window.len() as f64) as f32;
        let burst = window_mean >= o.burst_threshold;
        let (tau_visual, tau_non_visual) = o.thresholds();
        let changed = score >= if sensitive { tau_visual } else { tau_non_visual };
        if changed && burst {
            logits.iter_mut().for_each(|l| *l *= 1.0 - o.decay_factor);
        }
        if let Some(top) = logits.get_mut(top as usize).filter(|_| changed) {
            *top = if burst { FORBIDDEN } else { *top - o.soft_penalty };
        }
        Ok(Refinement { neuron, logit, score, top, sensitive, window_mean, burst, changed })
    }
}

impl LogitsHook for Refiner {
    fn layers(&self) -> Vec<usize> {
        if self.options.use_neuron { self.options.layers.clone() } else { Vec::new() }
    }

    fn wants_baseline(&self) -> bool {
        self.options.use_logit
    }

    /// Sets the logits after the prompt without its image, against which the logit score measures; without them it is
    /// 0.5.
    fn set_baseline(&mut self, logits: Option<Vec<f32>>) {
        self.baseline = logits;
    }

    fn adjust(
        &mut self,
        logits: &mut [f32],
        hidden: &[(usize, Vec<f32>)],
        text: &dyn Fn(u32) -> Result<String>,
    ) -> Result<()> {
        let features = self.options.features(hidden);
        self.refine(logits, features.as_deref(), text).map(|_| ())
    }
}
