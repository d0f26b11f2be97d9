//! Several generations from one thread.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use crate::engine::decoding::Token;
use crate::engine::generate::Stream;
use crate::engine::jobs::Work;
use crate::engine::options::GenerateOptions;
use crate::engine::resident::Resident;
use crate::engine::session::Session;
use crate::error::{Error, Result};

/// Tokens of several sessions as they are generated, each with the session's number. See
/// [`Engine::generate_all`](crate::engine::Engine::generate_all).
///
/// An error ends its own session's generation and leaves the others.
#[derive(Debug)]
pub struct Batch<'a> {
    engine: Arc<Resident>,
    streams: Vec<Stream<'a>>,
    failed: VecDeque<(usize, Error)>,
    /// The session whose token comes next, if it has one.
    turn: usize,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(
        engine: &Arc<Resident>,
        sessions: &'a mut [Session],
        options: impl IntoIterator<Item = GenerateOptions>,
    ) -> Result<Self> {
        let options: Vec<GenerateOptions> = options.into_iter().collect();
        if options.len() != sessions.len() {
            let problem = format!("{} for {} sessions, expected one for each", options.len(), sessions.len());
            return Err(Error::argument("options", problem));
        }
        if sessions.iter().any(|s| !Arc::ptr_eq(&s.engine, engine)) {
            return Err(Error::argument("sessions", "one belongs to another engine"));
        }
        let streams: Result<_> = sessions.iter_mut().zip(options).map(|(s, o)| s.generate(o)).collect();
        Ok(Batch { engine: engine.clone(), streams: streams?, failed: VecDeque::new(), turn: 0 })
    }

    /// The generations, in the order of the sessions: why each ended, and its counts and times.
    pub fn streams(&self) -> &[Stream<'a>] {
        &self.streams
    }

    /// Runs the next step of every generation that goes on.
    fn run(&mut self) {
        let start = Instant::now();
        let (mut numbers, mut jobs) = (Vec::new(), Vec::new());
        for (i, stream) in self.streams.iter_mut().enumerate() {
            if !stream.decoding.goes_on() {
                continue;
            }
            match stream.decoding.request(stream.session, None) {
                Ok(job) => {
                    numbers.push(i);
                    jobs.push(Work::Text(job));
                }
                Err(error) => self.failed.extend(stream.decoding.fail(error).map(|error| (i, error))),
            }
        }
        let outputs = self.engine.run_all(jobs);
        let time = start.elapsed();
        for (i, output) in numbers.into_iter().zip(outputs) {
            let stream = &mut self.streams[i];
            let received = output.and_then(|o| stream.decoding.receive(stream.session, None, o, time));
            if let Err(error) = received {
                self.failed.extend(stream.decoding.fail(error).map(|error| (i, error)));
            }
        }
    }
}

impl Iterator for Batch<'_> {
    type Item = (usize, Result<Token>);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((i, error)) = self.failed.pop_front() {
                return Some((i, Err(error)));
            }
            let n = self.streams.len();
            for _ in 0..n {
                let i = self.turn;
                self.turn = (i + 1) % n;
                let stream = &mut self.streams[i];
                if let Some(token) = stream.decoding.take_ready(stream.session) {
                    return Some((i, token));
                }
            }
            if !self.streams.iter().any(|stream| stream.decoding.goes_on()) {
                return None;
            }
            self.run();
        }
    }
}
