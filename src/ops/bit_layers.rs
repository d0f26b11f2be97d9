//! Layers of ternary matrices, each with a norm of its own, as a model names them. Which ops they become depends on the
//! number of rows and on the shapes, and is chosen here: fused or composed, experts row by row or grouped.

use crate::ops::bit_linear::fits_fused;
use crate::ops::route_swiglu::can_route;
use crate::ops::swiglu::Act;
use crate::ops::{ActQuant, BitInput, Experts, RmsNorm, StackPiece};
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::WeightRef;

/// Maximum number of rows for which experts are applied row by row; with more rows, several use the same expert.
const MAX_UNGROUPED_ROWS: usize = 5;

/// Ternary matrices that read the same input, each under its own norm: a layer's, or those of all experts.
#[derive(Debug)]
pub struct BitStack<'a> {
    /// The norms' weights `[matrices, d_in]`.
    pub norms: Slot,
    /// The matrices, cut into pieces where they exceed a device's binding limit.
    pub pieces: Vec<StackPiece<'a>>,
    /// Rows of each matrix, or of each of one expert's.
    pub outs: &'a [usize],
}

impl BitStack<'_> {
    /// The inputs of a fused op; none if the matrices are cut.
    fn whole(&self) -> Option<[Slot; 2]> {
        match &self.pieces[..] {
            [piece] => Some([self.norms, piece.weights]),
            _ => None,
        }
    }
}

/// A mixture of gated experts, as [`PlanBuilder::moe`] reads it.
#[derive(Debug)]
pub struct MoeInput<'a> {
    /// The norm before router and experts, with its weight `[d]`.
    pub pre_norm: (RmsNorm, Slot),
    /// The router's matrix `[experts, d]` and bias `[experts]`.
    pub router: [Slot; 2],
    /// The norms of `gate_up`, that of the pre-norm, and both of the router, one behind the other: a slot of the plans in which
    /// one launch reads them all.
    pub front: WeightRef,
    /// How many experts there are, and how many a row uses.
    pub experts: Experts,
    /// Gate and up of each expert, `[d_ff, d]` each, the shared experts last.
    pub gate_up: BitStack<'a>,
    /// `[d, d_ff]` of each expert.
    pub down: BitStack<'a>,
    /// The form of the stacks' own norms.
    pub norm: RmsNorm,
    /// The rule of the codes in front of both.
    pub quant: ActQuant,
    /// The activation between them.
    pub act: Act,
    /// Bound on the sum of the experts' outputs; infinite for none.
    pub bound: f32,
}

/// The slots of a recorded mixture.
#[derive(Debug, Clone, Copy)]
pub struct MoeSlots {
    /// The residual plus the weighted sum of the experts' outputs, `[rows, d]`.
    pub out: Slot,
    /// The chosen experts `[rows, k]`.
    pub expert_ids: Slot,
    /// Their weights `[rows, k]`.
    pub expert_weights: Slot,
    /// The input of the second matrices, before their norm, `[rows, slots, d_ff]`.
    pub hidden: Slot,
    /// The router's logits `[rows, experts]` and the experts' outputs `[rows, slots, d]`, where they are computed apart.
    pub composed: Option<[Slot; 2]>,
}

impl PlanBuilder {
    /// x `[rows, d_in]` through a stack: `[rows, Σ outs]`, plus `residual` if given.
    #[track_caller]
    pub fn bit_linears(&self, x: Slot, input: BitInput, stack: &BitStack, residual: Option<Slot>) -> Slot {
        let (rows, d) = (self.spec(x).shape[0], self.spec(x).width());
        if let Some(whole) = stack.whole().filter(|_| fits_fused(rows, d, 1)) {
            return self.bit_linear(x, input, whole, stack.outs, residual);
        }
        let x = input.pre_norm.map_or(x, |(norm, w)| self.rms_norm(x, w, norm));
        let codes = self.norm_quantise(x, stack.norms, input.norm, input.act);
        self.ternary_pieces(codes, &stack.pieces, residual)
    }

    /// `x + moe(norm(x))`, x `[rows, d]`: the `k` best of `n` experts, and those that all rows share. The choices of
    /// `rows` go into the state `log`, as [`PlanBuilder::router`] does it.
    #[track_caller]
    pub fn moe(&self, x: Slot, moe: &MoeInput, rows: Slot, log: Slot) -> MoeSlots {
        let (n, d, d_ff) = (self.spec(x).shape[0], self.spec(x).width(), moe.gate_up.outs[0]);
        if fits_fused(n, d_ff, moe.experts.slots())
            && fits_fused(n, d, 2)
            && let (Some(gate_up), Some(down)) = (moe.gate_up.whole(), moe.down.whole())
        {
            return self.fused_moe(x, moe, [gate_up, down], [rows, log]);
        }
        let ((norm, w), [router, bias], experts) = (moe.pre_norm, moe.router, moe.experts);
        let h = self.rms_norm(x, w, norm);
        let logits = self.matmul(h, router, Some(bias), None); // [rows, experts]
        let [ids, weights] = self.router(logits, rows, log, experts.k); // [rows, k]
        let groups = (n > MAX_UNGROUPED_ROWS).then(|| self.group_rows(ids, experts));
        let codes = |x, norms| self.norm_quantise_experts(x, norms, ids, experts, moe.norm, moe.quant);
        let product =
            |x, stack: &BitStack| self.expert_pieces(codes(x, stack.norms), &stack.pieces, ids, groups, experts);
        let hidden = match moe.gate_up.whole().filter(|_| self.joins_gates()) {
            Some([norms, gate_up]) => {
                self.expert_swiglu(codes(h, norms), gate_up, ids, groups, d_ff, (experts, moe.act))
            }
            None => self.swiglu(product(h, &moe.gate_up), moe.act),
        }; // [rows, slots, d_ff]
        let y = product(hidden, &moe.down); // [rows, slots, d]
        let out = self.combine(x, y, weights, moe.bound);
        MoeSlots { out, expert_ids: ids, expert_weights: weights, hidden, composed: Some([logits, y]) }
    }

    /// [`PlanBuilder::moe`] in three launches, or in two.
    #[track_caller]
    fn fused_moe(&self, x: Slot, moe: &MoeInput, stacks: [[Slot; 2]; 2], [rows, log]: [Slot; 2]) -> MoeSlots {
        let ((norm, w), [router, bias], experts) = (moe.pre_norm, moe.router, moe.experts);
        let d_ff = moe.gate_up.outs[0];
        let [first, second] =
            [Some(moe.pre_norm), None].map(|pre_norm| BitInput { pre_norm, norm: moe.norm, act: moe.quant });
        let (hidden, choice) = if self.makes_inputs_again() && self.spec(x).shape[0] == 1 && can_route(experts.n) {
            let n = moe.front.parts.iter().map(|part| part.rows.len() * part.cols).sum();
            let stack = [self.weight(&moe.front, &[n]), stacks[0][1]];
            let [hidden, ids, weights] =
                self.route_swiglu(x, (norm, second), stack, d_ff, [rows, log], (experts, moe.act));
            (hidden, [ids, weights])
        } else {
            let choice = self.route(x, norm, [w, router, bias], rows, log, experts.k);
            (self.bit_swiglu(x, first, stacks[0], d_ff, choice[0], (experts, moe.act)), choice)
        };
        let out = self.bit_combine(hidden, second, stacks[1], choice, experts, (x, moe.bound));
        MoeSlots { out, expert_ids: choice[0], expert_weights: choice[1], hidden, composed: None }
    }
}
