//! Names of tensors: those of GGUF files, and those of Hugging Face's checkpoints, by which models ask for them.

/// Tensors outside of layers.
const WHOLE: [(&str, &str); 3] =
    [("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

/// Tensors of a layer: behind `blk.N.`, and behind `model.layers.N.`.
const LAYER: [(&str, &str); 14] = [
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_qkv", "self_attn.qkv_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("attn_sub_norm", "self_attn.attn_sub_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
    ("ffn_sub_norm", "mlp.ffn_sub_norm"),
];

/// What a tensor is to its layer: its numbers, what is added to its product, and what its product is multiplied by.
const ENDS: [&str; 3] = ["weight", "bias", "scale"];

/// The name by which models know the tensor `name` of a GGUF file: `blk.N.attn_q.weight` is
/// `model.layers.N.self_attn.q_proj.weight`. A `scale`, which Hugging Face's checkpoints do not have, multiplies its
/// matrix's product. A name that is not in the tables stays as it is.
pub(crate) fn canonical(name: &str) -> String {
    let known = || {
        let (stem, end) = name.rsplit_once('.').filter(|(_, end)| ENDS.contains(end))?;
        let of = |table: &[(&str, &'static str)], stem: &str| {
            table.iter().find(|(gguf, _)| *gguf == stem).map(|(_, canonical)| *canonical)
        };
        let Some(inner) = stem.strip_prefix("blk.") else {
            return of(&WHOLE, stem).map(|name| format!("{name}.{end}"));
        };
        let (layer, stem) = inner.split_once('.')?;
        let is_number = !layer.is_empty() && layer.bytes().all(|byte| byte.is_ascii_digit());
        of(&LAYER, stem).filter(|_| is_number).map(|name| format!("model.layers.{layer}.{name}.{end}"))
    };
    known().unwrap_or_else(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_hugging_face() {
        for (gguf, want) in [
            ("blk.12.attn_q.weight", "model.layers.12.self_attn.q_proj.weight"),
            ("blk.0.ffn_sub_norm.weight", "model.layers.0.mlp.ffn_sub_norm.weight"),
            ("blk.3.attn_k.bias", "model.layers.3.self_attn.k_proj.bias"),
            ("blk.3.ffn_down.scale", "model.layers.3.mlp.down_proj.scale"),
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("output.weight", "lm_head.weight"),
            ("rope_freqs.weight", "rope_freqs.weight"),
            ("blk.x.attn_q.weight", "blk.x.attn_q.weight"),
            ("blk.1.ssm_a", "blk.1.ssm_a"),
            ("blk.1.attn_q.input_scale", "blk.1.attn_q.input_scale"),
        ] {
            assert_eq!(canonical(gguf), want);
        }
    }
}
