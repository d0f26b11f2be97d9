//! BitLinear layers, and the mixture of experts made of them.

use crate::models::decoder::ternary_stack::TernaryStack;
use crate::models::embernet::config::EmberNetConfig;
use crate::models::load::{Cursor, Tensor};
use crate::ops::{ActQuant, BitInput, Experts, RmsNorm};
use crate::plan::{PlanBuilder, Slot};

/// Bound on the mixture's output.
const BOUND: f32 = 1e4;
/// Rows of a batch up to which experts are applied row by row; in more rows, several use the same expert.
const FEW_ROWS: usize = 5;

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
        Quant { norm: RmsNorm { eps: 1e-5, clamped: true }, act: ActQuant { max_code, bound: 50.0, floor: 1e-4 } }
    }

    fn input(self, pre: Option<(RmsNorm, Slot)>) -> BitInput {
        BitInput { pre, norm: self.norm, act: self.act }
    }
}

/// A norm in front of a stack, with its weight.
pub type Pre<'a> = (RmsNorm, &'a Tensor);

/// BitLinears that read the same input, each with its norm: `[norms [n, d_in], weights [n, Σ d_out, d_in]]`.
#[derive(Debug)]
pub struct BitStack {
    norms: Tensor,
    weights: TernaryStack,
}

impl BitStack {
    /// Takes `NAME.norm.weight` and `NAME.weight` of each name.
    pub fn load(w: &Cursor, names: &[&str], outs: &[usize], d_in: usize) -> Self {
        let places: Vec<Cursor> = names.iter().map(|name| w.at(name)).collect();
        Self::of(&places, outs, d_in)
    }

    /// The same from several places in the tree.
    fn of(places: &[Cursor], outs: &[usize], d_in: usize) -> Self {
        let all = || places.iter().zip(outs.iter().cycle());
        let norms: Vec<Tensor> = all().map(|(w, _)| w.vector("norm.weight", d_in)).collect();
        let weights: Vec<Tensor> = all().map(|(w, &out)| w.ternary("weight", [out, d_in])).collect();
        let max_binding = places.first().map_or(u64::MAX, Cursor::max_binding);
        BitStack {
            norms: Tensor::stack(&norms, &[places.len(), d_in]),
            weights: TernaryStack::new(&weights, outs, max_binding),
        }
    }

    /// x `[rows, d_in]` → `[rows, Σ d_out]`, plus a residual if given.
    pub fn record(&self, p: &PlanBuilder, x: Slot, q: Quant, residual: Option<Slot>) -> Slot {
        self.record_behind(p, x, None, q, residual)
    }

    /// [`BitStack::record`] behind a norm.
    pub fn record_behind(&self, p: &PlanBuilder, x: Slot, pre: Option<Pre>, q: Quant, residual: Option<Slot>) -> Slot {
        let pre = pre.map(|(norm, w)| (norm, w.slot(p)));
        let (rows, d) = (p.spec(x).shape[0], p.spec(x).width());
        if let Some(slots) = self.slots(p).filter(|_| p.fuses(rows, d, 1)) {
            return p.bit_linear(x, q.input(pre), slots, self.weights.outs(), residual);
        }
        let x = pre.map_or(x, |(norm, w)| p.rms_norm(x, w, norm));
        let codes = p.norm_quantise(x, self.norms.slot(p), q.norm, q.act);
        p.ternary_pieces(codes, &self.weights.pieces(p), residual)
    }

    /// What a fused op reads; none where the weights are cut.
    fn slots(&self, p: &PlanBuilder) -> Option<[Slot; 2]> {
        self.weights.whole(p).map(|weights| [self.norms.slot(p), weights])
    }

    /// x `[rows, d_in]` or `[rows, slots, d_in]` → `[rows, slots, Σ d_out]` by each row's experts.
    fn record_experts(&self, p: &PlanBuilder, x: Slot, q: Quant, chosen: Chosen) -> Slot {
        let Chosen { top, groups, experts } = chosen;
        let codes = p.norm_quantise_experts(x, self.norms.slot(p), top, experts, q.norm, q.act);
        p.expert_pieces(codes, &self.weights.pieces(p), top, groups, experts)
    }
}

/// The experts of a batch's rows.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    top: Slot,
    groups: Option<Slot>,
    experts: Experts,
}

/// Mixture of SwiGLU experts, the k best of n and those that all rows share. Source: Shazeer et al. 2017; Dai et al. 2024.
#[derive(Debug)]
pub struct Moe {
    router: Tensor,
    router_bias: Tensor,
    gate_up: BitStack,
    down: BitStack,
    experts: Experts,
    quant: Quant,
}

impl Moe {
    /// Takes the tensors below `w`.
    pub fn load(w: &Cursor, c: &EmberNetConfig) -> Self {
        let (d, d_ff, n) = (c.hidden_size, c.intermediate_size, c.num_experts);
        let experts = Experts { k: c.num_experts_per_tok, n, shared: c.num_shared_experts };
        let expert = |e: usize| match e.checked_sub(n) {
            None => w.at("experts").at(e),
            Some(_) if experts.shared == 1 => w.at("shared_expert"),
            Some(shared) => w.at("shared_experts").at(shared),
        };
        let gate_up: Vec<Cursor> =
            (0..experts.all()).flat_map(|e| ["gate_proj", "up_proj"].map(|name| expert(e).at(name))).collect();
        let down: Vec<Cursor> = (0..experts.all()).map(|e| expert(e).at("down_proj")).collect();
        Moe {
            router: w.exact("router.weight", &[n, d]),
            router_bias: w.vector("router.bias", n),
            gate_up: BitStack::of(&gate_up, &[d_ff, d_ff], d),
            down: BitStack::of(&down, &[d], d_ff),
            experts,
            quant: Quant::new(c),
        }
    }

    /// `x + moe(norm(x))`, x `[rows, d]`. `name` prefixes the tags.
    pub fn record_add(&self, p: &PlanBuilder, x: Slot, norm: Pre, rows: Slot, log: Slot, name: &str) -> Slot {
        let tag = |what: &str, slot| p.tag(format!("{name}.{what}"), slot);
        let (n, d_ff) = (p.spec(x).shape[0], self.gate_up.weights.outs()[0]);
        if p.fuses(n, d_ff, self.experts.slots())
            && p.fuses(n, p.spec(x).width(), 2)
            && let (Some(gate_up), Some(down)) = (self.gate_up.slots(p), self.down.slots(p))
        {
            return self.record_few(p, x, norm, [gate_up, down], [rows, log], tag);
        }
        let h = p.rms_norm(x, norm.1.slot(p), norm.0);
        let logits = p.matmul(h, self.router.slot(p), Some(self.router_bias.slot(p)), None);
        let logits = tag("router_logits", logits); // [rows, experts]
        let [top, weights] = p.router(logits, rows, log, self.experts.k); // [rows, k]
        tag("topk_indices", top);
        tag("topk_weights", weights);
        let groups = (p.spec(top).shape[0] > FEW_ROWS).then(|| p.group_rows(top, self.experts));
        let chosen = Chosen { top, groups, experts: self.experts };
        let y = self.gate_up.record_experts(p, h, self.quant, chosen); // [rows, slots, 2·d_ff]
        let y = self.tag_hidden(p.swiglu(y), tag); // [rows, slots, d_ff]
        let y = self.down.record_experts(p, y, self.quant, chosen); // [rows, slots, d]
        tag("experts_out", y);
        p.combine(x, y, weights, BOUND)
    }

    /// Names what the second matrices read; its last vector is a shared expert's wherever it has a name.
    fn tag_hidden(&self, y: Slot, tag: impl Fn(&str, Slot) -> Slot) -> Slot {
        if self.experts.shared == 0 { y } else { tag("hidden", y) }
    }

    /// [`Moe::record_add`] in three launches, for few rows.
    fn record_few(
        &self,
        p: &PlanBuilder,
        x: Slot,
        (norm, w): Pre,
        [gate_up, down]: [[Slot; 2]; 2],
        [rows, log]: [Slot; 2],
        tag: impl Fn(&str, Slot) -> Slot,
    ) -> Slot {
        let (w, experts) = (w.slot(p), self.experts);
        let choice = p.route(x, norm, [w, self.router.slot(p), self.router_bias.slot(p)], rows, log, experts.k);
        tag("topk_indices", choice[0]);
        tag("topk_weights", choice[1]);
        let input = self.quant.input(Some((norm, w)));
        let y = p.bit_swiglu(x, input, gate_up, self.gate_up.weights.outs()[0], choice[0], experts);
        let y = self.tag_hidden(y, tag); // [rows, slots, d_ff]
        p.bit_combine(y, self.quant.input(None), down, choice, experts, (x, BOUND))
    }
}
