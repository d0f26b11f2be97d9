//! Two backends side by side, node by node: where do they differ, and by how much?
//!
//! The reference is the CPU by the plain definitions. Before each node the other backend gets the reference's words, so
//! an error is the node's own and never one that it inherits.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::device;
use super::engine::{Progress, load_weights};
pub use super::judge::Divergence;
use super::judge::judge;
use super::options::{Head, Place, Precision};
use super::sampler::uniform;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::files::{ModelFiles, Weights};
use crate::models::{self, LoadOptions, Model, TextShape, slots};
use crate::ops::{Row, TOKEN_IMAGE};
use crate::plan::{Backend, Plan, ProgramId, Slot, SlotKind, Step};
use crate::tensor::{DType, Spec};

/// What to compare, and how strictly.
#[derive(Debug, Clone, PartialEq)]
pub struct CompareOptions {
    /// The backend that is checked against the plain CPU.
    pub place: Place,
    /// How full-precision weights and the KV cache are kept, on both.
    pub precision: Precision,
    /// The matrix that gives the logits, on both.
    pub head: Head,
    /// Largest error of f32 results, relative to the largest magnitude of a slot.
    pub tolerance: f32,
}

impl Default for CompareOptions {
    fn default() -> Self {
        CompareOptions { place: Place::default(), precision: Precision::F16, head: Head::F16, tolerance: 1e-4 }
    }
}

/// What a comparison found.
#[derive(Debug, Clone)]
pub struct Comparison {
    /// The device that was checked.
    pub device: String,
    /// Why it was taken.
    pub why: String,
    /// One line an op, by name.
    pub ops: Vec<OpReport>,
    /// Nodes that were compared.
    pub nodes: usize,
    /// Nodes with an output beyond its tolerance.
    pub divergences: usize,
    /// The first of them.
    pub first: Option<Divergence>,
}

/// The worst that an op did.
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

/// Rows of the KV cache that each of the two compared sequences has.
const CONTEXT: usize = 160;
/// Most rows of the compared prefill, a few more than it uses.
const PREFILL_ROWS: usize = 16;
/// Most rows of the compared decode step, and most outputs of both.
const DECODE_ROWS: usize = 4;

/// Runs a model on the plain CPU and on a device and compares every node.
///
/// Three plans are run, with what they have for looking at attention: an image, a prefill with image and text rows of two sequences, and a decode step of both. Inputs
/// and KV cache are noise that is equal in every run.
///
/// # Errors
/// As [`super::Engine::open`]; a divergence is no error but a part of the result.
pub fn compare(
    files: impl Into<ModelFiles>,
    options: &CompareOptions,
    mut progress: impl FnMut(Progress),
) -> Result<Comparison> {
    let files = files.into();
    let weights = Weights::open(&files)?;
    let (mut backend, why) = device::choose(&options.place)?;
    let dense = options.precision.pack();
    let load = LoadOptions { dense, head: options.head.pack(dense), max_binding: backend.caps().max_binding };
    let model = models::open(files, &weights, load)?;
    let stages = stages(model.as_ref(), options.precision)?;
    let mut plain = Cpu::plain();
    let put = |name: &str, words: Vec<u32>| {
        plain.load_weight(name, words.clone())?;
        backend.load_weight(name, words)
    };
    load_weights(&weights, stages.iter().map(|s| &s.plan), put, &mut progress)?;
    drop(weights);

    let device = backend.describe();
    let mut pair = Pair { plain, backend, tolerance: options.tolerance, ops: BTreeMap::new(), first: None };
    let total = stages.iter().map(|s| s.plan.nodes.len()).sum();
    let mut done = 0;
    for stage in &stages {
        pair.run(stage, |node| progress(Progress { done: done + node, total, what: stage.name.to_owned() }))?;
        done += stage.plan.nodes.len();
    }
    let ops: Vec<OpReport> = pair.ops.into_values().collect();
    let divergences = ops.iter().map(|op| op.divergences).sum();
    Ok(Comparison { device, why, ops, nodes: total, divergences, first: pair.first })
}

/// A plan with what goes into it.
struct Stage {
    name: &'static str,
    plan: Arc<Plan>,
    step: Step,
    rows: Vec<Row>,
}

fn stages(model: &dyn Model, precision: Precision) -> Result<Vec<Stage>> {
    let images = model.info().image.is_some();
    let mut all = Vec::new();
    if images {
        all.push(Stage {
            name: "image",
            plan: Arc::new(model.trace_image()?.plan),
            step: Step::FULL,
            rows: Vec::new(),
        });
    }
    let text = |name, max_rows, images, rows: Vec<Row>| -> Result<Stage> {
        let kv_dtype = precision.kv_dtype();
        let (max_outputs, kv_rows, sessions) = (DECODE_ROWS, 2 * CONTEXT, 2);
        let shape = TextShape { max_rows, max_outputs, kv_rows, sessions, kv_dtype, images };
        let context = rows.iter().map(|r| r.seq_len).max().unwrap_or(0);
        let step = Step { rows: rows.len() as u32, outputs: 2, context, reserved: 0 };
        Ok(Stage { name, plan: Arc::new(model.trace_text(&shape)?), step, rows })
    };
    let vocab = model.info().vocab;
    let row = |sequence: usize, pos: usize, token: u32| Row {
        token,
        pos: pos as u32,
        seq_base: (sequence * CONTEXT) as u32,
        seq_len: pos as u32 + 1,
    };
    let word = |i: usize| (uniform(1, i as u64) * vocab as f32) as u32;
    // The first sequence begins with an image, the second goes on in the middle of a text.
    let first = (0..7).map(|i| match i {
        0..3 if images => row(0, i, TOKEN_IMAGE),
        _ => row(0, i, model.prompt_token(word(i), images)),
    });
    let second = (0..5).map(|i| row(1, 120 + i, word(100 + i)));
    all.push(text("prefill", PREFILL_ROWS, images, first.chain(second).collect())?);
    all.push(text("decode", DECODE_ROWS, false, vec![row(0, 7, word(7)), row(1, 125, word(105))])?);
    Ok(all)
}

impl Stage {
    /// Words of an input or state before the stage, where it is not zero.
    fn words(&self, kind: &SlotKind, spec: &Spec, number: usize) -> Option<Vec<u32>> {
        match kind {
            SlotKind::Input(name) if name == slots::ROWS => Some(bytemuck::cast_slice(&self.rows).to_vec()),
            SlotKind::Input(name) if name == slots::OUTPUTS => {
                let last = |base: u32| self.rows.iter().rposition(|r| r.seq_base == base).map(|i| i as u32);
                Some([0, CONTEXT as u32].into_iter().filter_map(last).collect())
            }
            SlotKind::Input(_) | SlotKind::State(_) => noise(spec, number as u64),
            _ => None,
        }
    }
}

/// Floats in ±1 that depend on the seed alone; other dtypes have none.
fn noise(spec: &Spec, seed: u64) -> Option<Vec<u32>> {
    let value = |i: usize| 2.0 * uniform(seed, i as u64) - 1.0;
    let half = |i: usize| u32::from(half::f16::from_f32(value(i)).to_bits());
    match spec.dtype {
        DType::F32 => Some((0..spec.words()).map(|i| value(i).to_bits()).collect()),
        DType::F16 => Some((0..spec.words()).map(|i| half(2 * i) | half(2 * i + 1) << 16).collect()),
        DType::U32 | DType::Codes | DType::Int8 | DType::Ternary => None,
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
    fn run(&mut self, stage: &Stage, mut progress: impl FnMut(usize)) -> Result<()> {
        let plan = &stage.plan;
        let (reference, other) = (self.plain.prepare(plan.clone(), true)?, self.backend.prepare(plan.clone(), true)?);
        for (i, info) in plan.slots.iter().enumerate() {
            if let Some(words) = stage.words(&info.kind, &info.spec, i) {
                self.plain.write(reference, Slot(i), 0, &words)?;
            }
        }
        for (n, node) in plan.nodes.iter().enumerate() {
            progress(n);
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
