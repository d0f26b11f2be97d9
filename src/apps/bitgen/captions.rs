//! Captions: generating their tokens, and their text.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::apps::bitgen::BitGen;
use crate::apps::bitgen::memory::MemoryNoise;
use crate::engine::generated_text::{GeneratedText, StopReason};
use crate::engine::options::GenerateOptions;
use crate::engine::sampler::{Sampler, Sampling};
use crate::error::{Error, Result};
use crate::files::Image;

/// Maximum number of tokens of a caption unless the caller asks for more.
const DEFAULT_TOKENS: usize = 32;

/// How the tokens of a caption are chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct CaptionOptions {
    /// Maximum number of tokens, the first one included; at most as many as the model has positions.
    pub max_tokens: usize,
    /// How a token is chosen.
    pub sampling: Sampling,
    /// Token that ends the caption, and is part of it; none: only `max_tokens` ends it.
    pub eos: Option<u32>,
    /// Noise on the memory.
    pub noise: MemoryNoise,
}

impl Default for CaptionOptions {
    /// Greedy, at most 32 tokens, without noise.
    fn default() -> Self {
        let sampling = Sampling::greedy();
        CaptionOptions { max_tokens: DEFAULT_TOKENS, sampling, eos: None, noise: MemoryNoise::None }
    }
}

/// A caption, with counts and times.
#[derive(Debug, Clone, PartialEq)]
pub struct Caption {
    /// The text.
    pub text: String,
    /// Its tokens, with the one that ended it.
    pub tokens: Vec<u32>,
    /// Why it ended.
    pub end: StopReason,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Steps of the decoder, each of which gave a token.
    pub steps: usize,
    /// Time to encode the picture and the prompt.
    pub reading: Duration,
    /// Time of all steps.
    pub writing: Duration,
}

impl BitGen {
    /// Writes a caption: tokens that begin with the text's first one. Each step runs over all tokens so far, since one
    /// scale of their activations makes each depend on the others.
    ///
    /// # Errors
    /// As [`BitGen::encode`] and [`Sampler::new`]; [`Error::NonFiniteLogits`] for broken weights.
    pub fn caption(&self, text: &[u32], image: Option<&Image>, options: &CaptionOptions) -> Result<Vec<u32>> {
        let max = self.sizes().positions;
        if !(1..=max).contains(&options.max_tokens) {
            return Err(Error::argument("max_tokens", format!("is {}, expected 1..={max}", options.max_tokens)));
        }
        let sampler = Sampler::new(options.sampling.clone())?;
        let context = self.encode(text, image, &options.noise)?.context;
        let mut caption = GeneratedText::new(Vec::new(), options.eos.into_iter().collect(), options.max_tokens - 1)?;
        self.write(text.first().copied().unwrap_or_default(), &context, sampler, &mut caption, |_| {
            ControlFlow::Continue(())
        })
    }

    /// Describes an image, or continues a text alone; `on_text` gets the text as it becomes certain, and ends it where it
    /// breaks ([`StopReason::Cancelled`]).
    ///
    /// The prompt is what the encoder reads, without one the tokenizer's start of a text alone, and the prompt's first
    /// token is what the decoder starts from. It is the caption's first word for a decoder that was trained to say the
    /// present token, as the original's is, and not part of it for one that says the next ([`BitGenConfig::next_token`]).
    /// The caption ends at the end of text that `options`, the configuration or the tokenizer name, at a stop string, or
    /// after `max_tokens` tokens; none: 32, or as many as the model has positions.
    ///
    /// # Errors
    /// [`Error::Argument`] without a tokenizer, without a prompt where the tokenizer has no start of a text, for a number
    /// of tokens out of range; those of [`BitGen::caption`].
    ///
    /// [`BitGenConfig::next_token`]: crate::models::BitGenConfig::next_token
    pub fn describe(
        &self,
        prompt: Option<&str>,
        image: Option<&Image>,
        options: &GenerateOptions,
        noise: &MemoryNoise,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Caption> {
        let (prompt, next_token) = (self.prompt(prompt)?, self.config().next_token);
        let tokenizer = self.required_tokenizer()?;
        let max_tokens = self.max_tokens(options.max_tokens)?;
        let sampler = Sampler::new(options.sampling.clone())?;
        let eos = options.eos.or(self.config().eos).or(tokenizer.end_of_text());
        let caption = GeneratedText::new(options.stop.clone(), eos.into_iter().collect(), max_tokens)?;
        let mut caption = caption.end_loops(options.end_loops);
        let start = Instant::now();
        let context = self.encode(&prompt, image, noise)?.context;
        let (reading, start) = (start.elapsed(), Instant::now());
        let first = prompt.first().copied().unwrap_or_default();
        let mut text = String::new();
        let mut take = |piece: &str| {
            text.push_str(piece);
            on_text(piece)
        };
        if !next_token && take(&caption.push(first, Some(tokenizer))?).is_break() {
            caption.cancel();
        }
        let mut tokens = self.write(first, &context, sampler, &mut caption, take)?;
        let (writing, steps) = (start.elapsed(), tokens.len() - 1);
        if next_token {
            tokens.remove(0);
        }
        let end = caption.ended().unwrap_or(StopReason::Length);
        Ok(Caption { text, tokens, end, prompt_tokens: prompt.len(), steps, reading, writing })
    }

    /// Tokens from `first` on, until the caption ends; `on_text` gets its text as it becomes certain.
    fn write(
        &self,
        first: u32,
        context: &[f32],
        mut sampler: Sampler,
        caption: &mut GeneratedText,
        mut on_text: impl FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Vec<u32>> {
        let mut tokens = vec![first];
        while caption.ended().is_none() {
            let mut logits = self.logits(&tokens, context)?;
            let token = sampler.next(&mut logits, &tokens)?;
            tokens.push(token);
            if on_text(&caption.accept(token, self.tokenizer())?).is_break() {
                caption.cancel();
            }
        }
        Ok(tokens)
    }

    /// The tokens that the encoder reads.
    pub(crate) fn prompt(&self, text: Option<&str>) -> Result<Vec<u32>> {
        let Some(text) = text else {
            let start = self.required_tokenizer()?.start_of_text();
            let none = || Error::argument("prompt", "is needed: the tokenizer has no token for the start of a text");
            return start.map(|token| vec![token]).ok_or_else(none);
        };
        self.tokens(text)
    }

    /// Maximum number of tokens of a caption's text, if `asked` are asked for.
    fn max_tokens(&self, asked: Option<usize>) -> Result<usize> {
        // A start that is not part of the caption takes a position too.
        let room = self.sizes().positions - usize::from(self.config().next_token);
        match asked {
            None => Ok(room.min(DEFAULT_TOKENS)),
            Some(n) if (1..=room).contains(&n) => Ok(n),
            Some(n) => {
                let problem = format!("is {n}, expected 1..={room}, the positions that the model has for a caption");
                Err(Error::argument("max_tokens", problem))
            }
        }
    }
}
