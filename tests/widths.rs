//! Models of widths that no published one has: heads of one column and of odd ones, rows that are no whole words, patches
//! of odd sides. Every device computes what the plain definitions do.

mod support {
    pub mod broken_checkpoints;
    pub mod device;
    pub mod golden;
}

use serde_json::json;
use support::broken_checkpoints::Parts;
use support::device::device;
use ternion::ModelFiles;
use ternion::engine::ModelOptions;
use ternion::engine::{DeviceChoice, DeviceOptions, LmHead, Precision, Progress};
use ternion::tools::check::{CheckOptions, check};
use ternion::tools::synthetic;
use ternion::unstable::models::{EmberNetConfig, SigLipConfig};

/// Compares a model on the CPU, and on a GPU if there is one, with the plain definitions; in 16 bits with this head.
fn agrees(what: &str, files: &ModelFiles, head: LmHead) {
    let choices = [DeviceChoice::Cpu].into_iter().chain(device().map(|_| DeviceChoice::Gpu));
    for choice in choices {
        for (precision, head) in [(Precision::F32, LmHead::Dense), (Precision::F16, head)] {
            let device = DeviceOptions { autotune: false, ..choice.clone().into() };
            let model = ModelOptions { precision, head, ..ModelOptions::default() };
            let options = CheckOptions { device, model, ..Default::default() };
            let found =
                check(files.clone(), &options, Progress::ignore).unwrap_or_else(|e| panic!("{what}, {choice:?}: {e}"));
            assert!(found.nodes > 0 && found.divergences == 0, "{what}, {choice:?}, {precision:?}: {:?}", found.first);
        }
    }
}

/// Sizes of a small EmberNet: width, heads, kv heads, width of an expert; of its encoder: width, inner width, heads,
/// patches a side, patch.
fn embernet([d, heads, kv_heads, d_ff]: [usize; 4], [dv, dv_ff, v_heads, grid, patch]: [usize; 5]) -> EmberNetConfig {
    EmberNetConfig {
        vocab_size: 67,
        hidden_size: d,
        intermediate_size: d_ff,
        num_layers: 1,
        num_attention_heads: heads,
        num_kv_heads: kv_heads,
        max_position_embeddings: 200,
        num_experts: 3,
        num_experts_per_tok: 2,
        expert_domains: (0..3).map(|i| i.to_string()).collect(),
        num_image_tokens: 5,
        vision: SigLipConfig {
            hidden_size: dv,
            intermediate_size: dv_ff,
            num_hidden_layers: 1,
            num_attention_heads: v_heads,
            image_size: grid * patch,
            patch_size: patch,
        },
        ..EmberNetConfig::published()
    }
}

#[test]
fn embernets_of_any_width_agree_on_every_device() {
    let sizes = [
        // Heads of 10 columns, an odd expert, encoder heads of 3, odd patches.
        ([40, 4, 2, 33], [24, 13, 8, 7, 5]),
        // Heads of 2 columns, 5 for each of the keys'; encoder heads of one column.
        ([40, 20, 4, 50], [16, 31, 16, 4, 7]),
        // One head of 264 columns, wider than a workgroup writes at once; encoder heads of 264 as well.
        ([264, 1, 1, 64], [264, 16, 1, 3, 2]),
    ];
    for (text, image) in sizes {
        let files = synthetic::embernet_of(embernet(text, image)).expect("a model");
        agrees(&format!("{text:?}, {image:?}"), &files, LmHead::Int8);
    }
}

/// An EmberNet of so many experts, of which k are chosen, and so many shared ones.
fn with_experts([n, k, shared]: [usize; 3]) -> EmberNetConfig {
    EmberNetConfig {
        num_experts: n,
        num_experts_per_tok: k,
        num_shared_experts: shared,
        expert_domains: (0..n).map(|i| i.to_string()).collect(),
        ..embernet([32, 4, 2, 10], [16, 16, 8, 2, 4])
    }
}

#[test]
fn embernets_of_few_and_many_experts_agree_on_every_device() {
    for counts in [[1, 1, 0], [3, 2, 2], [40, 4, 1], [256, 8, 0], [512, 8, 4]] {
        let files = synthetic::embernet_of(with_experts(counts)).expect("a model");
        agrees(&format!("experts, chosen, shared {counts:?}"), &files, LmHead::Dense);
    }
}

#[test]
fn counts_of_experts_beyond_the_bounds_are_named() {
    for (counts, key) in [
        ([513, 8, 1], "num_experts"),
        ([0, 1, 1], "num_experts"),
        ([4, 5, 1], "num_experts_per_tok"),
        ([4, 2, 5], "num_shared_experts"),
    ] {
        let files = synthetic::embernet_of(with_experts(counts)).expect("a model");
        support::broken_checkpoints::assert_says(
            check(files, &CheckOptions::default(), Progress::ignore),
            &[key, "expected an integer in"],
        );
    }
}

#[test]
fn widths_that_halves_or_the_pooler_cannot_have_are_named() {
    let says = |text, image, parts: &[&str]| {
        let files = synthetic::embernet_of(embernet(text, image)).expect("a model");
        support::broken_checkpoints::assert_says(check(files, &CheckOptions::default(), Progress::ignore), parts);
    };
    says([40, 8, 2, 32], [24, 16, 2, 2, 4], &["hidden_size / num_attention_heads", "is 5", "halves"]);
    says([40, 4, 2, 32], [20, 16, 2, 2, 4], &["vision hidden_size", "is 20", "pooler"]);
    says([40, 4, 2, 32], [24, 16, 5, 2, 4], &["vision_config.num_attention_heads", "is 5", "24"]);
}

#[test]
fn bitgens_with_narrow_heads_agree_on_every_device() {
    let all = [("bitgen_stage1/cnn", 64), ("bitgen_stage1/dino_tiny", 32), ("bitgen_model/tiny", 32)];
    for (golden, heads) in all {
        let mut parts = Parts::of(golden).config("num_heads", json!(heads));
        if let Some(dino) = &mut parts.dino {
            dino["num_attention_heads"] = json!(32);
        }
        let dir = parts.write();
        agrees(&format!("{golden} with {heads} heads"), &ModelFiles::from(dir.path()), LmHead::Dense);
    }
}
