//! Single steps as the engine runs them: what they read, their launches, the host's part, and times by op.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::engine::Engine;
use crate::engine::cache::KvRange;
use crate::engine::programs::{Program, required};
use crate::engine::resident::Resident;
use crate::engine::runner::Runner;
use crate::error::Result;
use crate::models::slots;
use crate::ops::{DRAW_WORDS, Row};
use crate::plan::{Plan, ProgramId, Slot, Step};
use crate::tools::bench::test::{Test, image, no_image};

/// Steps whose host time is taken.
pub const HOST_RUNS: usize = 5;
/// Steps whose ops are timed.
pub const PROFILE_RUNS: u32 = 3;

/// What the ops of one name took in a step.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct OpTime {
    /// The op's name.
    pub op: String,
    /// Launches.
    pub launches: usize,
    /// Microseconds of all launches together.
    pub us: f64,
    /// Bytes that they read ([`crate::plan::Op::bytes_read`]), in 10⁹ a second.
    pub gb_per_s: f64,
    /// Their part of the step's time.
    pub share: f64,
}

/// What one repetition of a test costs, all steps together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Bytes read.
    pub bytes: f64,
    /// Launches.
    pub launches: f64,
    /// Seconds of the host.
    pub host: f64,
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

/// A step with everything written that it reads.
pub struct Probe<'a> {
    runner: MutexGuard<'a, Runner>,
    program: ProgramId,
    plan: Arc<Plan>,
    step: Step,
    inputs: Vec<(Slot, Vec<u32>)>,
    /// Rows of the cache that no session may have meanwhile.
    _kv: Vec<KvRange>,
}

/// The steps of a prompt of `tokens` tokens behind `before` others.
fn pieces(before: usize, tokens: usize, most: usize) -> Vec<Shape> {
    let piece = |done: usize| {
        let rows = (tokens - done).min(most);
        Shape { sequences: 1, rows, context: before + done + rows, ends: done + rows == tokens }
    };
    (0..tokens).step_by(most.max(1)).map(piece).collect()
}

/// The steps of a generation: all like the one in its middle.
fn middle(tokens: usize, depth: usize, sessions: usize) -> Shape {
    Shape { sequences: sessions, rows: 1, context: depth + 1 + tokens / 2, ends: true }
}

/// What one repetition of a test costs. Of pieces of a prompt with equally many rows, the host's time is taken once.
///
/// # Errors
/// [`crate::Error::Device`] if the device was lost.
pub fn cost(engine: &Engine, test: Test) -> Result<Cost> {
    let resident = engine.resident();
    let mut cost = Cost::default();
    let most = resident.runner()?.bounds().max_rows;
    let with_image = matches!(test, Test::Image | Test::ImagePrompt { .. });
    if with_image {
        cost.add(&mut Probe::image(resident)?, 1.0, 1)?;
    }
    let image = if with_image { image(engine.info())?.tokens } else { 0 };
    let steps = match test {
        Test::Image => Vec::new(),
        Test::Prompt { tokens } | Test::ImagePrompt { tokens } => pieces(0, image + tokens, most),
        Test::Generate { tokens, depth, sessions } => {
            // From the middle, so many steps are left.
            let most = (tokens / 2).max(1);
            cost.add(&mut Probe::text(resident, middle(tokens, depth, sessions))?, tokens as f64, most)?;
            Vec::new()
        }
    };
    let mut host = BTreeMap::new();
    for shape in steps {
        let mut probe = Probe::text(resident, shape)?;
        let host = match host.entry(shape.rows) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(place) => *place.insert(probe.host(1)?),
        };
        cost.bytes += probe.bytes().iter().sum::<u64>() as f64;
        cost.launches += probe.launches() as f64;
        cost.host += host.as_secs_f64();
    }
    Ok(cost)
}

impl Cost {
    fn add(&mut self, probe: &mut Probe, times: f64, most: usize) -> Result<()> {
        self.bytes += times * probe.bytes().iter().sum::<u64>() as f64;
        self.launches += times * probe.launches() as f64;
        self.host += times * probe.host(most)?.as_secs_f64();
        Ok(())
    }
}

impl<'a> Probe<'a> {
    /// A step that stands for the test: the largest piece of a prompt, the middle of a generation, an image.
    ///
    /// # Errors
    /// [`crate::Error::Limit`] if every session is open.
    pub fn of(engine: &'a Engine, test: Test) -> Result<Self> {
        let (resident, most) = (engine.resident(), engine.resident().runner()?.bounds().max_rows);
        match test {
            Test::Image | Test::ImagePrompt { .. } => Self::image(resident),
            Test::Prompt { tokens } => {
                let context = tokens;
                Self::text(resident, Shape { sequences: 1, rows: tokens.min(most), context, ends: true })
            }
            Test::Generate { tokens, depth, sessions } => Self::text(resident, middle(tokens, depth, sessions)),
        }
    }

    fn text(resident: &'a Resident, shape: Shape) -> Result<Self> {
        let kv: Result<Vec<KvRange>> = (0..shape.sequences).map(|_| resident.kv.take()).collect();
        let (kv, mut runner) = (kv?, resident.runner()?);
        let vocab = resident.model.info().vocab;
        let row = |s: usize, i: usize| {
            let (pos, token) = ((shape.context - shape.rows + i) as u32, (7919 * (s + i) + 5) % vocab);
            Row { token: token as u32, pos, seq_base: kv[s].base() as u32, seq_len: pos + 1 }
        };
        let rows: Vec<Row> = (0..kv.len()).flat_map(|s| (0..shape.rows).map(move |i| row(s, i))).collect();
        let ends: Vec<u32> = (1..=kv.len()).filter(|_| shape.ends).map(|s| (s * shape.rows - 1) as u32).collect();
        let step =
            Step { rows: rows.len() as u32, outputs: ends.len() as u32, context: shape.context as u32, reserved: 0 };
        let (program, _) = runner.text_program([rows.len(), ends.len()], 1)?;
        let plan = program.plan;
        let input = |name: &str| required(plan.input(name), name);
        // Zeros choose the most likely token.
        let draws = vec![0; ends.len() * DRAW_WORDS];
        let rows = (input(slots::ROWS)?, bytemuck::cast_slice(&rows).to_vec());
        let inputs = vec![rows, (input(slots::OUTPUTS)?, ends), (input(slots::DRAWS)?, draws)];
        Self { runner, program: program.id, plan, step, inputs, _kv: kv }.written()
    }

    fn image(resident: &'a Resident) -> Result<Self> {
        let runner = resident.runner()?;
        let Program { id: program, plan } = runner.image_program().ok_or_else(no_image)?.clone();
        let pixels = required(plan.input(slots::PIXELS), slots::PIXELS)?;
        let inputs = vec![(pixels, vec![0; plan.spec(pixels).words()])];
        Self { runner, program, plan, step: Step::FULL, inputs, _kv: Vec::new() }.written()
    }

    fn written(mut self) -> Result<Self> {
        self.write()?;
        Ok(self)
    }

    fn write(&mut self) -> Result<()> {
        for (slot, words) in &self.inputs {
            self.runner.backend.write(self.program, *slot, 0, words)?;
        }
        self.runner.inputs_changed();
        Ok(())
    }

    /// Bytes that each node reads.
    fn bytes(&self) -> Vec<u64> {
        self.plan.bytes_read(&self.step, |w| self.runner.backend.weight_bytes(&w.to_string()).unwrap_or(0))
    }

    fn launches(&self) -> usize {
        self.runner.backend.launches(self.program, &self.step)
    }

    /// Time of a step to write the inputs, encode and submit, the median; none where the host computes itself. As many steps
    /// as the engine lets run without the host, `most` at most, are encoded together.
    fn host(&mut self, most: usize) -> Result<Duration> {
        if self.runner.backend.runs_at_once() {
            return Ok(Duration::ZERO);
        }
        let steps = self.burst_len(most)?;
        let step = Step { context: self.step.context + steps as u32 - 1, ..self.step };
        let mut times = Vec::new();
        for _ in 0..HOST_RUNS {
            let start = Instant::now();
            self.write()?;
            match steps {
                1 => self.runner.backend.run(self.program, &step, 0..self.plan.nodes.len())?,
                _ => self.runner.backend.repeat(self.program, &step, steps)?,
            }
            times.push(start.elapsed() / steps as u32);
            self.wait()?;
        }
        times.sort();
        Ok(times[HOST_RUNS / 2])
    }

    /// How many steps the engine runs without the host where `most` are to come.
    fn burst_len(&mut self, most: usize) -> Result<usize> {
        if self.step == Step::FULL {
            return Ok(1);
        }
        let sizes = [self.step.rows as usize, self.step.outputs as usize];
        Ok(self.runner.text_program(sizes, most)?.1)
    }

    /// Waits until all has run.
    fn wait(&mut self) -> Result<()> {
        let output = self.plan.outputs.values().next().copied();
        output.map_or(Ok(()), |slot| self.runner.backend.read(self.program, &[(slot, 0..1)]).map(|_| ()))
    }

    /// Times by op, the largest first; the mean of a few steps.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] on a GPU that cannot take times.
    pub fn profile(&mut self) -> Result<Vec<OpTime>> {
        let mut times = vec![Duration::ZERO; self.plan.nodes.len()];
        for _ in 0..PROFILE_RUNS {
            // A step leaves the next one's rows behind.
            self.write()?;
            let step = self.runner.backend.profile(self.program, &self.step)?;
            times.iter_mut().zip(step).for_each(|(sum, time)| *sum += time / PROFILE_RUNS);
        }
        Ok(by_op(&self.plan, &times, &self.bytes()))
    }
}

/// Times of nodes, and the bytes that they read, by op, the largest time first.
pub fn by_op(plan: &Plan, times: &[Duration], bytes: &[u64]) -> Vec<OpTime> {
    let total: f64 = times.iter().map(Duration::as_secs_f64).sum();
    let mut by_op: BTreeMap<&str, (usize, f64, u64)> = BTreeMap::new();
    for ((node, time), bytes) in plan.nodes.iter().zip(times).zip(bytes) {
        let sum = by_op.entry(node.op.name()).or_default();
        *sum = (sum.0 + usize::from(!time.is_zero()), sum.1 + time.as_secs_f64(), sum.2 + bytes);
    }
    let time = |(op, (launches, seconds, bytes)): (&str, (usize, f64, u64))| OpTime {
        op: op.to_owned(),
        launches,
        us: 1e6 * seconds,
        gb_per_s: if seconds > 0.0 { 1e-9 * bytes as f64 / seconds } else { 0.0 },
        share: if total > 0.0 { seconds / total } else { 0.0 },
    };
    let mut all: Vec<OpTime> = by_op.into_iter().map(time).collect();
    all.sort_by(|a, b| b.us.total_cmp(&a.us));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_is_cut_into_pieces_and_the_last_one_ends_it() {
        let all: Vec<_> = pieces(0, 150, 64).iter().map(|s| (s.rows, s.context, s.ends)).collect();
        assert_eq!(all, [(64, 64, false), (64, 128, false), (22, 150, true)]);
        assert_eq!(pieces(0, 1, 64).len(), 1);
    }
}
