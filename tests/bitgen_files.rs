//! The tools around a BitGen's files: converting, inspecting, checking, its tokenizer, its captions on the command line.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod golden;
}

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use support::cli::{assert_fails, command, has_adapter, succeeds, ternion, text};
use support::golden::golden_root;
use tempfile::TempDir;
use ternion::Image;
use ternion::apps::bitgen::{BitGen, BitGenOptions, CaptionOptions, MemoryNoise};
use ternion::engine::{DeviceChoice, DeviceOptions, GenerateOptions, Precision, Progress, Sampling, StopReason};
use ternion::files::{Tokenizer, Weights};
use ternion::tools::convert::convert;
use ternion::unstable::models::{BitGenStage1, EncoderShape, LoadOptions};
use ternion::unstable::plan::{Plan, SlotKind};

fn golden(name: &str) -> PathBuf {
    golden_root().join("bitgen_stage1").join(name)
}

/// Both image encoders.
const VARIANTS: [&str; 2] = ["cnn", "dino_tiny"];

fn on_the_cpu(tokenizer: Option<PathBuf>) -> BitGenOptions {
    let device = DeviceOptions { autotune: false, ..DeviceChoice::Cpu.into() };
    BitGenOptions { device, tokenizer, ..Default::default() }
}

fn open(path: &Path) -> BitGen {
    BitGen::open(path, on_the_cpu(None)).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Weights and constants of all plans, with their names.
fn words(path: &Path, precision: Precision) -> Vec<(String, Vec<u32>)> {
    let weights = Weights::open(path).unwrap_or_else(|e| panic!("{e}"));
    let load = LoadOptions { max_binding: 1 << 14, ..LoadOptions::anywhere(precision.pack()) };
    let model = BitGenStage1::open(path, &weights, load).unwrap_or_else(|e| panic!("{e}"));
    let encoder = EncoderShape { max_rows: 4, max_samples: 1, images: true };
    let plans =
        [model.record_image(1), model.record_features(4), model.record_encoder(&encoder), model.record_decoder(4, 4)];
    let of_plan = |plan: Plan| {
        let constants = plan.slots.iter().filter_map(|slot| match &slot.kind {
            SlotKind::Constant(name, words) => Some((name.clone(), words.words())),
            _ => None,
        });
        let weights = plan.weights().map(|(w, _)| (w.to_string(), weights.load(w).unwrap_or_else(|e| panic!("{e}"))));
        constants.chain(weights).collect::<Vec<_>>()
    };
    plans.into_iter().flat_map(|plan| of_plan(plan.expect("it records"))).collect()
}

#[test]
fn a_converted_model_has_the_same_words_memory_and_results() {
    for variant in VARIANTS {
        let (dir, input) = (TempDir::new().unwrap(), golden(variant));
        for precision in [Precision::F32, Precision::F16] {
            let report =
                convert(&input, dir.path(), None, precision, Progress::ignore).unwrap_or_else(|e| panic!("{e}"));
            assert!(report.ternary > 10 && !report.tokenizer, "{report:?}");
            let (before, after) = (words(&input, precision), words(dir.path(), precision));
            let differs = before.iter().zip(&after).find(|(a, b)| a != b).map(|(a, _)| &a.0);
            assert!(before.len() == after.len() && differs.is_none(), "{variant}: {differs:?}");
        }
        let (before, after) = (open(&input), open(dir.path()));
        assert_eq!((before.sizes(), before.config()), (after.sizes(), after.config()));
        assert_eq!((before.memory(), before.temperature()), (after.memory(), after.temperature()));
        let image = [Image::open(input.join("image0_224x224.png")).unwrap()];
        let text: &[u32] = &[5, 77, 300];
        let similarity = |model: &BitGen| model.similarity(&[text, &[9]], &image).unwrap();
        assert_eq!(similarity(&before), similarity(&after));
        let caption = |model: &BitGen| model.caption(text, Some(&image[0]), &CaptionOptions::default()).unwrap();
        assert_eq!(caption(&before), caption(&after));
        // What is packed can be packed again.
        let again = TempDir::new().unwrap();
        convert(dir.path(), again.path(), None, Precision::F16, Progress::ignore).unwrap();
        let file = |dir: &TempDir| fs::read(dir.path().join("model.safetensors")).unwrap();
        assert!(file(&dir) == file(&again));
    }
}

#[test]
fn a_configuration_survives_with_all_its_keys() {
    let dir = TempDir::new().unwrap();
    for name in ["pytorch_model.bin", "dinov2_config.json"] {
        fs::copy(golden("dino_tiny").join(name), dir.path().join(name)).unwrap();
    }
    let config = json!({"num_heads": 4, "next_token": true, "eos_token_id": 7, "memory_alpha": 0.25, "kept": [1, {}]});
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let out = TempDir::new().unwrap();
    convert(dir.path(), out.path(), None, Precision::F16, Progress::ignore).unwrap();
    let written: Value = serde_json::from_slice(&fs::read(out.path().join("config.json")).unwrap()).unwrap();
    for (key, value) in config.as_object().unwrap() {
        assert_eq!(written[key], *value, "{key}");
    }
    // The heads of DINOv2 are a file's beside the original, and part of the configuration here.
    assert_eq!(written["dinov2_config"]["num_attention_heads"], 4);
    let model = open(out.path());
    assert!(model.config().next_token && model.config().eos == Some(7));
}

#[test]
fn a_trainers_checkpoint_holds_its_own_configuration() {
    let dir = TempDir::new().unwrap();
    let trainers = golden("dino_tiny/checkpoint-epoch-4/checkpoint-epoch-4.pt");
    let alone = dir.path().join("deep/below/checkpoint.pt");
    fs::create_dir_all(alone.parent().unwrap()).unwrap();
    fs::copy(trainers, &alone).unwrap();
    // DINOv2's heads are not the trainer's to know.
    fs::copy(golden("dino_tiny/dinov2_config.json"), alone.with_file_name("dinov2_config.json")).unwrap();
    let (model, state_dict) = (open(&alone), open(&golden("dino_tiny")));
    assert_eq!(model.sizes(), state_dict.sizes());
    let json = &model.config().json;
    assert_eq!(
        (&json["num_heads"], &json["memory_alpha"], &json["direct_writing"]),
        (&json!(4), &json!(0.2), &json!(true))
    );
    // One folder above comes first, as the trainer pushes it.
    fs::write(dir.path().join("deep/config.json"), "{\"num_heads\": 2}").unwrap();
    assert!(BitGen::open(&alone, on_the_cpu(None)).is_ok_and(|m| m.sizes().n_heads == 2));
    // So it does for a path without a folder.
    fs::write(dir.path().join("deep/config.json"), "{\"num_heads\": 0}").unwrap();
    let args = ["inspect", "checkpoint.pt"];
    let ran = command(&args).current_dir(alone.parent().unwrap()).output().expect("the command runs").into();
    assert_fails(&ran, &args, &["config.json: num_heads", "is 0"]);
}

/// The small model as a safetensors file with queues of so many columns.
fn with_queues(columns: usize) -> TempDir {
    let (dir, weights) = (TempDir::new().unwrap(), Weights::open(golden("cnn")).unwrap());
    let checkpoint = weights.checkpoint();
    let floats = checkpoint.tensors().filter(|t| t.stored.reads_as_f32());
    let mut tensors: Vec<(String, Vec<usize>, Vec<u8>)> =
        floats.map(|t| (t.name.clone(), t.shape.clone(), checkpoint.bytes(&t.name).unwrap().into_owned())).collect();
    tensors.retain(|(name, ..)| !name.ends_with("_queue"));
    for side in ["image", "text"] {
        let numbers = (0..64 * columns).flat_map(|i| (i as f32 / 4096.0).to_le_bytes()).collect();
        tensors.push((format!("cross_modal_fusion.{side}_queue"), vec![64, columns], numbers));
    }
    let views = tensors.iter().map(|(name, shape, bytes)| {
        (name.as_str(), safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap())
    });
    fs::write(dir.path().join("model.safetensors"), safetensors::serialize(views, None).unwrap()).unwrap();
    fs::copy(golden("cnn").join("config.json"), dir.path().join("config.json")).unwrap();
    dir
}

#[test]
fn queues_are_kept_while_they_are_a_small_part() {
    let names = ["cross_modal_fusion.image_queue", "cross_modal_fusion.text_queue"];
    for (columns, kept) in [(64, true), (4096, false)] {
        let (input, dir) = (with_queues(columns), TempDir::new().unwrap());
        let report = convert(input.path(), dir.path(), None, Precision::F16, Progress::ignore).unwrap();
        let weights = Weights::open(dir.path()).unwrap();
        assert_eq!(report.left_out_extras, if kept { &[][..] } else { &names });
        for name in names {
            let shape = weights.shape(name);
            assert_eq!(shape, kept.then(|| vec![64, columns]), "{name}");
            if kept {
                let values = weights.checkpoint().read_f32(name, 0..5).unwrap();
                assert_eq!(values, [0.0, 1.0, 2.0, 3.0, 4.0].map(|i| i / 4096.0));
            }
        }
    }
    let (input, out) = (with_queues(4096), TempDir::new().unwrap());
    let ran = ternion(&["convert", &text(input.path()), &text(out.path().join("packed"))]);
    assert!(ran.code == Some(0) && ran.err.contains("image_queue") && ran.err.contains("a tenth"), "{}", ran.err);
}

#[test]
fn inspect_counts_parameters_and_not_buffers() {
    let found: Value = serde_json::from_str(&succeeds(&["inspect", &text(golden("cnn")), "--json"])).unwrap();
    assert_eq!(found["family"], "BitGen (stage 1)");
    let part = |name: &str| {
        let list = found["components"].as_array().unwrap();
        list.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("no {name}"))["parameters"].as_u64().unwrap()
    };
    let (d, slots, vocab, positions) = (64, 32, 512, 64);
    assert_eq!(part("embeddings"), (vocab + positions) * d);
    // The slots' means and the logarithm of their variance are parameters, what is counted and rated is not.
    assert_eq!(part("episodic memory"), slots * d + 1 + 2 * (d * d + d) + 2 * d);
    let names =
        ["embeddings", "image encoder", "fusion and features", "episodic memory", "text encoder", "text decoder"];
    assert_eq!(names.map(part).iter().sum::<u64>(), found["parameters"].as_u64().unwrap());
    let ternary = 2 * (5 * d * d + 2 * 128 * d) + vocab * d;
    assert_eq!(found["ternary_parameters"].as_u64(), Some(ternary));
    let packed = |name: &str| {
        let tensors = found["tensors"].as_array().unwrap();
        tensors.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("no {name}"))["packed"].clone()
    };
    assert_eq!(packed("episodic_memory.gpm.memory_mean"), "f32");
    assert_eq!(packed("cross_modal_fusion.temperature"), "f32");
    assert_eq!(packed("cross_modal_fusion.vision_encoder.1.running_var"), "f32");
    assert_eq!(packed("text_decoder.output_projection.weight"), "2 bits");
    assert_eq!(packed("token_embedding.weight"), "f16");
    assert_eq!(packed("text_decoder.output_projection.weight_scale"), "not read");
}

#[test]
fn check_compares_every_node() {
    let devices: &[&str] = if has_adapter() { &["cpu", "gpu"] } else { &["cpu"] };
    for (device, variant) in devices.iter().flat_map(|d| VARIANTS.map(|v| (d, v))) {
        let out = succeeds(&["check", "-m", &text(golden(variant)), "--device", device]);
        for wanted in ["nodes agree", "memory_read", "row_attention", "span_mean", "l2_norm", "ternary_matmul"] {
            let wanted = if wanted == "row_attention" { "attention" } else { wanted };
            assert!(out.contains(wanted), "{variant}: no {wanted}: {out}");
        }
    }
    let strict = ternion(&["check", "-m", &text(golden("cnn")), "--device", "cpu", "--tolerance", "0"]);
    assert_eq!(strict.code, Some(1), "{}", strict.err);
}

/// GPT-2's two files for the 512 tokens of the small models: bytes, and 255 of them in pairs.
fn gpt2(dir: &Path) {
    let mut plain: Vec<char> = ('!'..='~').chain('\u{a1}'..='\u{ac}').chain('\u{ae}'..='\u{ff}').collect();
    plain.extend((0..68).filter_map(|i| char::from_u32(0x100 + i)));
    assert_eq!(plain.len(), 256);
    let pairs: Vec<[char; 2]> = ('a'..='p').flat_map(|a| ('a'..='p').map(move |b| [a, b])).take(255).collect();
    let tokens = plain.iter().map(char::to_string).chain(pairs.iter().map(|p| p.iter().collect()));
    let mut vocab: Map<String, Value> = tokens.enumerate().map(|(id, token)| (token, json!(id))).collect();
    vocab.insert("<|endoftext|>".into(), json!(511));
    let merges: String = pairs.iter().map(|[a, b]| format!("{a} {b}\n")).collect();
    fs::write(dir.join("vocab.json"), Value::Object(vocab).to_string()).unwrap();
    fs::write(dir.join("merges.txt"), format!("#version: 0.2\n{merges}")).unwrap();
}

#[test]
fn captions_of_the_original_begin_with_the_prompts_first_token() {
    let dir = TempDir::new().unwrap();
    gpt2(dir.path());
    let input = golden("cnn");
    let image = Image::open(input.join("image0_224x224.png")).unwrap();
    let model = BitGen::open(&input, on_the_cpu(Some(dir.path().to_owned()))).unwrap();
    let prompt = model.tokens("a bad cab").unwrap();
    let sampling = Sampling { temperature: 3.0, top_k: 0, top_p: 1.0, seed: 2, ..Sampling::greedy() };
    let noise = MemoryNoise::Seed(4);
    let options = CaptionOptions { max_tokens: 30, eos: Some(511), sampling: sampling.clone(), noise: noise.clone() };
    let tokens = model.caption(&prompt, Some(&image), &options).unwrap();
    let options = GenerateOptions { max_tokens: Some(30), sampling, ..Default::default() };
    let mut said = String::new();
    let describe = |prompt: Option<&str>, options: &GenerateOptions, said: &mut String| {
        model.describe(prompt, Some(&image), options, &noise, |piece| {
            said.push_str(piece);
            ControlFlow::Continue(())
        })
    };
    let caption = describe(Some("a bad cab"), &options, &mut said).unwrap();
    assert_eq!((&caption.tokens, caption.tokens[0]), (&tokens, prompt[0]));
    assert_eq!((&caption.text, &said), (&model.text(&tokens).unwrap(), &caption.text));
    assert_eq!((caption.prompt_tokens, caption.steps), (prompt.len(), tokens.len() - 1));
    let mut pieces = 0;
    let ended = model.describe(Some("a bad cab"), Some(&image), &options, &noise, |_| {
        pieces += 1;
        if pieces < 3 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
    let ended = ended.unwrap();
    assert_eq!((pieces, ended.end, ended.tokens.len()), (3, StopReason::Cancelled, 3));
    // Without a prompt, the start of a text is GPT-2's one special token.
    assert_eq!(describe(None, &options, &mut said).unwrap().tokens[0], 511);
    // A stop string ends the text in front of it.
    let stop = caption.text.chars().find(|c| c.is_ascii_alphanumeric() && *c != 'a').expect("some text").to_string();
    for stop in [stop, "a".to_owned()] {
        let options = GenerateOptions { stop: vec![stop.clone()], ..options.clone() };
        let stopped = describe(Some("a bad cab"), &options, &mut said).unwrap();
        assert_eq!(stopped.end, StopReason::StopString);
        assert_eq!(Some(stopped.text.as_str()), caption.text.split(&stop).next());
        assert!(stopped.tokens.len() < tokens.len() && tokens.starts_with(&stopped.tokens), "{stopped:?}");
    }
    for bad in [0, 65] {
        let options = GenerateOptions { max_tokens: Some(bad), ..Default::default() };
        let error = describe(None, &options, &mut said).unwrap_err().to_string();
        assert!(error.contains("max_tokens") && error.contains("1..=64"), "{error}");
    }

    // The same on the command line, with a copy of the tokenizer that a conversion has made.
    let (packed, tokenizer) = (dir.path().join("packed"), text(dir.path()));
    succeeds(&["convert", &text(&input), &text(&packed), "--tokenizer", &tokenizer, "--precision", "f32"]);
    let copy = Tokenizer::open(&packed).unwrap();
    assert_eq!(copy.encode("a bad cab", true).unwrap(), prompt);
    let picture = text(input.join("image0_224x224.png"));
    let more = ["--device", "cpu", "--precision", "f32", "-p", "a bad cab", "-n", "9", "--image", &picture];
    let (original, packed) = (text(&input), text(&packed));
    let answer = succeeds(&[&["run", "-m", &original, "--tokenizer", &tokenizer], &more[..]].concat());
    assert_eq!(succeeds(&[&["run", "-m", &packed], &more[..]].concat()), answer);
}

#[test]
fn what_a_bitgen_cannot_do_is_said() {
    let dir = TempDir::new().unwrap();
    gpt2(dir.path());
    let (model, tokenizer) = (text(golden("cnn")), text(dir.path()));
    let picture = text(golden("cnn").join("image0_224x224.png"));
    let run = ["run", "-m", &model, "--device", "cpu", "--image", &picture, "--tokenizer", &tokenizer];
    let fails = |args: &[&str], texts: &[&str]| assert_fails(&ternion(args), args, texts);
    let long = "x".repeat(65);
    let cases: [(&[&str], &[&str]); 8] = [
        (&["--image", &picture], &["image", "2 pictures", "one"]),
        (&["--routing", "x.svg"], &["--routing", "BitGen"]),
        (&["--attention", "0", "x.svg"], &["--attention", "BitGen"]),
        (&["-c", "9"], &["context"]),
        (&["--head", "int8"], &["head", "ternary"]),
        (&["-n", "65"], &["max_tokens", "65", "1..=64"]),
        (&["-p", &long], &["text", "65 tokens", "1..=64"]),
        (&["--temp", "-1"], &["temperature"]),
    ];
    for (more, texts) in cases {
        fails(&[&run[..], more].concat(), texts);
    }
    fails(&run[..7], &["tokenizer", "vocab.json"]);
    fails(&["check", "-m", &model, "--device", "cpu", "--head", "int8"], &["head", "BitGen", "ternary"]);
    fails(&["chat", "-m", &model, "--device", "cpu"], &["BitGen", "chats", "`ternion run`"]);
    let embernet = text(golden_root().join("embernet/tiny"));
    fails(&["run", "-m", &embernet, "--device", "cpu", "-p", "x", "--memory-noise", "1"], &["memory-noise", "BitGen"]);
    fails(&["run", "-m", &embernet, "--device", "cpu"], &["prompt", "-p"]);
}
