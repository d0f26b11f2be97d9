//! Which tests run, and on which device.

use crate::engine::Engine;
use crate::engine::options::{DeviceOptions, ModelOptions, Options};
use crate::engine::recorded::MAX_SESSIONS;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::models::ModelInfo;
use crate::tools::bench::test::Test;

/// Default lengths of prompts.
const DEFAULT_PROMPTS: [usize; 2] = [96, 512];
/// Default number of generated tokens.
const DEFAULT_GENERATED: [usize; 1] = [64];

/// Maximum number of repetitions of a test.
const MAX_REPETITIONS: usize = 1000;

/// Which tests run, and on which device.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchOptions {
    /// The device.
    pub device: DeviceOptions,
    /// How the model's numbers are kept and computed.
    pub model: ModelOptions,
    /// Bytes that the model may hold of the device's memory ([`Options::max_memory`]); for models that chat.
    pub max_memory: Option<u64>,
    /// Lengths of prompts, in tokens; 0 for no such test. Default: 96 and 512, at most the model's positions.
    pub prompts: Option<Vec<usize>>,
    /// Numbers of generated tokens; 0 for no such test. Default: 64, at most the model's positions.
    pub generated: Option<Vec<usize>>,
    /// Tokens in the cache before each prompt and each generation.
    pub depths: Vec<usize>,
    /// Numbers of sessions that generate at the same time.
    pub sessions: Vec<usize>,
    /// Repetitions of each test, after a warm-up run that is not counted.
    pub repetitions: usize,
    /// Whether image tests run.
    pub image: bool,
    /// Whether a profile by op is taken.
    pub profile: bool,
}

impl Default for BenchOptions {
    fn default() -> Self {
        BenchOptions {
            device: DeviceOptions::default(),
            model: ModelOptions::default(),
            max_memory: None,
            prompts: None,
            generated: None,
            depths: vec![0],
            sessions: vec![1],
            repetitions: 5,
            image: false,
            profile: false,
        }
    }
}

impl BenchOptions {
    /// The tests of a model with `max_positions` positions, in the order in which they run (by sessions, then prompts, images,
    /// generations), and a sentence for each usual one that is left out because it does not fit.
    pub fn tests(&self, max_positions: usize) -> (Vec<Test>, Vec<String>) {
        // Each test takes one position for the token that follows what it reads.
        let max = max_positions.saturating_sub(1);
        let deepest = self.depths.iter().copied().max().unwrap_or(0);
        let max = max.saturating_sub(deepest);
        let prompts = Lengths::new(self.prompts.as_deref(), &DEFAULT_PROMPTS, max);
        let generated = Lengths::new(self.generated.as_deref(), &DEFAULT_GENERATED, max);
        let prompt = |tokens, depth| Test::Prompt { tokens, depth };
        let generate = |tokens, depth, sessions| Test::Generate { tokens, depth, sessions };
        let left_out = prompts.sentences(|tokens| prompt(tokens, deepest), max_positions);
        let left_out = [left_out, generated.sentences(|tokens| generate(tokens, deepest, 1), max_positions)].concat();
        let mut tests = Vec::new();
        for &depth in &self.depths {
            tests.extend(prompts.run.iter().map(|&tokens| prompt(tokens, depth)));
        }
        if self.image {
            tests.extend([Test::Image, Test::ImagePrompt { tokens: 32 }]);
        }
        let mut counts = self.sessions.clone();
        counts.sort_unstable();
        for &sessions in &counts {
            for &depth in &self.depths {
                tests.extend(generated.run.iter().map(|&tokens| generate(tokens, depth, sessions)));
            }
        }
        (tests, left_out)
    }

    /// Checks what can be checked without a model.
    ///
    /// # Errors
    /// [`Error::Argument`] with the range.
    pub fn validate(&self) -> Result<()> {
        let within = |name: &str, n: usize, min: usize, max: usize| {
            let problem = || Error::argument(name, format!("is {n}, expected {min}..={max}"));
            if (min..=max).contains(&n) { Ok(()) } else { Err(problem()) }
        };
        within("repetitions", self.repetitions, 1, MAX_REPETITIONS)?;
        let positions = 1 << 20;
        let lengths = [("prompts", self.prompts.as_deref()), ("generated", self.generated.as_deref())];
        for (name, given) in lengths.into_iter().chain([("depths", Some(self.depths.as_slice()))]) {
            given.unwrap_or_default().iter().try_for_each(|&n| within(name, n, 0, positions))?;
        }
        self.sessions.iter().try_for_each(|&n| within("sessions", n, 1, MAX_SESSIONS))?;
        if self.tests(usize::MAX).0.is_empty() {
            return Err(Error::argument("tests", "there are none to run"));
        }
        Ok(())
    }

    /// The tests, each of which the model can do, and what is left out; before its weights are loaded.
    pub(super) fn checked_tests(&self, info: &ModelInfo) -> Result<(Vec<Test>, Vec<String>)> {
        let (tests, left_out) = self.tests(info.max_positions);
        for test in &tests {
            let (needs, max) = (test.context(info)?, info.max_positions);
            if needs > max {
                let problem = format!("needs a context of {needs} tokens; the model has {max} positions");
                return Err(Error::argument(test, problem));
            }
        }
        Ok((tests, left_out))
    }

    /// Opens the model for some sessions of `context` tokens each.
    pub(super) fn engine(&self, files: &ModelFiles, sessions: usize, context: usize) -> Result<Engine> {
        let DeviceOptions { device, autotune, cache, threads, cpu_level } = self.device.clone();
        let ModelOptions { precision, kv, head, activations, hidden_act, batch_invariant } = self.model;
        let options = Options {
            device,
            autotune,
            cache,
            threads,
            cpu_level,
            precision,
            kv,
            head,
            activations,
            hidden_act,
            batch_invariant,
            context: Some(context),
            max_memory: self.max_memory,
            sessions,
            ..Options::default()
        };
        Engine::open(files, options)
    }
}

/// Lengths of tests of a kind.
struct Lengths {
    run: Vec<usize>,
    /// Usual ones that do not fit the model.
    left_out: Vec<usize>,
}

impl Lengths {
    /// The given lengths without zeros; if none are given the usual ones that are at most `max` or, where none is, `max`
    /// itself. If that is 0 the usual ones stay: the tests are then refused with what they need.
    fn new(given: Option<&[usize]>, usual: &[usize], max: usize) -> Self {
        if let Some(given) = given {
            return Lengths { run: given.iter().copied().filter(|&n| n > 0).collect(), left_out: Vec::new() };
        }
        let (mut run, left_out) = usual.iter().copied().partition::<Vec<usize>, _>(|&n| n <= max || max == 0);
        if run.is_empty() {
            run.push(max);
        }
        Lengths { run, left_out }
    }

    /// What is left out, and why.
    fn sentences(&self, test: impl Fn(usize) -> Test, max_positions: usize) -> Vec<String> {
        let say = |&n: &usize| format!("{} is left out: the model has {max_positions} positions", test(n));
        self.left_out.iter().map(say).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        let fails = |options: BenchOptions, name: &str| {
            let error = options.validate().unwrap_err().to_string();
            assert!(error.starts_with(name), "{error}");
        };
        let usual = BenchOptions::default;
        assert!(usual().validate().is_ok());
        fails(BenchOptions { prompts: Some(vec![8, 1 << 21]), ..usual() }, "prompts");
        fails(BenchOptions { sessions: vec![0], ..usual() }, "sessions");
        fails(BenchOptions { sessions: vec![1, 65], ..usual() }, "sessions");
        fails(BenchOptions { depths: vec![usize::MAX], ..usual() }, "depths");
        fails(BenchOptions { repetitions: 0, ..usual() }, "repetitions");
        fails(BenchOptions { prompts: Some(vec![0]), generated: Some(vec![0]), ..usual() }, "tests");
    }

    #[test]
    fn usual_lengths_that_do_not_fit_are_left_out_and_given_ones_are_not() {
        let names = |options: &BenchOptions, positions| {
            options.tests(positions).0.iter().map(Test::to_string).collect::<Vec<_>>().join(" ")
        };
        let usual = BenchOptions::default;
        assert_eq!(names(&usual(), 2048), "pp96 pp512 tg64");
        assert_eq!(names(&usual(), 256), "pp96 tg64");
        assert_eq!(names(&usual(), 40), "pp39 tg39");
        assert_eq!(names(&BenchOptions { depths: vec![0, 20], ..usual() }, 40), "pp19 pp19 @ d20 tg19 tg19 @ d20");
        assert_eq!(names(&BenchOptions { prompts: Some(vec![0]), ..usual() }, 256), "tg64");
        assert_eq!(names(&BenchOptions { generated: Some(vec![0]), ..usual() }, 256), "pp96");
        let given = BenchOptions { prompts: Some(vec![300]), generated: Some(vec![5]), ..usual() };
        assert_eq!(names(&given, 256), "pp300 tg5");
        assert!(given.tests(256).1.is_empty() && usual().tests(2048).1.is_empty());
        assert_eq!(usual().tests(256).1, ["pp512 is left out: the model has 256 positions"]);
        let deep = BenchOptions { depths: vec![0, 20], prompts: Some(vec![0]), ..usual() };
        assert_eq!(deep.tests(40).1, ["tg64 @ d20 is left out: the model has 40 positions"]);
    }
}
