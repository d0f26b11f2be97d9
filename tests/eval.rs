//! `ternion eval`: the table and the JSON, the written answers, and what broken data sets get; and the commands that
//! need no `--model`.
#![cfg(all(feature = "cli", feature = "demo"))]

mod support {
    pub mod cli;
    pub mod golden;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use support::cli::{assert_fails, has_adapter, succeeds, ternion, text};
use tempfile::TempDir;

fn demo_data() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/demo")
}

fn samples() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/shapes/samples")
}

/// A folder with two of the demo's pictures and this list.
fn folder(list: &str) -> TempDir {
    let dir = TempDir::new().expect("a directory");
    for name in ["spatial_scene_100000.png", "agentic_knowledge_100001.png"] {
        fs::copy(samples().join(name), dir.path().join(name)).expect("copied");
    }
    fs::write(dir.path().join("questions.json"), list).expect("written");
    dir
}

fn json_file(path: impl AsRef<std::path::Path>) -> Value {
    serde_json::from_slice(&fs::read(path).expect("read")).expect("JSON")
}

#[test]
fn the_json_counts_what_the_written_answers_show() {
    let dir = TempDir::new().expect("a directory");
    let (data, file) = (text(demo_data()), text(dir.path().join("answers.json")));
    for device in if has_adapter() { &["cpu", "gpu"][..] } else { &["cpu"] } {
        let out = succeeds(&["eval", "--data", &data, "--device", device, "--json", "--answers", &file]);
        let out: Value = serde_json::from_str(&out).expect("JSON and nothing else");
        let (asked, answered) = (json_file(demo_data().join("questions.json")), json_file(&file));
        let mut counts: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        for (asked, answered) in asked.as_array().expect("a list").iter().zip(answered.as_array().expect("a list")) {
            let mut kept = answered.as_object().expect("an object").clone();
            let got = kept.remove("got").expect("an answer");
            assert_eq!(Value::Object(kept), *asked, "the entry is as it was");
            let count = counts.entry(asked["family"].as_str().expect("a family").to_owned()).or_default();
            let lower = |v: &Value| v.as_str().expect("a text").to_lowercase();
            *count = (count.0 + 1, count.1 + u64::from(lower(&got) == lower(&asked["answer"])));
        }
        let families = out["families"].as_object().expect("families");
        assert_eq!((out.as_object().map(|o| o.len()), families.len()), (Some(1), 8));
        for (name, (n, correct)) in counts {
            let family = &families[&name];
            assert_eq!((family["n"].as_u64(), family["correct"].as_u64()), (Some(n), Some(correct)), "{name}");
            assert_eq!(family["accuracy"].as_f64(), Some(correct as f64 / n as f64), "{name}");
            let own = family["own_expert_share"].as_f64().expect("the demo has this expert");
            // Its own expert is among 2 of 8 by chance a quarter of the time; the model is trained for more.
            assert!((0.5..=1.0).contains(&own), "{name}: {own}");
            let (nats, perplexity) = (family["cross_entropy"].as_f64(), family["perplexity"].as_f64());
            // Almost all answers are right: their tokens surprise little.
            assert!(nats.is_some_and(|n| (0.0..0.3).contains(&n)), "{name}: {nats:?}");
            assert!((perplexity.unwrap_or_default() - nats.unwrap_or_default().exp()).abs() < 1e-9, "{name}");
            assert_eq!(family.as_object().map(|f| f.len()), Some(6));
        }
    }
}

#[test]
fn the_table_has_a_row_a_family_and_one_for_all() {
    let entry = |image: &str, family: &str, question: &str, answer: &str| json!({ "image": image, "family": family, "question": question, "answer": answer, "note": [1, null] });
    let scene = "spatial_scene_100000.png";
    let list = json!([
        entry(scene, "spatial_scene", "What color is the circle?", " RED "),
        entry("./agentic_knowledge_100001.png", "mine", "What color is the circle?", "no such answer"),
        entry(scene, "mine", "What color is the circle?", ""),
    ]);
    let dir = folder(&list.to_string());
    let out = succeeds(&["eval", "--data", &text(dir.path()), "--device", "cpu", "-n", "8"]);
    let rows: Vec<Vec<&str>> = out.lines().map(|line| line.split_whitespace().collect()).collect();
    assert_eq!(rows[0], ["family", "n", "correct", "accuracy", "own", "expert", "perplexity"]);
    assert_eq!(rows[1][..5], ["spatial_scene", "1", "1", "100.0", "%"]);
    assert_eq!(rows[2][..6], ["mine", "2", "0", "0.0", "%", "-"]);
    assert_eq!(rows[3][..5], ["all", "3", "1", "33.3", "%"]);
    assert_eq!((rows[1][6], rows[3][5..7] == rows[1][5..7], rows.len()), ("%", true, 4));
    // The model says none of these as they stand: capitals, no such answer, no answer.
    let perplexities: Vec<f64> = rows[1..].iter().map(|r| r[r.len() - 1].parse().expect("a number")).collect();
    assert!(perplexities.iter().all(|&p| p > 10.0), "{perplexities:?}");
    assert!(perplexities[0] < perplexities[2] && perplexities[2] < perplexities[1], "{perplexities:?}");

    let out = succeeds(&["eval", "--data", &text(dir.path()), "--device", "cpu", "--json"]);
    let out: Value = serde_json::from_str(&out).expect("JSON");
    let mut mine = out["families"]["mine"].as_object().expect("a family").clone();
    let nats = mine.remove("cross_entropy").and_then(|v| v.as_f64()).expect("a number");
    assert_eq!(mine.remove("perplexity").and_then(|v| v.as_f64()), Some(nats.exp()));
    assert_eq!(Value::Object(mine), json!({ "n": 2, "correct": 0, "accuracy": 0.0, "own_expert_share": null }));
}

#[test]
fn broken_data_sets_are_refused_before_the_model_is_opened() {
    let entry = |key: &str, value: Value| {
        let good = json!({ "image": "spatial_scene_100000.png", "family": "f", "question": "q", "answer": "a" });
        let mut bad = good.clone();
        bad[key] = value;
        json!([good, bad]).to_string()
    };
    let without = entry("x", json!(1)).replacen("\"answer\":\"a\",", "", 1);
    let cases: &[(String, &[&str])] = &[
        ("[\n{\"image\": }]".into(), &["line 2 column 11"]),
        ("{}".into(), &["is an object", "expected a list"]),
        ("[]".into(), &["empty list"]),
        ("[7]".into(), &["entry 1", "a number"]),
        (without, &["entry 1", "has no \"answer\""]),
        (entry("answer", json!(5)), &["entry 2", "\"answer\" is a number"]),
        (entry("family", Value::Null), &["entry 2", "\"family\" is null"]),
        (entry("question", json!(" ")), &["entry 2", "\"question\" is empty"]),
        (entry("image", json!("../x.png")), &["entry 2", "../x.png", "out of the folder"]),
        (entry("image", json!("/etc/hostname")), &["entry 2", "/etc/hostname", "out of the folder"]),
        (entry("image", json!("none.png")), &["entry 2", "none.png", "not a file"]),
        (entry("image", json!(".")), &["entry 2", "not a file"]),
    ];
    for (list, says) in cases {
        let dir = folder(list);
        // Were the model opened first, its path would be what is wrong.
        let args = ["eval", "-m", "no such model", "--data", &text(dir.path())];
        assert_fails(&ternion(&args), &args, &[says, &["questions.json"][..]].concat());
    }
    let empty = TempDir::new().expect("a directory");
    let file = demo_data().join("questions.json");
    for (data, says) in [
        (text(empty.path()), "holds no questions.json"),
        (text(&file), "is not a folder"),
        ("nowhere".into(), "nowhere"),
    ] {
        let args = ["eval", "-m", "no such model", "--data", &data];
        assert_fails(&ternion(&args), &args, &[says]);
    }
}

#[test]
fn bad_options_are_refused_before_the_model_is_opened() {
    let dir = folder(r#"[{"got": "an answer of an earlier run"}]"#);
    let data = text(demo_data());
    let there = text(dir.path().join("questions.json"));
    let nowhere = text(dir.path().join("nowhere/answers.json"));
    let eval = |more: &[&str]| ternion(&[&["eval", "-m", "no such model", "--data", &data], more].concat());
    assert_fails(&eval(&["-n", "0"]), &["-n", "0"], &["max-tokens", "is 0"]);
    assert_fails(&eval(&["--answers", &nowhere]), &["--answers"], &["nowhere/answers.json"]);
    assert_fails(&eval(&["--answers", &data]), &["--answers"], &[&data]);
    // An evaluation that fails later neither changes the file nor leaves one.
    let (before, new) = (fs::read(&there).expect("read"), dir.path().join("new.json"));
    assert_fails(&eval(&["--answers", &there]), &["--answers"], &["no such model"]);
    assert_fails(&eval(&["--answers", &text(&new)]), &["--answers"], &["no such model"]);
    assert!(fs::read(&there).expect("read") == before && !new.exists());
}

#[test]
fn what_fails_on_the_way_is_named() {
    let question = "what ".repeat(300);
    let long = json!([{ "image": "spatial_scene_100000.png", "family": "f", "question": question, "answer": "a" }]);
    let dir = folder(&long.to_string());
    let args = ["eval", "--device", "cpu", "--data", &text(dir.path())];
    assert_fails(&ternion(&args), &args, &["questions.json: entry 1", "context of 256"]);
    let broken = json!([{ "image": "broken.png", "family": "f", "question": "q", "answer": "a" }]);
    let dir = folder(&broken.to_string());
    fs::write(dir.path().join("broken.png"), "no picture").expect("written");
    let args = ["eval", "--device", "cpu", "--data", &text(dir.path())];
    assert_fails(&ternion(&args), &args, &["broken.png"]);
}

#[test]
fn commands_without_a_model_take_the_demo_and_say_so() {
    let picture = text(samples().join("spatial_scene_100000.png"));
    let args = ["run", "--device", "cpu", "--image", &picture, "-p", "What color is the circle?"];
    let ran = ternion(&args);
    assert_eq!((ran.code, ran.out.trim(), ran.err.as_str()), (Some(0), "red", ""));
    let ran = ternion(&[&args[..], &["-v"]].concat());
    assert_eq!((ran.code, ran.out.trim()), (Some(0), "red"), "{}", ran.err);
    let said: Vec<&str> = ran.err.lines().filter(|l| l.starts_with("model: the demo model")).collect();
    assert!(said.len() == 1 && said[0].contains("drawn scenes only"), "{}", ran.err);

    // With a model nothing is said of the demo; a tokenizer of one's own takes the place of the demo's.
    let model = text(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/shapes/model"));
    let with_model = ternion(&[&args[..], &["-v", "-m", &model]].concat());
    assert_eq!((with_model.out.trim(), with_model.err.contains("demo model")), ("red", false));
    let tokenizer = text(support::golden::golden_root().join("tokenizer.json"));
    assert_eq!(succeeds(&[&args[..], &["--tokenizer", &tokenizer]].concat()).trim(), "red");
    let nowhere = [&args[..], &["--tokenizer", "nowhere.json"]].concat();
    assert_fails(&ternion(&nowhere), &nowhere, &["nowhere.json"]);

    assert!(succeeds(&["check", "--device", "cpu"]).contains("nodes agree"));
    assert!(succeeds(&["inspect"]).contains("the demo model/model.safetensors: EmberNet"));
}
