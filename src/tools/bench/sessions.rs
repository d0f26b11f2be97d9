//! Running tests through sessions, as a caller of the library would.

use std::time::{Duration, Instant};

use crate::engine::Engine;
use crate::engine::options::GenerateOptions;
use crate::engine::session::Session;
use crate::error::Result;
use crate::files::Image;
use crate::ops::split_mix;
use crate::tools::bench::test::Test;

/// Width and height of the picture.
const PICTURE: [usize; 2] = [640, 480];

/// A test with its sessions, which it can run again and again.
pub struct TestSessions {
    engine: Engine,
    test: Test,
    sessions: Vec<Session>,
    /// Tokens that a repetition reads.
    prompt: Vec<u32>,
    picture: Image,
}

impl TestSessions {
    /// Opens the sessions and fills their caches as deep as the test wants.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn new(engine: &Engine, test: Test) -> Result<Self> {
        let sessions: Result<Vec<Session>> = (0..test.sessions()).map(|_| engine.session()).collect();
        // Tokens that each session reads in a repetition, and those that are in its cache before.
        let (n, depth) = match test {
            Test::Prompt { tokens, depth } => (tokens, depth),
            Test::ImagePrompt { tokens } => (tokens, 0),
            Test::Generate { depth, .. } => (0, depth.max(1)),
            Test::Image => (0, 0),
        };
        let vocab = engine.info().vocab as u64;
        let tokens = |seed: usize, n: usize| -> Vec<u32> {
            (0..n as u64).map(|i| (split_mix(seed as u64, i) % vocab) as u32).collect()
        };
        let mut all = TestSessions {
            engine: engine.clone(),
            test,
            sessions: sessions?,
            prompt: tokens(0, n),
            picture: picture(),
        };
        for (seed, session) in all.sessions.iter_mut().enumerate().filter(|_| depth > 0) {
            session.push_tokens(&tokens(seed + 1, depth))?;
            // Without a depth, the first token of a generation is read in each repetition.
            if test.depth() > 0 {
                generate(session, 1)?;
            }
        }
        Ok(all)
    }

    /// Runs the test once; the time that counts.
    ///
    /// # Errors
    /// Those of the engine.
    pub fn run(&mut self) -> Result<Duration> {
        if let Test::Generate { tokens, depth, .. } = self.test {
            for session in &mut self.sessions {
                session.truncate(depth + 1);
            }
            return together(&self.engine, &mut self.sessions, tokens);
        }
        let Some(session) = self.sessions.first_mut() else { return Ok(Duration::ZERO) };
        match self.test.depth() {
            0 => session.reset(),
            depth => session.truncate(depth),
        }
        let start = Instant::now();
        if matches!(self.test, Test::Image | Test::ImagePrompt { .. }) {
            session.push_image(&self.picture)?;
        }
        if !self.prompt.is_empty() {
            session.push_tokens(&self.prompt)?;
            generate(session, 1)?;
        }
        Ok(start.elapsed())
    }
}

/// Greedy, and exactly `tokens` tokens: no token ends the text.
fn exactly(tokens: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(tokens), eos: Some(u32::MAX), ..GenerateOptions::default() }
}

fn generate(session: &mut Session, tokens: usize) -> Result<()> {
    session.generate(exactly(tokens))?.try_for_each(|token| token.map(|_| ()))
}

/// Generates `tokens` tokens in each of the sessions at the same time.
fn together(engine: &Engine, sessions: &mut [Session], tokens: usize) -> Result<Duration> {
    let start = Instant::now();
    let options = vec![exactly(tokens); sessions.len()];
    engine.generate_all(sessions, options)?.try_for_each(|(_, token)| token.map(|_| ()))?;
    Ok(start.elapsed())
}

/// A picture of soft colours.
pub fn picture() -> Image {
    let [width, height] = PICTURE;
    let pixel = |i: usize| [i % width * 255 / width, i / width * 255 / height, (i % width + i / width) % 256];
    let rgb = (0..width * height).flat_map(pixel).map(|v| v as u8).collect();
    Image { width, height, rgb }
}
