//! The engine: a model resident on a device, shared by sessions on any threads.

use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::apps::refiner::RefinerOptions;
use crate::engine::batch::Batch;
use crate::engine::cache::KvPool;
use crate::engine::device;
use crate::engine::options::{GenerateOptions, Options};
use crate::engine::queue::{Job, Outcome, Queue};
use crate::engine::runner::{Core, required};
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::files::{Image, ModelFiles, Tokenizer, Weights};
use crate::models;
use crate::models::{ChatModel, Family, ImageInfo, ModelInfo, TextShape, slots};
use crate::plan::Plan;
use crate::tensor::DType;

/// Most tokens of a session unless the caller asks for more.
const DEFAULT_CONTEXT: usize = 2048;
/// Bounds on what a caller may ask for.
pub(crate) const MAX_SESSIONS: usize = 64;
const MAX_PREFILL_ROWS: usize = 1024;

/// A model on a device. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

/// What opening a model took.
#[derive(Debug, Clone)]
pub struct LoadReport {
    /// The device, its driver and kind.
    pub device: String,
    /// Why the device was taken.
    pub why: String,
    /// How the matrix that gives the logits is kept.
    pub head: DType,
    /// Bytes of packed weights.
    pub weight_bytes: u64,
    /// Bytes in use on the device.
    pub memory_bytes: u64,
    /// Time from the call to the end of loading.
    pub time: Duration,
}

/// How far loading or converting is.
#[derive(Debug, Clone)]
pub struct Progress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub total: usize,
    /// What is being done.
    pub what: String,
}

pub(crate) struct Inner {
    pub model: Box<dyn ChatModel>,
    pub tokenizer: Option<Tokenizer>,
    pub kv: Arc<KvPool>,
    pub report: LoadReport,
    core: Mutex<Core>,
    queue: Queue,
    /// Most rows and outputs of a batch.
    limits: (usize, usize),
}

impl fmt::Debug for Inner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("model", self.model.info()).field("report", &self.report).finish()
    }
}

impl Engine {
    /// Opens a model: `files` is the path of a checkpoint or of a directory with one, or [`ModelFiles`] in memory.
    ///
    /// The checkpoint is mapped, not copied: while the model is open it must not be changed or cut short (see
    /// [`crate::files::Checkpoint`]). Renaming another file over it is safe.
    ///
    /// # Errors
    /// See [`Error`]: the file, its configuration or its tokenizer is broken, a tensor is missing or misshapen, the
    /// device is absent, or the model does not fit on it.
    pub fn open(files: impl Into<ModelFiles>, options: Options) -> Result<Self> {
        Self::open_with(files, options, |_| {})
    }

    /// Opens the demo model, which is built in: a small EmberNet that answers questions about drawn scenes.
    ///
    /// # Errors
    /// As [`Engine::open`], as far as they concern the device and the options.
    #[cfg(feature = "demo")]
    pub fn demo(options: Options) -> Result<Self> {
        Self::open(ModelFiles::demo()?, options)
    }

    /// [`Engine::open`] with a callback before each weight is loaded.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with(
        files: impl Into<ModelFiles>,
        mut options: Options,
        progress: impl FnMut(Progress),
    ) -> Result<Self> {
        let (start, files) = (Instant::now(), files.into());
        check_options(&options)?;
        let weights = Weights::open(&files)?;
        let device = device::open(&options.place())?;
        options.precision = options.precision.on(&device);
        let load = options.load(device.caps().max_binding);
        let model = models::open_chat(&files, &weights, load)?;
        let tokenizer = open_tokenizer(&files, options.tokenizer.as_deref(), model.vocab(), model.family())?;
        if tokenizer.is_none() && options.needs_tokenizer {
            return Err(no_tokenizer());
        }
        let kv = KvPool::new(context(&options, model.info())?, options.sessions);

        let text = |max_rows, images| {
            let shape = TextShape {
                max_rows,
                max_outputs: options.sessions.min(max_rows),
                kv_rows: kv.rows(),
                sessions: options.sessions,
                kv_dtype: options.precision.kv_dtype(),
                images,
            };
            model.record_text(&shape).map(|plan| (Arc::new(with_hidden(plan, &options.refiner_layers)), shape))
        };
        let decode = text(options.sessions, false)?;
        let prefill = text(options.prefill_rows.max(options.sessions), model.info().image.is_some())?;
        let image = model.info().image.map(|_| model.record_image()).transpose()?.map(Arc::new);
        let plans = [Some(&decode.0), Some(&prefill.0), image.as_ref()];
        // Files and options are in order: from here on it may take long.
        let (mut backend, why) = device.tuned()?;
        let put = |name: &str, words| backend.load_weight(name, words);
        let weight_bytes = load_weights(&weights, plans.into_iter().flatten(), put, progress)?;

        let core = Core::new(backend, [decode, prefill], image, model.info().layers)?;
        let report = LoadReport {
            device: core.backend.describe(),
            why,
            head: load.head.dtype(),
            weight_bytes,
            memory_bytes: core.backend.memory(),
            time: start.elapsed(),
        };
        log::info!("{files}: {} on {} ({})", model.info().family, report.device, report.why);
        let limits = core.limits();
        let (core, queue) = (Mutex::new(core), Queue::default());
        Ok(Engine(Arc::new(Inner { model, tokenizer, kv, report, core, queue, limits })))
    }

    /// The model's sizes.
    pub fn info(&self) -> &ModelInfo {
        self.0.model.info()
    }

    /// What opening took.
    pub fn report(&self) -> &LoadReport {
        &self.0.report
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.0.tokenizer.as_ref()
    }

    /// Most tokens of a session.
    pub fn context(&self) -> usize {
        self.0.kv.context()
    }

    /// Whether it runs on the CPU, where steps run at once.
    pub fn runs_on_cpu(&self) -> bool {
        self.0.core().backend.runs_at_once()
    }

    pub(crate) fn inner(&self) -> &Inner {
        &self.0
    }

    /// Generates text in several sessions at once, decoded together from one thread: each step costs little more than one
    /// session's. Pairs of a session's number in `sessions` and its next token come as they are generated; dropping the
    /// batch ends all generations.
    ///
    /// # Errors
    /// [`Error::Argument`] unless each session is of this engine and has its own options; those of [`Session::generate`].
    pub fn generate_all<'a>(
        &self,
        sessions: &'a mut [Session],
        options: impl IntoIterator<Item = GenerateOptions>,
    ) -> Result<Batch<'a>> {
        Batch::new(&self.0, sessions, options)
    }

    /// A new conversation.
    ///
    /// # Errors
    /// [`Error::Limit`] if as many sessions are open as the engine was opened for.
    pub fn session(&self) -> Result<Session> {
        Session::new(self.0.clone())
    }
}

fn check_options(options: &Options) -> Result<()> {
    let within = |name: &str, n: usize, most: usize| {
        let problem = || Error::argument(name, format!("is {n}, expected 1..={most}"));
        if (1..=most).contains(&n) { Ok(()) } else { Err(problem()) }
    };
    within("sessions", options.sessions, MAX_SESSIONS)?;
    within("prefill_rows", options.prefill_rows, MAX_PREFILL_ROWS)
}

fn context(options: &Options, info: &ModelInfo) -> Result<usize> {
    let most = info.max_positions;
    match options.context {
        None => Ok(most.min(DEFAULT_CONTEXT)),
        Some(n) if (1..=most).contains(&n) => Ok(n),
        Some(n) => Err(Error::argument("context", format!("is {n}; the model has 1..={most} positions"))),
    }
}

pub(crate) fn no_tokenizer() -> Error {
    let problem =
        "there is none beside the model (tokenizer.json, or vocab.json and merges.txt); give one with --tokenizer";
    Error::argument("tokenizer", problem)
}

/// The tokenizer at `path`, or the one among the model's files if there is one, for a model of `vocab` tokens.
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

/// Hands every weight of the plans to `put` once, with its name; returns their bytes.
pub(crate) fn load_weights<'a>(
    weights: &Weights,
    plans: impl Iterator<Item = &'a Arc<Plan>>,
    mut put: impl FnMut(&str, Vec<u32>) -> Result<()>,
    mut progress: impl FnMut(Progress),
) -> Result<u64> {
    let mut all: Vec<_> = Vec::new();
    for plan in plans {
        for (weight, _) in plan.weights() {
            if !all.contains(&weight) {
                all.push(weight);
            }
        }
    }
    let (total, mut bytes) = (all.len(), 0);
    for (done, weight) in all.into_iter().enumerate() {
        let what = weight.parts.first().map_or(String::new(), |p| p.name.clone());
        progress(Progress { done, total, what });
        let words = weights.load(weight)?;
        bytes += 4 * words.len() as u64;
        put(&weight.to_string(), words)?;
    }
    progress(Progress { done: total, total, what: String::new() });
    Ok(bytes)
}

/// The plan with the hidden vectors of these layers among its outputs, as far as it has them.
fn with_hidden(mut plan: Plan, layers: &[usize]) -> Plan {
    for name in layers.iter().map(|&i| slots::hidden(i)) {
        if let Some(&slot) = plan.tags.get(&name) {
            plan.outputs.insert(name, slot);
        }
    }
    plan
}

impl Inner {
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs jobs, batched with each other and with those of other threads; their outcomes in order.
    pub fn run_all(&self, jobs: Vec<Job>) -> Vec<Result<Outcome>> {
        self.queue.run_all(jobs, self.limits, |parts| self.core().step(parts, self.model.info()))
    }

    /// Runs a job, batched with those of other threads.
    pub fn run(&self, job: Job) -> Result<Outcome> {
        self.run_all(vec![job]).pop().unwrap_or_else(|| Err(Error::format("a job", "has no outcome")))
    }

    /// The layers that a refiner watches, as far as the model has them.
    pub fn watched(&self, refiner: &RefinerOptions) -> Result<Vec<usize>> {
        let layers = if refiner.use_neuron { refiner.layers.as_slice() } else { &[] };
        let layers: Vec<usize> = layers.iter().copied().filter(|&i| i < self.model.info().layers).collect();
        self.core().check_watched(&layers)?;
        Ok(layers)
    }

    fn no_images(&self) -> Error {
        let object = format!("an image for {}", self.model.info().family);
        Error::Unsupported { object, problem: "the model reads text only".into() }
    }

    /// How the model reads images, or an error if it reads none.
    pub fn image_info(&self) -> Result<ImageInfo> {
        self.model.info().image.ok_or_else(|| self.no_images())
    }

    /// Image tokens `[n, d]` of a picture.
    pub fn encode_image(&self, image: &Image) -> Result<Vec<f32>> {
        let info = self.image_info()?;
        // Before the core is locked: streams go on meanwhile.
        let pixels = image.resized(info.size)?.pixel_values(info.mean, info.std);
        let mut core = self.core();
        let program = core.image.ok_or_else(|| self.no_images())?;
        core.encode(program, &pixels, info.tokens * info.width)
    }

    /// The experts chosen in each layer at rows `base..base + n` of the KV cache: `[layer][row · k + i]`.
    pub fn routing(&self, base: usize, n: usize) -> Result<Vec<Vec<u32>>> {
        let mut core = self.core();
        let (info, id) = (self.model.info(), core.decode_program());
        let plan = core.backend.plan(id);
        let k = info.experts_per_token;
        let log = |i| required(plan.state(&slots::routing(i)), "routing log");
        let ranges: Result<Vec<_>> = (0..info.layers).map(|i| Ok((log(i)?, base * k..(base + n) * k))).collect();
        core.backend.read(id, &ranges?)
    }
}
