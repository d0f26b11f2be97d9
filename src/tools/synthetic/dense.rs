//! Dense decoders: sizes, configuration and tensors, in the forms in which they are published.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::files::{ModelFiles, StorageDType};
use crate::tools::synthetic::fill::Fill;
use crate::tools::synthetic::source::{Made, Synthetic};

/// Columns that share a scale in MLX's words.
const GROUP: usize = 128;

/// Sizes of a dense decoder.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseSizes {
    /// Layers.
    pub layers: usize,
    /// Width of a token's vector.
    pub hidden: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head; all heads together need not be as wide as `hidden`.
    pub head_dim: usize,
    /// Width of the feed-forward part.
    pub ffn: usize,
    /// Tokens of the vocabulary.
    pub vocab: usize,
    /// The token that ends a text.
    pub eos: u32,
    /// Maximum number of positions.
    pub max_positions: usize,
    /// Whether the head is the embedding table.
    pub tied: bool,
    /// Base of the angles of positions.
    pub rope_theta: f64,
    /// YaRN: the factor of the scaling, and the number of positions without it.
    pub yarn: Option<(f64, usize)>,
    /// What is added to mean squares.
    pub rms_norm_eps: f64,
}

/// A family, and how its matrices are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseForm {
    /// Qwen3: MLX's words of 1 or 2 bits a code with a scale and an offset for 128 columns, tables too.
    Qwen3 {
        /// Bits of a code.
        bits: usize,
    },
    /// BitNet: bytes of four rows with a scale that multiplies, the table in 16 bits.
    BitNet,
    /// Llama: bytes of four rows with a scale that divides, the tables in 16 bits.
    Llama,
}

/// A dense model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DenseModel {
    /// Family and form.
    pub form: DenseForm,
    /// Sizes.
    pub sizes: DenseSizes,
}

impl DenseModel {
    /// Names and widths of the norms.
    pub fn norms(&self) -> Vec<(String, usize)> {
        let DenseSizes { layers, hidden, heads, head_dim, ffn, .. } = self.sizes;
        let own = match self.form {
            DenseForm::Qwen3 { .. } => vec![("self_attn.q_norm", head_dim), ("self_attn.k_norm", head_dim)],
            DenseForm::BitNet => vec![("self_attn.attn_sub_norm", heads * head_dim), ("mlp.ffn_sub_norm", ffn)],
            DenseForm::Llama => Vec::new(),
        };
        let of_layer = [vec![("input_layernorm", hidden), ("post_attention_layernorm", hidden)], own].concat();
        let in_layers = of_layers(layers, &of_layer);
        in_layers.into_iter().chain([("model.norm.weight".to_owned(), hidden)]).collect()
    }

    /// Names and shapes `[rows, cols]` of the matrices of layers.
    pub fn matrices(&self) -> Vec<(String, [usize; 2])> {
        let DenseSizes { layers, hidden, heads, kv_heads, head_dim, ffn, .. } = self.sizes;
        let (q, kv) = (heads * head_dim, kv_heads * head_dim);
        let of_layer = [
            ("self_attn.q_proj", [q, hidden]),
            ("self_attn.k_proj", [kv, hidden]),
            ("self_attn.v_proj", [kv, hidden]),
            ("self_attn.o_proj", [hidden, q]),
            ("mlp.gate_proj", [ffn, hidden]),
            ("mlp.up_proj", [ffn, hidden]),
            ("mlp.down_proj", [hidden, ffn]),
        ];
        of_layers(layers, &of_layer)
    }

    /// Names and shapes of the embedding table, and of the head where it is another one.
    pub fn tables(&self) -> Vec<(String, [usize; 2])> {
        let shape = [self.sizes.vocab, self.sizes.hidden];
        let head = (!self.sizes.tied).then_some("lm_head.weight");
        ["model.embed_tokens.weight"].into_iter().chain(head).map(|name| (name.to_owned(), shape)).collect()
    }

    /// `config.json`.
    pub fn config(&self) -> Value {
        let DenseModel { form, sizes } = self;
        let (model_type, class, activation) = match form {
            DenseForm::Qwen3 { .. } => ("qwen3", "Qwen3ForCausalLM", "silu"),
            DenseForm::BitNet => ("bitnet", "BitNetForCausalLM", "relu2"),
            DenseForm::Llama => ("llama", "LlamaForCausalLM", "silu"),
        };
        let mut config = json!({
            "architectures": [class],
            "model_type": model_type,
            "hidden_size": sizes.hidden,
            "intermediate_size": sizes.ffn,
            "num_hidden_layers": sizes.layers,
            "num_attention_heads": sizes.heads,
            "num_key_value_heads": sizes.kv_heads,
            "head_dim": sizes.head_dim,
            "vocab_size": sizes.vocab,
            "eos_token_id": sizes.eos,
            "max_position_embeddings": sizes.max_positions,
            "rms_norm_eps": sizes.rms_norm_eps,
            "rope_theta": sizes.rope_theta,
            "tie_word_embeddings": sizes.tied,
            "hidden_act": activation,
        });
        if let Some((factor, original)) = sizes.yarn {
            let yarn = json!({ "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original });
            config["rope_scaling"] = yarn;
        }
        match form {
            DenseForm::Qwen3 { bits } => {
                config["quantization"] = json!({ "group_size": GROUP, "bits": bits, "mode": "affine" });
            }
            DenseForm::BitNet => {
                config["quantization_config"] = json!({ "quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "offline" });
            }
            DenseForm::Llama => {
                config["quantization_config"] =
                    json!({ "quant_method": "bitnet", "modules_to_not_convert": ["lm_head"] });
            }
        }
        config
    }

    /// The model with random weights, under this name.
    pub(super) fn files(&self, name: &str) -> ModelFiles {
        let mut tensors = Tensors::default();
        for (name, width) in self.norms() {
            tensors.add(name, StorageDType::F32, vec![width], Fill::Norm);
        }
        for (name, shape) in self.matrices() {
            match self.form {
                DenseForm::Qwen3 { bits } => tensors.affine(&name, shape, bits),
                DenseForm::BitNet => tensors.packed_rows(&name, shape, |scale| scale),
                DenseForm::Llama => tensors.packed_rows(&name, shape, |scale| 1.0 / scale),
            }
        }
        for (name, shape) in self.tables() {
            match self.form {
                DenseForm::Qwen3 { bits } => tensors.affine(&name, shape, bits),
                DenseForm::BitNet | DenseForm::Llama => {
                    tensors.add(name, StorageDType::F16, shape.to_vec(), Fill::WEIGHTS);
                }
            }
        }
        let name = format!("{name} with random weights");
        ModelFiles::Source(Arc::new(Synthetic::new(name, &self.config(), tensors.0)))
    }
}

/// What each layer has, by names in the checkpoint.
fn of_layers<T: Copy>(layers: usize, of_layer: &[(&str, T)]) -> Vec<(String, T)> {
    let layer =
        |i: usize| of_layer.iter().map(move |(name, shape)| (format!("model.layers.{i}.{name}.weight"), *shape));
    (0..layers).flat_map(layer).collect()
}

/// The exponent of the largest power of two that is at most `1 / sqrt(cols)`, by which a product of normed rows stays
/// about as large as they are.
fn scale_power(cols: usize) -> i32 {
    (-0.5 * (cols as f64).log2()).floor() as i32
}

/// Tensors by name; each has a seed of its own.
#[derive(Default)]
struct Tensors(BTreeMap<String, Made>);

impl Tensors {
    fn add(&mut self, name: String, stored: StorageDType, shape: Vec<usize>, fill: Fill) {
        let seed = self.0.len() as u64;
        self.0.insert(name, Made { stored, shape, fill, seed });
    }

    /// MLX's words: `w = scale · code + bias`, the bias −scale / 2 at 1 bit and −scale at 2.
    fn affine(&mut self, name: &str, [rows, cols]: [usize; 2], bits: usize) {
        let codes = if bits == 1 { Fill::Bits } else { Fill::Codes };
        self.add(name.to_owned(), StorageDType::U32, vec![rows, cols * bits / 32], codes);
        let (seed, bias) = (self.0.len() as u64, scale_power(cols));
        let scale = if bits == 1 { bias + 1 } else { bias };
        let stem = name.strip_suffix("weight").unwrap_or(name);
        for (end, fill) in [("scales", Fill::positive(scale)), ("biases", Fill::negative(bias))] {
            let shape = vec![rows, cols / GROUP];
            self.0.insert(format!("{stem}{end}"), Made { stored: StorageDType::F16, shape, fill, seed });
        }
    }

    /// Bytes of four rows, with the scale beside them.
    fn packed_rows(&mut self, name: &str, [rows, cols]: [usize; 2], stored: impl Fn(f32) -> f32) {
        self.add(name.to_owned(), StorageDType::U8, vec![rows / 4, cols], Fill::Codes);
        // Half of the codes are 0.
        let scale = stored((2.0 / cols as f32).sqrt());
        self.add(format!("{name}_scale"), StorageDType::F32, vec![1], Fill::Value(scale));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::options::NamedValues;
    use crate::files::{MatrixForm, Quantisation, Weights};
    use crate::tensor::WeightPart;
    use crate::tools::synthetic::PublishedModel;

    /// A model of few layers and narrow matrices in the form of each dense one that is published.
    fn small() -> Vec<DenseModel> {
        let dense = |model: &PublishedModel| match *model {
            PublishedModel::Dense(model) => Some(model),
            PublishedModel::EmberNet => None,
        };
        let all = PublishedModel::VALUES.iter().filter_map(|(_, model, _)| dense(model));
        let sizes = |sizes| DenseSizes { layers: 2, hidden: 256, ffn: 512, vocab: 160, ..sizes };
        all.map(|model| DenseModel { sizes: sizes(model.sizes), ..model }).collect()
    }

    #[test]
    fn matrices_are_codes_that_the_files_rules_read() {
        for model in small() {
            let weights = Weights::open(model.files("small")).unwrap();
            let (quantisation, tables) = match model.form {
                DenseForm::Qwen3 { bits } => (Quantisation::Affine { bits, group: GROUP }, model.tables()),
                DenseForm::BitNet => (Quantisation::PackedRows { divides: false }, Vec::new()),
                DenseForm::Llama => (Quantisation::PackedRows { divides: true }, Vec::new()),
            };
            for (name, [rows, cols]) in [model.matrices(), tables].concat() {
                let form = weights.matrix_form(&name, cols, Some(quantisation)).unwrap();
                let MatrixForm::Codes { group, codes } = form else { panic!("{name} is dense") };
                let part = WeightPart { name: name.clone(), rows: 0..rows, cols };
                let packed = weights.groups(&part, group as usize, codes).unwrap();
                let squares: f64 = packed
                    .codes()
                    .iter()
                    .enumerate()
                    .map(|(i, &code)| {
                        let scale = packed.scale(i / cols, i % cols / packed.shape.group).to_f32();
                        f64::from(packed.factor * scale * f32::from(code)).powi(2)
                    })
                    .sum();
                let gain = squares / rows as f64;
                assert!((0.2..5.0).contains(&gain), "{name}: {gain}");
            }
        }
    }

    #[test]
    fn tables_in_16_bits_are_dense() {
        for model in small().into_iter().filter(|model| !matches!(model.form, DenseForm::Qwen3 { .. })) {
            let weights = Weights::open(model.files("small")).unwrap();
            for (name, [_, cols]) in model.tables() {
                let form = weights.matrix_form(&name, cols, Some(Quantisation::PackedRows { divides: false })).unwrap();
                assert_eq!(form, MatrixForm::Dense, "{name}");
            }
        }
    }
}
