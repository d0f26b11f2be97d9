//! Generated text as an iterator: a stream that borrows its session, or a generation that owns it.

use std::fmt;

use crate::engine::decoding::{Decoding, Stats, Token, lent};
use crate::engine::generated_text::StopReason;
use crate::engine::hook::LogitsHook;
use crate::engine::options::GenerateOptions;
use crate::engine::session::Session;
use crate::error::{Error, Result};

/// Tokens as they are generated. Dropping the stream ends the generation; the session keeps what was yielded.
#[derive(Debug)]
pub struct Stream<'a> {
    pub(crate) session: &'a mut Session,
    hook: Option<&'a mut dyn LogitsHook>,
    pub(crate) decoding: Decoding,
}

/// A [`Stream`] that owns its session, to be kept in a struct or sent to a thread; [`Generation::finish`] gives the session
/// back. Dropping it drops the session.
#[derive(Debug)]
pub struct Generation {
    session: Session,
    decoding: Decoding,
}

/// A generation that could not begin, with its session.
#[derive(Debug)]
pub struct NotStarted {
    /// The session, as it was.
    pub session: Session,
    /// Why.
    pub error: Error,
}

impl fmt::Display for NotStarted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl std::error::Error for NotStarted {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl Session {
    /// Generates text after what was pushed; the stream yields tokens as they come and may be dropped at any time.
    ///
    /// # Errors
    /// [`Error::Argument`] for an empty session or sampling values out of range, [`Error::ContextFull`] if the tokens asked for
    /// do not fit in the context, unless the session shifts it ([`Session::shift_context`]).
    pub fn generate(&mut self, options: GenerateOptions) -> Result<Stream<'_>> {
        let decoding = Decoding::new(self, options, None)?;
        Ok(Stream { session: self, hook: None, decoding })
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
        let decoding = Decoding::new(self, options, Some(hook))?;
        Ok(Stream { session: self, hook: Some(hook), decoding })
    }

    /// [`Session::generate`], with the session inside.
    ///
    /// # Errors
    /// Those of [`Session::generate`], with the session.
    pub fn into_generation(self, options: GenerateOptions) -> Result<Generation, Box<NotStarted>> {
        match Decoding::new(&self, options, None) {
            Ok(decoding) => Ok(Generation { session: self, decoding }),
            Err(error) => Err(Box::new(NotStarted { session: self, error })),
        }
    }
}

impl Stream<'_> {
    /// Why the generation ended, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.decoding.stop_reason()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.decoding.stats()
    }
}

impl Iterator for Stream<'_> {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        self.decoding.next(self.session, lent(&mut self.hook))
    }
}

impl Generation {
    /// Why it ended, if it has.
    pub fn stop_reason(&self) -> Option<StopReason> {
        self.decoding.stop_reason()
    }

    /// Counts and times so far.
    pub fn stats(&self) -> Stats {
        self.decoding.stats()
    }

    /// The session, which holds what was yielded.
    pub fn session(&self) -> &Session {
        &self.session
    }

    /// Ends it, where it has not ended, and gives the session back.
    pub fn finish(self) -> Session {
        self.session
    }
}

impl Iterator for Generation {
    type Item = Result<Token>;

    fn next(&mut self) -> Option<Self::Item> {
        self.decoding.next(&mut self.session, None)
    }
}
