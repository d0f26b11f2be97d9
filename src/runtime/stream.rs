//! Generated text as an iterator.

use std::time::{Duration, Instant};

use super::options::GenerateOptions;
use super::refiner::Refiner;
use super::sampler::{Sampler, Sampling, StopStrings};
use super::scheduler::Outcome;
use super::session::Session;
use crate::error::{Error, Result};
use crate::files::DecodeStream;

/// Most tokens of a generation that sets no limit.
const DEFAULT_MAX_TOKENS: usize = 512;

/// One generated token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// The text that became certain with it: whole characters, possibly none yet, without stop strings.
    pub text: String,
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The model ended its text.
    Eos,
    /// A stop string was generated.
    StopString,
    /// As many tokens as asked for, or as fit.
    Length,
}

/// Counts and times of a generation.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Tokens that went through the model before the first new one, image rows included.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub generated: usize,
    /// Time for the prompt, to the first token.
    pub prefill: Duration,
    /// Time for the tokens after the first.
    pub decode: Duration,
}

impl Stats {
    /// Prompt tokens a second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// Milliseconds a token after the first.
    pub fn ms_per_token(&self) -> f64 {
        1e3 * self.decode.as_secs_f64() / self.generated.saturating_sub(1).max(1) as f64
    }

    /// Tokens a second after the first.
    pub fn decode_rate(&self) -> f64 {
        self.generated.saturating_sub(1) as f64 / self.decode.as_secs_f64().max(1e-9)
    }
}

/// Tokens as they are generated. Dropping the stream ends the generation; the session keeps what was yielded.
#[derive(Debug)]
pub struct Stream<'a> {
    session: &'a mut Session,
    sampler: Option<Sampler>,
    refiner: Option<Refiner>,
    /// Layers that the refiner watches and the model has.
    watched: Vec<usize>,
    stop: StopStrings,
    text: DecodeStream,
    eos: u32,
    left: usize,
    ended: Option<StopReason>,
    failed: bool,
    stats: Stats,
}

impl<'a> Stream<'a> {
    pub(super) fn new(session: &'a mut Session, options: GenerateOptions) -> Result<Self> {
        if session.is_empty() {
            return Err(Error::argument("prompt", "is empty; push text or an image first"));
        }
        options.sampling.validate()?;
        let (room, len) = (session.room(), session.len());
        let left = match options.max_tokens {
            None => room.min(DEFAULT_MAX_TOKENS),
            Some(n) if n <= room => n,
            Some(n) => {
                return Err(Error::Limit {
                    what: format!("{len} tokens and {n} new ones"),
                    wanted: format!("{} tokens", len + n),
                    available: format!("a context of {} is", len + room),
                    advice: "ask for fewer tokens, or open the engine with a larger context".into(),
                });
            }
        };
        let greedy = options.sampling.temperature == 0.0 && options.sampling.repetition_penalty == 1.0;
        let refiner = options.refiner.map(Refiner::new).transpose()?;
        Ok(Stream {
            sampler: if greedy && refiner.is_none() { None } else { Some(Sampler::new(options.sampling)?) },
            watched: refiner.as_ref().map_or(Ok(Vec::new()), |r| session.engine.watched(r.options()))?,
            refiner,
            stop: StopStrings::new(options.stop)?,
            text: DecodeStream::new(true),
            eos: options.eos.unwrap_or(session.engine.model.info().eos),
            left,
            ended: None,
            failed: false,
            stats: Stats::default(),
            session,
        })
    }

    /// Why the generation ended, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.ended
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// The refiner with the scores so far, if the options ask for one.
    pub fn refiner(&self) -> Option<&Refiner> {
        self.refiner.as_ref()
    }

    /// Runs what is pending and chooses a token.
    fn choose(&mut self) -> Result<u32> {
        let start = Instant::now();
        let before = self.session.tokens().len();
        if let Some(refiner) = self.refiner.as_mut().filter(|r| r.options().use_logit && r.scores().is_empty()) {
            refiner.set_baseline(self.session.blind_logits()?);
        }
        let token = match self.session.advance(self.sampler.is_some(), &self.watched)? {
            Outcome::Token(token) => token,
            Outcome::Logits(logits, hidden) => self.sample(logits, &hidden)?,
        };
        let time = start.elapsed();
        if self.stats.generated == 0 {
            self.stats.prefill = time;
            self.stats.prompt_tokens = self.session.len() - self.session.tokens().len() + before;
        } else {
            self.stats.decode += time;
        }
        self.stats.generated += 1;
        Ok(token)
    }

    /// Chooses a token from logits, refined if the options ask for it.
    fn sample(&mut self, mut logits: Vec<f32>, hidden: &[(usize, Vec<f32>)]) -> Result<u32> {
        if let Some(refiner) = &mut self.refiner {
            let features = refiner.options().features(hidden);
            let tokenizer = self.session.engine.tokenizer.as_ref();
            let text = |id| tokenizer.map_or(Ok(String::new()), |t| t.decode(&[id], true));
            refiner.refine(&mut logits, features.as_deref(), text)?;
        }
        match &mut self.sampler {
            Some(sampler) => sampler.next(&mut logits, self.session.tokens()),
            None => Sampler::new(Sampling::greedy())?.next(&mut logits, self.session.tokens()),
        }
    }

    /// The token with its text; notes the end of the generation.
    fn accept(&mut self, id: u32) -> Result<Token> {
        self.left -= 1;
        if id == self.eos {
            self.ended = Some(StopReason::Eos);
            return Ok(Token { id, text: self.rest() });
        }
        self.session.append(id);
        let engine = self.session.engine.clone();
        let piece = match &engine.tokenizer {
            Some(tokenizer) => self.text.push(tokenizer, id)?,
            None => String::new(),
        };
        let (mut text, stopped) = self.stop.push(&piece);
        if stopped {
            self.ended = Some(StopReason::StopString);
        } else if self.left == 0 {
            self.ended = Some(StopReason::Length);
            text += &self.rest();
        }
        Ok(Token { id, text })
    }

    /// What was held back: a part of a character, or of a stop string.
    fn rest(&mut self) -> String {
        let (text, stopped) = self.stop.push(&self.text.finish());
        if stopped { text } else { text + &self.stop.flush() }
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended.is_some() || self.failed {
            return None;
        }
        if self.left == 0 {
            self.ended = Some(StopReason::Length);
            return None;
        }
        let token = self.choose().and_then(|id| self.accept(id));
        self.failed = token.is_err();
        Some(token)
    }
}
