//! Single steps of a program: what they read, their launches, the host's part, and times by op.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::engine::programs::{Program, required};
use crate::error::Result;
use crate::plan::{Backend, Plan, Slot, Step};

/// Steps whose host time is taken.
const HOST_RUNS: usize = 5;
/// Steps whose ops are timed.
const PROFILE_RUNS: u32 = 3;

/// What the ops of one name took in a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// What some steps cost together.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Bytes read.
    pub bytes: f64,
    /// Launches.
    pub launches: f64,
    /// Seconds of the host.
    pub host: f64,
}

/// A step of a program, with all that it reads.
#[derive(Debug)]
pub struct Probe {
    program: Program,
    step: Step,
    inputs: Vec<(Slot, Vec<u32>)>,
    /// Steps that the host encodes together, 1 or more.
    burst: usize,
}

impl Probe {
    /// A step of `program`, before which `inputs` are written: the first words of each.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if the program has no such input.
    pub fn new(program: &Program, step: Step, inputs: Vec<(&str, Vec<u32>)>) -> Result<Self> {
        let slot = |(name, words)| Ok((required(program.plan.input(name), name)?, words));
        let inputs = inputs.into_iter().map(slot).collect::<Result<_>>()?;
        Ok(Probe { program: program.clone(), step, inputs, burst: 1 })
    }

    /// The step as one of `burst` that the host encodes together.
    pub fn in_burst(self, burst: usize) -> Self {
        Probe { burst: burst.max(1), ..self }
    }

    fn write(&self, backend: &mut dyn Backend) -> Result<()> {
        self.inputs.iter().try_for_each(|(slot, words)| backend.write(self.program.id, *slot, 0, words))
    }

    /// Bytes that each node reads.
    fn bytes(&self, backend: &dyn Backend) -> Vec<u64> {
        self.program.plan.bytes_read(&self.step, |w| backend.weight_bytes(&w.to_string()).unwrap_or(0))
    }

    /// What the step costs without the host's time.
    pub fn cost(&self, backend: &dyn Backend) -> Cost {
        let bytes = self.bytes(backend).iter().sum::<u64>() as f64;
        Cost { bytes, launches: backend.launches(self.program.id, &self.step) as f64, host: 0.0 }
    }

    /// Seconds to write the step's inputs, encode it and submit it, the median; 0 where the host computes itself.
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`] if the device was lost.
    pub fn host(&self, backend: &mut dyn Backend) -> Result<f64> {
        if backend.runs_at_once() {
            return Ok(0.0);
        }
        let (id, output) = (self.program.id, self.program.plan.outputs.values().next().copied());
        let step = Step { context: self.step.context.saturating_add(self.burst as u32 - 1), ..self.step };
        let mut times = Vec::new();
        for _ in 0..HOST_RUNS {
            let start = Instant::now();
            self.write(backend)?;
            match self.burst {
                1 => self.program.run(backend, &step)?,
                burst => backend.repeat(id, &step, 0..self.program.plan.nodes.len(), burst)?,
            }
            times.push(start.elapsed().as_secs_f64() / self.burst as f64);
            // Reading waits until all has run.
            output.map_or(Ok(()), |slot| backend.read(id, &[(slot, 0..1)]).map(|_| ()))?;
        }
        times.sort_by(f64::total_cmp);
        Ok(times[HOST_RUNS / 2])
    }

    /// Times by op, the largest first; the mean of a few steps.
    ///
    /// # Errors
    /// [`crate::Error::Unsupported`] on a GPU that cannot take times.
    pub fn profile(&self, backend: &mut dyn Backend) -> Result<Vec<OpTime>> {
        let plan = &self.program.plan;
        let mut times = vec![Duration::ZERO; plan.nodes.len()];
        for _ in 0..PROFILE_RUNS {
            // A step leaves the next one's rows behind.
            self.write(backend)?;
            let step = backend.profile(self.program.id, &self.step)?;
            times.iter_mut().zip(step).for_each(|(sum, time)| *sum += time / PROFILE_RUNS);
        }
        Ok(by_op(plan, &times, &self.bytes(backend)))
    }
}

impl Cost {
    /// Adds what `times` such steps cost.
    pub fn add(&mut self, step: Cost, times: f64) {
        self.bytes += times * step.bytes;
        self.launches += times * step.launches;
        self.host += times * step.host;
    }
}

/// Times of nodes, and the bytes that they read, by op, the largest time first.
fn by_op(plan: &Plan, times: &[Duration], bytes: &[u64]) -> Vec<OpTime> {
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
