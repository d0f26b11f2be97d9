//! What scripts need of the command line: JSON, stdin, lists of pictures, the environment, silence, completions.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
}

use serde_json::Value;
use support::cli::{Ran, assert_fails, command, fed, succeeds, ternion, text};

const PICTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shapes/samples/spatial_scene_100000.png");
const QUESTION: &str = "What color is the circle?";
const ON_CPU: [&str; 3] = ["run", "--device", "cpu"];

/// The answer of the demo model.
fn answer() -> String {
    succeeds(&[&ON_CPU[..], &["--image", PICTURE, "-p", QUESTION]].concat()).trim().to_owned()
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn an_answer_as_json_has_its_text_tokens_end_and_counts() {
    let found = json(&succeeds(&[&ON_CPU[..], &["--image", PICTURE, "-p", QUESTION, "--json"]].concat()));
    assert_eq!(found["text"], answer());
    assert_eq!((&found["stop"], &found["version"]), (&"eos".into(), &env!("CARGO_PKG_VERSION").into()));
    let tokens = found["tokens"].as_array().expect("a list").len();
    assert_eq!(found["stats"]["generated"], tokens);
    assert!(tokens > 0 && found["device"].as_str().is_some_and(|device| device.starts_with("CPU")));
    let args = [&ON_CPU[..], &["-p", QUESTION, "--json", "--routing", "x.png"]].concat();
    assert_fails(&ternion(&args), &args, &["json", "plots"]);
}

#[test]
fn a_question_may_come_on_stdin() {
    let ran = fed(&[&ON_CPU[..], &["--image", PICTURE]].concat(), QUESTION.as_bytes());
    assert_eq!((ran.code, ran.out.trim()), (Some(0), answer().as_str()), "{}", ran.err);
    assert_fails(&ternion(&ON_CPU), &ON_CPU, &["prompt: is missing"]);
}

#[test]
fn one_option_takes_several_pictures_and_an_address_is_refused() {
    let two = [&ON_CPU[..], &["--image", PICTURE, PICTURE, "-p", QUESTION]].concat();
    let twice = [&ON_CPU[..], &["--image", PICTURE, "--image", PICTURE, "-p", QUESTION]].concat();
    assert_eq!(succeeds(&two), succeeds(&twice));
    let args = [&ON_CPU[..], &["--image", "https://example.org/a.png", "-p", QUESTION]].concat();
    assert_fails(&ternion(&args), &args, &["https://example.org/a.png", "fetch it first"]);
}

#[test]
fn the_environment_names_the_model_and_the_device() {
    let with = |key: &str, value: &str, more: &[&str]| -> Ran {
        let args = [&["run", "-p", QUESTION], more].concat();
        command(&args).env(key, value).output().expect("the command runs").into()
    };
    let ran = with("TERNION_MODEL", "no such model", &["--device", "cpu"]);
    assert!(ran.code == Some(2) && ran.err.contains("no such model"), "{}", ran.err);
    let ran = with("TERNION_DEVICE", "cpu", &["-v"]);
    assert!(ran.code == Some(0) && ran.err.contains("CPU") && ran.err.contains("as asked"), "{}", ran.err);
    let ran = with("TERNION_DEVICE", "no such device", &["--device", "cpu"]);
    assert_eq!(ran.code, Some(0), "what is given comes first: {}", ran.err);
}

#[test]
fn quiet_leaves_errors_alone_on_stderr() {
    let ran = ternion(&[&ON_CPU[..], &["-q", "--image", PICTURE, "-p", QUESTION]].concat());
    assert_eq!((ran.code, ran.err.as_str(), ran.out.trim()), (Some(0), "", answer().as_str()));
    let args = [&ON_CPU[..], &["-q", "-m", "nowhere", "-p", QUESTION]].concat();
    let ran = ternion(&args);
    assert!(ran.code == Some(2) && ran.err.starts_with("error: "), "{}", ran.err);
}

#[test]
fn a_file_of_questions_has_an_answer_for_each_line() {
    let dir = tempfile::TempDir::new().expect("a folder");
    let file = dir.path().join("in.jsonl");
    let ask = |image: &str| format!("{{\"prompt\": \"{QUESTION}\"{image}}}\n");
    let (one, list) = (format!(", \"image\": \"{PICTURE}\""), format!(", \"image\": [\"{PICTURE}\"]"));
    let good = [ask(&one), "\n".into(), ask(&list), ask("")].concat();
    std::fs::write(&file, &good).expect("written");
    let path = text(&file);
    let args = [&ON_CPU[..], &["--batch", &path]].concat();
    let answers: Vec<Value> = succeeds(&args).lines().map(json).collect();
    let alone = json(&succeeds(&[&ON_CPU[..], &["--image", PICTURE, "-p", QUESTION, "--json"]].concat()));
    assert_eq!(answers.iter().map(|a| a["line"].as_u64().expect("a number")).collect::<Vec<_>>(), [1, 3, 4]);
    assert_eq!([&answers[0]["text"], &answers[1]["text"]], [&alone["text"]; 2]);
    assert!(answers[2]["tokens"] != Value::Null && answers.iter().all(|a| a.get("error").is_none()), "{answers:?}");

    let bad = "{\n{\"prompt\": 3}\n{\"prompt\": \"x\", \"image\": \"nowhere.png\"}\n{\"prompt\": \"x\", \"more\": 1}\n";
    let ran = fed(&[&ON_CPU[..], &["--batch", "-"]].concat(), format!("{bad}{good}").as_bytes());
    let found: Vec<Value> = ran.out.lines().map(json).collect();
    assert_eq!((ran.code, found.len()), (Some(2), 7), "{}", ran.err);
    assert!(found[..4].iter().all(|a| a["error"].is_string() && a.get("text").is_none()), "{found:?}");
    assert!(found[2]["error"].as_str().is_some_and(|e| e.contains("nowhere.png")));
    assert_eq!(found[4]["text"], alone["text"], "the others are answered");
    let args = [&ON_CPU[..], &["--batch", "nowhere.jsonl"]].concat();
    assert_fails(&ternion(&args), &args, &["nowhere.jsonl", "no such file"]);
}

#[test]
fn adapters_are_listed_as_json() {
    let found = json(&succeeds(&["devices", "--json"]));
    for adapter in found.as_array().expect("a list") {
        assert!(
            adapter["name"].is_string() && adapter["driver"].is_string() && adapter["kind"].is_string(),
            "{adapter}"
        );
    }
}

#[test]
fn completions_and_manual_pages_name_commands_and_options() {
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let text = succeeds(&["completions", shell]);
        assert!(text.contains("similarity") && text.contains("hidden-act"), "{shell}");
    }
    assert!(succeeds(&["man"]).contains("ternion"));
    assert!(succeeds(&["man", "run"]).contains("hidden"));
    assert_fails(&ternion(&["man", "nothing"]), &["man", "nothing"], &["nothing", "--help"]);
}
