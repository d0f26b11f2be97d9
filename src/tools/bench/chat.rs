//! Benchmarks of chat models.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use crate::engine::Engine;
use crate::engine::cache::SessionState;
use crate::engine::resident::Resident;
use crate::engine::runner::Runner;
use crate::error::Result;
use crate::files::ModelFiles;
use crate::models::{ModelInfo, slots};
use crate::ops::{Row, SAMPLE_PARAM_WORDS};
use crate::plan::{PagingStatistics, Step};
use crate::tools::bench::options::BenchOptions;
use crate::tools::bench::probe::{Cost, OpTime, Probe};
use crate::tools::bench::row::{Measured, Setup, TestNumbers, Unit};
use crate::tools::bench::run::Run;
use crate::tools::bench::sessions::TestSessions;
use crate::tools::bench::test::{Test, no_image};

/// Runs tests; the model is opened once for each number of sessions.
///
/// # Errors
/// As [`super::bench`].
pub fn measure(
    files: &ModelFiles,
    tests: &[Test],
    info: &ModelInfo,
    options: &BenchOptions,
    run: &mut Run,
) -> Result<ControlFlow<()>> {
    for group in tests.chunk_by(|a, b| a.sessions() == b.sessions()) {
        let contexts: Result<Vec<usize>> = group.iter().map(|t| t.context(info)).collect();
        let engine = options.engine(files, group[0].sessions(), contexts?.into_iter().max().unwrap_or(1))?;
        for &test in group {
            let mut sessions = TestSessions::new(&engine, test)?;
            let mut warm = None;
            let once = || {
                let time = sessions.run()?;
                if warm.is_none() {
                    warm = engine.paging()?;
                }
                Ok(time)
            };
            let ControlFlow::Continue(times) = run.repeat(&test.to_string(), once)? else {
                return Ok(ControlFlow::Break(()));
            };
            drop(sessions);
            let moved = engine.paging()?.zip(warm).map(|(now, warm)| now.since(&warm));
            if run.row(measured(&engine, test, (times, moved), options, run.model)?).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn measured(
    engine: &Engine,
    test: Test,
    (times, moved): (Vec<f64>, Option<PagingStatistics>),
    options: &BenchOptions,
    model: (&str, u64),
) -> Result<Measured> {
    let probes = Probes::new(engine)?;
    let (cost, profile) = (probes.cost(test)?, if options.profile { probes.profile(test)? } else { Vec::new() });
    let runner = engine.resident().runner()?;
    let setup = Setup::new(model, engine.report(), runner.backend.as_ref(), Some(&options.model));
    let counts = match test {
        Test::Prompt { .. } | Test::ImagePrompt { .. } => Unit::Read,
        Test::Generate { .. } => Unit::Generated,
        Test::Image => Unit::Images,
    };
    Ok(Measured {
        test: test.to_string(),
        numbers: TestNumbers { context: Some(engine.context() as u64), ..test.numbers() },
        times,
        tokens: test.tokens(engine.info()),
        counts,
        setup,
        device_bytes: runner.backend.memory(),
        paging: (options.max_memory, moved),
        cost,
        profile,
    })
}

/// Some rows of each of several sequences.
#[derive(Debug, Clone, Copy)]
struct Shape {
    sequences: usize,
    /// Rows of each sequence.
    rows: usize,
    /// Tokens that the last row attends to.
    context: usize,
    /// Whether the last row's logits are wanted.
    ends: bool,
}

/// The steps of a prompt of `tokens` tokens behind `depth` others, of at most `max_rows` rows each.
fn pieces(tokens: usize, depth: usize, max_rows: usize) -> Vec<Shape> {
    let piece = |done: usize| {
        let rows = (tokens - done).min(max_rows);
        Shape { sequences: 1, rows, context: depth + done + rows, ends: done + rows == tokens }
    };
    (0..tokens).step_by(max_rows.max(1)).map(piece).collect()
}

/// The steps of a generation: all like the one in its middle.
fn middle(tokens: usize, depth: usize, sessions: usize) -> Shape {
    Shape { sequences: sessions, rows: 1, context: depth + 1 + tokens / 2, ends: true }
}

/// The steps of tests on an engine.
struct Probes<'a> {
    resident: &'a Resident,
    info: &'a ModelInfo,
    max_rows: usize,
}

impl<'a> Probes<'a> {
    fn new(engine: &'a Engine) -> Result<Self> {
        let resident = engine.resident();
        Ok(Probes { resident, info: engine.info(), max_rows: resident.runner()?.bounds().max_rows })
    }

    /// What one repetition of a test costs. Of pieces of a prompt with equally many rows, the host's time is taken once.
    fn cost(&self, test: Test) -> Result<Cost> {
        let (mut cost, mut hosts) = (Cost::default(), BTreeMap::new());
        if matches!(test, Test::Image | Test::ImagePrompt { .. }) {
            cost.add(self.image(step_cost)?, 1.0);
        }
        match test {
            Test::Image => {}
            Test::Generate { tokens, depth, sessions } => {
                // From the middle, this many steps are left.
                let left = (tokens / 2).max(1);
                let shape = middle(tokens, depth, sessions);
                cost.add(self.text(shape, left, step_cost)?, tokens as f64);
            }
            Test::Prompt { .. } | Test::ImagePrompt { .. } => {
                let (tokens, depth) = match test {
                    Test::Prompt { tokens, depth } => (tokens, depth),
                    _ => (test.tokens(self.info), 0),
                };
                for shape in pieces(tokens, depth, self.max_rows) {
                    let known = hosts.get(&shape.rows).copied();
                    let piece = self.text(shape, 1, |probe, runner| match known {
                        Some(host) => Ok(Cost { host, ..probe.cost(runner.backend.as_ref()) }),
                        None => step_cost(probe, runner),
                    })?;
                    hosts.insert(shape.rows, piece.host);
                    cost.add(piece, 1.0);
                }
            }
        }
        Ok(cost)
    }

    /// Times by op of a step that stands for the test: the largest piece of a prompt, the middle of a generation, an image.
    fn profile(&self, test: Test) -> Result<Vec<OpTime>> {
        let profile = |probe: &Probe, runner: &mut Runner| probe.profile(runner.backend.as_mut());
        match test {
            Test::Image | Test::ImagePrompt { .. } => self.image(profile),
            Test::Prompt { tokens, depth } => {
                let (rows, context) = (tokens.min(self.max_rows), depth + tokens);
                self.text(Shape { sequences: 1, rows, context, ends: true }, 1, profile)
            }
            Test::Generate { tokens, depth, sessions } => self.text(middle(tokens, depth, sessions), 1, profile),
        }
    }

    /// Lets `look` run a step of text, as one of those that the engine runs together where `left` are to come.
    fn text<R>(&self, shape: Shape, left: usize, look: impl FnOnce(&Probe, &mut Runner) -> Result<R>) -> Result<R> {
        // Rows of the cache that no session may have meanwhile.
        let kv: Result<Vec<SessionState>> = (0..shape.sequences).map(|_| self.resident.states.take()).collect();
        let kv = kv?;
        // Those of the burst too.
        let last = (shape.context + left).min(self.resident.states.context());
        self.resident.reserve(&kv.iter().map(|kv| (kv.slot(), last)).collect::<Vec<_>>())?;
        let mut runner = self.resident.runner()?;
        let base = |s: usize| self.resident.states.range(kv[s].slot()).start as u32;
        let row = |s: usize, i: usize| {
            let (pos, token) = ((shape.context - shape.rows + i) as u32, (7919 * (s + i) + 5) % self.info.vocab);
            Row { token: token as u32, pos, seq_base: base(s), seq_len: pos + 1 }
        };
        let rows: Vec<Row> = (0..kv.len()).flat_map(|s| (0..shape.rows).map(move |i| row(s, i))).collect();
        let ends: Vec<u32> = (1..=kv.len()).filter(|_| shape.ends).map(|s| (s * shape.rows - 1) as u32).collect();
        let step = Step::new(rows.len(), ends.len(), shape.context);
        let (program, burst) = runner.text_program([rows.len(), ends.len()], left)?;
        // Zeros choose the most likely token.
        let params = vec![0; ends.len() * SAMPLE_PARAM_WORDS];
        let rows = bytemuck::cast_slice(&rows).to_vec();
        let inputs = vec![(slots::ROWS, rows), (slots::OUTPUTS, ends), (slots::SAMPLE_PARAMS, params)];
        let found = Probe::new(&program, step, inputs)?.in_burst(burst);
        let found = look(&found, &mut runner);
        runner.inputs_changed();
        found
    }

    /// Lets `look` run a step that encodes a black image.
    fn image<R>(&self, look: impl FnOnce(&Probe, &mut Runner) -> Result<R>) -> Result<R> {
        let mut runner = self.resident.runner()?;
        let program = self.resident.image.clone().ok_or_else(no_image)?;
        let words = program.plan.input(slots::PIXELS).map_or(0, |slot| program.plan.spec(slot).words());
        look(&Probe::new(&program, Step::FULL, vec![(slots::PIXELS, vec![0; words])])?, &mut runner)
    }
}

fn step_cost(probe: &Probe, runner: &mut Runner) -> Result<Cost> {
    let host = probe.host(runner.backend.as_mut())?;
    Ok(Cost { host, ..probe.cost(runner.backend.as_ref()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_cut_into_pieces_and_the_last_one_ends_it() {
        let all: Vec<_> = pieces(150, 0, 64).iter().map(|s| (s.rows, s.context, s.ends)).collect();
        assert_eq!(all, [(64, 64, false), (64, 128, false), (22, 150, true)]);
        assert_eq!(pieces(1, 0, 64).len(), 1);
        let deep: Vec<_> = pieces(70, 1000, 64).iter().map(|s| (s.rows, s.context, s.ends)).collect();
        assert_eq!(deep, [(64, 1064, false), (6, 1070, true)]);
    }
}
