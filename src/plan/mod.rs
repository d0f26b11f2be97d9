//! A forward pass as data: slots, and nodes that apply ops to them. Recorded once, prepared once, replayed every step.
//!
//! Models record through [`PlanBuilder`]; backends read [`Plan`] and call [`Op::cpu`] or [`Op::variants`] of each node,
//! so neither knows the other.
//!
//! In reading order: this file, `op` (what an op is), `builder` (recording), `memory` (which temporaries share a buffer),
//! `kernel` (a dispatch), `caps` (what a device can do), `variant` (kernels by name, and which was chosen), `backend` (what
//! runs a plan), `arena` and `paging` (weights that are not wholly in memory).

mod arena;
mod backend;
mod builder;
mod caps;
mod kernel;
mod memory;
mod op;
mod paging;
mod variant;

pub use arena::{Arena, PagedWeight, padded_words};
pub use backend::{Backend, DeviceParts, ProgramId, ResizedState, state_fits};
pub use builder::PlanBuilder;
pub use caps::Caps;
pub use kernel::{Extent, FollowUp, Grid, Kernel, ParamStruct, Params, Source};
pub(crate) use kernel::{params, shader};
pub use memory::{BufferId, MemoryPlan};
pub use op::{Chosen, Floats, Ids, Io, Op, Step};
pub use paging::{Fill, Moves, PageSource, PagedInput, PagedPlace, Paging, PagingStatistics};
pub use variant::{Choices, Variant, Variants, shape_bucket};

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use crate::tensor::{Spec, WeightRef};

/// A value of a plan, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Slot(pub usize);

/// The origin and lifetime of a slot's words.
#[derive(Debug, Clone)]
pub enum SlotKind {
    /// A weight of the checkpoint: read-only, shared by all plans that ask for the same one.
    Weight(WeightRef),
    /// A table of the model (of cosines, say), shared by name between plans.
    Constant(String, Constant),
    /// Memory that outlives a step (a KV cache), zero at first, shared by name between plans.
    State(String),
    /// An input that the caller writes before a step, by name.
    Input(String),
    /// A result, valid until its last use in the step.
    Temp,
}

/// How the words of a table are made. A backend makes them once, for the first plan that has a table of this name; plans hold
/// no words.
#[derive(Clone)]
pub struct Constant(Arc<dyn Fn() -> Vec<u32> + Send + Sync>);

impl Constant {
    /// Words that `make` makes, the same ones each time.
    pub fn new(make: impl Fn() -> Vec<u32> + Send + Sync + 'static) -> Self {
        Constant(Arc::new(make))
    }

    /// Makes the words.
    pub fn words(&self) -> Vec<u32> {
        (self.0)()
    }
}

impl fmt::Debug for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Constant")
    }
}

/// A slot's kind and shape.
#[derive(Debug, Clone)]
pub struct SlotInfo {
    /// Kind.
    pub kind: SlotKind,
    /// Shape, dtype and leading count.
    pub spec: Spec,
}

/// One op applied to slots.
#[derive(Debug)]
pub struct Node {
    /// The op with its parameters.
    pub op: Box<dyn Op>,
    /// Slots read.
    pub inputs: Vec<Slot>,
    /// Slots written, wholly or in part.
    pub outputs: Vec<Slot>,
    /// Scope and op name: "layers.3/rms_norm".
    pub label: String,
}

/// A recorded forward pass.
#[derive(Debug, Default)]
pub struct Plan {
    /// All slots; [`Slot`] is an index.
    pub slots: Vec<SlotInfo>,
    /// The nodes in order of execution.
    pub nodes: Vec<Node>,
    /// Slots that are read after a step, by name; they keep their words until the next step.
    pub outputs: BTreeMap<String, Slot>,
    /// Names of intermediate slots, for tests and for comparing backends.
    pub tags: BTreeMap<String, Slot>,
}

impl Plan {
    /// The variants of a node on an adapter with these capabilities, and the bucket of its shapes.
    pub fn variants(&self, node: &Node, caps: &Caps) -> (String, Variants) {
        let specs = |slots: &[Slot]| slots.iter().map(|&s| self.spec(s)).collect::<Vec<&Spec>>();
        let (inputs, outputs) = (specs(&node.inputs), specs(&node.outputs));
        (shape_bucket(&inputs, &outputs), node.op.variants(caps, &inputs, &outputs))
    }

    /// A slot's kind and shape.
    pub fn slot(&self, slot: Slot) -> &SlotInfo {
        &self.slots[slot.0]
    }

    /// A slot's shape.
    pub fn spec(&self, slot: Slot) -> &Spec {
        &self.slots[slot.0].spec
    }

    /// The input slot of this name.
    pub fn input(&self, name: &str) -> Option<Slot> {
        self.slots.iter().position(|s| matches!(&s.kind, SlotKind::Input(n) if n == name)).map(Slot)
    }

    /// The state slot of this name.
    pub fn state(&self, name: &str) -> Option<Slot> {
        self.slots.iter().position(|s| matches!(&s.kind, SlotKind::State(n) if n == name)).map(Slot)
    }

    /// The states, each once, by name.
    pub fn states(&self) -> impl Iterator<Item = (&str, &Spec)> {
        self.slots.iter().filter_map(|s| match &s.kind {
            SlotKind::State(name) => Some((name.as_str(), &s.spec)),
            _ => None,
        })
    }

    /// Whether one of these states is the plan's.
    pub fn has_state_of(&self, states: &[ResizedState]) -> bool {
        states.iter().any(|state| self.state(&state.name).is_some())
    }

    /// The weights that the plan reads, each once.
    pub fn weights(&self) -> impl Iterator<Item = (&WeightRef, &Spec)> {
        self.slots.iter().filter_map(|s| match &s.kind {
            SlotKind::Weight(w) => Some((w, &s.spec)),
            _ => None,
        })
    }

    /// Bytes that each node reads in a step ([`Op::bytes_read`]); `weight` gives the bytes of a weight.
    pub fn bytes_read(&self, step: &Step, weight: impl Fn(&WeightRef) -> u64) -> Vec<u64> {
        let bytes = |slot: &Slot| match &self.slot(*slot).kind {
            SlotKind::Weight(w) => weight(w),
            _ => 4 * self.spec(*slot).words() as u64,
        };
        let read = |node: &Node| {
            let inputs: Vec<(&Spec, u64)> = node.inputs.iter().map(|s| (self.spec(*s), bytes(s))).collect();
            node.op.bytes_read(step, &inputs)
        };
        self.nodes.iter().map(read).collect()
    }

    /// The last node that writes `slot`.
    pub fn producer(&self, slot: Slot) -> Option<usize> {
        self.nodes.iter().rposition(|n| n.outputs.contains(&slot))
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, node) in self.nodes.iter().enumerate() {
            let list = |slots: &[Slot]| {
                slots.iter().map(|&s| format!("%{} {}", s.0, self.spec(s))).collect::<Vec<_>>().join(", ")
            };
            writeln!(f, "{i:4} {}: {} -> {}", node.label, list(&node.inputs), list(&node.outputs))?;
        }
        Ok(())
    }
}
