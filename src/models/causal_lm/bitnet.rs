//! BitNet b1.58: norms in front of the last matrices of attention and feed-forward part, activations of 8 bits a row.
//! Sources: Ma et al. 2025 (BitNet b1.58 2B4T); the code of transformers' `BitNetForCausalLM`.

use crate::files::chat_template::builtin::BITNET as TEMPLATE;
use crate::models::causal_lm::{CausalLm, Rules, is_model_type};
use crate::models::{Family, HiddenAct};

const RULES: Rules = Rules {
    qk_norm: false,
    sub_norms: true,
    default_act: HiddenAct::Relu2,
    row_activations: true,
    // The template in the published GGUF files has other roles than the model was trained with, and it does not stop.
    gguf_template: Some((128_256, TEMPLATE)),
};

/// BitNet checkpoints are recognised by their configuration.
pub static BITNET: Family = Family {
    name: "BitNet",
    identified_by: "model_type bitnet or general.architecture bitnet, bitnet-25 or bitnet-b1.58",
    open_with: "Engine::open",
    tokenizer_note: "",
    recognises: |files, w| is_model_type(files, w, "bitnet"),
    open: |files, weights, options| CausalLm::open(&BITNET, RULES, files, weights, options),
};
