//! What is timed: for each op and bucket of shapes, one node of the model's own plans, on the weights that are resident.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::models::slots;
use crate::plan::{Backend, Choices, Plan, ProgramId, SlotKind, Step, Variant};
use crate::tensor::DType;

/// Maximum number of rows of a step; in a longer prompt each row takes as long.
const MAX_ROWS: usize = 64;
/// Rows up to which a step decodes sessions; more are a prompt's.
const DECODE_ROWS: usize = 8;
/// Context of a row that is decoded.
const CONTEXT: usize = 512;
/// Approximate length of a series of runs, and maximum number of runs in one.
const SERIES: (Duration, usize) = (Duration::from_millis(3), 64);
/// Series; the fastest counts.
const ROUNDS: usize = 4;

/// A node with more than one variant.
#[derive(Debug)]
pub struct Probe {
    /// Its op.
    pub op: &'static str,
    /// The bucket of its shapes.
    pub bucket: String,
    /// Names of the variants, the usual one first.
    pub variants: Vec<String>,
    plan: Arc<Plan>,
    node: usize,
    step: Step,
    /// Bytes that all nodes of its op and bucket read for a row.
    bytes: u64,
}

/// The probes of some plans, each op and bucket once; those first whose nodes read the most bytes per row.
pub fn probes(backend: &dyn Backend, plans: &[Arc<Plan>]) -> Vec<Probe> {
    let (caps, mut all) = (backend.caps(), BTreeMap::<(&'static str, String), Probe>::new());
    for plan in plans {
        let step = step(plan);
        let read = plan.bytes_read(&step, |weight| backend.weight_bytes(&weight.to_string()).unwrap_or(0));
        for (i, (node, bytes)) in plan.nodes.iter().zip(read).enumerate() {
            let (bucket, variants) = plan.variants(node, &caps);
            let variants: Vec<String> = variants.all().map(|v: &Variant| v.name.clone()).collect();
            if variants.len() == 1 {
                continue;
            }
            let bytes = bytes / u64::from(step.rows.clamp(1, MAX_ROWS as u32));
            let (op, found) = (node.op.name(), all.get_mut(&(node.op.name(), bucket.clone())));
            match found {
                Some(probe) => probe.bytes += bytes,
                None => {
                    let key = (op, bucket.clone());
                    all.insert(key, Probe { op, bucket, variants, plan: plan.clone(), node: i, step, bytes });
                }
            }
        }
    }
    let mut all: Vec<Probe> = all.into_values().collect();
    all.sort_by_key(|probe| std::cmp::Reverse(probe.bytes));
    all
}

/// A step that fills a plan, up to [`MAX_ROWS`].
fn step(plan: &Plan) -> Step {
    match plan.input(slots::ROWS) {
        None => Step::FULL,
        Some(rows) => {
            let n = plan.spec(rows).shape[0].min(MAX_ROWS);
            Step::new(n, n, if n <= DECODE_ROWS { CONTEXT } else { n })
        }
    }
}

/// The rows of that step, all of the first sequence: they are decoded side by side, or follow each other in a prompt.
fn rows(step: &Step) -> Vec<u32> {
    let row = |i| match step.context as usize {
        CONTEXT => [0, CONTEXT as u32 - 1, 0, CONTEXT as u32],
        _ => [0, i, 0, i + 1],
    };
    (0..step.rows).flat_map(row).collect()
}

impl Probe {
    /// The time of a run of the node with this variant.
    ///
    /// It leaves rows in the KV cache, as a session that has ended does.
    ///
    /// # Errors
    /// Those of [`Backend::prepare`] and [`Backend::run`]: a driver may not take a variant.
    pub fn time(&self, backend: &mut dyn Backend, variant: &str) -> Result<Duration> {
        let mut choices = Choices::default();
        choices.set(self.op, &self.bucket, variant);
        backend.choose(choices);
        let program = backend.prepare(self.plan.clone(), false)?;
        let time = self.time_of(backend, program);
        backend.release(program);
        time
    }

    fn time_of(&self, backend: &mut dyn Backend, program: ProgramId) -> Result<Duration> {
        let node = &self.plan.nodes[self.node];
        if let Some(slot) = self.plan.input(slots::ROWS) {
            backend.write(program, slot, 0, &rows(&self.step))?;
        }
        // The values of numbers do not change the time, but expert ids must be valid.
        let chosen = |slot| {
            let slot = self.plan.slot(slot);
            matches!(slot.kind, SlotKind::Temp) && slot.spec.dtype == DType::U32
        };
        if node.inputs.iter().any(|&slot| chosen(slot)) {
            backend.run(program, &self.step, 0..self.node)?;
        }
        let mut series = |times: usize| -> Result<Duration> {
            let start = Instant::now();
            backend.repeat(program, &self.step, self.node..self.node + 1, times)?;
            backend.read(program, &[(node.outputs[0], 0..1)])?;
            Ok(start.elapsed() / times as u32)
        };
        series(1)?;
        let times = (SERIES.0.as_nanos() / series(1)?.as_nanos().max(1)).clamp(1, SERIES.1 as u128) as usize;
        let mut best = Duration::MAX;
        for _ in 0..ROUNDS {
            best = best.min(series(times)?);
        }
        Ok(best)
    }
}
