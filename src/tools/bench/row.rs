//! What a test gives: a row with all that tells it from other rows.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cpu_level;
use crate::engine::LoadReport;
use crate::engine::options::{ModelOptions, NamedValues};
use crate::error::{Error, Result};
use crate::plan::{Backend, Choices, DeviceParts, PagingStatistics};
use crate::tensor::DType;
use crate::tools::bench::machine::{Machine, now, peak_host_bytes};
use crate::tools::bench::probe::{Cost, OpTime};
use crate::tools::bench::statistics::{mean, quantiles};

/// Number of the rows' form: it changes where a key gets another name or meaning, and not where one is added.
pub const SCHEMA: u32 = 1;

/// A standard deviation above this share of the mean is noise.
const NOISE: f64 = 0.1;

/// The model, the device and how they are set up: the same for all rows of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The model.
    pub model: String,
    /// Bytes of its weights on the device.
    pub weight_bytes: u64,
    /// Number of parameters.
    pub parameters: u64,
    /// "cpu" or "gpu".
    pub backend: String,
    /// The device: adapter and driver, or the CPU's threads.
    pub device: String,
    /// Name of the adapter.
    pub adapter: Option<String>,
    /// Number of the adapter's vendor, as its interface gives it.
    pub vendor_id: Option<u32>,
    /// Number of the adapter among its vendor's.
    pub device_id: Option<u32>,
    /// The interface by which the adapter is reached: "vulkan", "metal", "dx12" or "gl".
    pub api: Option<String>,
    /// The adapter's driver and its version.
    pub driver: Option<String>,
    /// Threads that compute, on the CPU.
    pub threads: Option<u64>,
    /// Vector instructions that are used, on the CPU.
    pub cpu_level: Option<String>,
    /// How full-precision weights are kept: "f16" or "f32".
    pub precision: String,
    /// Data type of the LM head: "f16", "f32", "int8" or "ternary".
    pub head: String,
    /// Data type of the KV cache: "f16", "f32" or "int8"; none for a model without one.
    pub kv: Option<String>,
    /// What low-bit matrices read: "int8" or "f16", for models that leave the choice; none for a BitGen.
    pub activations: Option<String>,
    /// Whether all steps ran on kernels for many rows; none for a BitGen.
    #[serde(default)]
    pub batch_invariant: Option<bool>,
    /// Whether kernel variants were chosen by timing them, on a GPU.
    pub autotune: Option<bool>,
    /// The variant that was chosen for each op and bucket of shapes, on a GPU.
    pub variants: Option<BTreeMap<String, String>>,
}

/// What a test does, in numbers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TestNumbers {
    /// Tokens of the prompt.
    pub n_prompt: u64,
    /// Tokens that each session generates.
    pub n_gen: u64,
    /// Tokens in each session's cache before.
    pub n_depth: u64,
    /// Sessions that run at the same time.
    pub n_sessions: u64,
    /// Pictures.
    pub n_images: u64,
    /// Texts of which features are made.
    pub n_texts: u64,
    /// Tokens that a session may have; none for a model without a cache.
    pub context: Option<u64>,
}

/// How weights moved through a device's memory in a test, where an option bounds it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct PageUse {
    /// Bytes that the model may hold.
    pub max_memory: Option<u64>,
    /// Of the experts and layers that steps needed, the share that was in memory; none where all weights stay.
    pub page_hit_rate: Option<f64>,
    /// Bytes that moved, for each token.
    pub moved_bytes_per_token: Option<f64>,
    /// Of the time, the share in which steps waited for them.
    pub stalled_share: Option<f64>,
}

impl PageUse {
    /// What moved in a test of so many tokens and seconds.
    pub(super) fn new(max_memory: Option<u64>, moved: Option<&PagingStatistics>, tokens: f64, seconds: f64) -> Self {
        PageUse {
            max_memory,
            page_hit_rate: moved.map(PagingStatistics::hit_rate),
            moved_bytes_per_token: moved.map(|m| m.moved_bytes as f64 / tokens),
            stalled_share: moved.map(|m| m.stalled.as_secs_f64() / seconds),
        }
    }
}

/// What rates count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unit {
    /// Tokens of prompts.
    Read,
    /// Tokens that are generated.
    Generated,
    /// Images.
    Images,
    /// Texts of which features are made.
    Texts,
}

impl Unit {
    /// What is counted, as a word: "tokens", "images" or "texts".
    pub fn word(self) -> &'static str {
        match self {
            Unit::Read | Unit::Generated => "tokens",
            Unit::Images => "images",
            Unit::Texts => "texts",
        }
    }
}

/// The result of one test.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BenchRow {
    /// [`SCHEMA`].
    pub schema: u32,
    /// What measured.
    #[serde(flatten)]
    pub machine: Machine,
    /// When the test ended: UTC, as RFC 3339 writes it.
    pub time: String,
    /// The model, the device, and how they were set up.
    #[serde(flatten)]
    pub setup: Setup,
    /// The test's name, as [`super::Test`] prints it.
    pub test: String,
    /// What it does.
    #[serde(flatten)]
    pub numbers: TestNumbers,
    /// Runs before those that count.
    pub warmup: u64,
    /// Repetitions.
    pub repetitions: u64,
    /// Nanoseconds of each repetition.
    pub samples_ns: Vec<u64>,
    /// Tokens per second of each repetition.
    pub samples_ts: Vec<f64>,
    /// Tokens per second of all sessions together, the mean. An image counts as the tokens that it becomes.
    pub tokens_per_s: f64,
    /// Standard deviation of `tokens_per_s`.
    pub stddev: f64,
    /// The median of `samples_ts`.
    pub tokens_per_s_median: f64,
    /// The smallest of `samples_ts`.
    pub tokens_per_s_min: f64,
    /// The largest of `samples_ts`.
    pub tokens_per_s_max: f64,
    /// Images per second, for tests of images.
    pub images_per_s: Option<f64>,
    /// Texts per second, for tests of texts' features.
    pub texts_per_s: Option<f64>,
    /// Mean time of a repetition in milliseconds.
    pub ms: f64,
    /// Bytes read per token from weights, cache and intermediate values, each counted once per step
    /// ([`crate::plan::Op::bytes_read`]); for generated text, those of the middle token.
    pub bytes_per_token: f64,
    /// Read bandwidth of the device in bytes per second ([`super::bandwidth()`]), before the run's first test.
    pub bandwidth: f64,
    /// `bytes_per_token · tokens_per_s / bandwidth`.
    pub bandwidth_share: f64,
    /// Launches per token: dispatches on a GPU, nodes on the CPU.
    pub dispatches_per_token: f64,
    /// Host time per token in microseconds, to write rows, encode and submit, without waiting for the device; 0 on the
    /// CPU.
    pub host_us_per_token: f64,
    /// Peak resident memory of the process in bytes since the run began; none if the system does not report it.
    pub peak_host_bytes: Option<u64>,
    /// Bytes in use on the device.
    pub device_bytes: u64,
    /// How weights moved.
    #[serde(flatten)]
    pub pages: PageUse,
    /// Times by op, the largest first, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub profile: Vec<OpTime>,
}

impl BenchRow {
    /// What the row's rate counts.
    pub fn unit(&self) -> Unit {
        match (self.images_per_s, self.texts_per_s) {
            (Some(_), _) => Unit::Images,
            (_, Some(_)) => Unit::Texts,
            _ if self.numbers.n_gen > 0 => Unit::Generated,
            _ => Unit::Read,
        }
    }

    /// [`BenchRow::unit`] per second, of each repetition.
    pub fn rates(&self) -> Vec<f64> {
        let per = |n: u64| self.samples_ns.iter().map(|&ns| 1e9 * n as f64 / ns as f64).collect();
        match self.unit() {
            Unit::Images => per(self.numbers.n_images),
            Unit::Texts => per(self.numbers.n_texts),
            Unit::Read | Unit::Generated => self.samples_ts.clone(),
        }
    }

    /// Mean and standard deviation of [`BenchRow::rates`].
    pub fn mean_rate(&self) -> (f64, f64) {
        mean(&self.rates())
    }

    /// The smallest of [`BenchRow::rates`], their median and the largest.
    pub fn rate_quantiles(&self) -> [f64; 3] {
        quantiles(&self.rates())
    }

    /// The standard deviation of the rates as a share of their mean, where that is more than a quiet machine gives: a tenth.
    pub fn noise(&self) -> Option<f64> {
        let (mean, deviation) = self.mean_rate();
        Some(deviation / mean).filter(|&share| share > NOISE)
    }

    /// Checks what a file says of a row.
    ///
    /// # Errors
    /// [`Error::Format`] for samples that are none, or times of 0.
    pub fn check(&self) -> Result<()> {
        let (times, rates) = (&self.samples_ns, &self.samples_ts);
        let sound = !times.is_empty()
            && times.len() == rates.len()
            && times.iter().all(|&ns| ns > 0)
            && rates.iter().all(|r| r.is_finite() && *r > 0.0);
        let problem = "needs times above 0 in samples_ns, and as many rates in samples_ts";
        if sound { Ok(()) } else { Err(Error::format(&self.test, problem)) }
    }
}

impl Setup {
    /// The setup of a model that is open on a backend, one that chats with its options.
    pub(super) fn new(
        (model, parameters): (&str, u64),
        report: &LoadReport,
        backend: &dyn Backend,
        chat: Option<&ModelOptions>,
    ) -> Self {
        let DeviceParts { adapter, ids, api, driver, threads } = backend.parts();
        let name = |dtype: DType| format!("{dtype:?}").to_lowercase();
        let on_cpu = backend.runs_at_once();
        let chosen = |choices: &Choices| -> BTreeMap<String, String> {
            choices.iter().map(|[op, bucket, variant]| (format!("{op}, {bucket}"), variant.to_owned())).collect()
        };
        let variants = backend.choices().map(chosen);
        Setup {
            model: model.to_owned(),
            weight_bytes: report.weight_bytes,
            parameters,
            backend: if on_cpu { "cpu" } else { "gpu" }.to_owned(),
            device: report.device.clone(),
            adapter,
            vendor_id: ids.map(|[vendor, _]| vendor),
            device_id: ids.map(|[_, device]| device),
            api,
            driver,
            threads: threads.map(|n| n as u64),
            cpu_level: on_cpu.then(|| cpu_level::level().to_string()),
            precision: report.precision.name().to_owned(),
            head: name(report.head),
            kv: report.kv.map(name),
            activations: chat.map(|options| options.activations.name().to_owned()),
            batch_invariant: chat.map(|options| options.batch_invariant),
            autotune: variants.as_ref().map(|variants| !variants.is_empty()),
            variants,
        }
    }
}

/// What a test gave, before it is a row.
pub(super) struct Measured {
    pub test: String,
    pub numbers: TestNumbers,
    /// Seconds of each repetition.
    pub times: Vec<f64>,
    /// Tokens that a repetition counts.
    pub tokens: usize,
    /// What the test's own rate counts.
    pub counts: Unit,
    pub setup: Setup,
    /// Bytes in use on the device at the end.
    pub device_bytes: u64,
    /// Bytes that the model may hold, and what moved in all repetitions.
    pub paging: (Option<u64>, Option<PagingStatistics>),
    /// What a repetition costs.
    pub cost: Cost,
    pub profile: Vec<OpTime>,
}

impl Measured {
    /// The row, on a device that reads `bandwidth` bytes per second.
    pub fn row(self, machine: &Machine, bandwidth: f64) -> BenchRow {
        let Measured { test, numbers, setup, cost, .. } = self;
        let tokens = self.tokens as f64;
        let samples_ns: Vec<u64> = self.times.iter().map(|s| ((1e9 * s).round() as u64).max(1)).collect();
        let samples_ts: Vec<f64> = samples_ns.iter().map(|&ns| 1e9 * tokens / ns as f64).collect();
        let (tokens_per_s, stddev) = mean(&samples_ts);
        let [tokens_per_s_min, tokens_per_s_median, tokens_per_s_max] = quantiles(&samples_ts);
        let seconds = mean(&self.times).0;
        let rate = |unit: Unit, n: u64| (self.counts == unit).then(|| n as f64 / seconds);
        let bytes_per_token = cost.bytes / tokens;
        BenchRow {
            schema: SCHEMA,
            machine: machine.clone(),
            time: now(),
            setup,
            test,
            warmup: 1,
            repetitions: samples_ns.len() as u64,
            tokens_per_s,
            stddev,
            tokens_per_s_median,
            tokens_per_s_min,
            tokens_per_s_max,
            images_per_s: rate(Unit::Images, numbers.n_images),
            texts_per_s: rate(Unit::Texts, numbers.n_texts),
            numbers,
            samples_ns,
            samples_ts,
            ms: 1e3 * seconds,
            bytes_per_token,
            bandwidth,
            bandwidth_share: bytes_per_token * tokens_per_s / bandwidth,
            dispatches_per_token: cost.launches / tokens,
            host_us_per_token: 1e6 * cost.host / tokens,
            peak_host_bytes: peak_host_bytes(),
            device_bytes: self.device_bytes,
            pages: PageUse::new(
                self.paging.0,
                self.paging.1.as_ref(),
                tokens * self.times.len() as f64,
                self.times.iter().sum(),
            ),
            profile: self.profile,
        }
    }
}
