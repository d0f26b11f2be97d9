//! BitGen on a device: features of images and texts in one space, their similarities, and captions.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::core::floats;
use super::device;
use super::engine::{load_weights, no_tokenizer, open_tokenizer};
use super::episodic::{EpisodicMemory, MemoryNoise};
use super::options::{Place, Precision};
use super::programs::{Program, check_text, step, text_rows};
use super::sampler::{Sampler, Sampling};
use crate::error::{Error, Result};
use crate::files::{Image, ModelFiles, Tokenizer, Weights};
use crate::models::{BitGenSizes, BitGenStage1, EncoderShape, ImageInfo, LoadOptions, bitgen_slots, slots};
use crate::ops::Row;
use crate::plan::{Backend, Step};

/// Texts whose features are computed in one step.
const FEATURE_ROWS: usize = 64;
/// Bounds on the temperature that divides similarities, as in the original's loss.
const TEMPERATURE: [f32; 2] = [0.001, 1.0];

/// How a [`BitGen`] is opened.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct BitGenOptions {
    /// Where it runs.
    pub place: Place,
    /// How full-precision weights are kept.
    pub precision: Precision,
    /// A `tokenizer.json`; none: the one beside the model, if there is one.
    pub tokenizer: Option<PathBuf>,
}

/// How a caption is written.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionOptions {
    /// Most tokens, the first one included; at most as many as the model has positions.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Ends the caption; it is part of it. None: nothing does.
    pub eos: Option<u32>,
    /// Noise on the memory.
    pub noise: MemoryNoise,
}

impl Default for CaptionOptions {
    /// Greedy, at most 32 tokens, without noise.
    fn default() -> Self {
        CaptionOptions { max_tokens: 32, sampling: Sampling::greedy(), eos: None, noise: MemoryNoise::None }
    }
}

/// A text as the encoder gives it back, beside an image or not.
#[derive(Debug, Clone, PartialEq)]
pub struct Encoded {
    /// A vector of each token, `[tokens, d]`.
    pub embeddings: Vec<f32>,
    /// Their mean `[d]`, all that the decoder reads of them.
    pub context: Vec<f32>,
    /// The slots of the memory that each token has read, `[tokens, 5]`.
    pub read: Vec<u32>,
}

/// A BitGen of stage 1, resident on a device. `Send + Sync`; one call runs at a time.
pub struct BitGen {
    model: BitGenStage1,
    info: ImageInfo,
    temperature: f32,
    tokenizer: Option<Tokenizer>,
    memory: Mutex<EpisodicMemory>,
    core: Mutex<Core>,
}

/// The device and its programs.
struct Core {
    backend: Box<dyn Backend>,
    image: Program,
    features: Program,
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
    /// # Errors
    /// See [`Error`]: the file or its configuration is broken, it is no BitGen, a tensor is missing or misshapen, the
    /// device is absent, or the model does not fit on it.
    pub fn open(files: impl Into<ModelFiles>, options: &BitGenOptions) -> Result<Self> {
        let files = files.into();
        let weights = Weights::open(&files)?;
        let (mut backend, _) = device::choose(&options.place)?;
        let dense = options.precision.on(backend.as_ref()).pack();
        let load = LoadOptions { dense, head: dense, max_binding: backend.caps().max_binding };
        let model = BitGenStage1::open(&files, &weights, load)?;
        let tokenizer = open_tokenizer(&files, options.tokenizer.as_deref(), model.sizes().vocab, "")?;
        let n = model.sizes().positions;
        let encoder = |images| model.record_encoder(&EncoderShape { max_rows: n, max_samples: 1, images });
        let plans = [
            model.record_image()?,
            model.record_features(FEATURE_ROWS)?,
            encoder(false)?,
            encoder(true)?,
            model.record_decoder(n, 1)?,
        ]
        .map(Arc::new);
        load_weights(&weights, plans.iter(), |name, words| backend.load_weight(name, words), |_| {})?;
        let program = |plan| Program::prepare(backend.as_mut(), plan);
        let [image, features, without, with, decoder] = plans.each_ref().map(program);
        let core = Core { image: image?, features: features?, encoders: [without?, with?], decoder: decoder?, backend };
        let temperature = "cross_modal_fusion.temperature";
        let temperature = weights.checkpoint().read_f32(temperature, 0..1)?.first().copied().unwrap_or(1.0);
        Ok(BitGen {
            info: model.image_info(),
            temperature: temperature.clamp(TEMPERATURE[0], TEMPERATURE[1]),
            tokenizer,
            memory: Mutex::new(EpisodicMemory::load(&weights, model.sizes().memory)?),
            core: Mutex::new(core),
            model,
        })
    }

    /// The model's sizes.
    pub fn sizes(&self) -> &BitGenSizes {
        self.model.sizes()
    }

    /// The device that it runs on.
    pub fn device(&self) -> String {
        self.core().backend.describe()
    }

    /// What similarities are divided by.
    pub fn temperature(&self) -> f32 {
        self.temperature
    }

    /// The episodic memory as it is now.
    pub fn memory(&self) -> EpisodicMemory {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The tokens of a text, with those that the tokenizer puts around it.
    ///
    /// # Errors
    /// [`Error::Argument`] without a tokenizer, those of [`Tokenizer::encode`].
    pub fn tokens(&self, text: &str) -> Result<Vec<u32>> {
        self.tokenizer.as_ref().ok_or_else(no_tokenizer)?.encode(text, true)
    }

    /// The text of tokens, special ones left out.
    ///
    /// # Errors
    /// [`Error::Argument`] without a tokenizer, those of [`Tokenizer::decode`].
    pub fn text(&self, tokens: &[u32]) -> Result<String> {
        self.tokenizer.as_ref().ok_or_else(no_tokenizer)?.decode(tokens, true)
    }

    /// Features of images: vectors `[d]` of length 1.
    ///
    /// # Errors
    /// [`Error::Device`] if the device was lost.
    pub fn image_features(&self, images: &[Image]) -> Result<Vec<Vec<f32>>> {
        images.iter().map(|image| Ok(self.see(image)?.0)).collect()
    }

    /// Features of texts, given as tokens: vectors `[d]` of length 1. As in the original they are those of a text's first
    /// token, whatever follows it.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty text or an unknown token; [`Error::Device`] if the device was lost.
    pub fn text_features(&self, texts: &[&[u32]]) -> Result<Vec<Vec<f32>>> {
        texts.iter().try_for_each(|text| self.check_text(text))?;
        let (d, mut all) = (self.sizes().d, Vec::with_capacity(texts.len()));
        let mut core = self.core();
        for texts in texts.chunks(FEATURE_ROWS) {
            let first = |text: &&[u32]| Row { token: text[0], pos: 0, seq_base: 0, seq_len: 1 };
            let rows: Vec<Row> = texts.iter().map(first).collect();
            let n = rows.len();
            let program = core.features.clone();
            core.write(&program, slots::ROWS, bytemuck::cast_slice(&rows))?;
            core.run(&program, &step(n, n, 1))?;
            let features = core.read(&program, &[(bitgen_slots::FEATURES, n * d)])?.concat();
            all.extend(floats(&features).chunks(d).map(<[f32]>::to_vec));
        }
        Ok(all)
    }

    /// `[texts][images]`: the cosine of each text's and each image's features, divided by the temperature.
    ///
    /// # Errors
    /// As [`BitGen::text_features`].
    pub fn similarity(&self, texts: &[&[u32]], images: &[Image]) -> Result<Vec<Vec<f32>>> {
        let (texts, images) = (self.text_features(texts)?, self.image_features(images)?);
        let cosine = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
        let row = |text: &Vec<f32>| images.iter().map(|image| cosine(text, image) / self.temperature).collect();
        Ok(texts.iter().map(row).collect())
    }

    /// Encodes a text, fused with an image where there is one. The memory's slots that it reads are counted.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty text, one with more tokens than the model has positions, an unknown token, or
    /// noise of another size; [`Error::Device`] if the device was lost.
    pub fn encode(&self, text: &[u32], image: Option<&Image>, noise: &MemoryNoise) -> Result<Encoded> {
        self.check_text(text)?;
        let common = image.map(|image| self.see(image)).transpose()?.map(|(_, common)| common);
        let memory = self.memory();
        let (matrix, n, d) = (memory.drawn(noise)?, text.len(), self.sizes().d);
        let mut core = self.core();
        let program = core.encoders[usize::from(image.is_some())].clone();
        core.write(&program, slots::ROWS, bytemuck::cast_slice(&text_rows(text, |_| n)))?;
        core.write(&program, bitgen_slots::SPANS, &[0, n as u32])?;
        core.write(&program, bitgen_slots::MEMORY, bytemuck::cast_slice(&matrix))?;
        core.write(&program, bitgen_slots::QUALITY, bytemuck::cast_slice(&memory.quality))?;
        if let Some(common) = common {
            core.write(&program, bitgen_slots::IMAGE, bytemuck::cast_slice(&common.repeat(n)))?;
        }
        core.run(&program, &step(n, 1, n))?;
        let width = program.plan.outputs.get(bitgen_slots::READ).map_or(0, |&slot| program.plan.spec(slot).width());
        let wanted = [(bitgen_slots::EMBEDDINGS, n * d), (bitgen_slots::CONTEXT, d), (bitgen_slots::READ, n * width)];
        let mut found = core.read(&program, &wanted)?.into_iter();
        let mut next = || found.next().unwrap_or_default();
        let (embeddings, context, read) = (next(), next(), next());
        drop(core);
        self.memory.lock().unwrap_or_else(PoisonError::into_inner).count_reads(&read);
        Ok(Encoded { embeddings: floats(&embeddings), context: floats(&context), read })
    }

    /// Writes a caption: tokens that begin with the text's first one. Each step runs over all tokens so far, since one
    /// scale of their activations makes each depend on the others.
    ///
    /// # Errors
    /// As [`BitGen::encode`] and [`Sampler::new`]; [`Error::NonFiniteLogits`] for broken weights.
    pub fn caption(&self, text: &[u32], image: Option<&Image>, options: &CaptionOptions) -> Result<Vec<u32>> {
        let most = self.sizes().positions;
        if !(1..=most).contains(&options.max_tokens) {
            return Err(Error::argument("max_tokens", format!("is {}, expected 1..={most}", options.max_tokens)));
        }
        let mut sampler = Sampler::new(options.sampling.clone())?;
        let encoded = self.encode(text, image, &options.noise)?;
        let mut tokens = vec![text[0]];
        while tokens.len() < options.max_tokens {
            let mut logits = self.logits(&tokens, &encoded.context)?;
            let token = sampler.next(&mut logits, &tokens)?;
            tokens.push(token);
            if options.eos == Some(token) {
                break;
            }
        }
        Ok(tokens)
    }

    /// Logits `[vocab]` of what follows `tokens`, given the mean of a text's embeddings.
    ///
    /// # Errors
    /// As [`BitGen::encode`].
    pub fn logits(&self, tokens: &[u32], context: &[f32]) -> Result<Vec<f32>> {
        self.check_text(tokens)?;
        let (n, d, mut core) = (tokens.len(), self.sizes().d, self.core());
        if context.len() != d {
            return Err(Error::argument("context", format!("{} values, expected {d}", context.len())));
        }
        let program = core.decoder.clone();
        core.write(&program, slots::ROWS, bytemuck::cast_slice(&text_rows(tokens, |pos| pos + 1)))?;
        core.write(&program, slots::OUTPUTS, &[n as u32 - 1])?;
        core.write(&program, bitgen_slots::CONTEXT, bytemuck::cast_slice(&context.repeat(n)))?;
        core.run(&program, &step(n, 1, n))?;
        Ok(floats(&core.read(&program, &[(slots::LOGITS, self.sizes().vocab)])?.concat()))
    }

    /// An image's features, and what text is fused with.
    fn see(&self, image: &Image) -> Result<(Vec<f32>, Vec<f32>)> {
        let ImageInfo { size, mean, std, .. } = self.info;
        let pixels = image.bilinear_values(size, mean, std);
        let (d, mut core) = (self.sizes().d, self.core());
        let program = core.image.clone();
        core.write(&program, slots::PIXELS, bytemuck::cast_slice(&pixels))?;
        core.run(&program, &Step::FULL)?;
        let found = core.read(&program, &[(bitgen_slots::FEATURES, d), (bitgen_slots::IMAGE, d)])?.concat();
        let (features, common) = found.split_at(d.min(found.len()));
        Ok((floats(features), floats(common)))
    }

    fn check_text(&self, text: &[u32]) -> Result<()> {
        check_text(text, self.sizes().positions, self.sizes().vocab)
    }

    fn core(&self) -> MutexGuard<'_, Core> {
        self.core.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    fn write(&mut self, program: &Program, input: &str, words: &[u32]) -> Result<()> {
        program.write(self.backend.as_mut(), input, words)
    }

    fn run(&mut self, program: &Program, step: &Step) -> Result<()> {
        program.run(self.backend.as_mut(), step)
    }

    /// The first words of outputs.
    fn read(&mut self, program: &Program, wanted: &[(&str, usize)]) -> Result<Vec<Vec<u32>>> {
        program.read(self.backend.as_mut(), wanted)
    }
}
