//! A BitGenModel on a device: it reads a task, with an image or without, and chooses robots for it.
//!
//! * here: [`RobotModel`], how it is opened, and what a call is given.
//! * `forward`: one call on the device.
//! * `attention_window`: which keys attention sees and keeps.
//! * `cache`: the keys that one call leaves to the next.

mod attention_window;
mod cache;
mod forward;

pub use attention_window::RobotAttention;
pub use cache::RobotCache;

use std::fmt;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::apps::robots::attention_window::WindowSizes;
use crate::apps::robots::forward::{Call, LOGIT_ROWS};
use crate::engine::open::{LoadReport, Opening, Progress, required_tokenizer};
use crate::engine::options::{DeviceOptions, ModelOptions, Precision};
use crate::engine::programs::{Program, check_text, floats};
use crate::error::{Error, Result};
use crate::files::{Image, ModelFiles, Tokenizer};
use crate::models::{BitGenModel, ForwardShape, ImageInfo, ROBOTS, RobotSizes, robot_slots, slots};
use crate::plan::{Backend, Plan, Step};
use crate::tensor::DType;

/// Maximum number of tokens of a sample in a call, however many positions the model has.
const MAX_TOKENS: usize = 1024;
/// Maximum number of samples of a call.
const MAX_SAMPLES: usize = 64;
/// What the original adds to the scores of tokens that a mask leaves out.
pub(crate) const LEFT_OUT: f32 = -10_000.0;

/// How a [`RobotModel`] is opened.
#[derive(Debug, Clone, PartialEq)]
pub struct RobotOptions {
    /// The device.
    pub device: DeviceOptions,
    /// Data type of full-precision weights.
    pub precision: Precision,
    /// A `tokenizer.json`; none: the one beside the model, if there is one.
    pub tokenizer: Option<PathBuf>,
    /// Which keys attention sees and keeps.
    pub attention: RobotAttention,
    /// Maximum number of samples of a call, 1 to 64.
    pub samples: usize,
}

impl Default for RobotOptions {
    /// One sample a call, attention as the original's.
    fn default() -> Self {
        RobotOptions {
            device: DeviceOptions::default(),
            precision: Precision::default(),
            tokenizer: None,
            attention: RobotAttention::default(),
            samples: 1,
        }
    }
}

/// Which logits a call returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// None.
    #[default]
    None,
    /// Those of each sample's last token.
    Last,
    /// Those of all tokens.
    All,
}

/// The inputs of a call. Samples of one call share the scales of activations and stop reasoning together, as in the
/// original: each result depends on the others.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tasks<'a> {
    /// A text each, as tokens; all of one length.
    pub texts: &'a [&'a [u32]],
    /// An image each, or none at all.
    pub images: &'a [Image],
    /// For each token of each text, whether it is a token (`true`) or padding, whose keys are masked. None: no padding.
    pub keep: Option<&'a [&'a [bool]]>,
    /// The logits that are wanted.
    pub logits: Wanted,
}

/// What a model decided about one sample.
#[derive(Debug, Clone, PartialEq)]
pub struct RobotDecision {
    /// The reasoning steps up to the stop, in order.
    pub steps: Vec<ReasoningStep>,
    /// The chosen robots, the best first.
    pub robots: Vec<RobotChoice>,
    /// Each robot's score, in the checkpoint's order, within ±50: the logit of its probability.
    pub scores: Vec<f32>,
    /// Logits of the tokens that were asked for, `[tokens, vocab]`.
    pub logits: Vec<f32>,
    /// The text behind all layers, `[tokens, d]`.
    pub embeddings: Vec<f32>,
    /// Their mean `[d]`: what robots are chosen by, and all that the text decoder reads of it.
    pub context: Vec<f32>,
    /// Features of text and image `[d]`, where there is an image; of any length.
    pub features: Option<[Vec<f32>; 2]>,
}

/// One step of reasoning.
#[derive(Debug, Clone, PartialEq)]
pub struct ReasoningStep {
    /// The state, `[h]`.
    pub state: Vec<f32>,
    /// Confidence, 0 to 1.
    pub confidence: f32,
    /// The gate, 0 to 1: reasoning stops below 0.5.
    pub gate: f32,
}

/// A robot that was chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct RobotChoice {
    /// Its number in the checkpoint.
    pub robot: usize,
    /// Its name.
    pub name: String,
    /// Probability that it is suitable, 0 to 1, independent of the other robots: they do not add up to 1.
    pub probability: f32,
}

/// A BitGenModel, resident on a device. `Send + Sync`; one call runs at a time.
pub struct RobotModel {
    model: BitGenModel,
    info: ImageInfo,
    options: RobotOptions,
    report: LoadReport,
    tokenizer: Option<Tokenizer>,
    programs: Mutex<Programs>,
}

/// The device and its programs.
pub(crate) struct Programs {
    pub backend: Box<dyn Backend>,
    pub patches: Program,
    pub images: Program,
    /// Without images and with, each without a mask and with one.
    pub forward: [Program; 4],
    pub decoder: Program,
}

impl fmt::Debug for RobotModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RobotModel")
            .field("sizes", self.sizes())
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl RobotModel {
    /// Opens a model: `files` is the path of a checkpoint or of a directory with one.
    ///
    /// The checkpoint is mapped, not copied: while the model is open it must not be changed or cut short (see
    /// [`crate::files::Checkpoint`]). Renaming another file over it is safe.
    ///
    /// # Errors
    /// See [`Error`]: the file or its configuration is broken, it is not a BitGenModel, a tensor is missing or misshapen, the
    /// device is absent, or the model does not fit on it.
    pub fn open(files: impl Into<ModelFiles>, options: RobotOptions) -> Result<Self> {
        Self::open_with(files, options, Progress::ignore)
    }

    /// [`RobotModel::open`] with a callback before each weight is loaded and each kernel is timed, which ends the opening where it breaks.
    ///
    /// # Errors
    /// As [`RobotModel::open`].
    pub fn open_with(
        files: impl Into<ModelFiles>,
        options: RobotOptions,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self> {
        if !(1..=MAX_SAMPLES).contains(&options.samples) {
            let problem = format!("is {}, expected 1..={MAX_SAMPLES}", options.samples);
            return Err(Error::argument("samples", problem));
        }
        let numbers = ModelOptions { precision: options.precision, ..ModelOptions::default() };
        let opening = Opening::new(files.into(), &options.device, numbers)?;
        let model = BitGenModel::open(&opening.files, &opening.weights, opening.load)?;
        let tokenizer = opening.tokenizer(options.tokenizer.as_deref(), model.sizes().vocab, &ROBOTS)?;
        let plans = Self::record(&model, options.samples)?;
        let mut loaded = opening.load(&plans, DType::Ternary, |_, _| Ok(()), progress)?;
        let [a, b, c, d, e, f, g] = plans.each_ref().map(|plan| loaded.program(plan));
        let [patches, images, plain, masked, fused, both, decoder] = [a?, b?, c?, d?, e?, f?, g?];
        let (backend, report) = loaded.finish();
        let programs = Programs { backend, patches, images, forward: [plain, masked, fused, both], decoder };
        let info = model.image_info();
        Ok(RobotModel { model, info, options, report, tokenizer, programs: Mutex::new(programs) })
    }

    fn record(model: &BitGenModel, samples: usize) -> Result<[Arc<Plan>; 7]> {
        let (tokens, keys) = (max_tokens(model.sizes()), max_keys(model.sizes()));
        let rows = samples * tokens;
        let forward = |images, masked| {
            model.record_forward(&ForwardShape { samples, rows, keys, outputs: LOGIT_ROWS, images, masked })
        };
        Ok([
            model.record_patches(samples)?,
            model.record_images(samples)?,
            forward(false, false)?,
            forward(false, true)?,
            forward(true, false)?,
            forward(true, true)?,
            model.record_decoder(tokens, 1)?,
        ]
        .map(Arc::new))
    }

    /// The model's sizes.
    pub fn sizes(&self) -> &RobotSizes {
        self.model.sizes()
    }

    /// The device that it runs on.
    pub fn device(&self) -> String {
        self.report.device.clone()
    }

    /// What was loaded, on which device, and how long it took.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// Which keys attention sees and keeps.
    pub fn attention(&self) -> RobotAttention {
        self.options.attention
    }

    /// Maximum number of tokens of a text in one call.
    pub fn max_tokens(&self) -> usize {
        max_tokens(self.sizes())
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The tokens of a text, with those that the tokenizer puts around it.
    ///
    /// # Errors
    /// [`Error::Argument`] without a tokenizer, those of [`Tokenizer::encode`].
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        required_tokenizer(self.tokenizer())?.encode(text, true)
    }

    /// An empty cache for [`RobotModel::forward`] of `samples` samples.
    pub fn cache(&self, samples: usize) -> RobotCache {
        RobotCache::new(self.options.attention, self.sizes(), samples)
    }

    /// Chooses robots for a task, beside an image or not.
    ///
    /// # Errors
    /// As [`RobotModel::forward`].
    pub fn choose(&self, task: &[u32], image: Option<&Image>) -> Result<RobotDecision> {
        let images: Vec<Image> = image.cloned().into_iter().collect();
        let tasks = Tasks { texts: &[task], images: &images, ..Tasks::default() };
        let decisions = self.forward(&tasks, None)?;
        decisions.into_iter().next().ok_or_else(|| Error::argument("texts", "are none, expected at least 1"))
    }

    /// Runs the model on some samples. With a cache the texts continue those of its last call, and the cache is updated;
    /// without one, or with an empty one, they begin.
    ///
    /// # Errors
    /// [`Error::Argument`] for texts that are empty, too long, of several lengths or of unknown tokens, for numbers of
    /// images or of `keep` that do not fit, and for a cache of other samples, sizes or attention;
    /// [`Error::NonFiniteLogits`] for broken weights; [`Error::DeviceLost`] if the device was lost. A cache stays as it was.
    pub fn forward(&self, tasks: &Tasks, cache: Option<&mut RobotCache>) -> Result<Vec<RobotDecision>> {
        self.check(tasks, cache.as_deref())?;
        let (samples, n) = (tasks.texts.len(), tasks.texts[0].len());
        let empty = self.cache(samples);
        let kept = cache.as_deref().unwrap_or(&empty);
        let sizes = self.sizes();
        let window = WindowSizes { sinks: sizes.sinks, window: sizes.window, positions: sizes.positions };
        let span = self.options.attention.call(window, kept.tokens(), kept.len(), n);
        let mut programs = self.programs();
        let call = Call { sizes, tasks, cache: kept, span: &span, keys: max_keys(sizes) };
        let images = match tasks.images {
            [] => None,
            images => Some(self.see(&mut programs, images)?),
        };
        let decisions = call.run(&mut programs, images)?;
        let next = cache.is_some().then(|| call.read_keys(&mut programs, self.cache(samples))).transpose()?;
        if let (Some(cache), Some(next)) = (cache, next) {
            *cache = next;
        }
        Ok(decisions)
    }

    /// Logits `[vocab]` of what follows `tokens` in the text decoder, given a [`RobotDecision::context`].
    ///
    /// # Errors
    /// [`Error::Argument`] for tokens or a context that do not fit; [`Error::DeviceLost`] if the device was lost.
    pub fn decoder_logits(&self, tokens: &[u32], context: &[f32]) -> Result<Vec<f32>> {
        check_text(tokens, self.max_tokens(), self.sizes().vocab)?;
        let (n, mut programs) = (tokens.len(), self.programs());
        let Programs { backend, decoder, .. } = &mut *programs;
        decoder.decoder_logits(backend.as_mut(), tokens, (robot_slots::CONTEXT, context), n - 1..n)
    }

    /// Puts what text is fused with into the device's states; returns the images' features `[images, d]`.
    fn see(&self, programs: &mut Programs, images: &[Image]) -> Result<Vec<f32>> {
        let (ImageInfo { size, mean, std, tokens, .. }, d) = (self.info, self.sizes().d);
        let backend = programs.backend.as_mut();
        for (i, image) in images.iter().enumerate() {
            let first = (i * tokens) as u32;
            // The class token is not kept.
            let places: Vec<u32> = [u32::MAX].into_iter().chain(first..first + tokens as u32).collect();
            let pixels = image.bilinear_values(size, mean, std);
            programs.patches.write(backend, slots::PIXELS, bytemuck::cast_slice(&pixels))?;
            programs.patches.write(backend, robot_slots::PLACES, &places)?;
            programs.patches.run(backend, &Step::FULL)?;
        }
        programs.images.run(backend, &Step::new(images.len() * tokens, images.len(), tokens))?;
        Ok(floats(&programs.images.read(backend, &[(robot_slots::FEATURES, images.len() * d)])?.concat()))
    }

    fn check(&self, tasks: &Tasks, cache: Option<&RobotCache>) -> Result<()> {
        let (n, max) = (tasks.texts.len(), self.options.samples);
        if !(1..=max).contains(&n) {
            let problem = format!("are {n}, expected 1..={max}, the samples that the model was opened for");
            return Err(Error::argument("texts", problem));
        }
        for text in tasks.texts {
            check_text(text, self.max_tokens(), self.sizes().vocab)?;
            if text.len() != tasks.texts[0].len() {
                let problem = format!("have {} and {} tokens, expected one length", tasks.texts[0].len(), text.len());
                return Err(Error::argument("texts", problem));
            }
        }
        if ![0, n].contains(&tasks.images.len()) {
            let problem = format!("are {}, expected none, or one for each of {n} texts", tasks.images.len());
            return Err(Error::argument("images", problem));
        }
        let fits = |keep: &[&[bool]]| keep.len() == n && keep.iter().all(|k| k.len() == tasks.texts[0].len());
        if !tasks.keep.is_none_or(fits) {
            return Err(Error::argument("keep", "has other lengths than the texts, expected a value for each token"));
        }
        cache.map_or(Ok(()), |cache| cache.check(self.options.attention, self.sizes(), n))
    }

    fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn max_tokens(sizes: &RobotSizes) -> usize {
    sizes.positions.min(MAX_TOKENS)
}

/// Maximum number of keys of a sample in a call: those of a cache, and the call's own.
fn max_keys(sizes: &RobotSizes) -> usize {
    sizes.sinks + sizes.window + max_tokens(sizes)
}
