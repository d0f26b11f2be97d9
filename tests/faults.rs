//! A device that has no memory, refuses commands or panics, at each place where the engine gives it commands: an error with a type,
//! an engine that goes on, and the same text.

mod support {
    pub mod demo;
    pub mod device;
}

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;

use support::demo::{greedy, picture};
use support::device::device;
use ternion::engine::{DeviceChoice, Options};
use ternion::gpu::{Device, Fault};
use ternion::{Engine, Error, Result, Session};

/// Tokens of an answer.
const ALL: usize = 20;

fn options(device: &Device, max_memory: Option<u64>) -> Options {
    let device = DeviceChoice::Opened(device.clone());
    Options { device, context: Some(128), reserve: Some(16), sessions: 2, max_memory, ..Options::default() }
}

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/embernet/tiny");

/// Memory in which experts and layers of the model move.
fn small(device: &Device) -> Option<u64> {
    Some(Engine::estimate(MODEL, &options(device, None)).expect("an estimate").least_bytes)
}

fn opened(device: &Device, max_memory: Option<u64>) -> Result<Engine> {
    Engine::open(MODEL, options(device, max_memory))
}

/// A conversation: a picture, a question, an answer.
struct Talk {
    session: Session,
    /// Whether the picture was pushed, and the question.
    pushed: [bool; 2],
    /// The answer so far.
    found: Vec<u32>,
}

impl Talk {
    fn new(engine: &Engine) -> Self {
        Talk { session: engine.session().expect("a session"), pushed: [false; 2], found: Vec::new() }
    }

    fn ask(&mut self) -> Result<()> {
        if !self.pushed[0] {
            self.session.push_image(&picture())?;
            self.pushed[0] = true;
        }
        if !self.pushed[1] {
            self.session.push_tokens(&[5, 9, 17, 33, 65])?;
            self.pushed[1] = true;
        }
        Ok(())
    }

    /// Goes on where an error stopped it.
    fn go_on(&mut self) -> Result<()> {
        self.ask()?;
        for token in self.session.generate(greedy(ALL - self.found.len()))? {
            self.found.push(token?.id);
        }
        Ok(())
    }
}

fn answer(engine: &Engine) -> Vec<u32> {
    let mut talk = Talk::new(engine);
    talk.go_on().expect("an answer");
    talk.found
}

/// Whether this is what a fault becomes: what failed is named.
fn is_of(fault: Fault, error: &Error) -> bool {
    match (fault, error) {
        (Fault::OutOfMemory, Error::OutOfMemory { what, .. }) => !what.is_empty(),
        (Fault::Refused, Error::Device { problem, .. }) => problem.contains("as a test has asked for"),
        _ => false,
    }
}

/// Makes something, and lets what is done with it fail at its first group of commands, the second, and so on to some of the others,
/// until nothing fails any more. How often it failed; `again` is what must hold after each failure.
fn each_place<S>(
    (device, fault): (&Device, Fault),
    mut make: impl FnMut() -> S,
    mut run: impl FnMut(&mut S) -> Result<()>,
    mut again: impl FnMut(S),
) -> usize {
    let (mut after, mut failed) = (0, 0);
    loop {
        let mut made = make();
        device.faults.inject(fault, after);
        let done = run(&mut made);
        match (device.faults.take_back(), done) {
            (true, Ok(())) => return failed,
            (false, Err(error)) => assert!(is_of(fault, &error), "{fault:?} after {after}: {error:?}"),
            (waits, done) => panic!("{fault:?} after {after}: it waits: {waits}, {done:?}"),
        }
        again(made);
        failed += 1;
        after += if after < 8 { 1 } else { 1 + after / 3 };
    }
}

#[test]
fn opening_fails_with_an_error_and_the_device_stays_usable() {
    let Some(device) = device() else { return };
    let want = answer(&opened(&device, None).unwrap());
    for max_memory in [None, small(&device)] {
        for fault in [Fault::OutOfMemory, Fault::Refused] {
            let failed = each_place((&device, fault), || (), |()| opened(&device, max_memory).map(drop), |()| ());
            assert!(failed > 10, "{failed} places");
        }
        assert_eq!(answer(&opened(&device, max_memory).unwrap()), want);
    }
}

#[test]
fn pictures_prompts_growing_caches_and_texts_fail_with_an_error_and_go_on() {
    let Some(device) = device() else { return };
    let want = answer(&opened(&device, None).unwrap());
    for max_memory in [None, small(&device)] {
        for fault in [Fault::OutOfMemory, Fault::Refused] {
            // Programs are prepared, and the cache grows, when a step first needs it: a new engine for each place.
            let talk = || Talk::new(&opened(&device, max_memory).unwrap());
            let failed = each_place((&device, fault), talk, Talk::go_on, |mut talk| {
                talk.go_on().unwrap();
                assert_eq!(talk.found, want, "what came before the error, and the rest");
            });
            println!("{fault:?}, at most {max_memory:?} bytes: {failed} places");
            assert!(failed > 10, "{failed} places");
        }
    }
}

#[test]
fn a_panic_in_a_step_ends_the_engine_and_nothing_else() {
    let Some(device) = device() else { return };
    let want = answer(&opened(&device, None).unwrap());
    for max_memory in [None, small(&device)] {
        for after in [0, 1, 2, 5, 9] {
            let engine = opened(&device, max_memory).unwrap();
            let [mut first, mut second] = [(); 2].map(|()| Talk::new(&engine));
            first.ask().unwrap();
            second.ask().unwrap();
            device.faults.inject(Fault::Panic, after);
            let outcomes = thread::scope(|scope| {
                let both = [&mut first, &mut second]
                    .map(|talk| scope.spawn(|| catch_unwind(AssertUnwindSafe(|| talk.go_on())).map_err(|_| "a panic")));
                both.map(|thread| thread.join().expect("a panic that was caught"))
            });
            assert!(!device.faults.take_back(), "a panic after {after}");
            assert_eq!(outcomes.iter().filter(|outcome| outcome.is_err()).count(), 1, "{outcomes:?}");
            // The other one has ended, or was told.
            let told = |outcome: &std::result::Result<Result<()>, &str>| match outcome {
                Ok(Err(error)) => matches!(error, Error::DeviceLost { .. }),
                Ok(Ok(())) | Err(_) => true,
            };
            assert!(outcomes.iter().all(told), "{outcomes:?}");
            let dead = |done: Result<()>| matches!(done, Err(Error::DeviceLost { .. }));
            let next = |session: &mut Session| session.generate(greedy(1))?.next().transpose().map(drop);
            assert!(dead(next(&mut first.session)) && dead(next(&mut second.session)));
            assert!(dead(engine.memory_bytes().map(drop)));
            let again = engine.reopen().expect("the same model on the same device");
            drop(engine);
            for talk in [first, second] {
                let mut talk = Talk { session: talk.session.on(&again).unwrap(), ..talk };
                talk.go_on().unwrap();
                assert_eq!(talk.found, want, "after {after}");
            }
        }
    }
}
