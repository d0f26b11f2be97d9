//! BitGen on a device: features of images and texts in one space, their similarities, and captions.
//!
//! * here: [`BitGen`], how it is opened, and one call of each of its programs.
//! * `similarity`: cosines of features, and probabilities at a temperature.
//! * [`captions`]: the texts that it generates.
//! * [`memory`]: the episodic memory that its encoder reads, how it changes, its file; `remember`: writing to it.
//! * `feature_text`: features as text; `fingerprint`: which models have equal features.

pub mod captions;
pub(crate) mod feature_text;
pub(crate) mod fingerprint;
pub mod memory;
mod remember;
pub(crate) mod similarity;

pub use captions::{Caption, CaptionOptions};
pub use feature_text::FeatureText;
pub use memory::{EpisodicMemory, MemoryNoise, MemoryStatistics};
pub use similarity::Similarities;

use std::fmt;
use std::ops::{ControlFlow, Range};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::apps::bitgen::fingerprint::fingerprint;
use crate::engine::open::{LoadReport, Opening, Progress, required_tokenizer};
use crate::engine::options::{DeviceOptions, ModelOptions, Precision};
use crate::engine::programs::{Program, check_text, floats, text_rows};
use crate::error::Result;
use crate::files::{Image, ModelFiles, Tokenizer};
use crate::models::{BITGEN, BitGenConfig, BitGenSizes, BitGenStage1, EncoderShape, ImageInfo, bitgen_slots, slots};
use crate::ops::Row;
use crate::plan::{Backend, Step};
use crate::tensor::DType;
use crate::threads;

/// Texts whose features are computed in one step.
pub(crate) const FEATURE_ROWS: usize = 64;
/// Rows of the decoder whose logits are read after one step.
const DECODER_OUTPUTS: usize = 16;
/// Images that are encoded in one step: with more, some kernels would need more workgroups than adapters launch at once.
pub(crate) const IMAGES: usize = 4;
/// Bounds on the temperature that divides similarities, as in the original's loss.
const TEMPERATURE: [f32; 2] = [0.001, 1.0];

/// How a [`BitGen`] is opened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BitGenOptions {
    /// The device.
    pub device: DeviceOptions,
    /// Data type of full-precision weights.
    pub precision: Precision,
    /// A `tokenizer.json`, or a folder with a tokenizer's files; none: those beside the model, if there are any.
    pub tokenizer: Option<PathBuf>,
}

/// The encoder's output for a text, with or without an image.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// A vector per token, `[tokens, d]`.
    pub embeddings: Vec<f32>,
    /// Their mean `[d]`, all that the decoder reads of them.
    pub context: Vec<f32>,
    /// The memory query of each token, `[tokens, d_memory]`.
    pub query: Vec<f32>,
    /// The memory slots that each token read, `[tokens, 5]`.
    pub read: Vec<u32>,
}

/// A BitGen of stage 1, resident on a device. `Send + Sync`; one call runs at a time.
///
/// ```
/// use ternion::Image;
/// use ternion::apps::bitgen::{BitGen, BitGenOptions};
/// use ternion::engine::DeviceChoice;
///
/// # std::env::set_current_dir(env!("CARGO_MANIFEST_DIR"))?;
/// let options = BitGenOptions { device: DeviceChoice::Cpu.into(), ..Default::default() };
/// let model = BitGen::open("examples/shapes/bitgen/model", options)?;
/// let scene = |n| Image::open(format!("examples/shapes/samples/spatial_scene_10000{n}.png"));
/// let scenes = [scene(0)?, scene(1)?];
/// let similarities = model.similarity(&[&model.tokens("red circle")?], &scenes)?;
/// assert!(similarities[0][0] > similarities[0][1]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct BitGen {
    files: ModelFiles,
    model: BitGenStage1,
    info: ImageInfo,
    report: LoadReport,
    temperature: f32,
    tokenizer: Option<Tokenizer>,
    memory: Mutex<EpisodicMemory>,
    programs: Mutex<Programs>,
}

/// The encoder's output for an image.
pub(crate) struct ImageFeatures {
    pub features: Vec<f32>,
    /// What text is fused with.
    pub common: Vec<f32>,
}

/// The device and its programs.
pub(crate) struct Programs {
    pub(crate) backend: Box<dyn Backend>,
    pub(crate) image: Program,
    pub(crate) features: Program,
    /// Without images, and with.
    encoders: [Program; 2],
    decoder: Program,
}

impl fmt::Debug for BitGen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BitGen").field("sizes", self.model.sizes()).finish_non_exhaustive()
    }
}

impl BitGen {
    /// Opens a model: `files` is the path of a checkpoint (a state dict, or the trainer's own) or of a directory with one.
    ///
    /// The checkpoint is mapped, not copied: while the model is open it must not be changed or cut short (see
    /// [`crate::files::Checkpoint`]). Renaming another file over it is safe.
    ///
    /// # Errors
    /// See [`crate::Error`]: the file or its configuration is broken, it is not a BitGen, a tensor is missing or misshapen, the
    /// device is absent, or the model does not fit on it.
    pub fn open(files: impl Into<ModelFiles>, options: BitGenOptions) -> Result<Self> {
        Self::open_with(files, options, Progress::ignore)
    }

    /// [`BitGen::open`] with a callback before each weight is loaded and each kernel is timed, which ends the opening where it breaks.
    ///
    /// # Errors
    /// As [`BitGen::open`].
    pub fn open_with(
        files: impl Into<ModelFiles>,
        options: BitGenOptions,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self> {
        let numbers = ModelOptions { precision: options.precision, ..ModelOptions::default() };
        let opening = Opening::new(files.into(), &options.device, numbers)?;
        let model = BitGenStage1::open(&opening.files, &opening.weights, opening.load)?;
        let tokenizer = opening.tokenizer(options.tokenizer.as_deref(), model.sizes().vocab, &BITGEN)?;
        let n = model.sizes().positions;
        let encoder = |images| model.record_encoder(&EncoderShape { max_rows: n, max_samples: 1, images });
        let plans = [
            model.record_image(IMAGES)?,
            model.record_features(FEATURE_ROWS)?,
            encoder(false)?,
            encoder(true)?,
            model.record_decoder(n, n.min(DECODER_OUTPUTS))?,
        ]
        .map(Arc::new);
        let memory = EpisodicMemory::load(&opening.weights, model.sizes().memory)?;
        let files = opening.files.clone().absolute()?;
        let mut loaded = opening.load(&plans, DType::Ternary, |_, _| Ok(()), progress)?;
        let [image, features, without, with, decoder] = plans.each_ref().map(|plan| loaded.program(plan));
        let (image, features, encoders, decoder) = (image?, features?, [without?, with?], decoder?);
        let (backend, report) = loaded.finish();
        Ok(BitGen {
            info: model.image_info(),
            report,
            temperature: model.temperature().clamp(TEMPERATURE[0], TEMPERATURE[1]),
            tokenizer,
            memory: Mutex::new(memory),
            programs: Mutex::new(Programs { backend, image, features, encoders, decoder }),
            files,
            model,
        })
    }

    /// The model's sizes.
    pub fn sizes(&self) -> &BitGenSizes {
        self.model.sizes()
    }

    /// The model's configuration.
    pub fn config(&self) -> &BitGenConfig {
        self.model.config()
    }

    /// Size and normalisation of images.
    pub fn image_info(&self) -> ImageInfo {
        self.info
    }

    /// What was loaded, on which device, and how long it took.
    pub fn report(&self) -> &LoadReport {
        &self.report
    }

    /// The device that it runs on.
    pub fn device(&self) -> String {
        self.report.device.clone()
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.tokenizer.as_ref()
    }

    /// The temperature that divides similarities.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// A hash, in hexadecimal digits, of the tensors on which features depend: equal for models with equal features. The
    /// checkpoint is read for it. A file in another form (packed, or of another precision) has another hash.
    ///
    /// # Errors
    /// As [`Weights::open`](crate::files::Weights::open) if the file has changed since the model was opened.
    pub fn fingerprint(&self) -> Result<String> {
        fingerprint(&self.files, &self.model.feature_tensors())
    }

    /// The episodic memory as it is now.
    pub fn memory(&self) -> EpisodicMemory {
        self.remembered().clone()
    }

    /// The episodic memory, to change it.
    pub(crate) fn remembered(&self) -> MutexGuard<'_, EpisodicMemory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The tokens of a text, with those that the tokenizer puts around it.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] without a tokenizer, those of [`Tokenizer::encode`].
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.required_tokenizer()?.encode(text, true)
    }

    /// The text of tokens, special ones left out.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] without a tokenizer, those of [`Tokenizer::decode`].
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        self.required_tokenizer()?.decode(tokens, true)
    }

    pub(crate) fn required_tokenizer(&self) -> Result<&Tokenizer> {
        required_tokenizer(self.tokenizer())
    }

    /// Features of images: vectors `[d]` of length 1. Several are encoded in one step, while the next ones are resized.
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`] if the device was lost.
    pub fn image_features(&self, images: &[Image]) -> Result<Vec<Vec<f32>>> {
        Ok(self.all_image_features(images)?.into_iter().map(|seen| seen.features).collect())
    }

    /// The encoder's outputs for images.
    pub(crate) fn all_image_features(&self, images: &[Image]) -> Result<Vec<ImageFeatures>> {
        let mut steps = images.chunks(IMAGES);
        let (mut all, mut pixels) = (Vec::with_capacity(images.len()), self.pixels(steps.next().unwrap_or(&[])));
        while !pixels.is_empty() {
            let next = steps.next().unwrap_or(&[]);
            let (seen, following) = threads::join(|| self.see(&pixels), || self.pixels(next));
            all.extend(seen?);
            pixels = following;
        }
        Ok(all)
    }

    /// Features of texts, given as tokens: vectors `[d]` of length 1. As in the original they are those of a text's first
    /// token, whatever follows it.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for an empty text or an unknown token; [`crate::Error::DeviceLost`] if the device was lost.
    pub fn text_features(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        texts.iter().try_for_each(|text| self.check_text(text))?;
        let (d, mut all) = (self.sizes().d, Vec::with_capacity(texts.len()));
        let mut programs = self.programs();
        for texts in texts.chunks(FEATURE_ROWS) {
            let first = |text: &&[u32]| Row { token: text[0], pos: 0, seq_base: 0, seq_len: 1 };
            let rows: Vec<Row> = texts.iter().map(first).collect();
            let n = rows.len();
            let program = programs.features.clone();
            programs.write(&program, slots::ROWS, bytemuck::cast_slice(&rows))?;
            programs.run(&program, &Step::new(n, n, 1))?;
            let features = programs.read(&program, &[(bitgen_slots::FEATURES, n * d)])?.concat();
            all.extend(floats(&features).chunks(d).map(<[f32]>::to_vec));
        }
        Ok(all)
    }

    /// `[texts][images]`: the cosine of each text's and each image's features, divided by the temperature.
    ///
    /// # Errors
    /// As [`BitGen::text_features`] and [`Similarities::new`].
    pub fn similarity(&self, texts: &[&[u32]], images: &[Image]) -> Result<Vec<Vec<f32>>> {
        let (texts, images) = (self.text_features(texts)?, self.image_features(images)?);
        Ok(Similarities::new(&texts, &images, self.temperature)?.scaled())
    }

    /// Encodes a text, fused with an image where there is one. The memory's slots that it reads are counted.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for an empty text, one with more tokens than the model has positions, an unknown token, or
    /// noise of another size; [`crate::Error::DeviceLost`] if the device was lost.
    pub fn encode(&self, text: &[u32], image: Option<&Image>, noise: &MemoryNoise) -> Result<Encoded> {
        self.check_text(text)?;
        let seen = image.map(|image| self.see(&self.pixels(std::slice::from_ref(image)))).transpose()?;
        let common = seen.and_then(|seen| seen.into_iter().next()).map(|seen| seen.common);
        self.encode_seen(text, common.as_deref(), noise)
    }

    /// [`BitGen::encode`] of a text beside what was [`ImageFeatures`] for fusion.
    pub(crate) fn encode_seen(&self, text: &[u32], common: Option<&[f32]>, noise: &MemoryNoise) -> Result<Encoded> {
        self.check_text(text)?;
        let memory = self.memory();
        let (matrix, n, d) = (memory.drawn(noise)?, text.len(), self.sizes().d);
        let mut programs = self.programs();
        let program = programs.encoders[usize::from(common.is_some())].clone();
        programs.write(&program, slots::ROWS, bytemuck::cast_slice(&text_rows(text, |_| n)))?;
        programs.write(&program, bitgen_slots::SPANS, &[0, n as u32])?;
        programs.write(&program, bitgen_slots::MEMORY, bytemuck::cast_slice(&matrix))?;
        programs.write(&program, bitgen_slots::QUALITY, bytemuck::cast_slice(&memory.quality))?;
        if let Some(common) = common {
            programs.write(&program, bitgen_slots::IMAGE, bytemuck::cast_slice(&common.repeat(n)))?;
        }
        programs.run(&program, &Step::new(n, 1, n))?;
        let width = program.plan.outputs.get(bitgen_slots::READ).map_or(0, |&slot| program.plan.spec(slot).width());
        let wanted = [
            (bitgen_slots::EMBEDDINGS, n * d),
            (bitgen_slots::CONTEXT, d),
            (bitgen_slots::QUERY, n * self.sizes().memory[1]),
            (bitgen_slots::READ, n * width),
        ];
        let mut found = programs.read(&program, &wanted)?.into_iter();
        let mut next = || found.next().unwrap_or_default();
        let [embeddings, context, query] = [next(), next(), next()].map(|words| floats(&words));
        let read = next();
        drop(programs);
        self.remembered().count_reads(&read);
        Ok(Encoded { embeddings, context, query, read })
    }

    /// Logits `[vocab]` of what follows `tokens`, given the mean of a text's embeddings.
    ///
    /// # Errors
    /// As [`BitGen::encode`].
    pub fn logits(&self, tokens: &[u32], context: &[f32]) -> Result<Vec<f32>> {
        self.logits_behind(tokens, context, tokens.len().saturating_sub(1)..tokens.len())
    }

    /// Logits `[rows, vocab]` behind some of `tokens`, given the mean of a text's embeddings. They depend on all tokens:
    /// the decoder's activations have one scale over all rows.
    ///
    /// # Errors
    /// As [`BitGen::encode`]; [`crate::Error::Argument`] for rows that are not there.
    pub fn logits_behind(&self, tokens: &[u32], context: &[f32], rows: Range<usize>) -> Result<Vec<f32>> {
        self.check_text(tokens)?;
        let mut programs = self.programs();
        let Programs { backend, decoder, .. } = &mut *programs;
        decoder.decoder_logits(backend.as_mut(), tokens, (bitgen_slots::CONTEXT, context), rows)
    }

    /// Pixels of the images of one step, as the encoder reads them.
    fn pixels(&self, images: &[Image]) -> Vec<Vec<f32>> {
        let ImageInfo { size, mean, std, .. } = self.info;
        threads::shared().map(images, |image| image.bilinear_values(size, mean, std))
    }

    /// Encodes the images of one step.
    fn see(&self, pixels: &[Vec<f32>]) -> Result<Vec<ImageFeatures>> {
        let (n, d, mut programs) = (pixels.len(), self.sizes().d, self.programs());
        let program = programs.image.clone();
        programs.write(&program, slots::PIXELS, bytemuck::cast_slice(&pixels.concat()))?;
        programs.run(&program, &Step::new(n, n, self.info.tokens))?;
        let found = programs.read(&program, &[(bitgen_slots::FEATURES, n * d), (bitgen_slots::IMAGE, n * d)])?;
        let [features, common] = [0, 1].map(|i| found.get(i).map_or(&[][..], |words| words));
        let both = features.chunks(d).zip(common.chunks(d));
        Ok(both
            .map(|(features, common)| ImageFeatures { features: floats(features), common: floats(common) })
            .collect())
    }

    pub(crate) fn check_text(&self, text: &[u32]) -> Result<()> {
        check_text(text, self.sizes().positions, self.sizes().vocab)
    }

    pub(crate) fn programs(&self) -> MutexGuard<'_, Programs> {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Programs {
    fn write(&mut self, program: &Program, input: &str, words: &[u32]) -> Result<()> {
        program.write(self.backend.as_mut(), input, words)
    }

    pub(crate) fn run(&mut self, program: &Program, step: &Step) -> Result<()> {
        program.run(self.backend.as_mut(), step)
    }

    /// The first words of outputs.
    fn read(&mut self, program: &Program, wanted: &[(&str, usize)]) -> Result<Vec<Vec<u32>>> {
        program.read(self.backend.as_mut(), wanted)
    }
}
