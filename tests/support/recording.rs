//! Plans that are recorded together with the data that they run on.
#![allow(dead_code)] // Each test uses a part.

use std::cell::RefCell;
use std::sync::Arc;

use ternion::unstable::plan::{Backend, Plan, PlanBuilder, Slot, Step};
use ternion::unstable::quant::groups::{self, GroupPacked};
use ternion::unstable::quant::{Packed, WeightQuant, stack};
use ternion::unstable::tensor::{CountedBy, DType, GroupCodes, Pack, Spec, WeightPart, WeightRef, code_words};

use crate::support::numbers::{bits, f16_words};

/// What is written before a run: weights by name, and words of slots.
#[derive(Default)]
pub struct Feed {
    /// Names and words of weights.
    pub weights: Vec<(String, Vec<u32>)>,
    /// Words of inputs and states.
    pub slots: Vec<(Slot, Vec<u32>)>,
}

/// What unwritten words hold.
pub const UNWRITTEN: u32 = 0x5A5A_5A5A;

/// Runs a plan once and reads slots. Slots that are read and not fed start as [`UNWRITTEN`].
pub fn run(backend: &mut dyn Backend, plan: &Arc<Plan>, feed: &Feed, step: Step, read: &[Slot]) -> Vec<Vec<u32>> {
    for (name, words) in &feed.weights {
        backend.load_weight(name, words.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let program = backend.prepare(plan.clone(), true).unwrap_or_else(|e| panic!("prepare: {e}"));
    for &slot in read {
        backend.write(program, slot, 0, &vec![UNWRITTEN; plan.spec(slot).words()]).expect("unwritten words");
    }
    for (slot, words) in &feed.slots {
        backend.write(program, *slot, 0, words).expect("words fit their slot");
    }
    backend.run(program, &step, 0..plan.nodes.len()).unwrap_or_else(|e| panic!("run: {e}"));
    let ranges: Vec<_> = read.iter().map(|&s| (s, 0..plan.spec(s).words())).collect();
    backend.read(program, &ranges).unwrap_or_else(|e| panic!("read: {e}"))
}

/// Records a plan together with the data that goes into it.
pub struct Recording {
    /// The plan so far.
    pub p: PlanBuilder,
    name: String,
    feed: RefCell<Feed>,
}

impl Recording {
    /// `name` keeps weights and states of different plans apart on one backend.
    pub fn new(name: &str) -> Self {
        Recording { p: PlanBuilder::new(), name: name.to_owned(), feed: RefCell::default() }
    }

    /// The plan and its data.
    pub fn finish(self) -> (Arc<Plan>, Feed) {
        let name = self.name;
        let plan = self.p.finish().unwrap_or_else(|e| panic!("{name}: {e}: {:?}", std::error::Error::source(&e)));
        (Arc::new(plan), self.feed.into_inner())
    }

    fn fed(&self, slot: Slot, words: Vec<u32>) -> Slot {
        assert_eq!(words.len(), self.p.spec(slot).words(), "{}: words of {}", self.name, self.p.spec(slot));
        self.feed.borrow_mut().slots.push((slot, words));
        slot
    }

    /// An F32 input.
    pub fn f32s(&self, name: &str, shape: &[usize], counted_by: CountedBy, data: &[f32]) -> Slot {
        self.fed(self.p.input(name, Spec::counted(shape, DType::F32, counted_by)), bits(data))
    }

    /// A U32 input.
    pub fn u32s(&self, name: &str, shape: &[usize], counted_by: CountedBy, data: &[u32]) -> Slot {
        self.fed(self.p.input(name, Spec::counted(shape, DType::U32, counted_by)), data.to_vec())
    }

    /// An input of codes `[rows, sets, d]`, and their scale and sum: `inv_k` and the sums.
    pub fn codes(&self, shape: [usize; 3], counted_by: CountedBy, codes: &[i8], inv_k: f32) -> [Slot; 2] {
        let mut words = Vec::new();
        let mut scale_and_sum = Vec::new();
        for row in codes.chunks_exact(shape[2]) {
            let mut padded = row.to_vec();
            padded.resize(4 * code_words(shape[2]), 0);
            words.extend(bytemuck::pod_collect_to_vec::<i8, u32>(&padded));
            scale_and_sum.extend([inv_k, row.iter().map(|&c| f32::from(c)).sum()]);
        }
        let slot = self.p.input("codes", Spec::counted(&shape, DType::Codes, counted_by));
        [self.fed(slot, words), self.f32s("scale_and_sum", &[shape[0], shape[1], 2], counted_by, &scale_and_sum)]
    }

    /// A dense weight in F32, F16 or Int8.
    pub fn weight(&self, name: &str, shape: &[usize], pack: Pack, data: &[f32]) -> Slot {
        let words = match pack {
            Pack::F16 => f16_words(data),
            Pack::Int8 => ternion::unstable::quant::int8::pack(data, shape[shape.len() - 1]).unwrap(),
            _ => bits(data),
        };
        self.add_weight(name, shape, pack, words)
    }

    /// A stack of ternary matrices.
    pub fn ternary(&self, name: &str, parts: &[Packed]) -> Slot {
        let shape = [parts.len(), parts.iter().map(|p| p.rows).sum(), parts[0].cols];
        self.add_weight(name, &shape, Pack::Ternary(WeightQuant::SignMean), stack(parts))
    }

    /// A stack of matrices with scales by group.
    pub fn groups(&self, name: &str, parts: &[GroupPacked]) -> Slot {
        let shape = [parts.len(), parts.iter().map(|p| p.shape.rows).sum(), parts[0].shape.cols];
        let pack = Pack::Groups { group: parts[0].shape.group as u32, codes: GroupCodes::Stored };
        self.add_weight(name, &shape, pack, groups::stack(parts).unwrap())
    }

    fn add_weight(&self, name: &str, shape: &[usize], pack: Pack, words: Vec<u32>) -> Slot {
        let (cols, name) = (shape[shape.len() - 1], format!("{}.{name}", self.name));
        let rows = 0..shape.iter().product::<usize>() / cols;
        let weight = WeightRef { parts: vec![WeightPart { name, rows, cols }], pack };
        let slot = self.p.weight(&weight, shape);
        self.feed.borrow_mut().weights.push((weight.to_string(), words));
        slot
    }

    /// A state with what it holds before the step.
    pub fn state(&self, name: &str, shape: &[usize], dtype: DType, words: Vec<u32>) -> Slot {
        self.fed(self.p.state(&format!("{}.{name}", self.name), Spec::fixed(shape, dtype)), words)
    }
}
