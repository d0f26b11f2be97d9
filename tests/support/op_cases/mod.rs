//! The table of parity rows: every op at awkward sizes, recorded with its data.

mod attention;
mod elements;
mod fused;
mod groups;
mod int8_cache;
mod products;
mod quantised;
mod sampling;
mod vectors;

use std::sync::Arc;

use ternion::unstable::ops::{Act, GateClamp, NormClamp};
use ternion::unstable::plan::{Plan, Slot, Step};

use crate::support::recording::{Feed, Recording};

/// EmberNet's bounds of norms and of the gated activation.
const CLAMP: NormClamp = NormClamp { input: 100.0, output: 10.0 };
const ACT: Act = Act::SiLu { clamp: Some(GateClamp { gate: 20.0, product: 1000.0 }) };
/// Bounds that cut into ordinary values.
const TIGHT_CLAMP: NormClamp = NormClamp { input: 1.5, output: 1.25 };
/// Activations without bounds, with bounds, and with bounds that cut into ordinary values.
const ACTS: [Act; 4] =
    [Act::SiLu { clamp: None }, ACT, Act::SiLu { clamp: Some(GateClamp { gate: 0.75, product: 0.5 }) }, Act::Relu2];

/// How near a backend must come to the plain definition.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Tol {
    /// The same words.
    Exact,
    /// F32 or F16 values within this, relative to `max(1, |want|)`.
    Close(f32),
    /// Codes within 1, and at most 1 % of them different.
    Codes,
    /// 8-bit integers as codes, and `127 ·` their scales within 3e-6.
    Int8,
    /// Scale and sum of the codes that are the output before it: `1/k` within 1e-5, and the sum of that backend's own codes.
    ScaleAndSum,
    /// The same for groups of columns of rows that wide.
    GroupScaleAndSum {
        /// Columns of a row.
        width: usize,
        /// Those of a group.
        group: usize,
        /// `1/k` is fitted to the codes: it may move where one of them does.
        fitted: bool,
    },
}

/// One row of the table.
pub struct Case {
    /// Name of the op that it is about.
    pub op: &'static str,
    /// What is special about it.
    pub name: String,
    /// The step it runs.
    pub step: Step,
    /// The recorded plan.
    pub plan: Arc<Plan>,
    /// Its data.
    pub feed: Feed,
    /// What is compared.
    pub outs: Vec<(Slot, Tol)>,
}

/// The table as it is built.
#[derive(Default)]
pub struct Cases(Vec<Case>);

impl Cases {
    /// Adds a row that runs `step`.
    fn at(
        &mut self,
        step: Step,
        op: &'static str,
        name: impl Into<String>,
        record: impl FnOnce(&Recording) -> Vec<(Slot, Tol)>,
    ) {
        let name = name.into();
        let rig = Recording::new(&format!("{op}, {name}"));
        let outs = record(&rig);
        let (plan, feed) = rig.finish();
        assert!(plan.nodes.iter().any(|n| n.op.name() == op), "{op}, {name} does not use {op}");
        self.0.push(Case { op, name, step, plan, feed, outs });
    }

    /// Adds a row that uses everything.
    fn full(&mut self, op: &'static str, name: impl Into<String>, record: impl FnOnce(&Recording) -> Vec<(Slot, Tol)>) {
        self.at(Step::FULL, op, name, record);
    }
}

/// Every row.
pub fn all() -> Vec<Case> {
    let mut cases = Cases::default();
    elements::add(&mut cases);
    attention::add(&mut cases);
    fused::add(&mut cases);
    groups::add(&mut cases);
    int8_cache::add(&mut cases);
    products::add(&mut cases);
    quantised::add(&mut cases);
    sampling::add(&mut cases);
    vectors::add(&mut cases);
    cases.0
}

/// A step with this many rows and outputs.
fn step(rows: usize, outputs: usize) -> Step {
    Step::new(rows, outputs, u32::MAX as usize)
}

/// The words of a `rows` input of `max` rows from `(token, pos, seq_base)`; rows behind them are garbage that nothing
/// may follow.
fn row_words(rows: &[(u32, u32, u32)], max: usize) -> Vec<u32> {
    let mut words: Vec<u32> = rows.iter().flat_map(|&(token, pos, base)| [token, pos, base, pos + 1]).collect();
    words.resize(max * 4, u32::MAX);
    words
}
