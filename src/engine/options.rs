//! What a caller can choose: at opening, and for each generation.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Serialize;

use crate::cpu_level::CpuLevel;
use crate::engine::cancel::Cancel;
use crate::engine::sampler::Sampling;
use crate::error::{Error, Result};
use crate::gpu::Device;
use crate::models::{Activations, HiddenAct};
use crate::tensor::{DType, Pack};

/// How an engine is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Where it runs.
    pub device: DeviceChoice,
    /// Whether a GPU's kernel variants are timed, and the fastest taken ([`DeviceOptions::autotune`]).
    pub autotune: bool,
    /// Where the choice of variants is kept ([`DeviceOptions::cache`]).
    pub cache: Option<PathBuf>,
    /// Threads of the CPU; none: one for each physical core that the process may use.
    pub threads: Option<usize>,
    /// Vector instructions of the CPU ([`DeviceOptions::cpu_level`]).
    pub cpu_level: Option<CpuLevel>,
    /// Full-precision weights, and the KV cache unless `kv` says otherwise.
    pub precision: Precision,
    /// The KV cache.
    pub kv: KvPrecision,
    /// The matrix that gives the logits.
    pub head: LmHead,
    /// What low-bit matrices read, in models that were trained with activations of floats.
    pub activations: Activations,
    /// The activation of feed-forward parts, for models whose files do not tell it; none: what the files tell.
    pub hidden_act: Option<HiddenAct>,
    /// Whether a token's logits depend on its session's tokens alone, bit for bit: not on how a prompt came in, on what else
    /// runs, nor on how many sessions there may be. On the CPU it is always so. A GPU's kernels for one row and for few are
    /// faster there, and add in another order than those for many; with this all steps run on the latter.
    pub batch_invariant: bool,
    /// Maximum number of tokens of a session, images included; none: the model's maximum, at most 2048.
    pub context: Option<usize>,
    /// Tokens of a session that the KV cache has room for from the beginning; it grows where a session has more. None: 512 on
    /// a GPU, and on the CPU `context`, since there memory is taken as it is written.
    pub reserve: Option<usize>,
    /// Bytes that the model may hold of the device's memory; none: as many as there are. Of a model that needs more
    /// ([`crate::Engine::estimate`]), experts move through the memory as routers choose them, and layers where that is not enough
    /// ([`crate::Engine::paging`]): the output is the same, later. A model that does not run so is refused before it is loaded, a
    /// KV cache that would grow beyond the limit when it would. Where they move, the cache has room for `context` from the
    /// beginning, and the model's file must stay as it is while the engine lives.
    pub max_memory: Option<u64>,
    /// Sessions that can be open at once; each has its part of the KV cache.
    pub sessions: usize,
    /// A `tokenizer.json`, or a folder with a tokenizer's files; none: those beside the model, if there are any.
    pub tokenizer: Option<PathBuf>,
    /// Whether opening fails without a tokenizer, before anything large is loaded; else only tokens can be pushed.
    pub needs_tokenizer: bool,
    /// Maximum number of rows of a prefill step; long prompts are cut so that no submission runs long enough for a driver to reset
    /// the GPU.
    pub prefill_rows: usize,
    /// Ends the opening, between two weights.
    pub cancel: Option<Cancel>,
    /// Layers whose shared experts a [`LogitsHook`](crate::engine::LogitsHook) may read; they cost memory, and time in
    /// generations that read them. Layers that the model does not have are left out.
    pub probed_layers: Vec<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            device: DeviceChoice::Auto,
            autotune: false,
            cache: None,
            threads: None,
            cpu_level: None,
            precision: Precision::F16,
            kv: KvPrecision::Dense,
            head: LmHead::Dense,
            activations: Activations::Int8,
            hidden_act: None,
            batch_invariant: false,
            context: None,
            reserve: None,
            max_memory: None,
            sessions: 4,
            tokenizer: None,
            needs_tokenizer: false,
            prefill_rows: 64,
            cancel: None,
            probed_layers: Vec::new(),
        }
    }
}

/// How a model's numbers are kept and computed, as [`Options`] say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelOptions {
    /// [`Options::precision`].
    pub precision: Precision,
    /// [`Options::kv`].
    pub kv: KvPrecision,
    /// [`Options::head`].
    pub head: LmHead,
    /// [`Options::activations`].
    pub activations: Activations,
    /// [`Options::hidden_act`].
    pub hidden_act: Option<HiddenAct>,
    /// [`Options::batch_invariant`].
    pub batch_invariant: bool,
}

/// A device, and how it is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceOptions {
    /// The device.
    pub device: DeviceChoice,
    /// Whether a GPU's kernel variants are timed when the adapter is opened for the first time, which takes seconds, and the
    /// fastest taken; else those that suit its kind. The choice changes the last bits of logits.
    pub autotune: bool,
    /// The folder in which the choice is kept for later openings, made if there is none ([`user_cache`](crate::engine::user_cache)
    /// is the user's); none: variants are timed at each opening, and nothing is written.
    pub cache: Option<PathBuf>,
    /// Threads of the CPU, at most [`DeviceOptions::MAX_THREADS`]; none: one for each physical core that the process may use, of
    /// those with most performance where the system tells which they are.
    pub threads: Option<usize>,
    /// Vector instructions of the CPU, for all engines of the process from the opening on ([`crate::cpu_level::limit`]); none: as
    /// before, or what the environment variable `TERNION_CPU` names, or the best that the processor has.
    pub cpu_level: Option<CpuLevel>,
}

impl DeviceOptions {
    /// Maximum number of threads of the CPU.
    pub const MAX_THREADS: usize = 1024;
}

impl Default for DeviceOptions {
    fn default() -> Self {
        DeviceChoice::default().into()
    }
}

impl Options {
    /// How the model's numbers are kept and computed.
    pub(crate) fn model_options(&self) -> ModelOptions {
        let Options { precision, kv, head, activations, hidden_act, batch_invariant, .. } = *self;
        ModelOptions { precision, kv, head, activations, hidden_act, batch_invariant }
    }

    /// Where the engine runs, and how.
    pub(crate) fn device_options(&self) -> DeviceOptions {
        let Options { autotune, threads, cpu_level, .. } = *self;
        DeviceOptions { device: self.device.clone(), autotune, cache: self.cache.clone(), threads, cpu_level }
    }
}

impl From<DeviceChoice> for DeviceOptions {
    fn from(device: DeviceChoice) -> Self {
        DeviceOptions { device, autotune: false, cache: None, threads: None, cpu_level: None }
    }
}

/// Where an engine runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The best real GPU, else the CPU; never a software adapter.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// The best adapter, a software one included.
    Gpu,
    /// The adapter of this number in `ternion devices`.
    Number(usize),
    /// The first adapter whose name contains this.
    Name(String),
    /// A device that the application has opened ([`Device::from_wgpu`]).
    Opened(Device),
}

impl FromStr for DeviceChoice {
    type Err = Error;

    /// `auto`, `cpu`, `gpu`, a number, or a part of a name.
    fn from_str(s: &str) -> Result<Self> {
        Ok(match s.trim() {
            "" => return Err(Error::argument("device", "is empty, expected auto, cpu, gpu, a number or a name")),
            "auto" => DeviceChoice::Auto,
            "cpu" => DeviceChoice::Cpu,
            "gpu" => DeviceChoice::Gpu,
            other => other.parse().map_or_else(|_| DeviceChoice::Name(other.to_owned()), DeviceChoice::Number),
        })
    }
}

/// An option with a few values, each with a name: [`FromStr`] reads them, and a command line can list them.
pub trait NamedValues: Copy + PartialEq + Sized + 'static {
    /// The option's name, for messages.
    const OPTION: &'static str;
    /// Each value with its name and what it means.
    const VALUES: &'static [(&'static str, Self, &'static str)];

    /// The value of this name.
    ///
    /// # Errors
    /// [`Error::Argument`] with the names that there are.
    fn named(name: &str) -> Result<Self> {
        let found = Self::VALUES.iter().find(|(n, ..)| *n == name).map(|&(_, value, _)| value);
        let names = || Self::VALUES.iter().map(|(name, ..)| *name).collect::<Vec<_>>().join(" or ");
        found.ok_or_else(|| Error::argument(Self::OPTION, format!("is {name:?}, expected {}", names())))
    }

    /// The name of this value.
    fn name(self) -> &'static str {
        Self::VALUES.iter().find(|(_, value, _)| *value == self).map_or("", |(name, ..)| name)
    }
}

/// How full-precision weights are kept, and the KV cache unless [`KvPrecision`] says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Precision {
    /// 16 bits; sums in 32.
    #[default]
    F16,
    /// 32 bits: the original's own numbers.
    F32,
}

impl Precision {
    /// How dense weights are packed.
    pub fn pack(self) -> Pack {
        match self {
            Precision::F16 => Pack::F16,
            Precision::F32 => Pack::F32,
        }
    }
}

impl NamedValues for Precision {
    const OPTION: &'static str = "precision";
    const VALUES: &'static [(&'static str, Self, &'static str)] = &[
        ("f16", Precision::F16, "16 bits: half the memory"),
        ("f32", Precision::F32, "32 bits: the original's own numbers"),
    ];
}

impl FromStr for Precision {
    type Err = Error;

    /// `f16` or `f32`.
    fn from_str(s: &str) -> Result<Self> {
        Self::named(s)
    }
}

/// How keys and values are kept in the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum KvPrecision {
    /// Like full-precision weights: in 16 bits, or in 32 with [`Precision::F32`].
    #[default]
    Dense,
    /// In 8 bits, with a 32-bit scale for each head of a token: `d + 4` bytes for `2 · d`, and an element is off by at most
    /// 1/254 of the largest of its head. The width of a head must be a multiple of 4.
    Int8,
}

impl KvPrecision {
    /// Element type of the cache, where full-precision weights are kept as `precision`.
    pub fn dtype(self, precision: Precision) -> DType {
        match self {
            KvPrecision::Dense => precision.pack().dtype(),
            KvPrecision::Int8 => DType::Int8,
        }
    }
}

impl NamedValues for KvPrecision {
    const OPTION: &'static str = "kv";
    const VALUES: &'static [(&'static str, Self, &'static str)] = &[
        ("f16", KvPrecision::Dense, "Like full-precision weights"),
        ("int8", KvPrecision::Int8, "8 bits and a scale for each head of a token: about half the bytes"),
    ];
}

impl FromStr for KvPrecision {
    type Err = Error;

    /// `f16` (as full-precision weights) or `int8`.
    fn from_str(s: &str) -> Result<Self> {
        Self::named(s)
    }
}

/// How the matrix is kept that gives the logits, the largest weight that every token reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum LmHead {
    /// Like other full-precision weights: in 16 bits, or in 32 with [`Precision::F32`].
    #[default]
    Dense,
    /// In 8 bits with a scale for each token of the vocabulary ([`crate::quant::int8`]): half the bytes, and logits that are off by
    /// 0.7 % of their spread (rms, on EmberNets). Where the matrix is the embedding table, embeddings keep that one, and both are resident.
    Int8,
}

impl LmHead {
    /// How the matrix is packed where other dense weights are packed as `dense`.
    pub fn pack(self, dense: Pack) -> Pack {
        match self {
            LmHead::Dense => dense,
            LmHead::Int8 => Pack::Int8,
        }
    }
}

impl NamedValues for LmHead {
    const OPTION: &'static str = "head";
    const VALUES: &'static [(&'static str, Self, &'static str)] = &[
        ("f16", LmHead::Dense, "Like other full-precision weights"),
        (
            "int8",
            LmHead::Int8,
            "8 bits and a scale for each row: half the bytes of the largest weight that every token reads",
        ),
    ];
}

impl FromStr for LmHead {
    type Err = Error;

    /// `f16` (as other weights) or `int8`.
    fn from_str(s: &str) -> Result<Self> {
        Self::named(s)
    }
}

impl NamedValues for Activations {
    const OPTION: &'static str = "activations";
    const VALUES: &'static [(&'static str, Self, &'static str)] = &[
        ("int8", Activations::Int8, "8 bits, with a scale for 32 columns"),
        ("f16", Activations::Floats, "Floats: slower; the reference for the error of 8 bits"),
    ];
}

impl FromStr for Activations {
    type Err = Error;

    /// `int8` or `f16`.
    fn from_str(s: &str) -> Result<Self> {
        Self::named(s)
    }
}

impl NamedValues for HiddenAct {
    const OPTION: &'static str = "hidden-act";
    const VALUES: &'static [(&'static str, Self, &'static str)] =
        &[("silu", HiddenAct::SiLu, "SiLU"), ("relu2", HiddenAct::Relu2, "Squared ReLU")];
}

impl FromStr for HiddenAct {
    type Err = Error;

    /// `silu` or `relu2`.
    fn from_str(s: &str) -> Result<Self> {
        Self::named(s)
    }
}

/// How a text is generated.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateOptions {
    /// Maximum number of tokens; none: as many as the context holds, at most 512.
    pub max_tokens: Option<usize>,
    /// How a token is chosen. The device does it, several tokens in one go on a GPU, unless there is a hook, or a
    /// `top_k` of 0 or above 64 with a temperature: then the host does, from all logits, one token at a time.
    pub sampling: Sampling,
    /// Strings that end the text; they are not part of it.
    pub stop: Vec<String>,
    /// Ends the text; none: the model's.
    pub eos: Option<u32>,
    /// Whether a text ends that repeats itself without end: a passage of at most 64 tokens eight times in a row, with 96 tokens
    /// together or more ([`StopReason::Repetition`](crate::engine::StopReason)).
    pub end_loops: bool,
}

impl Default for GenerateOptions {
    /// Greedy, to the end of text.
    fn default() -> Self {
        GenerateOptions {
            max_tokens: None,
            sampling: Sampling::greedy(),
            stop: Vec::new(),
            eos: None,
            end_loops: false,
        }
    }
}
