//! The embedding table of a decoder, and the matrix that gives its logits.

use crate::models::decoder::spec::{HeadSpec, Names};
use crate::models::decoder::stored_linear::StoredStack;
use crate::models::load::{Tensor, TensorScope};
use crate::plan::{PlanBuilder, Slot};

/// The table and the head. Where they are one matrix in one packing, it is resident once.
#[derive(Debug)]
pub struct Head {
    table: Vec<Tensor>,
    head: StoredStack,
}

impl Head {
    /// Takes the tensors below `w`, `[vocab, d]` each.
    pub fn load(w: &TensorScope, names: &Names, shape: [usize; 2], spec: HeadSpec) -> Self {
        let max_binding = w.max_binding();
        let (table, head, act) = match spec {
            HeadSpec::Dense => (w.dense(names.table, &shape), w.head(names.table, &shape), None),
            HeadSpec::Stored { spec, tied } => {
                let table = w.stored(names.table, shape, spec.quantisation);
                let head = if tied { names.table.to_owned() } else { format!("{}.weight", names.head) };
                (table, w.stored_head(&head, shape, spec.quantisation), spec.act)
            }
        };
        let [table, head] = [table, head].map(|matrix| StoredStack::new(&[matrix], max_binding, act));
        Head { table: table.into_pieces(), head }
    }

    /// The slots of the table's pieces.
    pub fn table(&self, p: &PlanBuilder) -> Vec<Slot> {
        self.table.iter().map(|piece| piece.slot(p)).collect()
    }

    /// Logits `[outputs, vocab]` of x `[outputs, d]`.
    pub fn record(&self, p: &PlanBuilder, x: Slot) -> Slot {
        self.head.record(p, x, None, None, None)
    }
}
