//! Many sessions on many threads, fed, generating, cancelled, forked, cut, reset and dropped at random: each has the tokens that a
//! plain list has after the same calls, each generates what it generates alone, and nothing is left behind. Seconds of it run
//! with all tests; `TERNION_SOAK=600` makes it ten minutes. On a GPU, kernels for few and for many rows add in another order, and
//! a number that is rounded to another code changes the logits: near ties fall the other way, and nothing else, unless the engine
//! is batch invariant.

mod support {
    pub mod demo;
    pub mod device;
    pub mod mutation;
}

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use support::demo::{generated, greedy, picture};
use support::device::device;
use support::mutation::Random;
use ternion::engine::{Cancel, DeviceChoice, GenerateOptions, LogitsHook, Options, Sampling};
use ternion::{Engine, Error, Result, Session};

const THREADS: usize = 8;
const SESSIONS: usize = 64;
const CONTEXT: usize = 96;
/// Most tokens of a generation.
const NEW: usize = 4;
/// How long one call may take at most on a busy machine: a thread that is stuck is told from one that waits for its turn.
const PATIENCE: Duration = Duration::from_secs(120);
/// Resident memory that may come after a quarter of the time, of a run that is long enough: a short one still prepares programs.
const SLACK_KB: usize = 48 << 10;
/// Generations of sessions alone that are kept.
const KNOWN: usize = 4096;
/// How far apart, in their logits' standard deviations, two tokens may be of which a GPU chooses one alone and the other beside
/// others.
const NEAR: f32 = 0.1;
const LONG: Duration = Duration::from_secs(20);

fn duration() -> Duration {
    let seconds = std::env::var("TERNION_SOAK").ok().and_then(|n| n.parse().ok()).unwrap_or(3);
    Duration::from_secs(seconds)
}

fn engine(options: Options, sessions: usize) -> Engine {
    let (context, reserve) = (Some(CONTEXT), Some(16));
    Engine::demo(Options { sessions, context, reserve, ..options }).expect("the demo model")
}

/// Keeps the logits of the last step.
#[derive(Debug, Default)]
struct Kept(Vec<f32>);

impl LogitsHook for Kept {
    fn adjust(&mut self, logits: &mut [f32], _: &[(usize, Vec<f32>)], _: &dyn Fn(u32) -> Result<String>) -> Result<()> {
        self.0 = logits.to_vec();
        Ok(())
    }
}

/// How far below the largest logit this token's is, in standard deviations.
fn below_largest(logits: &[f32], token: u32) -> f32 {
    let n = logits.len() as f32;
    let mean = logits.iter().sum::<f32>() / n;
    let deviation = (logits.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / n).sqrt();
    (logits.iter().copied().fold(f32::MIN, f32::max) - logits[token as usize]) / deviation
}

/// What a session holds, plainly.
#[derive(Clone, Default, PartialEq, Eq, Hash)]
struct Plain {
    tokens: Vec<u32>,
    with_picture: bool,
}

/// What sessions generate that are alone on an engine of their own.
struct Alone {
    session: Mutex<Session>,
    known: Mutex<HashMap<(Plain, usize), Vec<u32>>>,
    /// Whether every generation must be the same.
    exact: bool,
    same: AtomicUsize,
    different: AtomicUsize,
}

impl Alone {
    fn compare(&self, found: &[u32], plain: &Plain, n: usize) {
        let wanted = self.generates(plain, n);
        let Some(at) = (0..found.len().max(wanted.len())).find(|&i| found.get(i) != wanted.get(i)) else {
            self.same.fetch_add(1, Ordering::Relaxed);
            return;
        };
        self.different.fetch_add(1, Ordering::Relaxed);
        let problem = format!("{:?}: {found:?}, expected {wanted:?}", plain.tokens);
        assert!(!self.exact && found.len() == wanted.len(), "{problem}");
        let mut before = plain.clone();
        before.tokens.extend(&found[..at]);
        let below = below_largest(&self.logits(&before), found[at]);
        println!("a near tie: {below:.4} of a standard deviation");
        assert!(below < NEAR, "{problem}: token {at} is {below} standard deviations below the likeliest");
    }

    /// A session with these tokens, alone.
    fn holding(&self, plain: &Plain) -> MutexGuard<'_, Session> {
        let mut session = self.session.lock().expect("no panic");
        session.reset();
        if plain.with_picture {
            session.push_image(&picture()).expect("an image");
        }
        session.push_tokens(&plain.tokens).expect("room");
        session
    }

    /// The logits of the token after these.
    fn logits(&self, plain: &Plain) -> Vec<f32> {
        let (mut session, mut kept) = (self.holding(plain), Kept::default());
        session.generate_with(greedy(1), &mut kept).expect("a generation").for_each(|token| {
            token.expect("a token");
        });
        kept.0
    }

    fn generates(&self, plain: &Plain, n: usize) -> Vec<u32> {
        if let Some(known) = self.known.lock().expect("no panic").get(&(plain.clone(), n)) {
            return known.clone();
        }
        let tokens = generated(&mut self.holding(plain), greedy(n)).expect("a generation");
        let mut known = self.known.lock().expect("no panic");
        if known.len() >= KNOWN {
            known.clear();
        }
        known.insert((plain.clone(), n), tokens.clone());
        tokens
    }
}

/// A session, and what it should hold.
struct Watched {
    session: Session,
    plain: Plain,
}

impl Watched {
    fn open(engine: &Engine, with_picture: bool) -> Result<Self> {
        let mut session = engine.session()?;
        if with_picture {
            session.push_image(&picture())?;
        }
        Ok(Watched { session, plain: Plain { tokens: Vec::new(), with_picture } })
    }

    fn check(&self) {
        assert_eq!(self.session.tokens(), self.plain.tokens);
        assert_eq!(self.session.images(), usize::from(self.plain.with_picture));
    }

    fn push(&mut self, random: &mut Random, vocab: usize) {
        let ids: Vec<u32> = (0..1 + random.below(6)).map(|_| random.below(vocab) as u32).collect();
        match self.session.push_tokens(&ids) {
            Ok(()) => self.plain.tokens.extend(ids),
            Err(error) => assert!(matches!(error, Error::ContextFull { .. }), "{error}"),
        }
    }

    /// Generates, and compares.
    fn generate(&mut self, alone: &Alone, n: usize) {
        match generated(&mut self.session, greedy(n)) {
            Ok(tokens) => {
                alone.compare(&tokens, &self.plain, n);
                self.plain.tokens.extend(tokens);
            }
            Err(Error::ContextFull { .. }) => {}
            Err(error) => assert!(self.session.is_empty(), "{error}"),
        }
    }

    /// Takes one token and leaves.
    fn leave(&mut self) {
        if let Ok(mut stream) = self.session.generate(greedy(NEW))
            && let Some(token) = stream.next()
        {
            self.plain.tokens.push(token.expect("a token").id);
        }
    }

    fn cancelled(&mut self) {
        let cancel = Cancel::new();
        self.session.cancel_with(cancel.clone());
        cancel.cancel();
        let found = generated(&mut self.session, greedy(NEW));
        assert!(found.as_ref().is_ok_and(Vec::is_empty) || found.is_err(), "cancelled, it generates {found:?}");
        self.session.cancel_with(Cancel::new());
    }

    /// The same seed gives two sessions the same text.
    fn sampled(&self, alone: &Alone, seed: u64) {
        let options =
            || GenerateOptions { sampling: Sampling { seed, temperature: 0.8, ..Sampling::original() }, ..greedy(NEW) };
        let forks = [self.session.fork(), self.session.fork()];
        let texts = forks.map(|fork| fork.and_then(|mut fork| generated(&mut fork, options())));
        if let [Ok(a), Ok(b)] = texts {
            assert!(!alone.exact || a == b, "seed {seed}: {a:?}, and {b:?}");
        }
    }
}

/// One thread's sessions until `end`; how many calls it made.
fn live(seed: usize, engine: &Engine, alone: &Alone, end: Instant) -> usize {
    let (mut random, mut own, mut calls) = (Random::new(seed), Vec::<Watched>::new(), 0);
    let vocab = engine.info().vocab;
    while Instant::now() < end {
        calls += 1;
        let most = SESSIONS / THREADS - 2;
        if own.len() < most && (own.is_empty() || random.below(4) == 0) {
            own.push(Watched::open(engine, random.below(4) == 0).expect("a session"));
            continue;
        }
        let at = random.below(own.len());
        let watched = &mut own[at];
        match random.below(12) {
            0..=2 => watched.push(&mut random, vocab),
            3..=5 => watched.generate(alone, 1 + random.below(NEW)),
            6 => watched.leave(),
            7 => watched.cancelled(),
            8 => {
                let n = random.below(watched.plain.tokens.len() + 2);
                watched.session.truncate(n);
                watched.plain.tokens.truncate(n);
            }
            9 => {
                let session = watched.session.fork().expect("a session");
                let plain = watched.plain.clone();
                // One of the two goes on, the other is dropped.
                if random.below(2) == 0 {
                    own[at] = Watched { session, plain };
                }
            }
            10 => watched.sampled(alone, random.below(1000) as u64),
            _ if random.below(2) == 0 => drop(own.swap_remove(at)),
            _ => {
                watched.session.reset();
                watched.plain = Plain::default();
            }
        }
        own.iter().for_each(Watched::check);
    }
    calls
}

/// Resident memory of this process, where the system tells it.
fn resident_kb() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

fn soak(options: Options) {
    // One at a time: both would grow the memory that is measured.
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock().unwrap_or_else(PoisonError::into_inner);
    let exact = options.batch_invariant || options.device == DeviceChoice::Cpu;
    let (duration, name) = (duration(), format!("{:?}, exact {exact}", options.device));
    let engine = self::engine(options.clone(), SESSIONS);
    let alone = Arc::new(Alone {
        exact,
        same: AtomicUsize::new(0),
        different: AtomicUsize::new(0),
        session: Mutex::new(self::engine(options, 1).session().expect("a session")),
        known: Mutex::default(),
    });
    let (start, (send, receive)) = (Instant::now(), channel());
    for seed in 0..THREADS {
        let (engine, alone, send) = (engine.clone(), alone.clone(), send.clone());
        thread::spawn(move || send.send(live(seed, &engine, &alone, start + duration)));
    }
    drop(send);
    thread::sleep(duration / 4);
    let early = resident_kb();
    let mut calls = 0;
    for _ in 0..THREADS {
        match receive.recv_timeout(duration + PATIENCE) {
            Ok(n) => calls += n,
            Err(RecvTimeoutError::Timeout) => panic!("{name}: a thread is stuck"),
            Err(RecvTimeoutError::Disconnected) => panic!("{name}: a thread ended early"),
        }
    }
    let grown = early.zip(resident_kb()).map(|(early, late)| late.saturating_sub(early));
    // All that was open is closed: there is room for as many again.
    let all: Vec<Session> = (0..SESSIONS).map(|_| engine.session().expect("a session")).collect();
    assert!(matches!(engine.session(), Err(Error::SessionsFull { .. })));
    drop(all);
    let [same, different] = [&alone.same, &alone.different].map(|count| count.load(Ordering::Relaxed));
    println!("{name}: {calls} calls in {:.1} s, {grown:?} kB grown", start.elapsed().as_secs_f64());
    println!("{name}: {same} generations as alone, {different} not");
    assert!(calls > THREADS, "{name}: only {calls} calls");
    assert!(duration < LONG || grown.is_none_or(|kb| kb < SLACK_KB), "{name}: {grown:?} kB are left behind");
}

#[test]
fn sessions_of_many_threads_are_as_alone_on_the_cpu() {
    soak(Options { device: DeviceChoice::Cpu, ..Options::default() });
}

#[test]
fn sessions_of_many_threads_are_as_alone_but_for_near_ties_on_a_gpu() {
    if device().is_some() {
        soak(Options { device: DeviceChoice::Gpu, ..Options::default() });
    }
}

#[test]
fn sessions_of_many_threads_are_as_alone_on_a_gpu_that_is_batch_invariant() {
    if device().is_some() {
        soak(Options { device: DeviceChoice::Gpu, batch_invariant: true, ..Options::default() });
    }
}
