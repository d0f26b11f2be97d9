//! EmberNet's refiner against the original's numbers: alone, fed with golden logits and features, and in the engine.

mod support {
    pub mod device;
    pub mod golden;
    pub mod numbers;
}

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::device::device;
use support::golden::{Golden, golden_root};
use support::numbers::compare;
use ternion::apps::refiner::{CLASSIFIER_UNITS, Classifier, answer_prefix, calibrated_answer, is_visually_sensitive};
use ternion::apps::refiner::{Refiner, RefinerOptions};
use ternion::engine::{DeviceChoice, Engine, GenerateOptions, LogitsHook, Options, Precision};
use ternion::files::{Image, Tokenizer};
use ternion::{Error, Result};

/// Layers of the tiny model.
const LAYERS: usize = 3;

/// The folder of golden runs, if the root has it; one given from outside may lack it.
fn folders() -> Vec<PathBuf> {
    let folder = golden_root().join("embernet/tiny/va_refiner");
    if folder.join("golden_va.json").exists() {
        return vec![folder];
    }
    assert!(std::env::var_os("TERNION_GOLDENS").is_some(), "{} is missing", folder.display());
    println!("skipped: no va_refiner goldens");
    Vec::new()
}

fn golden(dir: &Path, file: &str) -> Golden {
    Golden::open(&dir.join(file).to_string_lossy())
}

fn read(dir: &Path, file: &str) -> Value {
    serde_json::from_slice(&std::fs::read(dir.join(file)).unwrap()).unwrap()
}

fn records(dir: &Path) -> Vec<Value> {
    read(dir, "golden_va.json").as_array().unwrap().clone()
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap()
}

fn float(value: &Value) -> f32 {
    value.as_f64().unwrap() as f32
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(float).collect()
}

fn number(value: &Value) -> usize {
    value.as_u64().unwrap() as usize
}

fn near(found: f32, want: &Value, what: &str) {
    compare(&[found], &[float(want)], 2e-6).unwrap_or_else(|e| panic!("{what}: {e}"));
}

/// The words of the golden runs, and a tokenizer of them. In place of dropping unknown words it gives `<unk>`.
fn vocabulary(dir: &Path) -> (Vec<String>, Vec<u8>) {
    let words: Vec<String> = serde_json::from_value(read(dir, "stub_vocab.json")).unwrap();
    let vocab: serde_json::Map<String, Value> = words.iter().cloned().zip((0..).map(|i: u32| json!(i))).collect();
    assert_eq!(vocab.len(), words.len(), "words occur once");
    let special = |(id, content): (usize, &String)| {
        json!({ "id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": true })
    };
    let special: Vec<Value> = words.iter().take(3).enumerate().map(special).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": special, "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "<unk>" }
    });
    (words, serde_json::to_vec(&tokenizer).unwrap())
}

fn tokenizer(dir: &Path) -> Tokenizer {
    Tokenizer::from_bytes("the golden words", vocabulary(dir).1).unwrap()
}

fn options(record: &Value, data: &Golden) -> RefinerOptions {
    let (name, c) = (text(&record["name"]), &record["config"]);
    let weights = |what: &str| data.f32s(&format!("{name}.classifier.{what}"));
    let p_threshold = float(&c["va_p_threshold"]);
    let plain = RefinerOptions::default();
    // The record has the thresholds that follow from p_threshold; here they must follow from it too.
    let given = p_threshold == plain.p_threshold;
    RefinerOptions {
        alpha: float(&c["va_alpha"]),
        tau_visual: if given { float(&c["va_tau_visual"]) } else { plain.tau_visual },
        tau_non_visual: if given { float(&c["va_tau_non_visual"]) } else { plain.tau_non_visual },
        p_threshold,
        layers: c["va_layer_indices"].as_array().unwrap().iter().map(number).collect(),
        neuron_k: number(&c["va_neuron_k"]),
        window: number(&c["va_window_size"]),
        burst_threshold: float(&c["va_burst_threshold"]),
        soft_penalty: float(&c["va_soft_penalty"]),
        decay_factor: float(&c["va_decay_factor"]),
        logit_scale: float(&c["va_logit_scale"]),
        use_neuron: c["va_use_neuron"].as_bool().unwrap(),
        use_logit: c["va_use_logit"].as_bool().unwrap(),
        classifier: Some(Classifier {
            hidden: weights("0.weight"),
            hidden_bias: weights("0.bias"),
            output: weights("2.weight"),
            output_bias: weights("2.bias")[0],
        }),
    }
}

#[test]
fn embernet_va_functions_match() {
    for dir in folders() {
        let (functions, (words, _), tokenizer) =
            (read(&dir, "golden_va_functions.json"), vocabulary(&dir), tokenizer(&dir));
        for case in functions["is_visual_sensitive"].as_array().unwrap() {
            assert_eq!(json!(is_visually_sensitive(text(&case["text"]))), case["sensitive"], "{case}");
        }
        for word in functions["visual_keywords"].as_array().unwrap() {
            assert!(is_visually_sensitive(text(word)), "{word}");
        }
        for case in functions["calibrate_answer_prefix"].as_array().unwrap() {
            let (answer, scores) = (text(&case["answer"]), floats(&case["va_scores"]));
            let known = case["tokenizer"] == json!(true);
            let split: Vec<String> =
                answer.split(' ').map(str::to_owned).filter(|w| words.iter().skip(3).any(|x| x == w)).collect();
            let prefix = answer_prefix(&scores, known.then_some(&split));
            assert_eq!(json!(prefix.to_owned() + answer), case["result"], "{case}");
            let found = calibrated_answer(answer, &scores, known.then_some(&tokenizer)).unwrap();
            assert_eq!(json!(found), case["result"], "{case}");
        }
    }
}

#[test]
fn embernet_va_digits_of_all_scripts_are_sensitive_and_fractions_are_not() {
    assert!(["٣", "x²", "①", "৭", "𝟗"].iter().all(|t| is_visually_sensitive(t)));
    assert!(!["½", "Ⅷ", "一", "é", "±"].iter().any(|t| is_visually_sensitive(t)));
}

#[test]
fn embernet_va_records_match_step_by_step() {
    for dir in folders() {
        let (data, words) = (golden(&dir, "golden_va.safetensors"), vocabulary(&dir).0);
        let tokenizer = tokenizer(&dir);
        for record in records(&dir) {
            let name = text(&record["name"]);
            let values = |what: &str| data.f32s(&format!("{name}.{what}"));
            let (before, after, features) = (values("logits_in"), values("logits_out"), values("features"));
            let steps = record["steps"].as_array().unwrap();
            let (vocab, width) = (before.len() / steps.len(), features.len() / steps.len());
            let mut refiner = Refiner::new(options(&record, &data)).unwrap();
            assert_eq!(json!(refiner.options().neurons_per_layer()), record["neurons_per_layer"], "{name}");
            refiner.set_baseline(Some(values("null_baseline")));
            for (i, want) in steps.iter().enumerate() {
                let what = format!("{name}, step {i}");
                let row = &features[i * width..(i + 1) * width];
                let features = refiner.options().features(&by_layer(refiner.options(), row));
                assert!(features.as_deref().is_none_or(|f| f == row), "{what}");
                let mut logits = before[i * vocab..(i + 1) * vocab].to_vec();
                let word = |id: u32| Ok(words[id as usize].clone());
                let found = refiner.refine(&mut logits, features.as_deref(), word).unwrap();
                near(found.neuron, &want["p_neuron"], &what);
                near(found.logit, &want["p_logit"], &what);
                near(found.score, &want["p_va"], &what);
                near(found.window_mean, &want["window_mean"], &what);
                let decisions = json!([found.top, found.sensitive, found.burst, found.changed]);
                let wanted = ["top", "sensitive", "burst", "changed"].map(|key| want[key].clone());
                assert_eq!(decisions, json!(wanted), "{what}");
                let wanted = &after[i * vocab..(i + 1) * vocab];
                compare(&logits, wanted, 1e-6).unwrap_or_else(|e| panic!("{what}: {e}"));
                let best = (0..vocab).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
                assert_eq!(json!(best), record["generated_ids"][i], "{what}");
            }
            compare(refiner.scores(), &floats(&record["va_scores"]), 2e-6).unwrap();
            let answer = calibrated_answer(text(&record["raw_text"]), refiner.scores(), Some(&tokenizer)).unwrap();
            assert_eq!(json!(answer), record["final_text"], "{name}");
        }
    }
}

/// Golden features as what the engine gives: a vector for each watched layer that the model has, here with more values
/// behind the watched ones.
fn by_layer(options: &RefinerOptions, row: &[f32]) -> Vec<(usize, Vec<f32>)> {
    let values = row.chunks(options.neurons_per_layer()).map(|v| [v, &[9.0]].concat());
    options.layers.iter().copied().zip(values).filter(|(layer, _)| *layer < LAYERS).collect()
}

/// An engine on the model above `dir` that speaks the golden words, with all its layers to watch.
fn engine(dir: &Path, device: DeviceChoice, sessions: usize) -> Engine {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), vocabulary(dir).1).unwrap();
    let tokenizer = Some(file.path().to_owned());
    let probed_layers = (0..LAYERS).collect();
    let options = Options {
        device,
        autotune: false,
        precision: Precision::F32,
        tokenizer,
        sessions,
        probed_layers,
        ..Options::default()
    };
    Engine::open(dir.parent().unwrap(), options).unwrap()
}

fn prompt(dir: &Path) -> Vec<u32> {
    let ids = golden(dir.parent().unwrap(), "golden_prefill.safetensors").i32s("input_ids");
    ids.into_iter().map(|id| id as u32).collect()
}

/// The main image as the original scaled it. Ours may differ by one level in a few bytes, which is enough to move codes
/// and with them the scores by 1e-3, and in close calls the tokens.
fn picture(dir: &Path) -> Image {
    let data = golden(dir.parent().unwrap(), "golden_preprocess.safetensors");
    let (shape, values) = (data.shape("97x61.pixel_values"), data.f32s("97x61.pixel_values"));
    let n = shape[2] * shape[3];
    let level = |i: usize| ((values[i % 3 * n + i / 3] * 0.5 + 0.5) * 255.0).round() as u8;
    Image::from_rgb(shape[3], shape[2], (0..3 * n).map(level).collect()).unwrap()
}

/// Ids, text and scores of a generation of `n` tokens in a new session, with a refiner or without.
fn generate(
    engine: &Engine,
    ids: &[u32],
    image: Option<&Image>,
    n: usize,
    refiner: Option<RefinerOptions>,
) -> Result<(Vec<u32>, String, Vec<f32>)> {
    let mut session = engine.session()?;
    if let Some(image) = image {
        session.push_image(image)?;
    }
    session.push_tokens(ids)?;
    let options = GenerateOptions { max_tokens: Some(n), eos: Some(u32::MAX), ..GenerateOptions::default() };
    let mut refiner = refiner.map(Refiner::new).transpose()?;
    let stream = match &mut refiner {
        Some(refiner) => session.generate_with(options, refiner)?,
        None => session.generate(options)?,
    };
    let tokens = stream.collect::<Result<Vec<_>>>()?;
    let scores = refiner.map(|r| r.scores().to_vec()).unwrap_or_default();
    Ok((tokens.iter().map(|t| t.id).collect(), tokens.into_iter().map(|t| t.text).collect(), scores))
}

#[test]
fn embernet_va_engine_gives_the_original_ids_texts_and_scores() {
    for dir in folders() {
        let data = golden(&dir, "golden_va.safetensors");
        let gpu = device().map(|_| DeviceChoice::Gpu);
        for choice in [DeviceChoice::Cpu].into_iter().chain(gpu) {
            let engine = engine(&dir, choice.clone(), 2);
            for record in records(&dir) {
                let what = format!("{} on {choice:?}", record["name"]);
                let n = record["generated_ids"].as_array().unwrap().len();
                let refiner = Some(options(&record, &data));
                let (ids, text, scores) = generate(&engine, &prompt(&dir), Some(&picture(&dir)), n, refiner).unwrap();
                assert_eq!(json!(ids), record["generated_ids"], "{what}");
                assert_eq!(json!(text.trim()), record["raw_text"], "{what}");
                let wanted = floats(&record["va_scores"]);
                println!("{what}: scores off by {:.1e}", support::numbers::worst(&scores, &wanted).0);
                compare(&scores, &wanted, 1e-4).unwrap_or_else(|e| panic!("{what}: {e}"));
                let answer = calibrated_answer(text.trim(), &scores, engine.tokenizer()).unwrap();
                assert_eq!(json!(answer), record["final_text"], "{what}");
            }
        }
    }
}

#[test]
fn embernet_va_the_pass_without_the_image_needs_a_free_session() {
    for dir in folders() {
        let engine = engine(&dir, DeviceChoice::Cpu, 1);
        let (ids, image) = (prompt(&dir), picture(&dir));
        let error = generate(&engine, &ids, Some(&image), 4, Some(RefinerOptions::default())).unwrap_err();
        assert!(matches!(error, Error::SessionsFull { .. }), "{error}");
        let (_, _, scores) = generate(&engine, &ids, None, 4, Some(RefinerOptions::default())).unwrap();
        assert_eq!(scores, [0.5; 4], "there is no baseline without an image");

        let plain = generate(&engine, &ids, Some(&image), 4, None).unwrap();
        let blind = RefinerOptions { use_logit: false, ..RefinerOptions::default() };
        let found = generate(&engine, &ids, Some(&image), 4, Some(blind)).unwrap();
        assert_eq!(found, (plain.0, plain.1, vec![0.5; 4]), "no score, no change");
    }
}

#[test]
fn embernet_va_bad_settings_are_refused() {
    let plain = RefinerOptions::default;
    plain().validate().unwrap();
    let bad = [
        RefinerOptions { alpha: 1.1, ..plain() },
        RefinerOptions { alpha: f32::NAN, ..plain() },
        RefinerOptions { decay_factor: -0.1, ..plain() },
        RefinerOptions { tau_visual: f32::NAN, ..plain() },
        RefinerOptions { p_threshold: f32::INFINITY, ..plain() },
        RefinerOptions { soft_penalty: f32::INFINITY, ..plain() },
        RefinerOptions { logit_scale: 0.0, ..plain() },
        RefinerOptions { window: 0, ..plain() },
        RefinerOptions { neuron_k: usize::MAX, ..plain() },
        RefinerOptions { use_neuron: true, ..plain() },
    ];
    for bad in bad {
        assert!(matches!(Refiner::new(bad.clone()), Err(Error::Argument { .. })), "{bad:?}");
    }
    let mut refiner = Refiner::new(plain()).unwrap();
    let text = |_| Ok(String::new());
    assert!(matches!(refiner.refine(&mut [1.0, f32::INFINITY], None, text), Err(Error::NonFiniteLogits(_))));
    assert!(matches!(refiner.refine(&mut [], None, text), Err(Error::Argument { .. })));
    assert!(refiner.scores().is_empty());

    let [hidden, hidden_bias, output] =
        [2 * CLASSIFIER_UNITS, CLASSIFIER_UNITS, CLASSIFIER_UNITS].map(|n| vec![0.0; n]);
    let classifier = Some(Classifier { hidden, hidden_bias, output, output_bias: 0.0 });
    let options = RefinerOptions { use_neuron: true, layers: vec![0], neuron_k: 2, classifier, ..plain() };
    let mut refiner = Refiner::new(options).unwrap();
    assert!(matches!(refiner.refine(&mut [1.0], Some(&[1.0]), text), Err(Error::Argument { .. })));
    assert_eq!(refiner.refine(&mut [1.0], Some(&[1.0, 2.0]), text).unwrap().neuron, 0.5);
}

#[test]
fn embernet_va_layers_are_watched_only_where_the_engine_was_opened_for_it() {
    for dir in folders() {
        let data = golden(&dir, "golden_va.safetensors");
        let record = records(&dir).into_iter().find(|r| r["name"] == "neuron_only").unwrap();
        let mut refiner = options(&record, &data);
        let options = Options { device: DeviceChoice::Cpu, probed_layers: vec![0, 99], ..Options::default() };
        let engine = Engine::open(dir.parent().unwrap(), options).unwrap();
        let error = generate(&engine, &prompt(&dir), None, 4, Some(refiner.clone())).unwrap_err();
        assert!(error.to_string().contains("layer 1"), "{error}");

        refiner.classifier.as_mut().unwrap().hidden.pop();
        let error = generate(&engine, &prompt(&dir), None, 4, Some(refiner)).unwrap_err();
        assert!(matches!(error, Error::Argument { .. }), "{error}");
    }
}
