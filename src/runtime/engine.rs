//! The engine: a model resident on a device, shared by sessions on any threads.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::device;
use super::kv::KvPool;
use super::options::{Options, Precision};
use super::refiner::RefinerOptions;
use super::scheduler::{Job, Outcome, Queue};
use super::session::Session;
use super::trace::Traces;
use crate::error::{Error, Result};
use crate::files::tokenizer::MAX_FILE_BYTES;
use crate::files::{Image, ModelFiles, Tokenizer, Weights};
use crate::models::{self, ImageInfo, LoadOptions, Model, ModelInfo, TextShape, slots};
use crate::ops::TOKEN_IMAGE;
use crate::plan::{Backend, Plan, ProgramId, Slot, Step};

/// Most tokens of a session unless the caller asks for more.
const DEFAULT_CONTEXT: usize = 2048;
/// Bounds on what a caller may ask for.
pub(super) const MAX_SESSIONS: usize = 64;
const MAX_PREFILL_ROWS: usize = 1024;

/// A model on a device. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Inner>);

/// What opening a model took.
#[derive(Debug, Clone)]
pub struct LoadReport {
    /// The device, and why it was taken.
    pub device: String,
    /// Why the device was taken.
    pub why: String,
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

pub(super) struct Inner {
    pub model: Box<dyn Model>,
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

/// The device and its programs; one thread at a time.
pub(super) struct Core {
    pub backend: Box<dyn Backend>,
    decode: TextProgram,
    prefill: TextProgram,
    image: Option<ImageProgram>,
    pub traces: Traces,
}

/// A text plan's slots by what they are for.
#[derive(Debug)]
struct TextProgram {
    id: ProgramId,
    nodes: usize,
    shape: TextShape,
    rows: Slot,
    outputs: Slot,
    image_rows: Option<Slot>,
    logits: Slot,
    argmax: Slot,
    /// By layer, the slots of [`slots::hidden`] that can be read after a step, with the first word of the shared
    /// expert's vector in a row and the words of a row.
    hidden: BTreeMap<usize, (Slot, [usize; 2])>,
}

#[derive(Debug, Clone, Copy)]
struct ImageProgram {
    id: ProgramId,
    nodes: usize,
    pixels: Slot,
    image: Slot,
}

impl Engine {
    /// Opens a model: `files` is the path of a checkpoint or of a directory with one, or [`ModelFiles`] in memory.
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
        let (mut backend, why) = device::choose(&options.device)?;
        if options.precision == Precision::F16 && !backend.caps().half {
            log::warn!("{} cannot unpack 16-bit floats: weights and cache take 32 bits", backend.describe());
            options.precision = Precision::F32;
        }
        let load = LoadOptions { dense: options.precision.pack(), max_binding: backend.caps().max_binding };
        let model = models::open(&files, &weights, load)?;
        let tokenizer = open_tokenizer(&files, options.tokenizer.as_deref(), model.info())?;
        if tokenizer.is_none() && options.needs_tokenizer {
            return Err(no_tokenizer());
        }
        let kv = KvPool::new(context(&options, model.info())?, options.sessions);

        let text = |max_rows, images| {
            let shape = TextShape {
                max_rows,
                max_outputs: options.sessions.min(max_rows),
                kv_rows: kv.rows(),
                kv_dtype: options.precision.kv_dtype(),
                images,
            };
            model.record_text(&shape).map(|plan| (Arc::new(with_hidden(plan, &options.refiner_layers)), shape))
        };
        let decode = text(options.sessions, false)?;
        let prefill = text(options.prefill_rows.max(options.sessions), model.info().image.is_some())?;
        let image = model.info().image.map(|_| model.record_image()).transpose()?.map(Arc::new);
        let plans = [Some(&decode.0), Some(&prefill.0), image.as_ref()];
        let put = |name: &str, words| backend.load_weight(name, words);
        let weight_bytes = load_weights(&weights, plans.into_iter().flatten(), put, progress)?;

        let core = Core {
            decode: TextProgram::new(backend.as_mut(), decode, model.info().layers)?,
            prefill: TextProgram::new(backend.as_mut(), prefill, model.info().layers)?,
            image: image.map(|plan| ImageProgram::new(backend.as_mut(), plan)).transpose()?,
            traces: Traces::default(),
            backend,
        };
        let report = LoadReport {
            device: core.backend.describe(),
            why,
            weight_bytes,
            memory_bytes: core.backend.memory(),
            time: start.elapsed(),
        };
        log::info!("{files}: {} on {} ({})", model.info().family, report.device, report.why);
        let limits = (core.prefill.shape.max_rows, core.prefill.shape.max_outputs);
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

    pub(super) fn inner(&self) -> &Inner {
        &self.0
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

pub(super) fn no_tokenizer() -> Error {
    Error::argument("tokenizer", "there is none beside the model; give a tokenizer.json with --tokenizer")
}

/// The tokenizer in `file`, or the one among the model's files if there is one.
pub(super) fn open_tokenizer(files: &ModelFiles, file: Option<&Path>, info: &ModelInfo) -> Result<Option<Tokenizer>> {
    const BESIDE: &str = "tokenizer.json";
    let tokenizer = match file {
        Some(file) => Tokenizer::open(file)?,
        None if files.has(BESIDE) => {
            let json = files.read(BESIDE, MAX_FILE_BYTES)?.into_owned();
            Tokenizer::from_bytes(&files.path(BESIDE).display().to_string(), json)?
        }
        None => return Ok(None),
    };
    tokenizer.check_vocab(info.vocab, info.tokenizer_note)?;
    Ok(Some(tokenizer))
}

/// Hands every weight of the plans to `put` once, with its name; returns their bytes.
pub(super) fn load_weights<'a>(
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

fn unwatched(layer: usize) -> Error {
    let problem = format!("layer {layer} cannot be watched; open the engine with it in `refiner_layers`");
    Error::argument("refiner.layers", problem)
}

/// A slot that every plan of its kind has.
pub(super) fn required(slot: Option<Slot>, name: &str) -> Result<Slot> {
    slot.ok_or_else(|| Error::format("the model's plan", format!("has no {name}")))
}

impl TextProgram {
    fn new(backend: &mut dyn Backend, (plan, shape): (Arc<Plan>, TextShape), layers: usize) -> Result<Self> {
        let output = |name: &str| required(plan.outputs.get(name).copied(), name);
        let hidden = |i: usize| {
            let slot = *plan.outputs.get(&slots::hidden(i))?;
            let [_, experts, width] = *plan.spec(slot).shape.as_slice() else { return None };
            Some((i, (slot, [(experts - 1) * width, experts * width])))
        };
        Ok(TextProgram {
            hidden: (0..layers).filter_map(hidden).collect(),
            nodes: plan.nodes.len(),
            shape,
            rows: required(plan.input(slots::ROWS), slots::ROWS)?,
            outputs: required(plan.input(slots::OUTPUTS), slots::OUTPUTS)?,
            image_rows: plan.input(slots::IMAGE_ROWS),
            logits: output(slots::LOGITS)?,
            argmax: output(slots::ARGMAX)?,
            id: backend.prepare(plan, false)?,
        })
    }
}

impl ImageProgram {
    fn new(backend: &mut dyn Backend, plan: Arc<Plan>) -> Result<Self> {
        Ok(ImageProgram {
            nodes: plan.nodes.len(),
            pixels: required(plan.input(slots::PIXELS), slots::PIXELS)?,
            image: required(plan.outputs.get(slots::IMAGE).copied(), slots::IMAGE)?,
            id: backend.prepare(plan, false)?,
        })
    }
}

impl Inner {
    pub fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a job, batched with those of other threads.
    pub fn run(&self, job: Job) -> Result<Outcome> {
        self.queue.run(job, self.limits, |parts| self.core().step(parts, self.model.info()))
    }

    /// The layers that a refiner watches, as far as the model has them.
    pub fn watched(&self, refiner: &RefinerOptions) -> Result<Vec<usize>> {
        let layers = if refiner.use_neuron { refiner.layers.as_slice() } else { &[] };
        let layers: Vec<usize> = layers.iter().copied().filter(|&i| i < self.model.info().layers).collect();
        match layers.iter().find(|i| !self.core().decode.hidden.contains_key(i)) {
            None => Ok(layers),
            Some(&i) => Err(unwatched(i)),
        }
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
        let mut core = self.core();
        let (program, info) = (core.image.ok_or_else(|| self.no_images())?, self.image_info()?);
        let pixels = image.resized(info.size)?.pixel_values(info.mean, info.std);
        core.backend.write(program.id, program.pixels, 0, bytemuck::cast_slice(&pixels))?;
        core.backend.run(program.id, &Step::FULL, 0..program.nodes)?;
        let read = core.backend.read(program.id, &[(program.image, 0..info.tokens * info.width)])?;
        Ok(read.into_iter().flatten().map(f32::from_bits).collect())
    }

    /// The experts chosen in each layer at rows `base..base + n` of the KV cache: `[layer][row · k + i]`.
    pub fn routing(&self, base: usize, n: usize) -> Result<Vec<Vec<u32>>> {
        let mut core = self.core();
        let (info, id) = (self.model.info(), core.decode.id);
        let plan = core.backend.plan(id);
        let k = info.experts_per_token;
        let log = |i| required(plan.state(&slots::routing(i)), "routing log");
        let ranges: Result<Vec<_>> = (0..info.layers).map(|i| Ok((log(i)?, base * k..(base + n) * k))).collect();
        core.backend.read(id, &ranges?)
    }
}

impl Core {
    /// The bounds of a decode step, and the cache.
    pub fn text_shape(&self) -> TextShape {
        self.decode.shape
    }

    /// The program of a step of this many rows of text.
    pub fn text_program(&self, rows: usize) -> ProgramId {
        if rows <= self.decode.shape.max_rows { self.decode.id } else { self.prefill.id }
    }

    /// The program that encodes an image, if the model reads any.
    pub fn image_program(&self) -> Option<ProgramId> {
        self.image.map(|image| image.id)
    }

    /// Most rows of a step.
    pub fn max_rows(&self) -> usize {
        self.prefill.shape.max_rows
    }

    /// Runs parts of jobs (each with a number of its rows) as one batch; outcomes of the jobs that end.
    fn step(&mut self, parts: &[(Job, usize)], info: &ModelInfo) -> Result<Vec<Outcome>> {
        let width = info.image.map_or(0, |i| i.width);
        let (mut rows, mut outputs, mut images) = (Vec::new(), Vec::new(), Vec::new());
        for (job, n) in parts {
            for i in job.done..job.done + n {
                if job.rows[i].token & TOKEN_IMAGE != 0 {
                    images.push((rows.len(), &job.image[i * width..(i + 1) * width]));
                }
                rows.push(job.rows[i]);
            }
            if job.done + n == job.rows.len() {
                outputs.push((rows.len() as u32 - 1, job));
            }
        }
        let few = rows.len() <= self.decode.shape.max_rows && images.is_empty();
        let program = if few { &self.decode } else { &self.prefill };
        let backend = self.backend.as_mut();
        backend.write(program.id, program.rows, 0, bytemuck::cast_slice(&rows))?;
        let which: Vec<u32> = outputs.iter().map(|o| o.0).collect();
        backend.write(program.id, program.outputs, 0, &which)?;
        for (row, vector) in images {
            let slot = required(program.image_rows, slots::IMAGE_ROWS)?;
            backend.write(program.id, slot, row * width, bytemuck::cast_slice(vector))?;
        }
        let context = rows.iter().map(|r| r.seq_len).max().unwrap_or(0);
        let step = Step { rows: rows.len() as u32, outputs: which.len() as u32, context, reserved: 0 };
        backend.run(program.id, &step, 0..program.nodes)?;
        if outputs.is_empty() {
            return Ok(Vec::new());
        }
        outcomes(backend, program, &outputs, info)
    }
}

/// Reads what the jobs want that end with these rows of the batch.
fn outcomes(
    backend: &mut dyn Backend,
    program: &TextProgram,
    outputs: &[(u32, &Job)],
    info: &ModelInfo,
) -> Result<Vec<Outcome>> {
    let mut ranges = Vec::new();
    for (i, (row, job)) in outputs.iter().enumerate() {
        ranges.push(match job.logits {
            true => (program.logits, i * info.vocab..(i + 1) * info.vocab),
            false => (program.argmax, i..i + 1),
        });
        for layer in &job.hidden {
            let (slot, [first, width]) = *program.hidden.get(layer).ok_or_else(|| unwatched(*layer))?;
            let start = *row as usize * width;
            ranges.push((slot, start + first..start + width));
        }
    }
    let mut read = backend.read(program.id, &ranges)?.into_iter();
    let floats = |words: Vec<u32>| -> Vec<f32> { words.into_iter().map(f32::from_bits).collect() };
    let outcome = |(_, job): &(u32, &Job)| {
        let words = read.next().unwrap_or_default();
        let hidden = job.hidden.iter().copied().zip(read.by_ref().map(floats)).collect();
        match (job.logits, words.first()) {
            (true, _) => Ok(Outcome::Logits(floats(words), hidden)),
            (false, Some(&token)) if token != u32::MAX => Ok(Outcome::Token(token)),
            _ => Err(Error::NonFiniteLogits(info.family.into())),
        }
    };
    outputs.iter().map(outcome).collect()
}
