//! Generated text as an iterator.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::apps::refiner::Refiner;
use crate::engine::options::GenerateOptions;
use crate::engine::queue::{Job, Outcome};
use crate::engine::sampler::{Sampler, StopStrings};
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::files::DecodeStream;
use crate::ops::{Draw, MOST_CANDIDATES, Sampling, seen_words};

/// Most tokens of a generation that sets no limit.
const DEFAULT_MAX_TOKENS: usize = 512;

/// Who chooses the tokens.
#[derive(Debug)]
enum Chooser {
    /// The device, without the host between tokens; before the first one, with the tokens that occurred.
    Device(Draw, Vec<u32>),
    /// The host, from all logits.
    Host(Sampler),
}

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
    /// Times that the host waited for the device: fewer than tokens where it chose several in one go.
    pub waits: usize,
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
    chooser: Chooser,
    refiner: Option<Refiner>,
    /// Layers that the refiner watches and the model has.
    watched: Vec<usize>,
    stop: StopStrings,
    text: DecodeStream,
    /// Tokens that the device has chosen and that are not yielded yet.
    ready: VecDeque<u32>,
    eos: u32,
    left: usize,
    ended: Option<StopReason>,
    failed: bool,
    stats: Stats,
}

impl<'a> Stream<'a> {
    pub(crate) fn new(session: &'a mut Session, options: GenerateOptions) -> Result<Self> {
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
                    // Any number may be asked for, and the sum of two is not always one that a word holds.
                    wanted: format!("{} tokens", len as u128 + n as u128),
                    available: format!("a context of {} is", len + room),
                    advice: "ask for fewer tokens, or open the engine with a larger context".into(),
                });
            }
        };
        let refiner = options.refiner.map(Refiner::new).transpose()?;
        Ok(Stream {
            chooser: chooser(session, options.sampling, refiner.is_some())?,
            watched: refiner.as_ref().map_or(Ok(Vec::new()), |r| session.engine.watched(r.options()))?,
            refiner,
            stop: StopStrings::new(options.stop)?,
            text: DecodeStream::new(true),
            ready: VecDeque::new(),
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

    /// Whether there may be more tokens.
    pub(crate) fn goes_on(&mut self) -> bool {
        if self.left == 0 && self.ended.is_none() {
            self.ended = Some(StopReason::Length);
        }
        self.ended.is_none() && !self.failed
    }

    /// Ends the generation with an error.
    pub(crate) fn fail(&mut self, error: Error) -> Error {
        self.failed = true;
        error
    }

    /// The job of the next tokens, once all that are ready have been taken.
    pub(crate) fn request(&mut self) -> Result<Job> {
        if let Some(refiner) = self.refiner.as_mut().filter(|r| r.options().use_logit && r.scores().is_empty()) {
            refiner.set_baseline(self.session.blind_logits()?);
        }
        let mut job = self.session.pending(matches!(self.chooser, Chooser::Host(_)), &self.watched);
        if let Chooser::Device(draw, seen) = &mut self.chooser {
            (job.draw, job.seen) = (*draw, std::mem::take(seen));
            // An end that comes early wastes what was chosen behind it: no more than half of what there was before.
            job.most = self.left.min(self.stats.generated / 2);
        }
        Ok(job)
    }

    /// Takes what the job gave after this time.
    pub(crate) fn receive(&mut self, outcome: Outcome, time: Duration) -> Result<()> {
        if self.stats.generated == 0 {
            self.stats.prefill = time;
            self.stats.prompt_tokens = self.session.len();
        } else {
            self.stats.decode += time;
        }
        self.stats.waits += 1;
        self.session.ran();
        match outcome {
            Outcome::Tokens(tokens) => self.ready.extend(tokens),
            Outcome::Logits(logits, hidden) => {
                let token = self.sample(logits, &hidden)?;
                self.ready.push_back(token);
            }
        }
        Ok(())
    }

    /// The next token that is ready.
    pub(crate) fn take_ready(&mut self) -> Option<Result<Token>> {
        let id = self.ready.pop_front().filter(|_| self.goes_on())?;
        let token = self.accept(id);
        self.failed = token.is_err();
        Some(token)
    }

    /// Chooses a token from logits, refined if the options ask for it.
    fn sample(&mut self, mut logits: Vec<f32>, hidden: &[(usize, Vec<f32>)]) -> Result<u32> {
        if let Some(refiner) = &mut self.refiner {
            let features = refiner.options().features(hidden);
            let tokenizer = self.session.engine.tokenizer.as_ref();
            let text = |id| tokenizer.map_or(Ok(String::new()), |t| t.decode(&[id], true));
            refiner.refine(&mut logits, features.as_deref(), text)?;
        }
        match &mut self.chooser {
            Chooser::Host(sampler) => sampler.next(&mut logits, self.session.tokens()),
            Chooser::Device(..) => Err(Error::format("a step", "gave logits where it was to choose")),
        }
    }

    /// The token with its text; notes the end of the generation.
    fn accept(&mut self, id: u32) -> Result<Token> {
        if id == u32::MAX {
            return Err(Error::NonFiniteLogits(self.session.engine.model.info().family.into()));
        }
        self.left -= 1;
        self.stats.generated += 1;
        if id == self.eos {
            self.ended = Some(StopReason::Eos);
            return Ok(Token { id, text: self.rest() });
        }
        // The device went on from every token but the last one that it chose.
        self.session.append(id, !self.ready.is_empty());
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
        if !self.goes_on() {
            return None;
        }
        if self.ready.is_empty() {
            let start = Instant::now();
            let outcome = self.request().and_then(|job| self.session.engine.run(job));
            if let Err(error) = outcome.and_then(|o| self.receive(o, start.elapsed())) {
                return Some(Err(self.fail(error)));
            }
        }
        self.take_ready()
    }
}

/// The device chooses where it can.
fn chooser(session: &Session, sampling: Sampling, refined: bool) -> Result<Chooser> {
    let tokens = session.tokens();
    let draw = Draw::new(&sampling, session.len() as u32 - 1, session.number() as u32);
    let Some(draw) = draw.filter(|_| !refined) else {
        if !refined {
            let k = sampling.top_k;
            log::info!("top k is {k}, not 1 to {MOST_CANDIDATES}: the host chooses each token from all logits");
        }
        return Ok(Chooser::Host(Sampler::new(sampling)?));
    };
    let mut seen = Vec::new();
    if draw.seen != 0 {
        seen.resize(seen_words(session.engine.model.info().vocab), 0);
        tokens.iter().for_each(|&t| seen[t as usize / 32] |= 1 << (t % 32));
    }
    Ok(Chooser::Device(draw, seen))
}
