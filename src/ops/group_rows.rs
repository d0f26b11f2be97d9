//! Groups the places of a batch by expert, so that an expert's weights are read once for many rows.

use crate::error::Result;
use crate::ops::norm_quantise::Experts;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{CountedBy, DType, Spec};

/// Places of a block.
pub(super) const BLOCK: usize = 8;
/// No expert, or no place.
const NONE: u32 = u32::MAX;

/// A counting sort of the places `row · slots + slot` by expert, in blocks of 8 places of one expert.
///
/// expert_ids `[rows, k]` U32, each below n → groups `[blocks, 9]` U32: the expert and its places in rising order, `u32::MAX`
/// for none. The shared experts, from number n on, have the last slots of every row. The number of blocks is that of the
/// worst case; unused blocks come last. Exact.
#[derive(Debug)]
struct GroupRows {
    experts: Experts,
}

params!(GroupRowsParams { counted_by: u32, rows: u32, k: u32, n_experts: u32, n_shared: u32, blocks: u32 });

/// Blocks that the places of `expert_ids`'s rows can take: each expert may leave its last block partly empty.
pub(super) fn blocks(counted_by: CountedBy, rows: usize, experts: Experts) -> Extent {
    Extent::Blocks { counted_by, max: rows, times: experts.slots(), per: BLOCK, more: experts.all() }
}

impl PlanBuilder {
    /// The places of each expert, for [`PlanBuilder::expert_matmul`].
    #[track_caller]
    pub fn group_rows(&self, expert_ids: Slot, experts: Experts) -> Slot {
        self.push(GroupRows { experts }, &[expert_ids])
    }
}

impl Op for GroupRows {
    fn name(&self) -> &'static str {
        "group_rows"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (expert_ids, Experts { k, n, .. }) = (inputs[0], self.experts);
        require(
            "chosen experts",
            expert_ids,
            expert_ids.dtype == DType::U32 && expert_ids.shape.len() == 2,
            "[rows, k] U32",
        )?;
        require("chosen experts", expert_ids, expert_ids.shape[1] == k && k <= n, "k choices of at least k experts")?;
        let max_blocks = blocks(expert_ids.counted_by, expert_ids.shape[0], self.experts).resolve(&Step::FULL);
        Ok(vec![Spec::fixed(&[max_blocks, BLOCK + 1], DType::U32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (expert_ids, Experts { k, .. }) = (io.u32s(0), self.experts);
        let rows = step.rows_in_use(io.spec(0));
        let groups = io.out_u32s(0);
        groups.fill(NONE);
        let mut free = groups.chunks_exact_mut(BLOCK + 1);
        for expert in 0..self.experts.all() {
            let slots = (0..rows).flat_map(|r| (0..self.experts.slots()).map(move |s| (r, s)));
            let of_expert = slots.filter(|&(r, s)| self.experts.pick(&expert_ids[r * k..], s) == expert);
            let places: Vec<u32> = of_expert.map(|(r, s)| (r * self.experts.slots() + s) as u32).collect();
            for (places, block) in places.chunks(BLOCK).zip(&mut free) {
                block[0] = expert as u32;
                block[1..=places.len()].copy_from_slice(places);
            }
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let expert_ids = inputs[0];
        let params = GroupRowsParams {
            counted_by: expert_ids.counted_by as u32,
            rows: expert_ids.shape[0] as u32,
            k: self.experts.k as u32,
            n_experts: self.experts.n as u32,
            n_shared: self.experts.shared as u32,
            blocks: outputs[0].shape[0] as u32,
        };
        let grid = Grid::x(Extent::Fixed(1));
        Kernel { source: shader!("moe/group_rows"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
