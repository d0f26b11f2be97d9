//! The tools around a BitGenModel's files: converting, inspecting, checking, and what broken ones get.
#![cfg(feature = "cli")]

mod support {
    pub mod broken_checkpoints;
    pub mod cli;
    pub mod golden;
}

use std::path::Path;

use serde_json::{Value, json};
use support::broken_checkpoints::{LOAD, Parts, assert_says, break_each_tensor};
use support::cli::{has_adapter, succeeds, text};
use support::golden::golden_root;
use tempfile::TempDir;
use ternion::apps::bitgen::{BitGen, BitGenOptions};
use ternion::apps::robots::{RobotModel, RobotOptions};
use ternion::engine::{DeviceChoice, DeviceOptions, Engine, Options, Precision, Progress};
use ternion::files::Weights;
use ternion::tools::convert::convert;
use ternion::unstable::models::{BitGenModel, Model};
use ternion::{Image, Result};

const TINY: &str = "bitgen_model/tiny";
/// Its memory's keys are narrower than its text.
const NARROW: &str = "bitgen_model/tiny72";

fn load(dir: &Path) -> Result<BitGenModel> {
    BitGenModel::open(dir, &Weights::open(dir)?, LOAD)
}

fn open(dir: &Path) -> Result<RobotModel> {
    let device = DeviceOptions { autotune: false, ..DeviceChoice::Cpu.into() };
    RobotModel::open(dir, RobotOptions { device, ..Default::default() })
}

#[test]
fn a_converted_model_decides_alike() {
    [TINY, NARROW].iter().for_each(|name| convert_and_compare(&golden_root().join(name)));
}

fn convert_and_compare(input: &Path) {
    let (dir, again) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let report = convert(input, dir.path(), None, Precision::F16, Progress::ignore).unwrap_or_else(|e| panic!("{e}"));
    assert!(report.ternary > 20, "{report:?}");
    let image = Image::open(input.join("image0.png")).unwrap();
    let decide = |dir: &Path| {
        let model = open(dir).unwrap_or_else(|e| panic!("{e}"));
        (model.sizes().clone(), model.choose(&[5, 7, 9], Some(&image)).unwrap_or_else(|e| panic!("{e}")))
    };
    assert_eq!(decide(input), decide(dir.path()));
    convert(dir.path(), again.path(), None, Precision::F16, Progress::ignore).unwrap_or_else(|e| panic!("{e}"));
    let file = |dir: &TempDir| std::fs::read(dir.path().join("model.safetensors")).unwrap();
    assert!(file(&dir) == file(&again), "what is packed can be packed again");
}

#[test]
fn inspect_counts_each_part() {
    let out = succeeds(&["inspect", "--json", &text(golden_root().join(TINY))]);
    let json: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json["family"], "BitGenModel");
    let parts: Vec<&str> = json["components"].as_array().unwrap().iter().filter_map(|c| c["name"].as_str()).collect();
    for wanted in ["image encoder", "episodic memory", "reasoning", "robots", "text decoder"] {
        assert!(parts.contains(&wanted), "{wanted}: {parts:?}");
    }
    assert!(!parts.contains(&"other"), "{parts:?}");
}

#[test]
fn check_compares_every_node() {
    let devices: &[&str] = if has_adapter() { &["cpu", "gpu"] } else { &["cpu"] };
    for (device, name) in devices.iter().flat_map(|device| [(device, TINY), (device, NARROW)]) {
        let out = succeeds(&["check", "-m", &text(golden_root().join(name)), "--device", device]);
        for wanted in ["nodes agree", "store_rows", "lstm_cell", "attention", "ternary_matmul"] {
            assert!(out.contains(wanted), "no {wanted}: {out}");
        }
    }
}

#[test]
fn every_tensor_that_is_read_is_missed_has_one_shape_and_is_finite() {
    let good = Parts::of(TINY);
    let reads: Vec<String> = load(good.write().path()).unwrap().reads().keys().cloned().collect();
    assert!(reads.len() > 100, "{} tensors", reads.len());
    break_each_tensor(&good, &reads, |dir| load(dir).err(), |dir| open(dir).err(), |_, _| false);
}

#[test]
fn sizes_of_the_memory_are_checked() {
    let good = Parts::of(NARROW);
    let with = |name: &str, shape: &[usize]| load(good.clone().reshaped(name, shape).write().path());
    let keys = "episodic_memory.memory_keys";
    assert_says(with(keys, &[8193, 40]), &[keys, "1 to 8192 slots", "8193"]);
    assert_says(with(keys, &[12, 2049]), &[keys, "1 to 2048 columns", "2049"]);
    assert_says(with(keys, &[12, 0]), &[keys, "[12, 0]"]);
    assert_says(with(keys, &[12, 44]), &["episodic_memory.key_proj.weight", "[44, 72]", "[40, 72]"]);
    assert_says(with(keys, &[13, 40]), &["episodic_memory.memory_values", "[13, 72]", "[12, 72]"]);
    assert_says(with("episodic_memory.memory_values", &[12, 40]), &["memory_values", "[12, 72]", "[12, 40]"]);
}

#[test]
fn absurd_values_of_the_configuration_are_named() {
    let good = Parts::of(TINY);
    let with = |key: &str, value: Value| load(good.clone().config(key, value).write().path());
    for key in ["num_heads", "window_size", "attention_sinks", "max_reasoning_steps", "top_k_robots"] {
        for value in [json!(-1), json!(1u64 << 40), json!(2.5), json!("4"), json!(null)] {
            assert_says(with(key, value.clone()), &[&format!("config.json: {key}"), &value.to_string()]);
        }
    }
    assert_says(with("robot_types", json!(["one"])), &["robot_types", "a list of 1", "5 names"]);
}

#[test]
fn other_families_say_what_opens_them() {
    let robots = golden_root().join(TINY);
    let engine = Engine::open(robots.as_path(), Options { device: DeviceChoice::Cpu, ..Options::default() });
    assert_says(engine, &["BitGenModel", "RobotModel::open"]);
    let options = BitGenOptions { device: DeviceChoice::Cpu.into(), ..Default::default() };
    assert_says(BitGen::open(robots.as_path(), options), &["BitGenModel", "RobotModel::open"]);
    assert_says(open(&golden_root().join("bitgen_stage1/cnn")), &["BitGen (stage 1)", "BitGen::open"]);
}
