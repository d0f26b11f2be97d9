//! Llama, dense: Falcon3-1.58, Falcon-E, Llama3-8B-1.58 and others that are built as it is. Source: the code of
//! transformers' `LlamaForCausalLM`.

use crate::models::causal_lm::{CausalLm, Rules, is_model_type};
use crate::models::{Family, HiddenAct};

const RULES: Rules = Rules {
    qk_norm: false,
    sub_norms: false,
    default_act: HiddenAct::SiLu,
    row_activations: false,
    gguf_template: None,
};

/// Llama checkpoints are recognised by their configuration.
pub static LLAMA: Family = Family {
    name: "Llama",
    identified_by: "model_type or general.architecture llama",
    open_with: "Engine::open",
    tokenizer_note: "",
    recognises: |files, w| is_model_type(files, w, "llama"),
    open: |files, weights, options| CausalLm::open(&LLAMA, RULES, files, weights, options),
};
