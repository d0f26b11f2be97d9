//! BitLinear layers, and the mixture of experts made of them.

use crate::models::decoder::ternary_stack::TernaryStack;
use crate::models::embernet::config::EmberNetConfig;
use crate::models::load::{Tensor, TensorScope};
use crate::ops::{Act, ActQuant, BitInput, BitStack, Experts, GateClamp, Moe as MoeOps, NormClamp, RmsNorm};
use crate::plan::{PlanBuilder, Slot};

/// Bound on the mixture's output.
const BOUND: f32 = 1e4;
/// Bounds of every norm.
pub const CLAMP: NormClamp = NormClamp { input: 100.0, output: 10.0 };
/// The activation of an expert.
const ACT: Act = Act::SiLu { clamp: Some(GateClamp { gate: 20.0, product: 1000.0 }) };

/// How activations become codes in front of every ternary matrix.
#[derive(Debug, Clone, Copy)]
pub struct Quant {
    norm: RmsNorm,
    act: ActQuant,
}

impl Quant {
    /// EmberNet's: its own norm, clamp to ±50, floor 1e-4, 8 or 4 bits.
    pub fn new(c: &EmberNetConfig) -> Self {
        let max_code = if c.activation_bits == 4 { 7.0 } else { 127.0 };
        Quant { norm: RmsNorm { eps: 1e-5, clamp: Some(CLAMP) }, act: ActQuant { max_code, bound: 50.0, floor: 1e-4 } }
    }

    fn input(self, pre: Option<(RmsNorm, Slot)>) -> BitInput {
        BitInput { pre, norm: self.norm, act: self.act }
    }
}

/// A norm in front of a stack, with its weight.
pub type PreNorm<'a> = (RmsNorm, &'a Tensor);

/// BitLinears that read the same input, each with its norm: `[norms [n, d_in], weights [n, Σ d_out, d_in]]`.
#[derive(Debug)]
pub struct BitLinearStack {
    norms: Tensor,
    weights: TernaryStack,
}

impl BitLinearStack {
    /// Takes `NAME.norm.weight` and `NAME.weight` of each name.
    pub fn load(w: &TensorScope, names: &[&str], outs: &[usize], d_in: usize) -> Self {
        let places: Vec<TensorScope> = names.iter().map(|name| w.at(name)).collect();
        Self::of(&places, outs, d_in)
    }

    /// The same from several places in the tree.
    fn of(places: &[TensorScope], outs: &[usize], d_in: usize) -> Self {
        let all = || places.iter().zip(outs.iter().cycle());
        let norms: Vec<Tensor> = all().map(|(w, _)| w.vector("norm.weight", d_in)).collect();
        let weights: Vec<Tensor> = all().map(|(w, &out)| w.ternary("weight", [out, d_in])).collect();
        let max_binding = places.first().map_or(u64::MAX, TensorScope::max_binding);
        BitLinearStack {
            norms: Tensor::stack(&norms, &[places.len(), d_in]),
            weights: TernaryStack::new(&weights, outs, max_binding),
        }
    }

    /// x `[rows, d_in]` → `[rows, Σ d_out]`, plus a residual if given.
    pub fn record(&self, p: &PlanBuilder, x: Slot, q: Quant, residual: Option<Slot>) -> Slot {
        self.record_behind(p, x, None, q, residual)
    }

    /// [`BitLinearStack::record`] behind a norm.
    pub fn record_behind(
        &self,
        p: &PlanBuilder,
        x: Slot,
        pre: Option<PreNorm>,
        q: Quant,
        residual: Option<Slot>,
    ) -> Slot {
        let pre = pre.map(|(norm, w)| (norm, w.slot(p)));
        p.bit_linears(x, q.input(pre), &self.slots(p), residual)
    }

    fn slots(&self, p: &PlanBuilder) -> BitStack<'_> {
        BitStack { norms: self.norms.slot(p), pieces: self.weights.pieces(p), outs: self.weights.outs() }
    }
}

/// Mixture of SwiGLU experts, the k best of n and those that all rows share. Source: Shazeer et al. 2017; Dai et al. 2024.
#[derive(Debug)]
pub struct Moe {
    router: Tensor,
    router_bias: Tensor,
    gate_up: BitLinearStack,
    down: BitLinearStack,
    experts: Experts,
    quant: Quant,
}

impl Moe {
    /// Takes the tensors below `w`.
    pub fn load(w: &TensorScope, c: &EmberNetConfig) -> Self {
        let (d, d_ff, n) = (c.hidden_size, c.intermediate_size, c.num_experts);
        let experts = Experts { k: c.num_experts_per_tok, n, shared: c.num_shared_experts };
        let expert = |e: usize| match e.checked_sub(n) {
            None => w.at("experts").at(e),
            Some(_) if experts.shared == 1 => w.at("shared_expert"),
            Some(shared) => w.at("shared_experts").at(shared),
        };
        let gate_up: Vec<TensorScope> =
            (0..experts.all()).flat_map(|e| ["gate_proj", "up_proj"].map(|name| expert(e).at(name))).collect();
        let down: Vec<TensorScope> = (0..experts.all()).map(|e| expert(e).at("down_proj")).collect();
        Moe {
            router: w.exact("router.weight", &[n, d]),
            router_bias: w.vector("router.bias", n),
            gate_up: BitLinearStack::of(&gate_up, &[d_ff, d_ff], d),
            down: BitLinearStack::of(&down, &[d], d_ff),
            experts,
            quant: Quant::new(c),
        }
    }

    /// `x + moe(norm(x))`, x `[rows, d]`. `name` prefixes the tags.
    pub fn record_add(&self, p: &PlanBuilder, x: Slot, norm: PreNorm, rows: Slot, log: Slot, name: &str) -> Slot {
        let moe = MoeOps {
            pre: (norm.0, norm.1.slot(p)),
            router: [self.router.slot(p), self.router_bias.slot(p)],
            experts: self.experts,
            gate_up: self.gate_up.slots(p),
            down: self.down.slots(p),
            norm: self.quant.norm,
            quant: self.quant.act,
            act: ACT,
            bound: BOUND,
        };
        let y = p.moe(x, &moe, rows, log);
        let tag = |what: &str, slot| p.tag(format!("{name}.{what}"), slot);
        tag("topk_indices", y.expert_ids);
        tag("topk_weights", y.expert_weights);
        // The last vector of a row is a shared expert's wherever this has a name.
        if self.experts.shared > 0 {
            tag("hidden", y.hidden);
        }
        if let Some([logits, outs]) = y.composed {
            tag("router_logits", logits);
            tag("experts_out", outs);
        }
        y.out
    }
}
