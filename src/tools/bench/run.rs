//! A run of tests: what its caller sees of it, and how the caller stops it.

use std::ops::ControlFlow;
use std::time::Duration;

use crate::engine::Progress;
use crate::error::Result;
use crate::tools::bench::bandwidth::bandwidth;
use crate::tools::bench::machine::{Machine, forget_peak};
use crate::tools::bench::options::BenchOptions;
use crate::tools::bench::row::{BenchRow, Measured};

/// A device whose bandwidth changes by more than this share within a run, or its machine, did something else meanwhile.
const MOVED: f64 = 0.1;

/// What a run reports while it goes on. A callback that breaks ends it.
#[derive(Debug)]
#[non_exhaustive]
pub enum BenchEvent<'a> {
    /// Which tests will run, and a sentence for each usual one that does not fit the model; once, before anything is loaded.
    Tests {
        /// Names of the tests.
        tests: &'a [String],
        /// What is left out, and why.
        left_out: &'a [String],
    },
    /// How far the run is.
    Progress(Progress),
    /// A test has ended.
    Row(&'a BenchRow),
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq)]
pub struct BenchRun {
    /// A row for each test that has ended.
    pub rows: Vec<BenchRow>,
    /// The device's bandwidth behind the last test, in bytes per second; none if the run was stopped.
    pub bandwidth_after: Option<f64>,
    /// Whether the callback ended it.
    pub stopped: bool,
}

impl BenchRun {
    /// The device's bandwidth before the run and behind it, where they differ by more than a quiet machine's do: a tenth.
    pub fn moved(&self) -> Option<[f64; 2]> {
        let (before, after) = (self.rows.first()?.bandwidth, self.bandwidth_after?);
        ((after / before - 1.0).abs() > MOVED).then_some([before, after])
    }
}

/// A run that goes on.
pub(super) struct Run<'a> {
    watch: &'a mut dyn FnMut(BenchEvent) -> ControlFlow<()>,
    /// Name and parameters of the model.
    pub model: (&'a str, u64),
    options: &'a BenchOptions,
    tests: &'a [String],
    machine: Machine,
    bandwidth: f64,
    done: usize,
    rows: Vec<BenchRow>,
    stopped: bool,
}

impl<'a> Run<'a> {
    /// A run of these tests, each of which has a warm-up and the repetitions of the options.
    pub fn new(
        model: (&'a str, u64),
        options: &'a BenchOptions,
        tests: &'a [String],
        watch: &'a mut dyn FnMut(BenchEvent) -> ControlFlow<()>,
    ) -> Self {
        let (machine, rows) = (Machine::this(), Vec::new());
        Run { watch, model, options, tests, machine, bandwidth: 0.0, done: 0, rows, stopped: false }
    }

    fn tell(&mut self, event: BenchEvent) -> ControlFlow<()> {
        let flow = (self.watch)(event);
        self.stopped |= flow.is_break();
        flow
    }

    /// Says which tests run, and which ones were left out.
    pub fn tests(&mut self, left_out: &[String]) {
        // A break here counts at the first step.
        let _ = self.tell(BenchEvent::Tests { tests: self.tests, left_out });
    }

    /// Says what is done next, which is a step of the run.
    fn step(&mut self, what: &str) -> ControlFlow<()> {
        if self.stopped {
            return ControlFlow::Break(());
        }
        let total = self.tests.len() * (self.options.repetitions + 1) + 2;
        let progress = Progress { done: self.done, total, what: what.to_owned() };
        self.done += 1;
        self.tell(BenchEvent::Progress(progress))
    }

    /// Runs a test once for warming up and then as often as the options say; the seconds of each repetition.
    ///
    /// # Errors
    /// Those of `once`.
    pub fn repeat(
        &mut self,
        test: &str,
        mut once: impl FnMut() -> Result<Duration>,
    ) -> Result<ControlFlow<(), Vec<f64>>> {
        let mut times = Vec::with_capacity(self.options.repetitions);
        for i in 0..=self.options.repetitions {
            if self.step(test).is_break() {
                return Ok(ControlFlow::Break(()));
            }
            let time = once()?.as_secs_f64();
            if i > 0 {
                times.push(time);
            }
        }
        Ok(ControlFlow::Continue(times))
    }

    /// Hands out what a test gave.
    pub fn row(&mut self, measured: Measured) -> ControlFlow<()> {
        let row = measured.row(&self.machine, self.bandwidth);
        let flow = self.tell(BenchEvent::Row(&row));
        self.rows.push(row);
        flow
    }

    /// Measures the bandwidth, runs the tests by `tests`, and measures the bandwidth again.
    ///
    /// # Errors
    /// Those of the bandwidth and of `tests`.
    pub fn measure(mut self, tests: impl FnOnce(&mut Self) -> Result<ControlFlow<()>>) -> Result<BenchRun> {
        let mut bandwidth_after = None;
        if self.step("bandwidth").is_continue() {
            self.bandwidth = bandwidth(&self.options.device)?;
            // What it read was in memory, too.
            forget_peak();
            if tests(&mut self)?.is_continue() && self.step("bandwidth").is_continue() {
                bandwidth_after = Some(bandwidth(&self.options.device)?);
            }
        }
        Ok(BenchRun { rows: self.rows, bandwidth_after, stopped: self.stopped })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_says_each_step_and_stops_where_its_caller_breaks() {
        let options = BenchOptions { repetitions: 3, ..BenchOptions::default() };
        let tests = ["a".to_owned(), "b".to_owned()];
        for (stop_at, samples) in [(100, Some(3)), (2, None)] {
            let mut seen = Vec::new();
            let mut watch = |event: BenchEvent| {
                if let BenchEvent::Progress(p) = event {
                    seen.push((p.done, p.total, p.what));
                }
                if seen.len() > stop_at { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            let mut run = Run::new(("model", 1), &options, &tests, &mut watch);
            let mut ran = 0;
            let once = || {
                ran += 1;
                Ok(Duration::from_secs(ran))
            };
            let times = run.repeat("a", once).unwrap();
            // The warm-up's second does not count.
            assert_eq!(times.continue_value(), samples.map(|_| vec![2.0, 3.0, 4.0]));
            assert_eq!((run.stopped, run.step("b").is_break()), (samples.is_none(), samples.is_none()));
            assert_eq!(ran, if samples.is_some() { 4 } else { 2 });
            assert_eq!(seen[1], (1, 2 * 4 + 2, "a".to_owned()));
        }
    }
}
