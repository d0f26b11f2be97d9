//! `ternion robots` as a user runs it.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod golden;
}

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use support::cli::{assert_fails, has_adapter, succeeds, ternion, text};
use support::golden::golden_root;
use tempfile::TempDir;

fn model() -> PathBuf {
    golden_root().join("bitgen_model/tiny")
}

/// A tokenizer of some words, the only ones that this model reads.
fn tokenizer() -> TempDir {
    let dir = TempDir::new().expect("a directory");
    let words = ["[UNK]", "inspect", "the", "bridge", "from", "below", "dive"];
    let vocab: serde_json::Map<String, Value> =
        words.iter().enumerate().map(|(i, word)| ((*word).to_owned(), json!(i))).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "Whitespace" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "[UNK]" },
    });
    fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).expect("written");
    dir
}

#[test]
fn robots_shows_the_choice_and_the_steps() {
    let words = tokenizer();
    let (model, words) = (text(model()), text(words.path().join("tokenizer.json")));
    let image = text(PathBuf::from(&model).join("image0.png"));
    let args = ["robots", "-m", &model, "--tokenizer", &words, "-p", "inspect the bridge from below"];
    for device in ["cpu", "gpu"] {
        if device == "gpu" && !has_adapter() {
            continue;
        }
        let more = ["--device", device, "--precision", "f32", "--image", &image];
        let table = succeeds(&[&args[..], &more].concat());
        for wanted in ["robot", "probability", "Drone", " %", "step", "confidence", "gate", "norm"] {
            assert!(table.contains(wanted), "no {wanted:?}: {table}");
        }
        let found: Value = serde_json::from_str(&succeeds(&[&args[..], &more, &["--json"]].concat())).expect("JSON");
        assert_eq!(found["tokens"], 5);
        let names =
            |list: &Value| list.as_array().expect("a list").iter().map(|r| r["robot"].clone()).collect::<Vec<_>>();
        assert_eq!(names(&found["robots"]).len(), 3);
        assert_eq!(names(&found["scores"]).len(), 5);
        for robot in names(&found["robots"]) {
            assert!(table.contains(robot.as_str().expect("a name")), "{robot}: {table}");
        }
        let steps = found["steps"].as_array().expect("steps");
        assert!((4..=8).contains(&steps.len()));
        assert_eq!(steps[0]["state"].as_array().expect("a state").len(), 32);
        // Two blank lines' worth of table: a header each, robots, steps.
        assert_eq!(table.lines().count(), 3 + 3 + steps.len(), "{table}");
        assert!(found["features"]["image"].is_array());
    }
    let of = |attention: &str| -> Value {
        let more = ["--device", "cpu", "--json", "--attention", attention];
        serde_json::from_str(&succeeds(&[&args[..], &more].concat())).expect("JSON")
    };
    let (original, streaming) = (of("original"), of("streaming"));
    assert_eq!((&original["attention"], &streaming["attention"]), (&json!("original"), &json!("streaming")));
    assert_eq!(original["scores"], streaming["scores"], "a text that fits the window is the same either way");
    assert!(original["features"].is_null());
}

#[test]
fn robots_says_what_is_wrong() {
    let words = tokenizer();
    let (model, words) = (text(model()), text(words.path().join("tokenizer.json")));
    let stage1 = text(golden_root().join("bitgen_stage1/cnn"));
    let long = "the ".repeat(65);
    let cases: [(&[&str], &[&str]); 5] = [
        (&["-m", &model, "-p", "dive"], &["tokenizer"]),
        (&["-m", &stage1, "--tokenizer", &words, "-p", "dive"], &["not supported", "BitGenModel"]),
        (&["-m", &model, "--tokenizer", &words, "-p", " "], &["prompt", "empty"]),
        (&["-m", &model, "--tokenizer", &words, "-p", &long], &["65 tokens", "1..=64"]),
        (&["-m", &model, "--tokenizer", &words, "-p", "dive", "--image", "no.png"], &["no.png"]),
    ];
    for (args, texts) in cases {
        let args = [&["robots", "--device", "cpu"], args].concat();
        assert_fails(&ternion(&args), &args, texts);
    }
}
