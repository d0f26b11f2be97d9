//! The mixture of experts of a decoder's layer.

use crate::models::decoder::bit_linear::BitLinearStack;
use crate::models::decoder::linear::Norm;
use crate::models::decoder::spec::{MoeSpec, Names};
use crate::models::load::{Tensor, TensorScope};
use crate::models::{TextShape, slots};
use crate::ops::{MoeInput, MoeSlots};
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::{DType, Spec};

/// The weights of a mixture: a router, and gated experts, the k best of n and those that all rows share. Source: Shazeer et
/// al. 2017; Dai et al. 2024.
#[derive(Debug)]
pub struct Moe {
    spec: MoeSpec,
    router: [Tensor; 2],
    gate_up: BitLinearStack,
    down: BitLinearStack,
}

impl Moe {
    /// Takes the tensors below `w`, the feed-forward part's folder, for rows of `width` elements.
    pub fn load(w: &TensorScope, names: &Names, width: usize, spec: MoeSpec) -> Self {
        let (experts, d_ff, n, linear) = (spec.experts, spec.expert.d_ff, spec.experts.n, spec.linear);
        let expert = |e: usize| match e.checked_sub(n) {
            None => w.at(names.experts).at(e),
            Some(_) if experts.shared == 1 => w.at(names.shared_expert),
            Some(shared) => w.at(names.shared_experts).at(shared),
        };
        let all = || (0..experts.all()).map(expert);
        let gate_up: Vec<TensorScope> = all().flat_map(|expert| names.gate_up.map(|name| expert.at(name))).collect();
        let down: Vec<TensorScope> = all().map(|expert| expert.at(names.down)).collect();
        let router = w.at(names.router);
        Moe {
            spec,
            router: [router.exact("weight", &[n, width]), router.vector("bias", n)],
            gate_up: BitLinearStack::load_places(&gate_up, &[d_ff, d_ff], width, linear),
            down: BitLinearStack::load_places(&down, &[width], d_ff, linear),
        }
    }

    /// `x + moe(norm(x))`, x `[rows, d]`, in layer `i`.
    pub fn record_add(&self, p: &PlanBuilder, x: Slot, norm: &Norm, rows: Slot, i: usize, shape: &TextShape) -> Slot {
        let MoeSpec { experts, expert, linear, bound } = self.spec;
        let log = p.state(&slots::routing(i), Spec::fixed(&[shape.kv_rows, experts.k], DType::U32));
        let [router, bias] = &self.router;
        let front = [self.gate_up.norms(), norm.weight(), router, bias].map(Tensor::clone);
        let moe = MoeInput {
            front: Tensor::stack(&front, &[]).weight,
            pre_norm: norm.input(p),
            router: self.router.each_ref().map(|tensor| tensor.slot(p)),
            experts,
            gate_up: self.gate_up.slots(p),
            down: self.down.slots(p),
            norm: linear.norm,
            quant: linear.quant,
            act: expert.act,
            bound,
        };
        let MoeSlots { out, expert_ids, expert_weights, hidden, composed } = p.moe(x, &moe, rows, log);
        p.tag(format!("layer.{i}.topk_indices"), expert_ids);
        p.tag(format!("layer.{i}.topk_weights"), expert_weights);
        // The last vector of a row is a shared expert's wherever this has a name.
        if experts.shared > 0 {
            p.tag(slots::hidden(i), hidden);
        }
        if let Some([logits, outs]) = composed {
            p.tag(format!("layer.{i}.router_logits"), logits);
            p.tag(format!("layer.{i}.experts_out"), outs);
        }
        out
    }
}
