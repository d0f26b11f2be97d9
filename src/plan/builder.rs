//! Recording: a forward pass calls one method per op; errors are returned at the end.

use std::cell::RefCell;
use std::collections::HashMap;
use std::panic::Location;

use crate::error::{Error, Result};
use crate::plan::{Caps, Constant, Node, Op, Plan, Slot, SlotInfo, SlotKind};
use crate::tensor::{Spec, WeightRef};

/// Records a [`Plan`]. Each op adds its own method; calls nest, since all take `&self`.
///
/// The first operand that does not fit is kept with the caller's file and line, and [`PlanBuilder::finish`] returns it.
#[derive(Debug, Default)]
pub struct PlanBuilder {
    inner: RefCell<Inner>,
    traced: bool,
    makes_inputs_once: bool,
    splits_gates: bool,
}

#[derive(Debug, Default)]
struct Inner {
    plan: Plan,
    scope: Vec<String>,
    by_name: HashMap<String, Slot>,
    error: Option<Error>,
}

/// Ends a scope of labels when dropped.
#[derive(Debug)]
pub struct Scope<'a>(&'a PlanBuilder);

impl Drop for Scope<'_> {
    fn drop(&mut self) {
        self.0.inner.borrow_mut().scope.pop();
    }
}

impl PlanBuilder {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty plan that keeps what [`PlanBuilder::trace`] records.
    pub fn traced() -> Self {
        PlanBuilder { traced: true, ..Self::default() }
    }

    /// The same plan for a device with these capabilities, as far as its ops depend on them.
    #[must_use]
    pub fn for_device(self, caps: &Caps) -> Self {
        PlanBuilder { makes_inputs_once: caps.cpu_driver, splits_gates: caps.software_subgroups, ..self }
    }

    /// Whether ops of one row may make their input again in every workgroup, which costs less than a launch of its own, but where
    /// a CPU computes. Traced plans read the weights that plans of several rows do, whatever the device.
    pub fn makes_inputs_again(&self) -> bool {
        !self.makes_inputs_once && !self.traced
    }

    /// Whether a product with gate and up of experts makes `act(gate) · up` of both at once, so that neither is written. On software
    /// adapters whose lanes pass words on, the tiles of two matrices drive each other out of the first cache.
    pub fn joins_gates(&self) -> bool {
        !self.splits_gates
    }

    /// Prefixes the labels of the nodes recorded while the result lives.
    #[must_use]
    pub fn scope(&self, name: impl Into<String>) -> Scope<'_> {
        self.inner.borrow_mut().scope.push(name.into());
        Scope(self)
    }

    /// A weight; asking twice for the same one gives the same slot.
    pub fn weight(&self, weight: &WeightRef, shape: &[usize]) -> Slot {
        let spec = Spec::fixed(shape, weight.pack.dtype());
        self.shared(format!("weight {weight} {shape:?}"), SlotKind::Weight(weight.clone()), spec)
    }

    /// A table, shared by name between plans: each backend makes its words once.
    pub fn constant(&self, name: &str, spec: Spec, words: impl Fn() -> Vec<u32> + Send + Sync + 'static) -> Slot {
        self.shared(format!("constant {name}"), SlotKind::Constant(name.to_owned(), Constant::new(words)), spec)
    }

    /// Memory that outlives the step, shared by name between plans.
    pub fn state(&self, name: &str, spec: Spec) -> Slot {
        self.shared(format!("state {name}"), SlotKind::State(name.to_owned()), spec)
    }

    /// An input that the caller writes before a step.
    pub fn input(&self, name: &str, spec: Spec) -> Slot {
        self.shared(format!("input {name}"), SlotKind::Input(name.to_owned()), spec)
    }

    /// A result that an op will write with [`PlanBuilder::push_into`].
    pub fn temp(&self, spec: Spec) -> Slot {
        self.inner.borrow_mut().add(SlotKind::Temp, spec)
    }

    fn shared(&self, key: String, kind: SlotKind, spec: Spec) -> Slot {
        let mut inner = self.inner.borrow_mut();
        if let Some(&slot) = inner.by_name.get(&key) {
            return slot;
        }
        let slot = inner.add(kind, spec);
        inner.by_name.insert(key, slot);
        slot
    }

    /// Shape of a slot.
    pub fn spec(&self, slot: Slot) -> Spec {
        self.inner.borrow().plan.spec(slot).clone()
    }

    /// Applies an op with one output.
    #[track_caller]
    pub fn push(&self, op: impl Op + 'static, inputs: &[Slot]) -> Slot {
        self.push_all::<1>(op, inputs)[0]
    }

    /// Applies an op with `N` outputs.
    #[track_caller]
    pub fn push_all<const N: usize>(&self, op: impl Op + 'static, inputs: &[Slot]) -> [Slot; N] {
        let at = Location::caller();
        let mut inner = self.inner.borrow_mut();
        let specs = inner.infer(&op, inputs, at);
        let specs = specs.unwrap_or_else(|| vec![Spec::fixed(&[1], crate::tensor::DType::F32); N]);
        assert_eq!(specs.len(), N, "{} has {} outputs", op.name(), specs.len());
        let outputs: Vec<Slot> = specs.into_iter().map(|s| inner.add(SlotKind::Temp, s)).collect();
        inner.node(Box::new(op), inputs, &outputs, at);
        std::array::from_fn(|i| outputs[i])
    }

    /// Applies an op that writes into slots that exist: a state, or a part of an earlier result. None may be written
    /// twice, or be one of the inputs.
    #[track_caller]
    pub fn push_into(&self, op: impl Op + 'static, inputs: &[Slot], outputs: &[Slot]) {
        let at = Location::caller();
        let mut inner = self.inner.borrow_mut();
        let specs = |slots: &[Slot]| slots.iter().map(|&s| inner.plan.spec(s).clone()).collect::<Vec<Spec>>();
        let (ins, outs) = (specs(inputs), specs(outputs));
        let check = op.check_outputs(&ins.iter().collect::<Vec<_>>(), &outs.iter().collect::<Vec<_>>());
        if let Err(source) = check {
            inner.fail(op.name(), at, source);
        }
        inner.node(Box::new(op), inputs, outputs, at);
    }

    /// Marks a slot as read after the step.
    pub fn output(&self, name: &str, slot: Slot) {
        self.inner.borrow_mut().plan.outputs.insert(name.to_owned(), slot);
    }

    /// An output of traced plans only, which shows how a result is computed; in other plans `record` is not called.
    pub fn trace(&self, name: &str, record: impl FnOnce(&Self) -> Slot) {
        if self.traced {
            self.output(name, record(self));
        }
    }

    /// Whether it keeps what [`PlanBuilder::trace`] records: what a trace reads must then be a slot of its own.
    pub fn is_traced(&self) -> bool {
        self.traced
    }

    /// Names an intermediate slot, for tests and comparisons; returns it.
    pub fn tag(&self, name: impl Into<String>, slot: Slot) -> Slot {
        self.inner.borrow_mut().plan.tags.insert(name.into(), slot);
        slot
    }

    /// The plan.
    ///
    /// # Errors
    /// The first operand that did not fit, with the place that recorded it.
    pub fn finish(self) -> Result<Plan> {
        let inner = self.inner.into_inner();
        match inner.error {
            Some(error) => Err(error),
            None => Ok(inner.plan),
        }
    }
}

impl Inner {
    fn add(&mut self, kind: SlotKind, spec: Spec) -> Slot {
        self.plan.slots.push(SlotInfo { kind, spec });
        Slot(self.plan.slots.len() - 1)
    }

    /// Output shapes, or none after an error: what follows an error is not checked, since it would only repeat it.
    fn infer(&mut self, op: &dyn Op, inputs: &[Slot], at: &'static Location<'static>) -> Option<Vec<Spec>> {
        if self.error.is_some() {
            return None;
        }
        let specs: Vec<&Spec> = inputs.iter().map(|&s| self.plan.spec(s)).collect();
        match op.infer(&specs) {
            Ok(specs) => Some(specs),
            Err(source) => {
                self.fail(op.name(), at, source);
                None
            }
        }
    }

    fn fail(&mut self, op: &'static str, at: &'static Location<'static>, source: Error) {
        let at = format!("{}:{}", at.file(), at.line());
        self.error.get_or_insert(Error::Plan { op, at, source: Box::new(source) });
    }

    fn node(&mut self, op: Box<dyn Op>, inputs: &[Slot], outputs: &[Slot], at: &'static Location<'static>) {
        // A device cannot bind a buffer for reading and for writing in one dispatch.
        let twice = |&(i, slot): &(usize, &Slot)| inputs.contains(slot) || outputs[..i].contains(slot);
        if let Some((i, slot)) = outputs.iter().enumerate().find(twice) {
            let found = format!(
                "slot %{}, which the op also {}",
                slot.0,
                if inputs.contains(slot) { "reads" } else { "writes elsewhere" }
            );
            self.fail(op.name(), at, Error::shape(format!("output {i}"), "a slot of its own", found));
        }
        let mut label = self.scope.join(".");
        if !label.is_empty() {
            label.push('/');
        }
        label.push_str(op.name());
        self.plan.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: outputs.to_vec(), label });
    }
}
