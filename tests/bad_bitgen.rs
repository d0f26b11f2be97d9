//! What broken, hostile and foreign BitGens get instead of a panic.

mod support {
    pub mod broken_checkpoints;
    pub mod golden;
    pub mod torch_files;
}

use std::fs;
use std::path::Path;

use serde_json::{Value, json};
use support::broken_checkpoints::{LOAD, Parts, assert_says, break_each_tensor};
use support::golden::golden_root;
use support::torch_files::without_sums;
use tempfile::TempDir;
use ternion::apps::bitgen::{BitGen, BitGenOptions};
use ternion::engine::{DeviceChoice, DeviceOptions, Engine, Options};
use ternion::files::Weights;
use ternion::unstable::models;
use ternion::unstable::models::{BitGenStage1, Model};
use ternion::{Error, Result};

impl Parts {
    fn bitgen(variant: &str) -> Self {
        Parts::of(&format!("bitgen_stage1/{variant}"))
    }

    /// What names and shapes give.
    fn load(&self) -> Result<BitGenStage1> {
        load(self.write().path())
    }
}

fn load(dir: &Path) -> Result<BitGenStage1> {
    BitGenStage1::open(dir, &Weights::open(dir)?, LOAD)
}

fn open(dir: &Path) -> Result<BitGen> {
    let device = DeviceOptions { autotune: false, ..DeviceChoice::Cpu.into() };
    BitGen::open(dir, BitGenOptions { device, ..Default::default() })
}

#[test]
fn absurd_values_of_the_configuration_are_named() {
    let good = Parts::bitgen("cnn");
    assert!(good.load().is_ok());
    let with = |key: &str, value: Value| good.clone().config(key, value).load();
    let heads = [json!(0), json!(-4), json!(257), json!(1u64 << 40), json!(4.5), json!("4"), json!([4]), json!(null)];
    for value in heads {
        let error = assert_says(with("num_heads", value.clone()), &["config.json: num_heads", &value.to_string()]);
        assert!(matches!(error, Error::Config { .. }));
    }
    // Heads that do not divide the width; those that do may be of any width.
    assert_says(with("num_heads", json!(3)), &["num_heads", "is 3", "64"]);
    assert!(with("num_heads", json!(32)).is_ok(), "heads of 2 columns");
    assert_says(with("next_token", json!("yes")), &["next_token", "yes", "true or false"]);
    for value in [json!(512), json!(-1), json!("</s>")] {
        assert_says(with("eos_token_id", value.clone()), &["eos_token_id", &value.to_string(), "0..=511"]);
    }
    let mut gone = good.clone();
    gone.config.as_object_mut().unwrap().remove("num_heads");
    assert_says(gone.load(), &["config.json: num_heads", "missing"]);
}

#[test]
fn broken_and_missing_configuration_files_are_named() {
    let dir = Parts::bitgen("cnn").write();
    let file = dir.path().join("config.json");
    for text in ["[]", "{\"num_heads\": ", "", "\u{1}"] {
        fs::write(&file, text).unwrap();
        assert_says(load(dir.path()), &["config.json", "JSON object"]);
    }
    fs::remove_file(&file).unwrap();
    assert_says(load(dir.path()), &["num_heads", "no config.json", "one folder above"]);
}

#[test]
fn a_trainers_own_configuration_is_checked_as_well() {
    let trainers = golden_root().join("bitgen_stage1/dino_tiny/checkpoint-epoch-4/checkpoint-epoch-4.pt");
    let good = without_sums(fs::read(trainers).unwrap());
    let at = good.windows(9).rposition(|w| w == b"num_heads").unwrap() + 9;
    // Its memo's number, then a number of one byte.
    assert_eq!((good[at], &good[at + 5..at + 7]), (b'r', &b"K\x04"[..]));
    for (value, says) in [(0, "is 0"), (5, "is 5")] {
        let (dir, mut bytes) = (TempDir::new().unwrap(), good.clone());
        bytes[at + 6] = value;
        let file = dir.path().join("checkpoint.pt");
        fs::write(&file, bytes).unwrap();
        assert_says(load(&file), &["num_heads", says]);
    }
}

#[test]
fn heads_of_dinov2_are_checked_in_both_places() {
    let good = Parts::bitgen("dino_tiny");
    assert!(good.load().is_ok());
    for value in [json!(0), json!(1u64 << 60), json!("4"), json!(3)] {
        let heads = json!({"num_attention_heads": value});
        assert_says(good.clone().dino(heads.clone()).load(), &["num_attention_heads", &value.to_string()]);
        assert_says(good.clone().config("dinov2_config", heads).load(), &["num_attention_heads", &value.to_string()]);
    }
    assert_says(good.clone().dino(json!({})).load(), &["dinov2_config.json: num_attention_heads", "missing"]);
    assert_says(good.clone().dino(json!([])).load(), &["dinov2_config.json", "JSON object"]);
    assert_says(good.config("dinov2_config", json!(4)).load(), &["config.json: dinov2_config", "an object"]);
}

#[test]
fn every_tensor_that_is_read_is_missed_has_one_shape_and_is_finite() {
    for variant in ["cnn", "dino_tiny"] {
        let good = Parts::bitgen(variant);
        let reads: Vec<String> = good.load().unwrap().reads().keys().cloned().collect();
        assert!(reads.len() > 80, "{} tensors", reads.len());
        // Two tensors tell the family, and one which image encoder there is.
        let other = |name: &str, error: &Error| {
            name.contains("patch_embeddings") && error.to_string().contains("vision_encoder.0")
        };
        break_each_tensor(&good, &reads, |dir| load(dir).err(), |dir| open(dir).err(), other);
    }
}

#[test]
fn absurd_shapes_are_refused_before_anything_is_made_of_them() {
    let good = Parts::bitgen("cnn");
    let conv = "cross_modal_fusion.vision_encoder.0.weight";
    let next = "cross_modal_fusion.vision_encoder.4.weight";
    // As small files as can say so; what they say would be terabytes.
    let wide = good.clone().reshaped(conv, &[1 << 20, 1, 1, 1]).reshaped(next, &[1 << 20, 1, 1, 1]);
    assert_says(wide.load(), &[conv, "[n, 3, 7, 7]"]);
    assert_says(good.clone().reshaped(next, &[64, 31, 3, 3]).load(), &[next, "31"]);
    let positions = good.clone().reshaped("pos_embedding.weight", &[8193, 64]);
    assert_says(positions.load(), &["pos_embedding.weight", "8193 positions", "8192"]);
    let slots = |n: usize| {
        let buffers = ["quality", "read_count", "write_count", "age"];
        let memory = good.clone().reshaped("episodic_memory.gpm.memory_mean", &[n, 64]);
        let vector = |p: Parts, name: &&str| p.reshaped(&format!("episodic_memory.gpm.memory_{name}"), &[n]);
        buffers.iter().fold(memory, vector)
    };
    for n in [4, 2049] {
        assert_says(slots(n).load(), &["memory_mean", &format!("{n} slots")]);
    }
    assert!(slots(5).load().is_ok());
    assert_says(good.clone().reshaped("token_embedding.weight", &[512, 0]).load(), &["token_embedding.weight"]);
    let dino = "cross_modal_fusion.dinov2_model.embeddings.position_embeddings";
    assert_says(Parts::bitgen("dino_tiny").reshaped(dino, &[1, 3, 64]).load(), &["position_embeddings", "[1, 3, 64]"]);
    let far = "text_decoder.decoder_layers.4000000000.ln1.weight";
    assert_says(good.reshaped(far, &[64]).load(), &["missing", "decoder_layers.2."]);
}

#[test]
fn other_families_say_what_opens_them() {
    let (bitgen, embernet) = (Parts::bitgen("cnn").write(), golden_root().join("embernet/tiny"));
    let engine = |dir: &Path| Engine::open(dir, Options { device: DeviceChoice::Cpu, ..Options::default() });
    let error = assert_says(engine(bitgen.path()), &["model.safetensors", "BitGen (stage 1)", "BitGen::open"]);
    assert!(matches!(error, Error::Unsupported { .. }));
    let error = assert_says(open(&embernet), &["model.safetensors", "EmberNet", "Engine::open"]);
    assert!(matches!(error, Error::Unsupported { .. }));
    // A model of no family is told which there are, whoever opens it.
    let mut parts = Parts::bitgen("cnn").config("model_type", json!("mamba"));
    parts.tensors.retain(|name, _| !name.starts_with("episodic_memory."));
    let stranger = parts.write();
    for result in [open(stranger.path()).err(), engine(stranger.path()).err()] {
        assert_says(result.map_or(Ok(()), Err), &["mamba", "EmberNet", "BitGen", "memory_mean"]);
    }
    let weights = Weights::open(stranger.path()).unwrap();
    assert!(matches!(models::open(stranger.path(), &weights, LOAD), Err(Error::Unsupported { .. })));
}

#[test]
fn a_tokenizer_beyond_the_vocabulary_is_refused() {
    let dir = Parts::bitgen("cnn").write();
    let tokenizer = golden_root().join("tokenizer.json");
    let mut json: Value = serde_json::from_slice(&fs::read(tokenizer).unwrap()).unwrap();
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let fits = open(dir.path());
    json["model"]["vocab"]["beyond"] = json!(50_256);
    fs::write(dir.path().join("tokenizer.json"), json.to_string()).unwrap();
    let error = assert_says(open(dir.path()), &["tokenizer.json", "\"beyond\"", "50256", "512"]);
    assert!(fits.is_ok() && matches!(error, Error::Format { .. }), "{:?}", fits.err());
    fs::write(dir.path().join("tokenizer.json"), "{}").unwrap();
    assert_says(open(dir.path()), &["tokenizer.json"]);
}
