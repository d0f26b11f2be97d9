//! BitGenModel against the original's numbers (in `tests/golden`; `TERNION_GOLDENS=DIR` checks another set), and its
//! streaming attention against a plain definition.

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
    pub mod robot_definition;
    pub mod robot_stages;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::golden::Golden;
use support::model_stages::{Report, devices, golden, rms, variants};
use support::robot_definition::Definition;
use support::robot_stages::{LoadedRobot, by_head, images};
use tempfile::TempDir;
use ternion::apps::robots::{RobotAttention, RobotCache, RobotModel, RobotOptions};
use ternion::apps::robots::{RobotDecision, Tasks, Wanted};
use ternion::engine::{DeviceChoice, DeviceOptions, Precision};
use ternion::files::Weights;
use ternion::unstable::models::{BitGenModel, ForwardShape, LoadOptions};
use ternion::unstable::tensor::Pack;

/// Relative rms that a rounding flip may cause.
const FREE: f64 = 0.05;

/// The variants; a root without any fails.
fn robots() -> Vec<PathBuf> {
    let found = variants("golden_bitgen.safetensors");
    assert!(!found.is_empty(), "no BitGenModel variant");
    found
}

#[test]
fn stages_fed_with_golden_inputs_match() {
    for dir in robots() {
        for (device, backend) in devices() {
            let (mut rig, mut report) = (LoadedRobot::open(&dir, device, backend), Report::default());
            rig.see(&dir, &mut report);
            rig.check("text", false, false, &mut report);
            rig.check("image", true, false, &mut report);
            rig.check("masked", false, true, &mut report);
            rig.check_decoder(&mut report);
            report.finish(&rig.what);
        }
    }
}

/// The library on the CPU, and on the GPU if there is one.
fn models(dir: &Path, attention: RobotAttention, samples: usize) -> Vec<RobotModel> {
    let mut all = Vec::new();
    for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
        if device == DeviceChoice::Cpu || support::device::device().is_some() {
            let device = DeviceOptions { autotune: false, ..device.into() };
            let options =
                RobotOptions { device, precision: Precision::F32, attention, samples, ..RobotOptions::default() };
            all.push(RobotModel::open(dir, options).unwrap_or_else(|e| panic!("{}: {e}", dir.display())));
        }
    }
    all
}

fn ids_of(golden: &Golden, name: &str) -> Vec<u32> {
    golden.i32s(name).into_iter().map(|id| id as u32).collect()
}

fn near(what: &str, found: &[f32], want: &[f32]) {
    let off = rms(found, want);
    println!("{what} is off by {off:.1e}");
    assert!(off < FREE, "{what} is off by {off}");
}

/// One free run of the original's batch against everything that the golden file has of it.
fn check_free(model: &RobotModel, golden: &Golden, json: &Value, prefix: &str, decisions: &[RobotDecision]) {
    let what = |name: &str| format!("{prefix}.{name} on {}", model.device());
    let names = golden.names();
    let check = |name: &str, found: Vec<f32>| {
        let name = format!("{prefix}.{name}");
        if names.contains(&name) {
            near(&format!("{name} on {}", model.device()), &found, &golden.f32s(&name));
        }
    };
    let all = |f: &dyn Fn(&RobotDecision) -> Vec<f32>| -> Vec<f32> { decisions.iter().flat_map(f).collect() };
    check("logits", all(&|t| t.logits.clone()));
    check("final_ln.out", all(&|t| t.embeddings.clone()));
    check("robot.all_logits", all(&|t| t.scores.clone()));
    check("robot.top_k_probs", all(&|t| t.robots.iter().map(|r| r.probability).collect()));
    check("text_features", all(&|t| t.features.clone().map_or(Vec::new(), |[text, _]| text)));
    check("image_features", all(&|t| t.features.clone().map_or(Vec::new(), |[_, image]| image)));
    if let Some(steps) = json.get(format!("{prefix}.num_steps")) {
        for decision in decisions {
            assert_eq!(decision.steps.len() as u64, steps.as_u64().unwrap(), "{}", what("num_steps"));
        }
        let of = |f: &dyn Fn(usize, &RobotDecision) -> Vec<f32>| -> Vec<f32> {
            (0..decisions[0].steps.len()).flat_map(|i| decisions.iter().flat_map(move |t| f(i, t))).collect()
        };
        check("reasoning.states", of(&|i, t| t.steps[i].state.clone()));
        check("reasoning.confidences", of(&|i, t| vec![t.steps[i].confidence]));
        check("reasoning.gates", of(&|i, t| vec![t.steps[i].gate]));
        let chosen = json[format!("{prefix}.top_k_robots")].as_array().expect("a list of samples");
        for (decision, want) in decisions.iter().zip(chosen) {
            let found: Vec<&str> = decision.robots.iter().map(|r| r.name.as_str()).collect();
            assert_eq!(serde_json::json!(found), *want, "{}", what("top_k_robots"));
        }
        let found: Vec<i32> = decisions.iter().flat_map(|t| t.robots.iter().map(|r| r.robot as i32)).collect();
        assert_eq!(found, golden.i32s(&format!("{prefix}.robot.top_k_indices")), "{}", what("top_k_indices"));
    }
}

#[test]
fn the_library_reasons_and_chooses_as_the_original() {
    for dir in robots() {
        let (golden, json) = opened(&dir);
        let (ids, n) = (ids_of(&golden, "input_ids"), golden.shape("input_ids")[1]);
        let (texts, images): (Vec<&[u32]>, _) = (ids.chunks(n).collect(), images(&dir));
        let keep: Vec<bool> = golden.f32s("attn_mask").into_iter().map(|m| m == 1.0).collect();
        let keep: Vec<&[bool]> = keep.chunks(n).collect();
        for model in models(&dir, RobotAttention::Original, 2) {
            let plain = Tasks { texts: &texts, logits: Wanted::All, ..Tasks::default() };
            let cases = [
                ("text", plain),
                ("image", Tasks { images: &images, ..plain }),
                ("masked", Tasks { keep: Some(&keep), ..plain }),
            ];
            for (prefix, tasks) in cases {
                let mut cache = model.cache(2);
                let decisions = model.forward(&tasks, Some(&mut cache)).unwrap();
                check_free(&model, &golden, &json, prefix, &decisions);
                check_cache(&model, &golden, &format!("{prefix}.cache"), &cache);
            }
            let last = model.forward(&Tasks { logits: Wanted::Last, ..plain }, None).unwrap();
            let vocab = model.sizes().vocab;
            let want = golden.f32s("text.logits");
            near("the last logits", &last[1].logits, &want[want.len() - vocab..]);
            assert!(model.forward(&Tasks { texts: &texts, ..Tasks::default() }, None).unwrap()[0].logits.is_empty());
        }
    }
}

fn opened(dir: &Path) -> (Golden, Value) {
    let json = fs::read(dir.join("golden_bitgen.json")).expect("golden_bitgen.json");
    (golden(dir, "golden_bitgen.safetensors"), serde_json::from_slice(&json).expect("JSON"))
}

fn check_cache(model: &RobotModel, golden: &Golden, name: &str, cache: &RobotCache) {
    for i in 0..model.sizes().layers {
        for (kind, at) in [("k", 0), ("v", 1)] {
            let name = format!("{name}.{i}.{kind}");
            let shape = golden.shape(&name);
            assert_eq!(cache.len(), shape[2], "{name}");
            let sample = |s: usize| by_head(cache.layer(i, s).expect("a layer")[at], model.sizes());
            let found: Vec<f32> = (0..shape[0]).flat_map(sample).collect();
            near(&name, &found, &golden.f32s(&name));
        }
    }
}

#[test]
fn calls_behind_a_cache_match() {
    for dir in robots() {
        let (golden, _) = opened(&dir);
        let n = golden.shape("input_ids")[1];
        let prefill = ids_of(&golden, "input_ids")[..n].to_vec();
        let (steps, chunk) = (ids_of(&golden, "cache_steps.ids"), ids_of(&golden, "cache_chunk.ids"));
        for model in models(&dir, RobotAttention::Original, 1) {
            let mut cache = model.cache(1);
            let mut forward = |ids: &[u32]| {
                let tasks = Tasks { texts: &[ids], logits: Wanted::All, ..Tasks::default() };
                let logits = model.forward(&tasks, Some(&mut cache)).unwrap().remove(0).logits;
                (logits, cache.clone())
            };
            let (logits, cache) = forward(&prefill);
            near("cache_prefill.logits", &logits, &golden.f32s("cache_prefill.logits"));
            check_cache(&model, &golden, "cache_prefill.cache", &cache);
            let mut logits = Vec::new();
            for id in &steps {
                logits.extend(forward(&[*id]).0);
            }
            near("cache_steps.logits", &logits, &golden.f32s("cache_steps.logits"));
            let (logits, cache) = forward(&chunk);
            near("cache_chunk.logits", &logits, &golden.f32s("cache_chunk.logits"));
            check_cache(&model, &golden, "cache_chunk.cache", &cache);
            assert_eq!(cache.tokens(), n + steps.len() + chunk.len());
        }
    }
}

/// A copy of a variant whose gate has another bias.
fn with_gate(dir: &Path, bias: f32) -> TempDir {
    let copy = TempDir::new().expect("a directory");
    for file in ["config.json", "dinov2_config.json"] {
        fs::copy(dir.join(file), copy.path().join(file)).expect("a configuration");
    }
    let mut bytes = fs::read(dir.join("model.safetensors")).expect("a checkpoint");
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().expect("8 bytes")) as usize;
    let json: Value = serde_json::from_slice(&bytes[8..header]).expect("a header");
    let at = header + json["reasoning_module.step_gate.bias"]["data_offsets"][0].as_u64().expect("an offset") as usize;
    bytes[at..at + 4].copy_from_slice(&bias.to_le_bytes());
    fs::write(copy.path().join("model.safetensors"), bytes).expect("written");
    copy
}

#[test]
fn reasoning_stops_where_the_original_does() {
    for dir in robots() {
        let (golden, json) = opened(&dir);
        let (ids, n) = (ids_of(&golden, "input_ids"), golden.shape("input_ids")[1]);
        let texts: Vec<&[u32]> = ids.chunks(n).collect();
        for prefix in ["gate_low", "gate_high"] {
            let bias = json[format!("{prefix}.step_gate_bias")].as_f64().expect("a number") as f32;
            let copy = with_gate(&dir, bias);
            for model in models(copy.path(), RobotAttention::Original, 2) {
                let tasks = Tasks { texts: &texts, logits: Wanted::All, ..Tasks::default() };
                check_free(&model, &golden, &json, prefix, &model.forward(&tasks, None).unwrap());
            }
        }
    }
}

#[test]
fn both_checkpoint_forms_load_to_the_same_words() {
    let mut compared = 0;
    for dir in robots().into_iter().filter(|dir| dir.join("pytorch_model.bin").exists()) {
        let options = LoadOptions { max_binding: 1 << 14, ..LoadOptions::anywhere(Pack::F16) };
        let words = |file: &str| -> Vec<Vec<u32>> {
            let path = dir.join(file);
            let weights = Weights::open(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let model = BitGenModel::open(path.as_path(), &weights, options).unwrap_or_else(|e| panic!("{e}"));
            let shape = ForwardShape { samples: 1, rows: 4, keys: 8, outputs: 1, images: true, masked: true };
            let plans = [model.record_patches(1), model.record_images(1), model.record_forward(&shape)];
            plans.iter().flatten().flat_map(|p| p.weights().map(|(w, _)| weights.load(w).unwrap())).collect()
        };
        let [safe, torch] = ["model.safetensors", "pytorch_model.bin"].map(words);
        assert!(!safe.is_empty() && safe == torch, "{}", dir.display());
        compared += 1;
    }
    assert!(compared > 0, "no variant in two forms");
}

#[test]
fn a_stream_in_pieces_matches_the_plain_definition() {
    for dir in robots() {
        let vocab = opened(&dir).0.shape("text.logits")[2] as u32;
        let ids: Vec<u32> = (0..40u32).map(|i| (i * 37 + 11) % vocab.min(200)).collect();
        let pieces: [&[usize]; 3] = [&[40], &[13, 1, 1, 9, 16], &[3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 3, 1, 1, 1, 1]];
        for pieces in pieces {
            let mut want: Vec<support::robot_definition::Said> = Vec::new();
            let mut definition = Definition::open(&dir);
            let mut from = 0;
            for &n in pieces {
                want.push(definition.forward(&ids[from..from + n]));
                from += n;
            }
            for attention in [RobotAttention::Streaming, RobotAttention::Original] {
                for model in models(&dir, attention, 1) {
                    let (mut cache, mut from, mut worst) = (model.cache(1), 0, 0.0f64);
                    for (want, &n) in want.iter().zip(pieces) {
                        let texts = [&ids[from..from + n]];
                        let tasks = Tasks { texts: &texts, logits: Wanted::All, ..Tasks::default() };
                        let decision = model.forward(&tasks, Some(&mut cache)).unwrap().remove(0);
                        worst = worst.max(rms(&decision.logits, &want.logits));
                        if attention == RobotAttention::Streaming {
                            near("streamed scores", &decision.scores, &want.scores);
                            assert_eq!(decision.steps.len(), want.steps, "steps of reasoning");
                        }
                        from += n;
                    }
                    let what = format!("{attention:?} in {pieces:?} on {}", model.device());
                    println!("{what}: off by at most {worst:.1e}");
                    assert_eq!(worst < FREE, attention == RobotAttention::Streaming, "{what}: off by {worst}");
                }
            }
        }
    }
}

#[test]
fn what_callers_do_wrong_is_said() {
    let dir = robots().remove(0);
    let model = models(&dir, RobotAttention::Original, 2).remove(0);
    let image = images(&dir).remove(0);
    let long = vec![0; model.max_tokens() + 1];
    let refused = |tasks: &Tasks, cache: Option<&mut RobotCache>| {
        assert!(matches!(model.forward(tasks, cache), Err(ternion::Error::Argument { .. })), "{tasks:?}");
    };
    let unknown = [model.sizes().vocab as u32];
    let texts: [&[&[u32]]; 6] = [&[], &[&[]], &[&long], &[&unknown], &[&[1], &[1, 2]], &[&[1], &[1], &[1]]];
    for texts in texts {
        refused(&Tasks { texts, ..Tasks::default() }, None);
    }
    let two: &[&[u32]] = &[&[1], &[2]];
    refused(&Tasks { texts: two, images: std::slice::from_ref(&image), ..Tasks::default() }, None);
    refused(&Tasks { texts: two, keep: Some(&[&[true]]), ..Tasks::default() }, None);
    refused(&Tasks { texts: two, keep: Some(&[&[true], &[true, false]]), ..Tasks::default() }, None);
    refused(&Tasks { texts: two, ..Tasks::default() }, Some(&mut model.cache(1)));
    let other = models(&dir, RobotAttention::Streaming, 2).remove(0);
    refused(&Tasks { texts: two, ..Tasks::default() }, Some(&mut other.cache(2)));
    assert!(matches!(model.decoder_logits(&[1], &[0.0]), Err(ternion::Error::Argument { .. })));
    assert!(matches!(model.tokens("a task"), Err(ternion::Error::Argument { .. })));
    for samples in [0, 65] {
        let options = RobotOptions { samples, ..RobotOptions::default() };
        assert!(matches!(RobotModel::open(dir.as_path(), options), Err(ternion::Error::Argument { .. })));
    }
}

#[test]
fn broken_configurations_are_said() {
    let dir = robots().remove(0);
    let config: Value = serde_json::from_slice(&fs::read(dir.join("config.json")).unwrap()).unwrap();
    let long = serde_json::json!(["a"]);
    let cases = [
        ("num_heads", serde_json::json!(0)),
        ("num_heads", serde_json::json!(config["embed_dim"].as_u64().unwrap() - 1)),
        ("window_size", serde_json::json!(0)),
        ("window_size", serde_json::json!(1u64 << 40)),
        ("attention_sinks", serde_json::json!(-1)),
        ("max_reasoning_steps", serde_json::json!(1e9)),
        ("robot_types", long),
        ("robot_types", Value::Null),
        ("top_k_robots", serde_json::json!(1 + config["robot_types"].as_array().unwrap().len())),
    ];
    for (key, value) in cases {
        let copy = TempDir::new().unwrap();
        for file in ["model.safetensors", "dinov2_config.json"] {
            fs::copy(dir.join(file), copy.path().join(file)).unwrap();
        }
        let mut config = config.clone();
        config[key] = value.clone();
        fs::write(copy.path().join("config.json"), config.to_string()).unwrap();
        let device = DeviceOptions { autotune: false, ..DeviceChoice::Cpu.into() };
        let error = RobotModel::open(copy.path(), RobotOptions { device, ..RobotOptions::default() }).unwrap_err();
        assert!(matches!(error, ternion::Error::Config { .. }), "{key} {value}: {error}");
        assert!(error.to_string().contains(key), "{error}");
    }
    let stage1 = support::golden::golden_root().join("bitgen_stage1/cnn");
    if stage1.exists() {
        let error = RobotModel::open(stage1, RobotOptions::default()).unwrap_err();
        assert!(matches!(error, ternion::Error::Unsupported { .. }), "{error}");
    }
}
