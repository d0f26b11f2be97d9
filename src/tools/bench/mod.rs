//! Benchmarks: how fast a model reads prompts and images and generates text, and which share of the memory's bandwidth
//! that takes.
//!
//! * `test`: what a test does, by its numbers.
//! * `sessions`: running one through sessions, as a caller of the library would.
//! * `probe`: single steps of a program, looked at: bytes, launches, the host's time, times by op.
//! * `chat`, `bitgen`: the tests of chat models, and of BitGens.
//! * `bandwidth`: how fast the device reads its memory.

mod bandwidth;
mod bitgen;
mod chat;
mod probe;
mod sessions;
mod test;

use std::time::Duration;

use serde::Serialize;

use crate::engine::options::{DeviceOptions, ModelOptions, Options, Precision};
use crate::engine::{Engine, LoadReport, Progress};
use crate::error::{Error, Result};
use crate::files::{ModelFiles, Weights};
use crate::models::{self, BITGEN, Family, LoadOptions, Model, ModelInfo};
use crate::tools::convert::whole;
use probe::Cost;

pub use bandwidth::bandwidth;
pub use probe::OpTime;
pub use test::Test;

/// Default lengths of prompts.
const DEFAULT_PROMPTS: [usize; 2] = [96, 512];
/// Default number of generated tokens.
const DEFAULT_GENERATED: [usize; 1] = [64];

/// Maximum number of repetitions of a test.
const MAX_REPETITIONS: usize = 1000;

/// Which tests run, and on which device.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchOptions {
    /// The device.
    pub device: DeviceOptions,
    /// How the model's numbers are kept and computed.
    pub model: ModelOptions,
    /// Lengths of prompts, in tokens; 0 for no such test. Default: 96 and 512, at most the model's positions.
    pub prompts: Option<Vec<usize>>,
    /// Numbers of generated tokens; 0 for no such test. Default: 64, at most the model's positions.
    pub generated: Option<Vec<usize>>,
    /// Tokens in the cache before each generation.
    pub depths: Vec<usize>,
    /// Numbers of sessions that generate at the same time.
    pub sessions: Vec<usize>,
    /// Repetitions of each test, after a warm-up run that is not counted.
    pub repetitions: usize,
    /// Whether image tests run.
    pub image: bool,
    /// Whether a profile by op is taken.
    pub profile: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            device: DeviceOptions::default(),
            model: ModelOptions::default(),
            prompts: None,
            generated: None,
            depths: vec![0],
            sessions: vec![1],
            repetitions: 5,
            image: false,
            profile: false,
        }
    }
}

/// The result of one test.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BenchRow {
    /// The model.
    pub model: String,
    /// Bytes of its weights on the device.
    pub weight_bytes: u64,
    /// Data type of the LM head: "f16", "f32", "int8" or "ternary".
    pub head: String,
    /// Data type of the KV cache: "f16", "f32" or "int8"; empty for a model without one.
    pub kv: String,
    /// Number of parameters.
    pub parameters: u64,
    /// "cpu" or "gpu".
    pub backend: &'static str,
    /// The device: adapter and driver, or the CPU's threads.
    pub device: String,
    /// The test's name, as [`Test`] prints it.
    pub test: String,
    /// Repetitions.
    pub repetitions: usize,
    /// Tokens per second of all sessions together, the mean. An image counts as the tokens that it becomes.
    pub tokens_per_s: f64,
    /// Standard deviation of `tokens_per_s`.
    pub stddev: f64,
    /// Images per second, for tests of images.
    pub images_per_s: Option<f64>,
    /// Texts per second, for tests of texts' features.
    pub texts_per_s: Option<f64>,
    /// Mean time of a repetition in milliseconds.
    pub ms: f64,
    /// Bytes read per token from weights, cache and intermediate values, each counted once per step
    /// ([`crate::plan::Op::bytes_read`]); for generated text, those of the middle token.
    pub bytes_per_token: f64,
    /// Read bandwidth of the device in bytes per second ([`bandwidth()`]).
    pub bandwidth: f64,
    /// `bytes_per_token · tokens_per_s / bandwidth`.
    pub bandwidth_share: f64,
    /// Launches per token: dispatches on a GPU, nodes on the CPU.
    pub dispatches_per_token: f64,
    /// Host time per token in microseconds, to write rows, encode and submit, without waiting for the device; 0 on the
    /// CPU.
    pub host_us_per_token: f64,
    /// Peak resident memory of the process so far in bytes; none if the system does not report it.
    pub peak_host_bytes: Option<u64>,
    /// Bytes in use on the device.
    pub device_bytes: u64,
    /// Times by op, the largest first, if they were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<OpTime>,
}

impl BenchOptions {
    /// The tests of a model with `max_positions` positions, in the order in which they run: by sessions, then prompts, images,
    /// generations.
    pub fn tests(&self, max_positions: usize) -> Vec<Test> {
        // Each test takes one position for the token that follows what it reads.
        let max = max_positions.saturating_sub(1);
        let deepest = self.depths.iter().copied().max().unwrap_or(0);
        let prompts = lengths(self.prompts.as_deref(), &DEFAULT_PROMPTS, max);
        let generated = lengths(self.generated.as_deref(), &DEFAULT_GENERATED, max.saturating_sub(deepest));
        let mut tests: Vec<Test> = prompts.into_iter().map(|tokens| Test::Prompt { tokens }).collect();
        if self.image {
            tests.extend([Test::Image, Test::ImagePrompt { tokens: 32 }]);
        }
        let mut counts = self.sessions.clone();
        counts.sort_unstable();
        for &sessions in &counts {
            for &depth in &self.depths {
                tests.extend(generated.iter().map(|&tokens| Test::Generate { tokens, depth, sessions }));
            }
        }
        tests
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Argument`] with the range.
    pub fn validate(&self) -> Result<()> {
        let within = |name: &str, n: usize, min: usize, max: usize| {
            let problem = || Error::argument(name, format!("is {n}, expected {min}..={max}"));
            if (min..=max).contains(&n) { Ok(()) } else { Err(problem()) }
        };
        within("repetitions", self.repetitions, 1, MAX_REPETITIONS)?;
        let positions = 1 << 20;
        let lengths = [("prompts", self.prompts.as_deref()), ("generated", self.generated.as_deref())];
        for (name, given) in lengths.into_iter().chain([("depths", Some(self.depths.as_slice()))]) {
            given.unwrap_or_default().iter().try_for_each(|&n| within(name, n, 0, positions))?;
        }
        self.sessions.iter().try_for_each(|&n| within("sessions", n, 1, crate::engine::resident::MAX_SESSIONS))?;
        if self.tests(usize::MAX).is_empty() {
            return Err(Error::argument("tests", "there are none to run"));
        }
        Ok(())
    }

    /// The tests, each of which the model can do; before its weights are loaded.
    fn checked_tests(&self, info: &ModelInfo) -> Result<Vec<Test>> {
        let tests = self.tests(info.max_positions);
        if tests != self.tests(usize::MAX) {
            log::warn!("the model has {} positions, which the usual tests are cut to", info.max_positions);
        }
        for test in &tests {
            let (needs, max) = (test.context(info)?, info.max_positions);
            if needs > max {
                let problem = format!("needs a context of {needs} tokens; the model has {max} positions");
                return Err(Error::argument(test, problem));
            }
        }
        Ok(tests)
    }

    fn engine(&self, files: &ModelFiles, sessions: usize, context: usize) -> Result<Engine> {
        let DeviceOptions { device, autotune, threads, cpu_level } = self.device.clone();
        let ModelOptions { precision, kv, head, activations, hidden_act } = self.model;
        let options = Options {
            device,
            autotune,
            threads,
            cpu_level,
            precision,
            kv,
            head,
            activations,
            hidden_act,
            context: Some(context),
            sessions,
            ..Options::default()
        };
        Engine::open(files, options)
    }
}

/// The given lengths without zeros; if none are given the usual ones, each at most `max`. If `max` is 0 they stay as they
/// are: the tests are then refused with what they need.
fn lengths(given: Option<&[usize]>, usual: &[usize], max: usize) -> Vec<usize> {
    let max = if max == 0 { usize::MAX } else { max };
    let mut lengths = given.map_or_else(|| usual.iter().map(|&n| n.min(max)).collect(), <[usize]>::to_vec);
    lengths.retain(|&n| n > 0);
    if given.is_none() {
        lengths.dedup();
    }
    lengths
}

/// Measures a model, which is opened once for each number of sessions; at the end, the bandwidth of the device.
///
/// Prompts are random tokens, decoding is greedy, and an end-of-text token does not end a generation. Every test has a
/// warm-up run. A BitGen is measured by the features of one image, of 8 images and of 64 texts; the prompts and generations
/// of `options` are ignored.
///
/// # Errors
/// [`Error::Argument`] for options out of range or beyond the model's positions, before anything is loaded;
/// [`Error::Unsupported`] for images without vision, or for times of ops on an adapter that takes none; those of
/// [`Engine::open`].
pub fn bench(
    files: impl Into<ModelFiles>,
    options: &BenchOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Vec<BenchRow>> {
    options.validate()?;
    let files = files.into();
    let (weights, load) = (Weights::open(&files)?, LoadOptions::anywhere(Precision::F16.pack()));
    let load = LoadOptions { hidden_act: options.model.hidden_act, ..load };
    let (measured, parameters) = if Family::recognise(&files, &weights)? == &BITGEN {
        let parameters = parameters(models::open(&files, &weights, load)?.as_ref(), &weights)?;
        (bitgen::measure(&files, options, &mut progress)?, parameters)
    } else {
        let model = models::open_chat(&files, &weights, load)?;
        let parameters = parameters(model.as_ref(), &weights)?;
        (chat::measure(&files, model.info(), options, &mut progress)?, parameters)
    };
    let bandwidth = bandwidth(&options.device)?;
    let row = |measured: Measured| BenchRow::new(files.to_string(), parameters, measured, bandwidth);
    Ok(measured.into_iter().map(row).collect())
}

/// Parameters of a model of any family.
fn parameters<M: Model + ?Sized>(model: &M, weights: &Weights) -> Result<u64> {
    let counted = weights.checkpoint().tensors().filter(|t| model.counts(&t.name));
    let shape = |name: &str| Ok(whole(weights, name, model.reads().get(name).copied())?.1);
    counted.map(|t| Ok(shape(&t.name)?.iter().map(|&n| n as u64).product::<u64>())).sum()
}

/// The seconds of `n` runs, behind one that does not count.
fn repeat(n: usize, mut run: impl FnMut() -> Result<Duration>) -> Result<Vec<f64>> {
    run()?;
    (0..n).map(|_| Ok(run()?.as_secs_f64().max(1e-9))).collect()
}

/// What a test gave, before the bandwidth of the device is known.
struct Measured {
    test: String,
    /// Seconds of each repetition.
    times: Vec<f64>,
    /// Tokens that a repetition counts.
    tokens: usize,
    /// Images of a repetition, where they are what is measured.
    images: Option<usize>,
    /// Texts of a repetition, where their features are what is measured.
    texts: Option<usize>,
    report: LoadReport,
    /// Bytes in use on the device at the end.
    device_bytes: u64,
    on_cpu: bool,
    /// What a repetition costs.
    cost: Cost,
    profile: Vec<OpTime>,
    peak_host_bytes: Option<u64>,
}

impl BenchRow {
    fn new(model: String, parameters: u64, measured: Measured, bandwidth: f64) -> Self {
        let Measured { test, times, report, cost, .. } = measured;
        let tokens = measured.tokens as f64;
        let (tokens_per_s, stddev) = mean(&times.iter().map(|t| tokens / t).collect::<Vec<f64>>());
        let seconds = mean(&times).0;
        let per_s = |n: usize| n as f64 / seconds;
        let bytes_per_token = cost.bytes / tokens;
        BenchRow {
            model,
            weight_bytes: report.weight_bytes,
            head: format!("{:?}", report.head).to_lowercase(),
            kv: report.kv.map_or(String::new(), |kv| format!("{kv:?}").to_lowercase()),
            parameters,
            backend: if measured.on_cpu { "cpu" } else { "gpu" },
            device: report.device,
            test,
            repetitions: times.len(),
            tokens_per_s,
            stddev,
            images_per_s: measured.images.map(per_s),
            texts_per_s: measured.texts.map(per_s),
            ms: 1e3 * seconds,
            bytes_per_token,
            bandwidth,
            bandwidth_share: bytes_per_token * tokens_per_s / bandwidth,
            dispatches_per_token: cost.launches / tokens,
            host_us_per_token: 1e6 * cost.host / tokens,
            peak_host_bytes: measured.peak_host_bytes,
            device_bytes: measured.device_bytes,
            profile: measured.profile,
        }
    }
}

/// Mean and standard deviation (of a sample, so 0 for one value).
fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// Peak resident memory of this process in bytes; none if the system does not report it.
fn peak_host_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|n| 1024 * n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_deviations_are_those_of_a_sample() {
        assert_eq!(mean(&[2.0, 4.0, 6.0]), (4.0, 2.0));
        assert_eq!(mean(&[3.0]), (3.0, 0.0));
    }

    #[test]
    fn values_out_of_range_are_named() {
        let fails = |options: BenchOptions, name: &str| {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        };
        let usual = BenchOptions::default;
        assert!(usual().validate().is_ok());
        fails(BenchOptions { prompts: Some(vec![8, 1 << 21]), ..usual() }, "prompts");
        fails(BenchOptions { sessions: vec![0], ..usual() }, "sessions");
        fails(BenchOptions { sessions: vec![1, 65], ..usual() }, "sessions");
        fails(BenchOptions { depths: vec![usize::MAX], ..usual() }, "depths");
        fails(BenchOptions { repetitions: 0, ..usual() }, "repetitions");
        fails(BenchOptions { prompts: Some(vec![0]), generated: Some(vec![0]), ..usual() }, "tests");
    }

    #[test]
    fn usual_lengths_are_cut_to_the_model_and_given_ones_are_not() {
        let names = |options: BenchOptions, positions| {
            options.tests(positions).iter().map(Test::to_string).collect::<Vec<_>>().join(" ")
        };
        let usual = BenchOptions::default;
        assert_eq!(names(usual(), 2048), "pp96 pp512 tg64");
        assert_eq!(names(usual(), 256), "pp96 pp255 tg64");
        assert_eq!(names(usual(), 40), "pp39 tg39");
        assert_eq!(names(BenchOptions { depths: vec![0, 20], ..usual() }, 40), "pp39 tg19 tg19 @ d20");
        assert_eq!(names(BenchOptions { prompts: Some(vec![0]), ..usual() }, 256), "tg64");
        assert_eq!(names(BenchOptions { generated: Some(vec![0]), ..usual() }, 256), "pp96 pp255");
        let given = BenchOptions { prompts: Some(vec![300]), generated: Some(vec![5]), ..usual() };
        assert_eq!(names(given, 256), "pp300 tg5");
    }
}
