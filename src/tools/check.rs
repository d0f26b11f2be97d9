//! Compares two backends node by node: where do they differ, and by how much?
//!
//! The reference is the CPU by the plain definitions. Before each node the other backend gets the reference's words, so
//! an error is the node's own and never one that it inherits.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::alloc::room;
use crate::cpu::Cpu;
use crate::engine::open::{Opening, Progress, proceed};
use crate::engine::options::{DeviceOptions, KvPrecision, LmHead, ModelOptions};
use crate::engine::sampler::uniform;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::models;
use crate::models::{CheckStep, slots};
use crate::plan::{Backend, Plan, ProgramId, Slot, SlotKind, Step};
use crate::tensor::{DType, Pack, Spec};
pub use crate::tools::tolerance::Divergence;
use crate::tools::tolerance::judge;

/// What is compared, and the tolerance.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckOptions {
    /// The backend that is checked against the plain CPU.
    pub device: DeviceOptions,
    /// How the model's numbers are kept and computed, on both.
    pub model: ModelOptions,
    /// Largest error of f32 results, relative to the largest magnitude of a slot.
    pub tolerance: f32,
}

impl Default for CheckOptions {
    fn default() -> Self {
        CheckOptions { device: DeviceOptions::default(), model: ModelOptions::default(), tolerance: 1e-4 }
    }
}

/// The result of a check.
#[derive(Debug, Clone)]
pub struct CheckReport {
    /// The device that was checked.
    pub device: String,
    /// Why it was taken.
    pub why: String,
    /// One line per op, by name.
    pub ops: Vec<OpReport>,
    /// Nodes that were compared.
    pub nodes: usize,
    /// Nodes with an output beyond its tolerance.
    pub divergences: usize,
    /// The first of them.
    pub first: Option<Divergence>,
}

/// The largest error of an op.
#[derive(Debug, Clone, PartialEq)]
pub struct OpReport {
    /// The op.
    pub op: &'static str,
    /// Nodes that apply it.
    pub nodes: usize,
    /// Its largest error: relative for numbers, the share that differs for codes and numbers of tokens or experts.
    pub worst: f32,
    /// The node with that error.
    pub at: String,
    /// Nodes beyond the tolerance.
    pub divergences: usize,
}

/// Runs a model on the plain CPU and on a device and compares every node of its check steps ([`models::Model::check_steps`]).
/// Inputs that these leave open and the KV cache are noise that is equal in every run.
///
/// # Errors
/// Those of opening the model and the device, [`Error::Argument`] for a head or a cache that the model does not have; a divergence is not an
/// error but a part of the result.
pub fn check(
    files: impl Into<ModelFiles>,
    options: &CheckOptions,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<CheckReport> {
    if options.model.batch_invariant {
        let problem = "is for sessions; a check runs steps of few rows and of many, each with its own kernels";
        return Err(Error::argument("batch-invariant", problem));
    }
    let opening = Opening::new(files.into(), &options.device, options.model)?;
    let model = models::open(opening.files.clone(), &opening.weights, opening.load)?;
    let check_steps = model.check_steps(options.model.kv.dtype(opening.precision))?;
    let stages: Vec<Stage> = check_steps.into_iter().map(Stage::from).collect();
    let int8 = |stage: &Stage| stage.plan.weights().any(|(weight, _)| weight.pack == Pack::Int8);
    if options.model.head == LmHead::Int8 && !stages.iter().any(int8) {
        let problem = format!("is int8, but {} gives its logits by a ternary matrix", model.family().name);
        return Err(Error::argument("head", problem));
    }
    let cache = |stage: &Stage| stage.plan.state(&slots::kv(0)[0]).is_some();
    if options.model.kv == KvPrecision::Int8 && !stages.iter().any(cache) {
        let problem = format!("is int8, but {} has no cache of keys and values", model.family().name);
        return Err(Error::argument("kv", problem));
    }
    let mut plain = Cpu::plain();
    let also = |name: &str, words: &[u32]| {
        let mut copy = room(name, words.len())?;
        copy.extend_from_slice(words);
        plain.load_weight(name, copy)
    };
    let plans: Vec<Arc<Plan>> = stages.iter().map(|s| s.plan.clone()).collect();
    let head = opening.load.head.dtype();
    let (backend, report) = opening.load(&plans, head, also, &mut progress)?.finish();

    let mut pair = Pair { plain, backend, tolerance: options.tolerance, ops: BTreeMap::new(), first: None };
    let total = stages.iter().map(|s| s.plan.nodes.len()).sum();
    let mut done = 0;
    for stage in &stages {
        let at = |node| Progress { done: done + node, total, what: stage.name.to_owned() };
        pair.run(stage, |node| proceed(progress(at(node))))?;
        done += stage.plan.nodes.len();
    }
    let ops: Vec<OpReport> = pair.ops.into_values().collect();
    let divergences = ops.iter().map(|op| op.divergences).sum();
    Ok(CheckReport { device: report.device, why: report.why, ops, nodes: total, divergences, first: pair.first })
}

/// A check step whose plan backends can share.
struct Stage {
    name: &'static str,
    plan: Arc<Plan>,
    step: Step,
    inputs: Vec<(&'static str, Vec<u32>)>,
}

impl From<CheckStep> for Stage {
    fn from(CheckStep { name, plan, step, inputs }: CheckStep) -> Self {
        Stage { name, plan: Arc::new(plan), step, inputs }
    }
}

impl Stage {
    /// Words of an input or state before the stage, where it is not zero.
    fn words(&self, kind: &SlotKind, spec: &Spec, number: usize) -> Option<Vec<u32>> {
        let given = match kind {
            SlotKind::Input(name) => self.inputs.iter().find(|(input, _)| input == name),
            SlotKind::State(_) => None,
            _ => return None,
        };
        given.map(|(_, words)| words.clone()).or_else(|| noise(spec, number as u64))
    }
}

/// Floats in ±1 that depend on the seed alone; other dtypes have none.
fn noise(spec: &Spec, seed: u64) -> Option<Vec<u32>> {
    let value = |i: usize| 2.0 * uniform(seed, i as u64) - 1.0;
    let half = |i: usize| u32::from(half::f16::from_f32(value(i)).to_bits());
    match spec.dtype {
        DType::F32 => Some((0..spec.words()).map(|i| value(i).to_bits()).collect()),
        DType::F16 => Some((0..spec.words()).map(|i| half(2 * i) | half(2 * i + 1) << 16).collect()),
        DType::Int8 => {
            let integer = |i: usize| u32::from((127.0 * value(i)) as i8 as u8);
            let word = |i: usize| (0..4).map(|j| integer(4 * i + j) << (8 * j)).sum();
            let (n, scale) = (spec.len().div_ceil(4), |i: usize| (value(i).abs() / 127.0).to_bits());
            Some((0..spec.words()).map(|i| if i < n { word(i) } else { scale(4 * n + i) }).collect())
        }
        DType::U32 | DType::Codes | DType::Ternary | DType::Groups { .. } => None,
    }
}

/// The reference, the backend that is checked, and what was found so far.
struct Pair {
    plain: Cpu,
    backend: Box<dyn Backend>,
    tolerance: f32,
    ops: BTreeMap<&'static str, OpReport>,
    first: Option<Divergence>,
}

impl Pair {
    fn run(&mut self, stage: &Stage, mut progress: impl FnMut(usize) -> Result<()>) -> Result<()> {
        let plan = &stage.plan;
        let (reference, other) = (self.plain.prepare(plan.clone(), true)?, self.backend.prepare(plan.clone(), true)?);
        for (i, info) in plan.slots.iter().enumerate() {
            if let Some(words) = stage.words(&info.kind, &info.spec, i) {
                self.plain.write(reference, Slot(i), 0, &words)?;
            }
        }
        for (n, node) in plan.nodes.iter().enumerate() {
            progress(n)?;
            let mut given = Vec::new();
            // What an output holds before matters too: some ops write only a part of it.
            for &slot in node.inputs.iter().chain(&node.outputs) {
                if matches!(plan.slot(slot).kind, SlotKind::Weight(_) | SlotKind::Constant(..)) {
                    given.push(Vec::new());
                    continue;
                }
                let words = read(&mut self.plain, reference, plan, &[slot])?.concat();
                self.backend.write(other, slot, 0, &words)?;
                given.push(words);
            }
            self.plain.run(reference, &stage.step, n..n + 1)?;
            self.backend.run(other, &stage.step, n..n + 1)?;
            let want = read(&mut self.plain, reference, plan, &node.outputs)?;
            let found = read(self.backend.as_mut(), other, plan, &node.outputs)?;
            let label = format!("{}: {}", stage.name, node.label);
            self.note(node.op.name(), judge(plan, node, &label, &given, &want, &found, self.tolerance));
        }
        // Every slot of a stage has memory of its own; the next stage needs none of it.
        self.plain.release(reference);
        self.backend.release(other);
        Ok(())
    }

    /// Adds the differences of a node's outputs to its op's line.
    fn note(&mut self, op: &'static str, differences: Vec<Divergence>) {
        let new = || OpReport { op, nodes: 0, worst: 0.0, at: String::new(), divergences: 0 };
        let line = self.ops.entry(op).or_insert_with(new);
        line.nodes += 1;
        for d in &differences {
            if d.error > line.worst {
                (line.worst, line.at) = (d.error, d.node.clone());
            }
        }
        if let Some(divergence) = differences.into_iter().find(|d| d.error > d.tolerance) {
            line.divergences += 1;
            self.first.get_or_insert(divergence);
        }
    }
}

/// All words of slots.
fn read(backend: &mut dyn Backend, program: ProgramId, plan: &Plan, slots: &[Slot]) -> Result<Vec<Vec<u32>>> {
    let ranges: Vec<_> = slots.iter().map(|&s| (s, 0..plan.spec(s).words())).collect();
    backend.read(program, &ranges)
}
