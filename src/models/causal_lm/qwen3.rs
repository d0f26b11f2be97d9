//! Qwen3, dense: a norm for each head of queries and keys. Bonsai's models are of this family. Source: the code of
//! transformers' `Qwen3ForCausalLM`.

use crate::models::causal_lm::{CausalLm, Rules, is_model_type};
use crate::models::{Family, HiddenAct};

const RULES: Rules = Rules {
    qk_norm: true,
    sub_norms: false,
    default_act: HiddenAct::SiLu,
    row_activations: false,
    gguf_template: None,
};

/// Qwen3 checkpoints are recognised by their configuration.
pub static QWEN3: Family = Family {
    name: "Qwen3",
    identified_by: "model_type or general.architecture qwen3",
    open_with: "Engine::open",
    tokenizer_note: "",
    recognises: |files, w| is_model_type(files, w, "qwen3"),
    open: |files, weights, options| CausalLm::open(&QWEN3, RULES, files, weights, options),
};
