//! The attention of a decoder's layer, with its cache of keys and values.

use crate::models::decoder::linear::{LinearSpec, LinearStack, Norm};
use crate::models::decoder::spec::{AttentionSpec, Names};
use crate::models::load::{Tensor, TensorScope};
use crate::models::{TextShape, slots};
use crate::ops::{QkNorm, RmsNorm, cache_spec};
use crate::plan::{PlanBuilder, Slot};

/// The weights of an attention.
#[derive(Debug)]
pub struct Attention {
    spec: AttentionSpec,
    qkv: LinearStack,
    /// The norm of heads, and its weights for queries and keys `[2, d_head]`.
    qk_norm: Option<(RmsNorm, Tensor)>,
    sub_norm: Option<Norm>,
    out: LinearStack,
}

impl Attention {
    /// Takes the tensors below `w`, the attention's folder, for rows of `width` elements.
    pub fn load(w: &TensorScope, names: &Names, width: usize, spec: AttentionSpec, linear: LinearSpec) -> Self {
        let [inner, d_kv] = [spec.heads.heads, spec.heads.kv_heads].map(|n| n * spec.heads.d);
        let qkv = match w.at(names.fused_qkv).has("weight") {
            true => LinearStack::load(w, &[names.fused_qkv], &[inner + 2 * d_kv], width, linear),
            false => LinearStack::load(w, &names.qkv, &[inner, d_kv, d_kv], width, linear),
        };
        let d = spec.heads.d;
        let head_norm = |rule| (rule, Tensor::stack(&names.qk_norms.map(|name| w.vector(name, d)), &[2, d]));
        Attention {
            qkv,
            qk_norm: spec.qk_norm.map(head_norm),
            sub_norm: spec.sub_norm.map(|rule| Norm::load(w, names.out_norm, inner, rule)),
            out: LinearStack::load(w, &[names.out], &[width], inner, linear),
            spec,
        }
    }

    /// `x + attention(norm(x))`, x `[rows, d]`, in layer `i`.
    pub fn record_add(&self, p: &PlanBuilder, x: Slot, norm: &Norm, rows: Slot, i: usize, shape: &TextShape) -> Slot {
        let AttentionSpec { heads, rotation, .. } = &self.spec;
        let cache = cache_spec(shape.kv_rows, [heads.kv_heads, heads.d], shape.kv_dtype);
        let kv = slots::kv(i).map(|name| p.state(&name, cache.clone()));
        let qkv = self.qkv.record(p, x, Some(norm), None); // [rows, (heads + 2·kv_heads)·d_head]
        let qk_norm = self.qk_norm.as_ref().map(|(norm, weights)| QkNorm { norm: *norm, weights: weights.slot(p) });
        let (a, q) = p.rope_attention(qkv, rows, (rotation, shape.context), qk_norm, *heads, kv); // [rows, heads·d_head]
        if let Some(q) = q {
            p.trace(&slots::attention(i), |p| p.cached_attention_weights(q, kv[0], rows, *heads));
        }
        self.out.record(p, a, self.sub_norm.as_ref(), Some(x))
    }
}
