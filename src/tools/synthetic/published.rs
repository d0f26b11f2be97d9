//! The published models whose sizes are measured.

use std::str::FromStr;

use crate::engine::options::NamedValues;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::tools::synthetic::dense::{DenseForm, DenseModel, DenseSizes};
use crate::tools::synthetic::embernet;

/// A published model, of which the sizes are known here.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
#[non_exhaustive]
pub enum PublishedModel {
    /// EmberNet: a mixture of experts that reads images.
    #[default]
    EmberNet,
    /// A dense decoder.
    Dense(DenseModel),
}

impl PublishedModel {
    /// A model of these sizes with random weights, the same ones each time.
    ///
    /// # Errors
    /// None that the published sizes can cause.
    pub fn files(self) -> Result<ModelFiles> {
        match self {
            PublishedModel::EmberNet => embernet(),
            PublishedModel::Dense(model) => Ok(model.files(self.name())),
        }
    }

    const fn bonsai(bits: usize, sizes: DenseSizes) -> Self {
        PublishedModel::Dense(DenseModel { form: DenseForm::Qwen3 { bits }, sizes })
    }

    const fn llama(sizes: DenseSizes) -> Self {
        PublishedModel::Dense(DenseModel { form: DenseForm::Llama, sizes })
    }
}

impl NamedValues for PublishedModel {
    const OPTION: &'static str = "shape";
    const VALUES: &'static [(&'static str, Self, &'static str)] = &[
        (
            "bitnet-2b-4t",
            PublishedModel::Dense(DenseModel { form: DenseForm::BitNet, sizes: BITNET_2B_4T }),
            "BitNet b1.58 2B-4T: 2 bits, table in 16",
        ),
        ("bonsai-1.7b", Self::bonsai(1, BONSAI_1_7B), "Bonsai 1.7B: 1 bit, groups of 128"),
        ("bonsai-4b", Self::bonsai(1, BONSAI_4B), "Bonsai 4B: 1 bit, groups of 128"),
        ("bonsai-8b", Self::bonsai(1, BONSAI_8B), "Bonsai 8B: 1 bit, groups of 128"),
        ("ternary-bonsai-1.7b", Self::bonsai(2, BONSAI_1_7B), "Ternary Bonsai 1.7B: 2 bits, groups of 128"),
        ("ternary-bonsai-4b", Self::bonsai(2, BONSAI_4B), "Ternary Bonsai 4B: 2 bits, groups of 128"),
        ("ternary-bonsai-8b", Self::bonsai(2, BONSAI_8B), "Ternary Bonsai 8B: 2 bits, groups of 128"),
        ("falcon3-1b", Self::llama(FALCON3_1B), "Falcon3 1B 1.58bit: 2 bits, tables in 16"),
        ("falcon3-7b", Self::llama(FALCON3_7B), "Falcon3 7B 1.58bit: 2 bits, tables in 16"),
        ("llama3-8b-1.58", Self::llama(LLAMA3_8B), "Llama3 8B 1.58: 2 bits, tables in 16"),
        ("embernet", PublishedModel::EmberNet, "EmberNet: 1 bit, a mixture of 8 experts, reads images"),
    ];
}

impl FromStr for PublishedModel {
    type Err = Error;

    /// A name of [`NamedValues::VALUES`].
    fn from_str(s: &str) -> Result<Self> {
        Self::named(s)
    }
}

const BITNET_2B_4T: DenseSizes = DenseSizes {
    layers: 30,
    hidden: 2560,
    heads: 20,
    kv_heads: 5,
    head_dim: 128,
    ffn: 6912,
    vocab: 128_256,
    eos: 128_001,
    max_positions: 4096,
    tied: true,
    rope_theta: 5e5,
    yarn: None,
    rms_norm_eps: 1e-5,
};

const BONSAI_1_7B: DenseSizes = DenseSizes {
    layers: 28,
    hidden: 2048,
    heads: 16,
    kv_heads: 8,
    head_dim: 128,
    ffn: 6144,
    vocab: 151_669,
    eos: 151_645,
    max_positions: 32_768,
    tied: true,
    rope_theta: 1e6,
    yarn: None,
    rms_norm_eps: 1e-6,
};

const BONSAI_4B: DenseSizes = DenseSizes { layers: 36, hidden: 2560, heads: 32, ffn: 9728, ..BONSAI_1_7B };

const BONSAI_8B: DenseSizes = DenseSizes {
    hidden: 4096,
    ffn: 12_288,
    max_positions: 65_536,
    tied: false,
    yarn: Some((4.0, 16_384)),
    ..BONSAI_4B
};

const FALCON3_1B: DenseSizes = DenseSizes {
    layers: 18,
    hidden: 2048,
    heads: 8,
    kv_heads: 4,
    head_dim: 256,
    ffn: 8192,
    vocab: 131_072,
    eos: 11,
    max_positions: 8192,
    tied: false,
    rope_theta: 1_000_042.0,
    yarn: None,
    rms_norm_eps: 1e-6,
};

const FALCON3_7B: DenseSizes =
    DenseSizes { layers: 28, hidden: 3072, heads: 12, ffn: 23_040, max_positions: 32_768, ..FALCON3_1B };

const LLAMA3_8B: DenseSizes = DenseSizes {
    layers: 32,
    hidden: 4096,
    heads: 32,
    kv_heads: 8,
    head_dim: 128,
    ffn: 14_336,
    vocab: 128_256,
    eos: 128_001,
    max_positions: 8192,
    tied: false,
    rope_theta: 5e5,
    yarn: None,
    rms_norm_eps: 1e-5,
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Parameters of matrices, in billions.
    fn billions(name: &str) -> f64 {
        let PublishedModel::Dense(model) = PublishedModel::named(name).unwrap() else { panic!("{name} is dense") };
        let all = [model.matrices(), model.tables()].concat();
        1e-9 * all.iter().map(|(_, [rows, cols])| (rows * cols) as f64).sum::<f64>()
    }

    #[test]
    fn models_have_as_many_parameters_as_those_that_are_published() {
        for (name, expected) in [
            ("bitnet-2b-4t", 2.4124),
            ("bonsai-1.7b", 1.7200),
            ("bonsai-4b", 4.0219),
            ("ternary-bonsai-8b", 8.1882),
            ("falcon3-1b", 1.6692),
            ("falcon3-7b", 7.4556),
            ("llama3-8b-1.58", 8.0300),
        ] {
            let found = billions(name);
            assert!((found - expected).abs() < 0.001, "{name}: {found}");
        }
    }

    #[test]
    fn names_and_models_belong_together() {
        for &(name, model, _) in PublishedModel::VALUES {
            assert_eq!(name.parse::<PublishedModel>().unwrap(), model);
            assert_eq!(model.name(), name);
        }
        assert!("bonsai-9b".parse::<PublishedModel>().unwrap_err().to_string().contains("shape"));
    }
}
