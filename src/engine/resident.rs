//! A model resident on a device, and what its sessions share.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::cache::StatePool;
use crate::engine::jobs::{ImageJob, JobOutput, Turn, Work};
use crate::engine::ladder::Ladder;
use crate::engine::open::{LoadReport, Opening, Progress, required_tokenizer};
use crate::engine::options::Options;
use crate::engine::programs::Program;
use crate::engine::queue::Queue;
use crate::engine::runner::Runner;
use crate::error::{Error, Result};
use crate::files::{Image, ModelFiles, Tokenizer};
use crate::models::{self, ChatModel, ImageInfo, ModelInfo, OpenedPrompt, TextShape, slots};
use crate::plan::Plan;

/// Maximum number of tokens of a session unless the caller asks for more.
const DEFAULT_CONTEXT: usize = 2048;
/// Bounds on what a caller may ask for.
pub(crate) const MAX_SESSIONS: usize = 64;
const MAX_PREFILL_ROWS: usize = 1024;

/// What an engine and its sessions share.
pub(crate) struct Resident {
    pub model: Box<dyn ChatModel>,
    pub tokenizer: Option<Tokenizer>,
    /// How conversations become text; none for a template without a tokenizer.
    pub prompt: Option<OpenedPrompt>,
    pub states: Arc<StatePool>,
    pub report: LoadReport,
    /// The program that encodes an image, if the model reads any.
    pub image: Option<Program>,
    runner: Mutex<Runner>,
    queue: Queue,
    /// Maximum number of rows and of outputs of a batch.
    limits: (usize, usize),
}

impl fmt::Debug for Resident {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("model", self.model.info()).field("report", &self.report).finish()
    }
}

fn check_options(options: &Options) -> Result<()> {
    let within = |name: &str, n: usize, max: usize| {
        let problem = || Error::argument(name, format!("is {n}, expected 1..={max}"));
        if (1..=max).contains(&n) { Ok(()) } else { Err(problem()) }
    };
    within("sessions", options.sessions, MAX_SESSIONS)?;
    within("prefill_rows", options.prefill_rows, MAX_PREFILL_ROWS)
}

fn context(options: &Options, info: &ModelInfo) -> Result<usize> {
    let max = info.max_positions;
    match options.context {
        None => Ok(max.min(DEFAULT_CONTEXT)),
        Some(n) if (1..=max).contains(&n) => Ok(n),
        Some(n) => Err(Error::argument("context", format!("is {n}; the model has 1..={max} positions"))),
    }
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

impl Resident {
    /// Opens a model; see [`crate::Engine::open_with`].
    pub fn open(files: ModelFiles, options: &Options, progress: impl FnMut(Progress)) -> Result<Self> {
        check_options(options)?;
        let opening = Opening::new(files, &options.device_options(), options.model_options())?;
        let model = models::open_chat(&opening.files, &opening.weights, opening.load)?;
        let tokenizer = opening.tokenizer(options.tokenizer.as_deref(), model.vocab(), model.family())?;
        if options.needs_tokenizer {
            required_tokenizer(tokenizer.as_ref())?;
        }
        let prompt = model.prompt().open(&opening.files, tokenizer.as_ref())?;
        let states = StatePool::new(context(options, model.info())?, options.sessions);
        let whole = TextShape {
            max_rows: options.prefill_rows.max(options.sessions),
            max_outputs: options.sessions,
            kv_rows: states.rows(),
            sessions: options.sessions,
            kv_dtype: options.kv.dtype(opening.precision),
            images: model.info().image.is_some(),
        };
        let record = |shape: &TextShape| Ok(Arc::new(with_hidden(model.record_text(shape)?, &options.probed_layers)));
        let mut ladder = Ladder::record(whole, model.info().layers, record)?;
        let image = model.info().image.map(|_| model.record_image()).transpose()?.map(Arc::new);
        let plans: Vec<_> = ladder.plans().chain(&image).cloned().collect();
        let head = opening.load.head.dtype();
        let mut loaded = opening.load(&plans, head, |_, _| Ok(()), progress)?;
        let image = image.map(|plan| loaded.program(&plan)).transpose()?;
        ladder.prepare(&mut loaded)?;
        let (backend, report) = loaded.finish();
        let runner = Runner::new(backend, ladder)?;
        let limits = (whole.max_rows, whole.max_outputs);
        let (runner, queue) = (Mutex::new(runner), Queue::default());
        Ok(Resident { model, tokenizer, prompt, states, report, image, runner, queue, limits })
    }

    /// The tokens that end an answer: the model's, and those that its files tell for conversations.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let of_prompt = self.prompt.iter().flat_map(|opened| &opened.stop);
        self.model.info().eos.iter().chain(of_prompt).copied().collect()
    }

    /// The device with its programs. A batch that runs holds it.
    ///
    /// # Errors
    /// [`Error::Device`] once a step has panicked: what it left on the device is not known.
    pub fn runner(&self) -> Result<MutexGuard<'_, Runner>> {
        let runner = self.locked();
        self.queue.check()?;
        Ok(runner)
    }

    fn locked(&self) -> MutexGuard<'_, Runner> {
        self.runner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether steps run on the CPU, at once.
    pub fn runs_on_cpu(&self) -> bool {
        self.locked().backend.runs_at_once()
    }

    /// Runs work, batched with that of other threads.
    pub fn run(&self, work: Work) -> Result<JobOutput> {
        let output = self.queue.run_all([work], self.limits, self.turn()).pop();
        output.unwrap_or_else(|| Err(Error::format("a job", "has no output")))
    }

    /// [`Resident::run`] of several at once; the outputs in order.
    pub fn run_all(&self, work: impl IntoIterator<Item = Work>) -> Vec<Result<JobOutput>> {
        self.queue.run_all(work, self.limits, self.turn())
    }

    /// What the queue does with a turn.
    fn turn(&self) -> impl Fn(&mut Turn) -> Result<Vec<JobOutput>> {
        |turn| self.locked().run(turn, self.model.info())
    }

    /// Runs a program on an image of the model's size, in pieces between batches of text; the outputs named.
    pub fn run_image(&self, program: &Program, image: &Image, outputs: Vec<(String, usize)>) -> Result<Vec<Vec<f32>>> {
        let info = self.image_info()?;
        let pixels = image.pixel_values(info.mean, info.std);
        let job = ImageJob { program: program.clone(), pixels, outputs, done: 0 };
        match self.run(Work::Image(job))? {
            JobOutput::Image(outputs) => Ok(outputs),
            JobOutput::Tokens(_) | JobOutput::Logits(..) => Err(Error::format("an image", "has no output")),
        }
    }

    /// Checks that the hidden vectors of these layers can be read; layers that the model does not have are left out.
    pub fn probed_layers(&self, layers: &[usize]) -> Result<Vec<usize>> {
        let layers: Vec<usize> = layers.iter().copied().filter(|&i| i < self.model.info().layers).collect();
        self.runner()?.check_probed(&layers)?;
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

    /// Image tokens `[n, d]` of a picture of the model's size.
    pub fn encode_image(&self, image: &Image) -> Result<Vec<f32>> {
        let (info, program) = (self.image_info()?, self.image.as_ref().ok_or_else(|| self.no_images())?);
        Ok(self.run_image(program, image, vec![(slots::IMAGE.into(), info.tokens * info.width)])?.concat())
    }

    /// The experts chosen in each layer at rows `base..base + n` of the KV cache: `[layer][row · k + i]`.
    pub fn routing(&self, base: usize, n: usize) -> Result<Vec<Vec<u32>>> {
        let (info, mut runner) = (self.model.info(), self.runner()?);
        let k = info.experts_per_token;
        let ranges: Vec<_> = (0..info.layers).map(|i| (slots::routing(i), base * k..(base + n) * k)).collect();
        runner.read_states(&ranges)
    }
}
