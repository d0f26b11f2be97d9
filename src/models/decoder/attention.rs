//! The attention of a decoder's layer, with its cache of keys and values.

use crate::models::decoder::linear::{BitLinearSpec, BitLinearStack, Norm};
use crate::models::decoder::spec::{AttentionSpec, Names};
use crate::models::load::TensorScope;
use crate::models::{TextShape, slots};
use crate::ops::Rope;
use crate::plan::{PlanBuilder, Slot};
use crate::tensor::Spec;

/// The weights of an attention.
#[derive(Debug)]
pub struct Attention {
    spec: AttentionSpec,
    qkv: BitLinearStack,
    out: BitLinearStack,
}

impl Attention {
    /// Takes the tensors below `w`, the attention's folder, for rows of `width` elements.
    pub fn load(w: &TensorScope, names: &Names, width: usize, spec: AttentionSpec, linear: BitLinearSpec) -> Self {
        let [inner, d_kv] = [spec.heads.heads, spec.heads.kv_heads].map(|n| n * spec.heads.d);
        Attention {
            spec,
            qkv: BitLinearStack::load(w, &names.qkv, &[inner, d_kv, d_kv], width, linear),
            out: BitLinearStack::load(w, &[names.out], &[width], inner, linear),
        }
    }

    /// `x + attention(norm(x))`, x `[rows, d]`, in layer `i`.
    pub fn record_add(&self, p: &PlanBuilder, x: Slot, norm: &Norm, rows: Slot, i: usize, shape: &TextShape) -> Slot {
        let AttentionSpec { heads, theta } = self.spec;
        let d_kv = heads.kv_heads * heads.d;
        let kv = slots::kv(i).map(|name| p.state(&name, Spec::fixed(&[shape.kv_rows, d_kv], shape.kv_dtype)));
        let qkv = self.qkv.record(p, x, Some(norm), None); // [rows, (heads + 2·kv_heads)·d_head]
        let q = p.rope_kv_write(qkv, rows, Rope { theta, positions: shape.context() }, heads, kv);
        p.trace(&slots::attention(i), |p| p.cached_attention_weights(q, kv[0], rows, heads));
        let a = p.cached_attention(q, kv[0], kv[1], rows, heads); // [rows, heads·d_head]
        self.out.record(p, a, None, Some(x))
    }
}
