//! Opening a model, whatever its family: files, device, tokenizer and options are checked before anything large is loaded.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::autotune::tune;
use crate::engine::device::{self, Opened, Tuning};
use crate::engine::options::{DeviceOptions, ModelOptions, Precision};
use crate::engine::programs::Program;
use crate::engine::residency::Residency;
use crate::error::{Error, Result};
use crate::files::{ModelFiles, Tokenizer, Weights};
use crate::models::{Family, LoadOptions, slots};
use crate::plan::{Backend, Plan};
use crate::tensor::DType;

/// What was loaded, on which device, and how long it took.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct LoadReport {
    /// The device, its driver and kind.
    pub device: String,
    /// Why the device was taken.
    pub why: String,
    /// How full-precision weights are kept: as asked for, if the device can.
    pub precision: Precision,
    /// Element type of the LM head.
    pub head: DType,
    /// Element type of the KV cache, if the model has one.
    pub kv: Option<DType>,
    /// Bytes of packed weights.
    pub weight_bytes: u64,
    /// Bytes in use on the device, once it was open; on the CPU the system gives the KV cache its memory as it is written.
    pub memory_bytes: u64,
    /// Bytes in use when the contexts of all sessions are full. While a KV cache grows, it is there twice.
    pub max_memory_bytes: u64,
    /// Time from the call to the end of loading.
    pub time: Duration,
}

/// How far loading or converting is.
#[derive(Debug, Clone, Serialize)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// What is being done.
    pub what: String,
}

impl Progress {
    /// A callback that looks at nothing and ends nothing.
    pub fn ignore(self) -> ControlFlow<()> {
        ControlFlow::Continue(())
    }
}

/// [`Error::Cancelled`] where a callback of progress breaks.
pub(crate) fn proceed(flow: ControlFlow<()>) -> Result<()> {
    if flow.is_break() { Err(Error::Cancelled("the work".into())) } else { Ok(()) }
}

/// A model's files and the device that it goes to, before anything is loaded.
pub(crate) struct Opening {
    start: Instant,
    pub files: ModelFiles,
    pub weights: Weights,
    pub device: Opened,
    /// The precision that the device has of the one asked for.
    pub precision: Precision,
    /// How weights are packed and cut for the device.
    pub load: LoadOptions,
    /// What of them moves through its memory; none: all stay.
    pub residency: Option<Residency>,
}

/// A device with a model's weights.
pub(crate) struct Loaded {
    start: Instant,
    pub backend: Box<dyn Backend>,
    why: String,
    precision: Precision,
    head: DType,
    kv: Option<DType>,
    weight_bytes: u64,
}

impl Opening {
    /// [`open_tokenizer`] of the opened model.
    ///
    /// # Errors
    /// As [`open_tokenizer`].
    pub fn tokenizer(&self, path: Option<&Path>, vocab: usize, family: &Family) -> Result<Option<Tokenizer>> {
        open_tokenizer(&self.files, path, vocab, family)
    }

    /// Reads the checkpoint's header and opens the device.
    ///
    /// # Errors
    /// Those of [`Weights::open`] and [`device::open`].
    pub fn new(files: ModelFiles, device: &DeviceOptions, options: ModelOptions) -> Result<Self> {
        let start = Instant::now();
        let weights = Weights::open(&files)?;
        let device = device::open(device)?;
        let ModelOptions { precision, head, activations, hidden_act, .. } = options;
        let precision = device.precision(precision);
        let (dense, max_binding) = (precision.pack(), device.caps().max_binding);
        let load = LoadOptions { dense, head: head.pack(dense), max_binding, activations, hidden_act };
        Ok(Opening { start, files, weights, device, precision, load, residency: None })
    }

    /// Loads every weight of the plans onto the device and chooses their kernels; `also` sees a weight's words before it does.
    /// Files and options are in order by now: this may take long.
    ///
    /// # Errors
    /// [`Error::Cancelled`] where `progress` breaks; those of [`Backend::load_weight`].
    pub fn load(
        self,
        plans: &[Arc<Plan>],
        head: DType,
        mut also: impl FnMut(&str, &[u32]) -> Result<()>,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Loaded> {
        let (precision, mut residency) = (self.precision, self.residency);
        let (tuning, (mut backend, why)) = (self.device.tuning(), self.device.backend()?);
        let keeps = !backend.runs_at_once();
        let put = |name: &str, words: Vec<u32>| {
            also(name, &words)?;
            match residency.as_mut().filter(|moving| moving.has(name)) {
                Some(moving) => moving.take(name, words, &self.weights, keeps),
                None => backend.load_weight(name, words),
            }
        };
        let weight_bytes = load_weights(&self.weights, plans, put, &mut progress)?;
        if let Some(moving) = residency {
            let max_binding = backend.caps().max_binding;
            backend.load_paging(moving.arenas(self.weights, backend.memory(), max_binding)?)?;
        }
        if let Some(Tuning(cache)) = tuning {
            let what = format!("timing the kernels of {}, once", backend.describe());
            tune(cache, backend.as_mut(), plans, |done, total| {
                proceed(progress(Progress { done, total, what: what.clone() }))
            })?;
        }
        log::info!("{} on {} ({why})", self.files, backend.describe());
        let kv = plans.iter().find_map(|plan| Some(plan.spec(plan.state(&slots::kv(0)[0])?).dtype));
        Ok(Loaded { start: self.start, backend, why, precision, head, kv, weight_bytes })
    }
}

impl Loaded {
    /// A plan, prepared.
    ///
    /// # Errors
    /// Those of [`Backend::prepare`].
    pub fn program(&mut self, plan: &Arc<Plan>) -> Result<Program> {
        Program::prepare(self.backend.as_mut(), plan)
    }

    /// The device and the report, once all programs are prepared.
    pub fn finish(self) -> (Box<dyn Backend>, LoadReport) {
        let Loaded { start, backend, why, precision, head, kv, weight_bytes } = self;
        let (device, memory_bytes) = (backend.describe(), backend.memory());
        let (max_memory_bytes, time) = (memory_bytes, start.elapsed());
        (backend, LoadReport { device, why, precision, head, kv, weight_bytes, memory_bytes, max_memory_bytes, time })
    }
}

/// The tokenizer at `path`, or the one among the model's files if there is one, for a model of `vocab` tokens.
///
/// # Errors
/// Those of [`Tokenizer::open`] and [`Tokenizer::check_vocab`].
pub(crate) fn open_tokenizer(
    files: &ModelFiles,
    path: Option<&Path>,
    vocab: usize,
    family: &Family,
) -> Result<Option<Tokenizer>> {
    let tokenizer = match path {
        Some(path) => Some(Tokenizer::open(path)?),
        None => Tokenizer::beside(files)?,
    };
    if let Some(tokenizer) = &tokenizer {
        tokenizer.check_vocab(vocab, family.tokenizer_note)?;
    }
    Ok(tokenizer)
}

/// The tokenizer, for a call that needs one.
///
/// # Errors
/// [`Error::Argument`] if there is none.
pub(crate) fn required_tokenizer(tokenizer: Option<&Tokenizer>) -> Result<&Tokenizer> {
    tokenizer.ok_or_else(|| {
        let problem = "there is none beside the model (tokenizer.json, or vocab.json and merges.txt); give one with the \
                       option `tokenizer`";
        Error::argument("tokenizer", problem)
    })
}

/// Hands every weight of the plans to `put` once, with its name; returns their bytes.
fn load_weights(
    weights: &Weights,
    plans: &[Arc<Plan>],
    mut put: impl FnMut(&str, Vec<u32>) -> Result<()>,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<u64> {
    let mut step = |done, total, what| proceed(progress(Progress { done, total, what }));
    let (mut names, mut all) = (HashSet::new(), Vec::new());
    for (weight, _) in plans.iter().flat_map(|plan| plan.weights()) {
        let name = weight.to_string();
        if names.insert(name.clone()) {
            all.push((name, weight));
        }
    }
    let (total, mut bytes) = (all.len(), 0);
    for (done, (name, weight)) in all.into_iter().enumerate() {
        let what = weight.parts.first().map_or(String::new(), |p| p.name.clone());
        step(done, total, what)?;
        let words = weights.load(weight)?;
        bytes += 4 * words.len() as u64;
        put(&name, words)?;
    }
    step(total, total, String::new())?;
    Ok(bytes)
}
