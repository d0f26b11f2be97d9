//! Which temporaries share memory: a greedy first fit over their lifetimes.

use crate::plan::{Plan, Slot, SlotKind};

/// Where a slot's words are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BufferId {
    /// In shared buffer number `n` of [`MemoryPlan::sizes`].
    Pooled(usize),
    /// In a buffer of its own: weights, constants, states.
    Own,
}

/// An assignment of temporaries and inputs to buffers.
#[derive(Debug, Default)]
pub struct MemoryPlan {
    /// By slot number.
    pub places: Vec<BufferId>,
    /// Words of each shared buffer.
    pub sizes: Vec<usize>,
}

impl MemoryPlan {
    /// Assigns the slots of `plan`. With `keep_temporaries`, nothing is shared, so that every slot can be read after a step.
    ///
    /// A node's inputs and outputs never share: they are alive at the same time.
    pub fn assign(plan: &Plan, keep_temporaries: bool) -> Self {
        let last = last_uses(plan, keep_temporaries);
        let mut memory = MemoryPlan { places: vec![BufferId::Own; plan.slots.len()], sizes: Vec::new() };
        let mut free: Vec<usize> = Vec::new();
        for (i, slot) in plan.slots.iter().enumerate() {
            if matches!(slot.kind, SlotKind::Input(_)) {
                memory.place(Slot(i), slot.spec.words(), &mut free);
            }
        }
        for (n, node) in plan.nodes.iter().enumerate() {
            for &out in &node.outputs {
                let info = plan.slot(out);
                if matches!(info.kind, SlotKind::Temp) && memory.places[out.0] == BufferId::Own {
                    memory.place(out, info.spec.words(), &mut free);
                }
            }
            for &slot in node.inputs.iter().chain(&node.outputs) {
                if let BufferId::Pooled(b) = memory.places[slot.0]
                    && last[slot.0] == Some(n)
                    && !free.contains(&b)
                {
                    free.push(b);
                }
            }
        }
        memory
    }

    fn place(&mut self, slot: Slot, words: usize, free: &mut Vec<usize>) {
        let fits = |&b: &usize| self.sizes[b] >= words && self.sizes[b] <= 4 * words;
        let found = (0..free.len()).filter(|&i| fits(&free[i])).min_by_key(|&i| self.sizes[free[i]]);
        let buffer = match found {
            Some(i) => free.swap_remove(i),
            None => {
                self.sizes.push(words);
                self.sizes.len() - 1
            }
        };
        self.places[slot.0] = BufferId::Pooled(buffer);
    }
}

/// The last node that uses each temporary, or none for slots that outlive the step.
fn last_uses(plan: &Plan, keep_temporaries: bool) -> Vec<Option<usize>> {
    let mut last = vec![None; plan.slots.len()];
    if keep_temporaries {
        return last;
    }
    for (n, node) in plan.nodes.iter().enumerate() {
        for slot in node.inputs.iter().chain(&node.outputs) {
            last[slot.0] = Some(n);
        }
    }
    for (i, slot) in plan.slots.iter().enumerate() {
        if !matches!(slot.kind, SlotKind::Temp) {
            last[i] = None;
        }
    }
    for slot in plan.outputs.values() {
        last[slot.0] = None;
    }
    last
}
