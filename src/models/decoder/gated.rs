//! The dense feed-forward part of a decoder's layer.

use crate::models::decoder::linear::{LinearSpec, LinearStack, Norm};
use crate::models::decoder::spec::{GatedSpec, Names};
use crate::models::load::TensorScope;
use crate::ops::RmsNorm;
use crate::plan::{PlanBuilder, Slot};

/// The weights of a gated layer. Source: Shazeer 2020.
#[derive(Debug)]
pub struct Gated {
    spec: GatedSpec,
    gate_up: LinearStack,
    sub_norm: Option<Norm>,
    down: LinearStack,
}

impl Gated {
    /// Takes the tensors below `w`, the feed-forward part's folder, for rows of `width` elements.
    pub fn load(
        w: &TensorScope,
        names: &Names,
        width: usize,
        (spec, sub_norm): (GatedSpec, Option<RmsNorm>),
        linear: LinearSpec,
    ) -> Self {
        Gated {
            spec,
            gate_up: LinearStack::load(w, &names.gate_up, &[spec.d_ff; 2], width, linear),
            sub_norm: sub_norm.map(|rule| Norm::load(w, names.down_norm, spec.d_ff, rule)),
            down: LinearStack::load(w, &[names.down], &[width], spec.d_ff, linear),
        }
    }

    /// `x + down(act(gate) · up)` of `norm(x)`, x `[rows, d]`.
    pub fn record_add(&self, p: &PlanBuilder, x: Slot, norm: &Norm) -> Slot {
        let gate_up = self.gate_up.record(p, x, Some(norm), None); // [rows, 2·d_ff]
        self.down.record_gated(p, gate_up, self.spec.act, self.sub_norm.as_ref(), Some(x))
    }
}
