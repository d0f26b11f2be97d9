//! A model resident on a device, and what its sessions share.

use std::borrow::Cow;
use std::fmt;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::engine::cache::StatePool;
use crate::engine::cancel::Cancel;
use crate::engine::jobs::{ImageJob, JobOutput, Turn, Work};
use crate::engine::open::{LoadReport, Progress};
use crate::engine::options::Options;
use crate::engine::programs::Program;
use crate::engine::queue::{Queue, dead};
use crate::engine::recorded::{Recorded, record};
use crate::engine::runner::Runner;
use crate::error::{Error, Result};
use crate::files::hash::SampledHash;
use crate::files::{Image, ModelFiles, Tokenizer};
use crate::models::{ChatModel, ImageInfo, OpenedPrompt, slots};

/// What an engine and its sessions share.
pub(crate) struct Resident {
    pub model: Box<dyn ChatModel>,
    pub tokenizer: Option<Tokenizer>,
    /// How conversations become text; none for a template without a tokenizer.
    pub prompt: Option<OpenedPrompt>,
    pub states: Arc<StatePool>,
    pub report: LoadReport,
    /// What tells its weights from those of other models ([`SampledHash`]).
    pub fingerprint: String,
    /// Where it was opened from, unless that was bytes, which would stay in memory; and how.
    pub opened: (Option<ModelFiles>, Options),
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

impl Resident {
    /// Opens a model; see [`crate::Engine::open_with`].
    pub fn open(
        files: ModelFiles,
        options: &Options,
        mut progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self> {
        let progress = |at| if Cancel::has_ended(&options.cancel) { ControlFlow::Break(()) } else { progress(at) };
        let files = files.absolute()?;
        let opened = (files.is_elsewhere().then(|| files.clone()), options.clone());
        let recorded = Recorded::new(files, options)?.within_memory(options)?;
        let (tokenizer, prompt) = recorded.tokenizer(options)?;
        let plans = recorded.plans();
        let Recorded { opening, model, states, whole, mut ladder, image, full_states } = recorded;
        let head = opening.load.head.dtype();
        let mut fingerprint = SampledHash::default();
        let sample = |name: &str, words: &[u32]| {
            fingerprint.add(name, words);
            Ok(())
        };
        let mut loaded = opening.load(&plans, head, sample, progress)?;
        let image = image.map(|plan| loaded.program(&plan)).transpose()?;
        ladder.prepare(&mut loaded)?;
        let (backend, mut report) = loaded.finish();
        let runner = Runner::new(backend, ladder, options.max_memory)?;
        report.max_memory_bytes += full_states - runner.state_bytes();
        let limits = (whole.max_rows, whole.max_outputs);
        let probed_layers = options.probed_layers.clone();
        let (runner, queue, fingerprint) = (Mutex::new(runner), Queue::default(), fingerprint.finish());
        Ok(Resident {
            model,
            tokenizer,
            prompt,
            states,
            report,
            fingerprint,
            opened,
            image,
            probed_layers,
            runner,
            queue,
            limits,
        })
    }

    /// The tokens that end an answer: the model's, and those that its files tell for conversations.
    pub fn stop_tokens(&self) -> Vec<u32> {
        let of_prompt = self.prompt.iter().flat_map(|opened| &opened.stop);
        self.model.info().eos.iter().chain(of_prompt).copied().collect()
    }

    /// The device with its programs. A batch that runs holds it.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] once something has panicked that held it: what was left on the device is not known.
    pub fn runner(&self) -> Result<MutexGuard<'_, Runner>> {
        let runner = self.locked()?;
        self.queue.check()?;
        Ok(runner)
    }

    fn locked(&self) -> Result<MutexGuard<'_, Runner>> {
        self.runner.lock().map_err(|_| dead())
    }

    /// Whether steps run on the CPU, at once.
    pub fn runs_on_cpu(&self) -> bool {
        self.runner.lock().unwrap_or_else(PoisonError::into_inner).backend.runs_at_once()
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
        |turn| self.locked()?.run(turn, self.model.info(), &self.states)
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

    /// What the first `n` rows of a slot hold, by state.
    ///
    /// # Errors
    /// Those of [`Runner::rows`].
    pub fn rows(&self, slot: usize, n: usize) -> Result<Vec<(String, Vec<u32>)>> {
        let mut runner = self.runner()?;
        let base = self.states.range(slot).start;
        runner.rows(base..base + n)
    }

    /// Writes what [`Resident::rows`] gave to the first `n` rows of a slot, which has as many.
    ///
    /// # Errors
    /// Those of [`Runner::write_rows`].
    pub fn write_rows(&self, slot: usize, n: usize, states: &[(String, Cow<[u32]>)]) -> Result<()> {
        self.reserve(&[(slot, n)])?;
        let mut runner = self.runner()?;
        let base = self.states.range(slot).start;
        runner.write_rows(base..base + n, states)
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
    use crate::models::TextShape;
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
