//! BitGen on pictures with captions: what it is trained for, measured, and retrieval.

use std::collections::HashMap;
use std::hash::Hash;
use std::ops::ControlFlow;
use std::path::Path;

use crate::apps::bitgen::BitGen;
use crate::apps::bitgen::memory::MemoryNoise;
use crate::engine::log_probs::log_probability;
use crate::engine::open::{Progress, proceed};
use crate::error::{Error, Result};
use crate::files::Image;
use crate::ops::{argmax, check_logits};
use crate::threads;
use crate::tools::eval::data::{CaptionSet, Pair, at};
use crate::tools::eval::objectives::{Queues, Ranked, contrastive_loss, matching_loss, rank, recall};

/// Pictures that are in memory at once.
const PICTURES: usize = 16;
/// Ranks that recall is counted at.
const RANKS: [usize; 3] = [1, 5, 10];

/// How pairs are measured.
#[derive(Debug, Clone, PartialEq)]
pub struct PairOptions {
    /// Pairs of a batch of the contrastive loss, which is the larger the more there are.
    pub batch: usize,
    /// The text that the encoder reads with each picture for reconstruction; none: the caption, or for a decoder that
    /// predicts the next token the start-of-text token.
    pub prompt: Option<String>,
    /// Noise on the memory.
    pub noise: MemoryNoise,
}

impl Default for PairOptions {
    /// Batches of 128, as the original is trained, and no noise.
    fn default() -> Self {
        PairOptions { batch: 128, prompt: None, noise: MemoryNoise::None }
    }
}

/// How well the decoder predicts texts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Reconstruction {
    /// Target tokens.
    pub tokens: usize,
    /// Target tokens that were the most likely ones.
    pub correct: usize,
    /// The sum of `−ln p` of the target tokens.
    pub nats: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq)]
pub struct PairEvaluation {
    /// Pairs, different pictures and different captions.
    pub counts: [usize; 3],
    /// The contrastive loss ([`contrastive_loss`]), the mean over all pairs in batches in the order of the list.
    pub contrastive: f64,
    /// Columns of the queues that it was taken against; 0: none.
    pub queued: usize,
    /// The matching loss ([`matching_loss`]).
    pub matching: f64,
    /// Reconstruction by the decoder.
    pub reconstruction: Reconstruction,
    /// The memory's divergence ([`crate::apps::bitgen::EpisodicMemory::divergence`]).
    pub memory_kl: f64,
    /// Recall at 1, 5 and 10 of pictures by text and of texts by picture, in 0..=1. Right is whatever the list pairs.
    pub recall: [[f64; 3]; 2],
}

impl Reconstruction {
    /// Nats per token.
    pub fn cross_entropy(&self) -> f64 {
        self.nats / self.tokens.max(1) as f64
    }

    /// `exp` of the cross-entropy.
    pub fn perplexity(&self) -> f64 {
        self.cross_entropy().exp()
    }

    /// The share of tokens that were the most likely, in 0..=1.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.tokens.max(1) as f64
    }
}

/// The distinct values of a list in order of first occurrence, and the index of each entry's value.
struct Different<T> {
    all: Vec<T>,
    of: Vec<usize>,
}

impl<T: Copy + Eq + Hash> Different<T> {
    fn new(entries: impl Iterator<Item = T>) -> Self {
        let (mut all, mut known) = (Vec::new(), HashMap::new());
        let number = |entry: T| {
            *known.entry(entry).or_insert_with(|| {
                all.push(entry);
                all.len() - 1
            })
        };
        let of = entries.map(number).collect();
        Different { all, of }
    }
}

/// Features of texts and pictures, each computed once.
struct Features {
    texts: Vec<Vec<f32>>,
    images: Vec<Vec<f32>>,
    /// By picture, what texts are fused with.
    common: Vec<Vec<f32>>,
}

/// Measures a BitGen on pairs of pictures and captions; `queues` are those of its checkpoint, if it has them.
///
/// Retrieval and both losses compare the captions' features with the pictures'. Reconstruction encodes a text beside each
/// pair's picture and lets the decoder read the pair's description (or else its caption), one pair by itself, since one
/// scale of the decoder's activations spans all its rows. In the original the target at
/// each position is the token that the decoder reads there. A model whose configuration has `"next_token": true` reads the
/// first token of the encoder's text and then the description, and the target is the next token, at the end the
/// end-of-text token if the tokenizer has one. The memory's slots that are read are counted.
///
/// # Errors
/// [`Error::Argument`] without a tokenizer, for a batch of 0, and with the number of the entry for a text of more tokens
/// than the model has positions; those of [`Image::open`] and [`BitGen::encode`].
pub fn evaluate_pairs(
    model: &BitGen,
    data: &CaptionSet,
    queues: Option<&Queues>,
    options: &PairOptions,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<PairEvaluation> {
    if options.batch == 0 {
        return Err(Error::argument("batch", "is 0, expected at least 1"));
    }
    let pairs = data.pairs();
    let images = Different::new(pairs.iter().map(|p| p.image.as_path()));
    let captions = Different::new(pairs.iter().map(|p| p.caption.as_str()));
    let tokens = tokens(model, data, &captions)?;
    let total = images.all.len() + pairs.len();
    let mut step = |done, what: &Path| proceed(progress(Progress { done, total, what: what.display().to_string() }));
    let features = features(model, &images.all, &tokens, &mut step)?;
    let mut total = Reconstruction::default();
    for (i, pair) in pairs.iter().enumerate() {
        step(images.all.len() + i, &pair.image)?;
        let common = &features.common[images.of[i]];
        let one =
            reconstruct(model, pair, &tokens[captions.of[i]], common, options).map_err(|e| at(data.place(i), e))?;
        total = Reconstruction {
            tokens: total.tokens + one.tokens,
            correct: total.correct + one.correct,
            nats: total.nats + one.nats,
        };
    }
    let numbers: Vec<[usize; 2]> = captions.of.iter().zip(&images.of).map(|(&c, &i)| [c, i]).collect();
    let ranked = retrieve(&features, &numbers);
    Ok(PairEvaluation {
        counts: [pairs.len(), images.all.len(), captions.all.len()],
        contrastive: contrastive(model, &features, &numbers, queues, options.batch),
        queued: queues.map_or(0, |q| q.columns),
        matching: matching_loss(&features.texts, &features.images, &numbers, [&ranked[0], &ranked[1]]),
        reconstruction: total,
        memory_kl: model.memory().divergence(),
        recall: ranked.each_ref().map(|ranked| RANKS.map(|k| recall(ranked, k))),
    })
}

/// The tokens of the different captions, checked.
fn tokens(model: &BitGen, data: &CaptionSet, captions: &Different<&str>) -> Result<Vec<Vec<u32>>> {
    let one = |(n, caption): (usize, &&str)| {
        let tokens = model.tokens(caption)?;
        let place = || data.place(captions.of.iter().position(|&of| of == n).unwrap_or_default());
        model.check_text(&tokens).map_err(|e| at(place(), e))?;
        Ok(tokens)
    };
    captions.all.iter().enumerate().map(one).collect()
}

fn features(
    model: &BitGen,
    images: &[&Path],
    texts: &[Vec<u32>],
    step: &mut impl FnMut(usize, &Path) -> Result<()>,
) -> Result<Features> {
    let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
    let mut all = Features { texts: model.text_features(&texts)?, images: Vec::new(), common: Vec::new() };
    for files in images.chunks(PICTURES) {
        files.first().map_or(Ok(()), |file| step(all.images.len(), file))?;
        let pictures: Result<Vec<Image>> = threads::shared().map(files, Image::open).into_iter().collect();
        for seen in model.all_image_features(&pictures?)? {
            all.images.push(seen.features);
            all.common.push(seen.common);
        }
    }
    Ok(all)
}

/// Reconstruction of a pair's text.
fn reconstruct(
    model: &BitGen,
    pair: &Pair,
    caption: &[u32],
    common: &[f32],
    options: &PairOptions,
) -> Result<Reconstruction> {
    let (next, text) = (model.config().next_token, pair.description.as_ref().unwrap_or(&pair.caption));
    let prompt = match &options.prompt {
        None if !next => caption.to_vec(),
        prompt => model.prompt(prompt.as_deref())?,
    };
    let context = model.encode_seen(&prompt, Some(common), &options.noise)?.context;
    let (read, wanted) = if next {
        let tokenizer = model.required_tokenizer()?;
        let mut wanted = tokenizer.encode(text, false)?;
        wanted.extend(model.config().eos.or(tokenizer.end_of_text()));
        let first = prompt.first().copied();
        (first.into_iter().chain(wanted.iter().copied()).take(wanted.len()).collect(), wanted)
    } else {
        let tokens = model.tokens(text)?;
        (tokens.clone(), tokens)
    };
    let logits = model.logits_behind(&read, &context, 0..read.len())?;
    check_logits(&logits)?;
    let mut result = Reconstruction { tokens: wanted.len(), ..Default::default() };
    for (logits, &token) in logits.chunks(model.sizes().vocab).zip(&wanted) {
        result.nats -= f64::from(log_probability(logits, token as usize));
        result.correct += usize::from(argmax(logits) == token);
    }
    Ok(result)
}

/// Ranks pictures for each text, and texts for each picture.
fn retrieve(features: &Features, pairs: &[[usize; 2]]) -> [Vec<Ranked>; 2] {
    let mut right = [vec![Vec::new(); features.texts.len()], vec![Vec::new(); features.images.len()]];
    for &[text, image] in pairs {
        right[0][text].push(image);
        right[1][image].push(text);
    }
    let [of_texts, of_images] = &right;
    [rank(&features.texts, &features.images, of_texts), rank(&features.images, &features.texts, of_images)]
}

/// The mean of the contrastive loss over all pairs, batch by batch.
fn contrastive(
    model: &BitGen,
    features: &Features,
    pairs: &[[usize; 2]],
    queues: Option<&Queues>,
    batch: usize,
) -> f64 {
    let one = |pairs: &[[usize; 2]]| {
        let of = |all: &[Vec<f32>], side: usize| pairs.iter().map(|pair| all[pair[side]].clone()).collect::<Vec<_>>();
        let (texts, images) = (of(&features.texts, 0), of(&features.images, 1));
        pairs.len() as f64 * contrastive_loss(&texts, &images, model.temperature(), queues)
    };
    pairs.chunks(batch).map(one).sum::<f64>() / pairs.len().max(1) as f64
}
