//! The router and the first half of the experts that it chooses, of one row in one launch.

use crate::error::Result;
use crate::ops::bit_linear::BitLinear;
use crate::ops::embed::ROW_WORDS;
use crate::ops::few_rows::FewRows;
use crate::ops::route::Route;
use crate::ops::router::check_choices;
use crate::ops::swiglu::Act;
use crate::ops::{BitInput, Experts, RmsNorm, expect, require, simd};
use crate::plan::{Caps, Chosen, Ids, Io, Kernel, Op, PlanBuilder, Slot, Step, Variant, Variants};
use crate::tensor::{DType, Spec};
use crate::threads::ThreadPool;

/// The composition of `route` and `bit_linear` with gate and up of the experts that it chooses, for one row; every workgroup of a
/// chosen expert computes the router's logits again, of four experts in a pass over x.
///
/// x `[1, d]` F32; `front` F32, one behind the other: the norms of the matrices `[2·all, d]`, the norm in front `[d]`, the
/// router `[n, d]`, its bias `[n]`; weights Ternary of all experts; rows `[1, 4]` → h `[1, slots, d_ff]` F32, expert_ids
/// `[1, k]` U32, expert_weights `[1, k]` F32, and the choices in the log. Every device binds that many buffers at once, and not
/// more. n a multiple of 4, at most [`MAX_ROUTED`].
#[derive(Debug)]
struct RouteSwiGlu {
    norm: RmsNorm,
    experts: Experts,
    layer: BitLinear,
}

/// Maximum number of experts whose logits workgroup memory takes beside the codes.
const MAX_ROUTED: usize = 64;

/// Whether a router of so many experts fits.
pub(super) fn can_route(n: usize) -> bool {
    n.is_multiple_of(4) && n <= MAX_ROUTED
}

impl PlanBuilder {
    /// `[h, expert_ids, expert_weights]` of x's one row behind a norm, which the router reads, and `input` says what the experts do.
    #[track_caller]
    pub fn route_swiglu(
        &self,
        x: Slot,
        (norm, input): (RmsNorm, BitInput),
        [front, weights]: [Slot; 2],
        d_ff: usize,
        [rows, log]: [Slot; 2],
        (experts, act): (Experts, Act),
    ) -> [Slot; 3] {
        let layer = BitLinear::routed(norm, input, d_ff, (experts, act));
        let spec = self.spec(x);
        let [ids, chosen] = [DType::U32, DType::F32].map(|dtype| self.temp(spec.with_last(experts.k, dtype)));
        let h = self.temp(Spec::counted(&[1, experts.slots(), d_ff], DType::F32, spec.counted_by));
        self.push_into(RouteSwiGlu { norm, experts, layer }, &[x, front, weights, rows], &[h, ids, chosen, log]);
        [h, ids, chosen]
    }
}

impl RouteSwiGlu {
    fn route(&self) -> Route {
        Route { norm: self.norm, k: self.experts.k }
    }

    /// The parts of `front` for rows of `d` elements: the matrices' norms, the norm in front, the router, and its bias.
    fn parts(&self, d: usize) -> [Spec; 4] {
        let Experts { n, .. } = self.experts;
        let shapes: [&[usize]; 4] = [&[2 * self.experts.all(), d], &[d], &[n, d], &[n]];
        shapes.map(|shape| Spec::fixed(shape, DType::F32))
    }

    /// Runs `route`, then `bit_linear`.
    fn compose(&self, step: &Step, io: &mut Io, run: impl Fn(&dyn Op, &Step, &mut Io)) {
        let [x, front, weights, rows] = [0, 1, 2, 3].map(|i| io.inputs[i]);
        let specs = self.parts(x.0.width());
        let (mut rest, mut parts) = (front.1, Vec::new());
        for spec in &specs {
            let (part, behind) = rest.split_at(spec.len());
            parts.push((spec, part));
            rest = behind;
        }
        let (h, choice) = io.outputs.split_at_mut(1);
        let outputs = choice.iter_mut().map(|(spec, words)| (*spec, &mut **words)).collect();
        let inputs = vec![x, parts[1], parts[2], parts[3], rows];
        run(&self.route(), step, &mut Io { inputs, outputs, threads: io.threads });
        let ids = (choice[0].0, &*choice[0].1);
        let outputs = h.iter_mut().map(|(spec, words)| (*spec, &mut **words)).collect();
        let inputs = vec![x, parts[0], weights, parts[1], ids];
        run(&self.layer, step, &mut Io { inputs, outputs, threads: io.threads });
    }
}

impl Op for RouteSwiGlu {
    fn name(&self) -> &'static str {
        "route_swiglu"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, d, Experts { k, n, .. }) = (inputs[0], inputs[0].width(), self.experts);
        let [norms, norm, router, bias] = &self.parts(d);
        let all = [norms, norm, router, bias].map(Spec::len).iter().sum();
        expect("norms and router", inputs[1], &[all], &[DType::F32])?;
        require("norms and router", inputs[1], can_route(n), "a multiple of 4 experts, 64 at most")?;
        expect("rows", inputs[3], &[1, ROW_WORDS], &[DType::U32])?;
        let choice = self.route().infer(&[x, norm, router, bias, inputs[3]])?;
        let ids = Spec::counted(&[1, k], DType::U32, x.counted_by);
        let h = self.layer.infer(&[x, norms, inputs[2], norm, &ids])?;
        Ok([h, choice].concat())
    }

    fn check_outputs(&self, inputs: &[&Spec], outputs: &[&Spec]) -> Result<()> {
        let own = self.infer(inputs)?;
        expect("h", outputs[0], &own[0].shape, &[DType::F32])?;
        check_choices(&own[1..], &outputs[1..])
    }

    fn chosen(&self) -> Option<Chosen> {
        Some(Chosen { ids: Ids::Output(1), among: self.experts.n, all: self.experts.all() })
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, |op, step, io| op.cpu(step, io));
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, |op, step, io| op.cpu_fast(step, io));
    }

    fn lay_out(&self, weight: &Spec, words: &mut [u32], threads: &ThreadPool) {
        simd::lay_out(weight.dtype, words, threads);
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let used = |i: usize| step.used(inputs[i].0, inputs[i].1);
        let [norms, ..] = self.parts(inputs[0].0.width()).map(|spec| 4 * spec.len() as u64);
        let stack = self.experts.read(norms + used(2), step.rows_in_use(inputs[0].0));
        used(0) + used(1) - norms + stack + used(3)
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Variants {
        FewRows::variants(caps, |form| {
            let mut kernel = self.layer.fused(caps, form, inputs, &outputs[0].leading_only());
            kernel.defines.push("ROUTE");
            Variant::new(form.name, caps, kernel)
        })
    }
}
