//! Generated text as an iterator.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::engine::generation::{Generation, StopReason};
use crate::engine::hook::LogitsHook;
use crate::engine::jobs::{Job, JobOutput, Work};
use crate::engine::options::GenerateOptions;
use crate::engine::sampler::Sampler;
use crate::engine::session::Session;
use crate::error::{Error, Result};
use crate::ops::{MAX_CANDIDATES, SampleParams, Sampling, adjustments};

/// Maximum number of tokens of a generation that sets no limit.
const DEFAULT_MAX_TOKENS: usize = 512;

/// Who chooses the tokens.
#[derive(Debug)]
enum Chooser {
    /// The device, without the host between tokens; before the first one, with the session's row of adjustments.
    Device(SampleParams, Vec<u32>),
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
    /// Prompt tokens per second.
    pub fn prefill_rate(&self) -> f64 {
        self.prompt_tokens as f64 / self.prefill.as_secs_f64().max(1e-9)
    }

    /// Milliseconds per token after the first.
    pub fn ms_per_token(&self) -> f64 {
        1e3 * self.decode.as_secs_f64() / self.generated.saturating_sub(1).max(1) as f64
    }

    /// Tokens per second after the first.
    pub fn decode_rate(&self) -> f64 {
        self.generated.saturating_sub(1) as f64 / self.decode.as_secs_f64().max(1e-9)
    }
}

/// Tokens as they are generated. Dropping the stream ends the generation; the session keeps what was yielded.
#[derive(Debug)]
pub struct Stream<'a> {
    session: &'a mut Session,
    chooser: Chooser,
    hook: Option<&'a mut dyn LogitsHook>,
    /// Layers that the hook reads and the model has.
    probed_layers: Vec<usize>,
    generation: Generation,
    /// Tokens that the device has chosen and that are not yielded yet.
    ready: VecDeque<u32>,
    failed: bool,
    stats: Stats,
    sampling: Sampling,
}

/// How many tokens a generation may have, if so many are asked for, and whether it is the context that holds no more.
fn max_tokens(session: &Session, asked: Option<usize>) -> Result<(usize, bool)> {
    let (room, len) = (session.room(), session.len());
    match asked {
        _ if session.shifts() => Ok((asked.unwrap_or(DEFAULT_MAX_TOKENS), false)),
        None => Ok((room.min(DEFAULT_MAX_TOKENS), room < DEFAULT_MAX_TOKENS)),
        Some(n) if n <= room => Ok((n, false)),
        Some(n) => Err(Error::Limit {
            what: format!("{len} tokens and {n} new ones"),
            // Any number may be asked for, and the sum of two is not always one that a word holds.
            wanted: format!("{} tokens", len as u128 + n as u128),
            available: format!("a context of {} is", len + room),
            advice: "ask for fewer tokens, let the session shift its context, or open the engine with a larger one"
                .into(),
        }),
    }
}

impl Session {
    /// Generates text after what was pushed; the stream yields tokens as they come and may be dropped at any time.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty session or sampling values out of range, [`Error::Limit`] if the tokens asked for
    /// do not fit in the context, unless the session shifts it ([`Session::shift_context`]).
    pub fn generate(&mut self, options: GenerateOptions) -> Result<Stream<'_>> {
        Stream::new(self, options, None)
    }

    /// [`Session::generate`] with a hook that sees the logits of each step and may change them.
    ///
    /// # Errors
    /// As [`Session::generate`]; [`Error::Argument`] for a layer that the hook reads and the engine was not opened for.
    pub fn generate_with<'a>(
        &'a mut self,
        options: GenerateOptions,
        hook: &'a mut dyn LogitsHook,
    ) -> Result<Stream<'a>> {
        Stream::new(self, options, Some(hook))
    }
}

impl<'a> Stream<'a> {
    pub(crate) fn new(
        session: &'a mut Session,
        options: GenerateOptions,
        hook: Option<&'a mut dyn LogitsHook>,
    ) -> Result<Self> {
        if session.is_empty() {
            return Err(Error::argument("prompt", "is empty; push text or an image first"));
        }
        options.sampling.validate()?;
        options.sampling.check_vocab(session.engine.model.info().vocab)?;
        let (max_tokens, until_full) = max_tokens(session, options.max_tokens)?;
        let eos = options.eos.map_or_else(|| session.engine.stop_tokens(), |eos| vec![eos]);
        let generation = Generation::new(options.stop, eos, max_tokens)?;
        Ok(Stream {
            chooser: chooser(session, options.sampling.clone(), hook.is_some())?,
            sampling: options.sampling,
            probed_layers: hook.as_ref().map_or(Ok(Vec::new()), |h| session.engine.probed_layers(&h.layers()))?,
            hook,
            generation: if until_full { generation.until_full() } else { generation },
            ready: VecDeque::new(),
            failed: false,
            stats: Stats::default(),
            session,
        })
    }

    /// Why the generation ended, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.generation.ended()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether there may be more tokens.
    pub(crate) fn goes_on(&self) -> bool {
        self.generation.ended().is_none() && !self.failed
    }

    /// Ends the generation with an error.
    pub(crate) fn fail(&mut self, error: Error) -> Error {
        self.failed = true;
        error
    }

    /// The job of the next tokens, once all that are ready have been taken.
    pub(crate) fn request(&mut self) -> Result<Job> {
        if self.stats.generated == 0
            && let Some(hook) = self.hook.as_mut().filter(|hook| hook.wants_baseline())
        {
            hook.set_baseline(self.session.logits_without_image()?);
        }
        self.make_room()?;
        let mut job = self.session.pending(matches!(self.chooser, Chooser::Host(_)), &self.probed_layers);
        if let Chooser::Device(sample, adjustments) = &mut self.chooser {
            (job.sample, job.adjustments) = (*sample, std::mem::take(adjustments));
            // An end that comes early wastes what was chosen behind it: no more than half of what there was before.
            job.max_tokens = self.generation.left().min(self.session.room()).min(self.stats.generated / 2);
        }
        Ok(job)
    }

    /// Shifts the context where it is full. Draws go on, and penalties are those of the tokens that stay.
    fn make_room(&mut self) -> Result<()> {
        let left = self.session.make_room()?;
        if let (true, Chooser::Device(sample, row)) = (left > 0, &mut self.chooser) {
            sample.first = sample.first.wrapping_sub(left as u32);
            if sample.adjustment_row != 0 {
                *row = adjustments(&self.sampling, self.session.engine.model.info().vocab, self.session.tokens());
            }
        }
        Ok(())
    }

    /// Takes what the job gave after this time.
    pub(crate) fn receive(&mut self, output: JobOutput, time: Duration) -> Result<()> {
        if self.stats.generated == 0 {
            self.stats.prefill = time;
            self.stats.prompt_tokens = self.session.len();
        } else {
            self.stats.decode += time;
        }
        self.stats.waits += 1;
        self.session.mark_cached();
        match output {
            JobOutput::Tokens(tokens) => self.ready.extend(tokens),
            JobOutput::Logits(logits, hidden) => {
                let token = self.sample(logits, &hidden)?;
                self.ready.push_back(token);
            }
            JobOutput::Image(_) => return Err(Error::format("a step of text", "gave an image")),
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

    /// Chooses a token from logits, which the hook may have changed.
    fn sample(&mut self, mut logits: Vec<f32>, hidden: &[(usize, Vec<f32>)]) -> Result<u32> {
        if let Some(hook) = &mut self.hook {
            let tokenizer = self.session.engine.tokenizer.as_ref();
            let text = |id| tokenizer.map_or(Ok(String::new()), |t| t.decode(&[id], true));
            hook.adjust(&mut logits, hidden, &text)?;
        }
        match &mut self.chooser {
            Chooser::Host(sampler) => sampler.next(&mut logits, self.session.tokens()),
            Chooser::Device(..) => Err(Error::format("a step", "gave logits where it was to choose")),
        }
    }

    /// The token with its text.
    fn accept(&mut self, id: u32) -> Result<Token> {
        let engine = self.session.engine.clone();
        if id == u32::MAX {
            return Err(Error::NonFiniteLogits(engine.model.info().family.into()));
        }
        self.stats.generated += 1;
        if !self.generation.is_eos(id) {
            // The device went on from every token but the last one that it chose.
            self.session.append(id, !self.ready.is_empty());
        }
        Ok(Token { id, text: self.generation.accept(id, engine.tokenizer.as_ref())? })
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
            let output = self.request().and_then(|job| self.session.engine.run(Work::Text(job)));
            if let Err(error) = output.and_then(|o| self.receive(o, start.elapsed())) {
                return Some(Err(self.fail(error)));
            }
        }
        self.take_ready()
    }
}

/// The device chooses where it can.
fn chooser(session: &Session, sampling: Sampling, hooked: bool) -> Result<Chooser> {
    let sample = SampleParams::new(&sampling, session.len() as u32 - 1, session.state_slot() as u32);
    let Some(sample) = sample.filter(|_| !hooked) else {
        if !hooked {
            let k = sampling.top_k;
            log::info!("top k is {k}, not 1 to {MAX_CANDIDATES}: the host chooses each token from all logits");
        }
        return Ok(Chooser::Host(Sampler::new(sampling)?));
    };
    let row = match sample.adjustment_row {
        0 => Vec::new(),
        _ => adjustments(&sampling, session.engine.model.info().vocab, session.tokens()),
    };
    Ok(Chooser::Device(sample, row))
}
