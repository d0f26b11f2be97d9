//! A model resident on a device, and what its sessions share.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::cache::{FIRST_ROWS, StatePool};
use crate::engine::cancel::Cancel;
use crate::engine::device::Opened;
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
use crate::plan::{Caps, Plan, PlanBuilder};
use crate::tensor::Spec;

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
    probed_layers: Vec<usize>,
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

/// The states of all sessions, on this device.
fn states(options: &Options, info: &ModelInfo, device: &Opened) -> Result<Arc<StatePool>> {
    let context = context(options, info)?;
    let first = match options.reserve {
        Some(n) if (1..=context).contains(&n) => n,
        Some(n) => return Err(Error::argument("reserve", format!("is {n}; the context has 1..={context} tokens"))),
        None if device.takes_memory_at_once() => FIRST_ROWS,
        None => context,
    };
    Ok(StatePool::new(context, first, options.sessions))
}

/// The plan of a step of text, with the hidden vectors of these layers among its outputs, as far as it has them.
fn record(model: &dyn ChatModel, caps: &Caps, shape: &TextShape, probed_layers: &[usize]) -> Result<Arc<Plan>> {
    let mut plan = model.text_plan(PlanBuilder::new().for_device(caps), shape)?;
    for name in probed_layers.iter().map(|&i| slots::hidden(i)) {
        if let Some(&slot) = plan.tags.get(&name) {
            plan.outputs.insert(name, slot);
        }
    }
    Ok(Arc::new(plan))
}

/// Bytes of the states when all sessions are full.
///
/// # Errors
/// [`Error::OutOfMemory`] where the device has no buffer for the context of one session.
fn full_states(model: &dyn ChatModel, whole: TextShape, device: &Opened) -> Result<u64> {
    let full = model.record_text(&TextShape { kv_rows: whole.context * whole.sessions, ..whole })?;
    let (max, sessions) = (device.caps().max_binding, whole.sessions as u64);
    let bytes = |(name, spec): (&str, &Spec)| match 4 * spec.words() as u64 {
        bytes if bytes / sessions <= max => Ok(bytes),
        bytes => Err(Error::OutOfMemory {
            what: format!("a session of {} tokens: its part of the state {name}", whole.context),
            needed: bytes / sessions,
            available: Some(max),
            device: format!("one buffer of {}", device.describe()),
        }),
    };
    full.states().map(bytes).sum()
}

impl Resident {
    /// Opens a model; see [`crate::Engine::open_with`].
    pub fn open(
        files: ModelFiles,
        options: &Options,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self> {
        check_options(options)?;
        let progress = |at| if Cancel::has_ended(&options.cancel) { ControlFlow::Break(()) } else { progress(at) };
        let opening = Opening::new(files, &options.device_options(), options.model_options())?;
        let model = models::open_chat(&opening.files, &opening.weights, opening.load)?;
        let tokenizer = opening.tokenizer(options.tokenizer.as_deref(), model.vocab(), model.family())?;
        if options.needs_tokenizer {
            required_tokenizer(tokenizer.as_ref())?;
        }
        let prompt = model.prompt().open(&opening.files, tokenizer.as_ref())?;
        let states = states(options, model.info(), &opening.device)?;
        let whole = TextShape {
            max_rows: options.prefill_rows.max(options.sessions),
            max_outputs: options.sessions,
            kv_rows: states.rows(),
            context: states.context(),
            sessions: options.sessions,
            kv_dtype: options.kv.dtype(opening.precision),
            images: model.info().image.is_some(),
        };
        let probed_layers = options.probed_layers.clone();
        let caps = opening.device.caps();
        let record = |shape: &TextShape| record(model.as_ref(), &caps, shape, &probed_layers);
        let mut ladder = Ladder::record(whole, model.info().layers, record)?;
        let full_states = full_states(model.as_ref(), whole, &opening.device)?;
        let image = model.info().image.map(|_| model.record_image()).transpose()?.map(Arc::new);
        let plans: Vec<_> = ladder.plans().chain(&image).cloned().collect();
        let head = opening.load.head.dtype();
        let mut loaded = opening.load(&plans, head, |_, _| Ok(()), progress)?;
        let image = image.map(|plan| loaded.program(&plan)).transpose()?;
        ladder.prepare(&mut loaded)?;
        let (backend, mut report) = loaded.finish();
        let runner = Runner::new(backend, ladder)?;
        report.max_memory_bytes += full_states - runner.state_bytes();
        let limits = (whole.max_rows, whole.max_outputs);
        let (runner, queue) = (Mutex::new(runner), Queue::default());
        Ok(Resident { model, tokenizer, prompt, states, report, image, probed_layers, runner, queue, limits })
    }

    /// The tokens that end an answer: the model's, and those that its files tell for conversations.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let of_prompt = self.prompt.iter().flat_map(|opened| &opened.stop);
        self.model.info().eos.iter().chain(of_prompt).copied().collect()
    }

    /// The device with its programs. A batch that runs holds it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] once a step has panicked: what it left on the device is not known.
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

    /// Gives slots as many rows of the cache or more.
    ///
    /// # Errors
    /// Those of [`Runner::grow`]; then each has what it had.
    pub fn reserve(&self, wanted: &[(usize, usize)]) -> Result<()> {
        if self.states.has(wanted) {
            return Ok(());
        }
        let mut runner = self.runner()?;
        let caps = runner.backend.caps();
        self.states.reserve(wanted, |growth| {
            runner.grow(growth, |shape| record(self.model.as_ref(), &caps, shape, &self.probed_layers))
        })
    }

    /// Runs work, batched with that of other threads.
    ///
    /// # Errors
    /// Those of [`Resident::reserve`] and of the step.
    pub fn run(&self, work: Work) -> Result<JobOutput> {
        self.reserve(work.cache_rows().as_slice())?;
        let output = self.queue.run_all([work], self.limits, self.turn()).pop();
        output.unwrap_or_else(|| Err(Error::format("a job", "has no output")))
    }

    /// [`Resident::run`] of several at once; the outputs in order.
    pub fn run_all(&self, work: Vec<Work>) -> Vec<Result<JobOutput>> {
        let wanted: Vec<_> = work.iter().filter_map(Work::cache_rows).collect();
        if self.reserve(&wanted).is_err() {
            // What has its rows goes on.
            return work.into_iter().map(|work| self.run(work)).collect();
        }
        self.queue.run_all(work, self.limits, self.turn())
    }

    /// What the queue does with a turn.
    fn turn(&self) -> impl Fn(&mut Turn) -> Result<Vec<JobOutput>> {
        |turn| self.locked().run(turn, self.model.info(), &self.states)
    }

    /// Runs a program on an image of the model's size, in pieces between batches of text; the outputs named.
    pub fn run_image(
        &self,
        program: &Program,
        image: &Image,
        outputs: Vec<(String, usize)>,
        cancel: Option<Cancel>,
    ) -> Result<Vec<Vec<f32>>> {
        let info = self.image_info()?;
        let pixels = image.pixel_values(info.mean, info.std);
        let job = ImageJob { program: program.clone(), pixels, outputs, done: 0, cancel };
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
    ///
    /// # Errors
    /// [`Error::Cancelled`], and those of [`Resident::run`].
    pub fn encode_image(&self, image: &Image, cancel: Option<Cancel>) -> Result<Vec<f32>> {
        let (info, program) = (self.image_info()?, self.image.as_ref().ok_or_else(|| self.no_images())?);
        let outputs = vec![(slots::IMAGE.into(), info.tokens * info.width)];
        Ok(self.run_image(program, image, outputs, cancel)?.concat())
    }

    /// The experts chosen in each layer at the first `n` rows of a slot: `[layer][row · k + i]`.
    pub fn routing(&self, slot: usize, n: usize) -> Result<Vec<Vec<u32>>> {
        let (info, mut runner) = (self.model.info(), self.runner()?);
        let (k, base) = (info.experts_per_token, self.states.range(slot).start);
        let ranges: Vec<_> = (0..info.layers).map(|i| (slots::routing(i), base * k..(base + n) * k)).collect();
        runner.read_states(&ranges)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cache::Growth;
    use crate::engine::jobs::Job;
    use crate::engine::options::{DeviceChoice, Precision};
    use crate::gpu::Adapters;
    use crate::ops::Row;
    use std::path::Path;

    fn open(device: DeviceChoice) -> Resident {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embernet/tiny");
        let precision = Precision::F32;
        let options =
            Options { device, precision, autotune: false, reserve: Some(4), sessions: 2, ..Options::default() };
        Resident::open(model.as_path().into(), &options, Progress::ignore).unwrap()
    }

    /// A job for the logits of tokens at these positions.
    fn job(slot: usize, positions: impl IntoIterator<Item = u32>) -> Work {
        let row = |pos| Row { token: 7 + pos % 5, pos, seq_base: 0, seq_len: pos + 1 };
        Work::Text(Job { slot, rows: positions.into_iter().map(row).collect(), logits: true, ..Job::default() })
    }

    #[test]
    fn a_cache_that_the_device_refuses_leaves_the_one_before() {
        let resident = open(DeviceChoice::Cpu);
        let run = |positions| resident.run(job(0, positions)).unwrap();
        let want = [run(0..3), run(3..4)];
        run(0..3);
        let memory = resident.runner().unwrap().backend.memory();
        let growth = Growth { rows: 1 << 50, moves: vec![(0..4, 0)] };
        let caps = resident.runner().unwrap().backend.caps();
        let record = |shape: &TextShape| record(resident.model.as_ref(), &caps, shape, &[]);
        let error = resident.runner().unwrap().grow(&growth, record).unwrap_err();
        assert!(
            matches!(&error, Error::OutOfMemory { what, needed, .. } if needed >> 50 > 0 && what.contains("KV cache")),
            "{error}"
        );
        assert_eq!(resident.runner().unwrap().backend.memory(), memory);
        assert_eq!([run(3..4), run(0..3)], [want[1].clone(), want[0].clone()]);
    }

    #[test]
    fn a_refused_session_fails_alone_and_goes_on_with_what_it_had() {
        if Adapters::find().best(true).is_none() {
            assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, and there is no adapter");
            return;
        }
        let mut resident = open(DeviceChoice::Gpu);
        // More than a buffer holds.
        resident.states = StatePool::new(1 << 33, 4, 2);
        let [a, b] = [0, 1].map(|_| resident.states.take().unwrap());
        let want = resident.run(job(a.slot(), 0..9)).unwrap();
        resident.run(job(b.slot(), 0..3)).unwrap();
        let mut outputs =
            resident.run_all(vec![job(a.slot(), 0..9), job(b.slot(), [u32::MAX - 1]), job(b.slot(), 3..4)]);
        assert_eq!(outputs.remove(0).unwrap(), want);
        let error = outputs.remove(0).unwrap_err();
        assert!(matches!(&error, Error::OutOfMemory { what, .. } if what.contains("KV cache")), "{error}");
        let next = outputs.remove(0).unwrap();
        resident.run(job(a.slot(), 0..3)).unwrap();
        assert!(next == resident.run(job(a.slot(), 3..4)).unwrap(), "it reads its first three rows");
    }
}
