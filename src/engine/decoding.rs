//! A generation in progress, whoever holds its session: who chooses the tokens, which are ready, how long they took.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::generated_text::{GeneratedText, StopReason};
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Token {
    /// Its number.
    pub id: u32,
    /// The text that became certain with it: whole characters, possibly none yet, without stop strings. The space with which
    /// many tokenizers begin an answer to a message is left out.
    pub text: String,
}

/// Counts and times of a generation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
#[non_exhaustive]
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

/// What a hook may be while a generation lasts.
type Hook<'h> = Option<&'h mut dyn LogitsHook>;

/// The hook, for a call.
pub(crate) fn lent<'h>(hook: &'h mut Option<&mut dyn LogitsHook>) -> Hook<'h> {
    match hook {
        Some(hook) => Some(&mut **hook),
        None => None,
    }
}

/// A generation in progress, but for its session and its hook.
#[derive(Debug)]
pub(crate) struct Decoding {
    chooser: Chooser,
    /// Layers that the hook reads and the model has.
    probed_layers: Vec<usize>,
    text: GeneratedText,
    /// Whether nothing but space has come of the answer to a message.
    at_beginning: bool,
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
        Some(n) => Err(Error::ContextFull {
            what: format!("{len} tokens and {n} new ones"),
            needed: (len as u64).saturating_add(n as u64),
            available: (len + room) as u64,
        }),
    }
}

impl Decoding {
    /// A generation after what the session holds.
    ///
    /// # Errors
    /// As [`Session::generate_with`].
    pub fn new(session: &Session, options: GenerateOptions, hook: Option<&dyn LogitsHook>) -> Result<Self> {
        if session.is_empty() {
            return Err(Error::argument("prompt", "is empty; push text or an image first"));
        }
        options.sampling.validate()?;
        options.sampling.check_vocab(session.engine.model.info().vocab)?;
        let (max_tokens, until_full) = max_tokens(session, options.max_tokens)?;
        let eos = options.eos.map_or_else(|| session.engine.stop_tokens(), |eos| vec![eos]);
        let text = GeneratedText::new(options.stop, eos, max_tokens)?.end_loops(options.end_loops);
        Ok(Decoding {
            chooser: chooser(session, options.sampling.clone(), hook.is_some())?,
            sampling: options.sampling,
            probed_layers: hook.map_or(Ok(Vec::new()), |h| session.engine.probed_layers(&h.layers()))?,
            text: if until_full { text.until_full() } else { text },
            at_beginning: session.begins_answer(),
            ready: VecDeque::new(),
            failed: false,
            stats: Stats::default(),
        })
    }

    /// Why it ended, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.text.ended()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Whether there may be more tokens.
    pub fn goes_on(&self) -> bool {
        self.text.ended().is_none() && !self.failed
    }

    /// Ends the generation with an error; none where the caller has cancelled it, which is an end as any other.
    pub fn fail(&mut self, error: Error) -> Option<Error> {
        if let Error::Cancelled(_) = error {
            self.text.cancel();
            return None;
        }
        self.failed = true;
        Some(error)
    }

    /// The next token, for which steps run where none is ready.
    pub fn next(&mut self, session: &mut Session, mut hook: Hook) -> Option<Result<Token>> {
        if !self.goes_on() {
            return None;
        }
        if self.ready.is_empty() || session.is_cancelled() {
            let start = Instant::now();
            let output = self.request(session, lent(&mut hook));
            let output = output.and_then(|job| session.engine.run(Work::Text(job)));
            if let Err(error) = output.and_then(|o| self.receive(session, hook, o, start.elapsed())) {
                return self.fail(error).map(Err);
            }
        }
        self.take_ready(session)
    }

    /// The job of the next tokens, once all that are ready have been taken.
    pub fn request(&mut self, session: &mut Session, hook: Hook) -> Result<Job> {
        session.check_cancelled("the generation")?;
        if self.stats.generated == 0
            && let Some(hook) = hook.filter(|hook| hook.wants_baseline())
        {
            hook.set_baseline(session.logits_without_image()?);
        }
        self.make_room(session)?;
        let mut job = session.pending(matches!(self.chooser, Chooser::Host(_)), &self.probed_layers);
        if let Chooser::Device(sample, adjustments) = &mut self.chooser {
            (job.sample, job.adjustments) = (*sample, std::mem::take(adjustments));
            // An end that comes early wastes what was chosen behind it: no more than half of what there was before.
            job.max_tokens = self.text.left().min(session.room()).min(self.stats.generated / 2);
        }
        Ok(job)
    }

    /// Shifts the context where it is full. Draws go on, and penalties are those of the tokens that stay.
    fn make_room(&mut self, session: &mut Session) -> Result<()> {
        let left = session.make_room()?;
        if let (true, Chooser::Device(sample, row)) = (left > 0, &mut self.chooser) {
            sample.first = sample.first.wrapping_sub(left as u32);
            if sample.adjustment_row != 0 {
                *row = adjustments(&self.sampling, session.engine.model.info().vocab, session.tokens());
            }
        }
        Ok(())
    }

    /// Takes what the job gave after this time.
    pub fn receive(&mut self, session: &mut Session, hook: Hook, output: JobOutput, time: Duration) -> Result<()> {
        if self.stats.generated == 0 {
            self.stats.prefill = time;
            self.stats.prompt_tokens = session.len();
        } else {
            self.stats.decode += time;
        }
        self.stats.waits += 1;
        session.mark_cached();
        match output {
            JobOutput::Tokens(tokens) => self.ready.extend(tokens),
            JobOutput::Logits(logits, hidden) => {
                let token = self.sample(session, hook, logits, &hidden)?;
                self.ready.push_back(token);
            }
            JobOutput::Image(_) => return Err(Error::format("a step of text", "gave an image")),
        }
        Ok(())
    }

    /// The next token that is ready.
    pub fn take_ready(&mut self, session: &mut Session) -> Option<Result<Token>> {
        let id = self.ready.pop_front().filter(|_| self.goes_on())?;
        let token = self.accept(session, id);
        self.failed = token.is_err();
        Some(token)
    }

    /// Chooses a token from logits, which the hook may have changed.
    fn sample(
        &mut self,
        session: &Session,
        hook: Hook,
        mut logits: Vec<f32>,
        hidden: &[(usize, Vec<f32>)],
    ) -> Result<u32> {
        if let Some(hook) = hook {
            let tokenizer = session.engine.tokenizer.as_ref();
            let text = |id| tokenizer.map_or(Ok(String::new()), |t| t.decode(&[id], true));
            hook.adjust(&mut logits, hidden, &text)?;
        }
        match &mut self.chooser {
            Chooser::Host(sampler) => sampler.next(&mut logits, session.tokens()),
            Chooser::Device(..) => Err(Error::format("a step", "gave logits where it was to choose")),
        }
    }

    /// The token with its text.
    fn accept(&mut self, session: &mut Session, id: u32) -> Result<Token> {
        let engine = session.engine.clone();
        if id == u32::MAX {
            return Err(Error::NonFiniteLogits(engine.model.info().family.into()));
        }
        self.stats.generated += 1;
        if !self.text.is_eos(id) {
            // The device went on from every token but the last one that it chose.
            session.append(id, !self.ready.is_empty());
        }
        let mut text = self.text.accept(id, engine.tokenizer.as_ref())?;
        if self.at_beginning {
            text.drain(..text.len() - text.trim_start().len());
            self.at_beginning = text.is_empty();
        }
        Ok(Token { id, text })
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
