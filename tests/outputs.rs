//! What a command writes replaces nothing but what such a command has written before.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
}

use std::fs;
use std::path::Path;

use support::cli::{assert_fails, succeeds, ternion, text};

const MODEL: &str = "tests/golden/embernet/oddgrid";
const BITGEN: &str = "examples/shapes/bitgen/model";
const DEMO: &str = "examples/shapes/model";
const PICTURE: &str = "examples/shapes/samples/spatial_scene_100001.png";

/// Configuration and weights of a model, in a folder of their own.
fn copied(folder: &Path, model: &str) -> String {
    fs::create_dir(folder).unwrap();
    for entry in fs::read_dir(model).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|e| e == "json" || e == "safetensors") && !text(&path).contains("golden_") {
            fs::copy(&path, folder.join(path.file_name().unwrap())).unwrap();
        }
    }
    text(folder)
}

/// Runs a command that must be refused, and leave a file as it is.
#[track_caller]
fn refused(file: &Path, args: &[&str], says: &[&str]) {
    let before = fs::read(file).unwrap();
    assert_fails(&ternion(args), args, says);
    assert!(fs::read(file).unwrap() == before, "{args:?} has changed {}", file.display());
}

#[test]
fn a_conversion_replaces_earlier_conversions_only() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (a, b) = (copied(&at("a"), MODEL), copied(&at("b"), MODEL));
    refused(&at("b/model.safetensors"), &["convert", &a, &b], &["model.safetensors"]);
    let other = copied(&at("other"), BITGEN);
    refused(&at("other/model.safetensors"), &["convert", DEMO, &other], &["another model"]);
    let packed = text(at("packed"));
    succeeds(&["convert", DEMO, &packed]);
    let first = fs::read(at("packed/model.safetensors")).unwrap();
    succeeds(&["convert", DEMO, &packed]);
    assert!(fs::read(at("packed/model.safetensors")).unwrap() == first);
    // What is left behind by a conversion that was killed is no reason to refuse.
    fs::write(at("packed/.tmpLeft"), "half").unwrap();
    succeeds(&["convert", DEMO, &packed]);
}

#[cfg(unix)]
#[test]
fn a_conversion_does_not_write_through_links() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let (store, links) = (text(at("store")), at("links"));
    succeeds(&["convert", DEMO, &store]);
    fs::create_dir(&links).unwrap();
    for entry in fs::read_dir(&store).unwrap() {
        let path = entry.unwrap().path();
        std::os::unix::fs::symlink(&path, links.join(path.file_name().unwrap())).unwrap();
    }
    let links = text(&links);
    refused(&at("store/model.safetensors"), &["convert", &links, &store], &["input"]);
    refused(&at("store/model.safetensors"), &["convert", DEMO, &links], &["leads to"]);
}

#[test]
fn a_memory_replaces_memories_only() {
    let folder = tempfile::tempdir().unwrap();
    let model = copied(&folder.path().join("m"), BITGEN);
    let run = |memory: &Path| {
        let args =
            ["run", "-m", &model, "--device", "cpu", "--image", PICTURE, "-p", "red circle", "-n", "2", "--memory"];
        args.iter().map(|&a| a.to_owned()).chain([text(memory)]).collect::<Vec<_>>()
    };
    for file in ["m/model.safetensors", "m/config.json"] {
        let file = folder.path().join(file);
        let args = run(&file);
        let before = fs::read(&file).unwrap();
        let ran = ternion(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, Some(2), "{}", ran.err);
        assert!(fs::read(&file).unwrap() == before, "{} is changed", file.display());
    }
    let memory = folder.path().join("memory.safetensors");
    for _ in 0..2 {
        succeeds(&run(&memory).iter().map(String::as_str).collect::<Vec<_>>());
    }
}

#[test]
fn answers_replace_answers_only() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fs::copy(PICTURE, at("a.png")).unwrap();
    let list = r#"[{"image":"a.png","family":"spatial_scene","question":"What is it?","answer":"x"}]"#;
    fs::write(at("questions.json"), list).unwrap();
    let (data, answers) = (text(folder.path()), text(at("answers.json")));
    let eval =
        |file: &str| ["eval", "--device", "cpu", "--data", &data, "-n", "2", "--answers", file].map(str::to_owned);
    for name in ["questions.json", "a.png"] {
        let args = eval(&text(at(name)));
        refused(&at(name), &args.each_ref().map(String::as_str), &["no answers of an earlier run"]);
    }
    for _ in 0..2 {
        succeeds(&eval(&answers).each_ref().map(String::as_str));
    }
    assert!(fs::read_to_string(&answers).unwrap().contains("got"));
    // Earlier answers may be questions, and stay then.
    fs::rename(&answers, at("questions.json")).unwrap();
    fs::hard_link(at("questions.json"), at("linked.json")).unwrap();
    for name in ["questions.json", "linked.json"] {
        let args = eval(&text(at(name)));
        refused(&at(name), &args.each_ref().map(String::as_str), &["list of questions"]);
    }
}

#[test]
fn plots_replace_plots_only() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| text(folder.path().join(name));
    fs::copy(PICTURE, at("a.png")).unwrap();
    fs::copy(PICTURE, at("other.png")).unwrap();
    fs::hard_link(at("a.png"), at("linked.png")).unwrap();
    fs::write(at("drawing.svg"), "<svg xmlns=\"http://www.w3.org/2000/svg\"/>").unwrap();
    let picture = at("a.png");
    let run = |file: &str| {
        ["run", "--device", "cpu", "--image", &picture, "-p", "x", "-n", "2", "--routing", file].map(str::to_owned)
    };
    let similarity = |file: &str| {
        ["similarity", "-m", BITGEN, "--device", "cpu", "--image", &picture, "--text", "x", "--plot", file]
            .map(str::to_owned)
    };
    let bench = |file: &str| ["bench", "--device", "cpu", "-p", "1", "-n", "0", "--plot", file].map(str::to_owned);
    for name in ["a.png", "linked.png", "other.png", "drawing.svg"] {
        let file = at(name);
        for args in [run(&file).to_vec(), similarity(&file).to_vec(), bench(&file).to_vec()] {
            refused(file.as_ref(), &args.iter().map(String::as_str).collect::<Vec<_>>(), &[name]);
        }
    }
    fs::write(at("empty.png"), "").unwrap();
    for name in ["plot.png", "plot.svg", "empty.png"] {
        succeeds(&run(&at(name)).each_ref().map(String::as_str));
        succeeds(&similarity(&at(name)).each_ref().map(String::as_str));
    }
    // A plot may be a picture of a question, and stays then.
    fs::rename(at("plot.png"), &picture).unwrap();
    fs::remove_file(at("linked.png")).unwrap();
    fs::hard_link(&picture, at("linked.png")).unwrap();
    for args in [run(&at("linked.png")).to_vec(), similarity(&at("linked.png")).to_vec()] {
        refused(picture.as_ref(), &args.iter().map(String::as_str).collect::<Vec<_>>(), &["overwritten"]);
    }
}

#[test]
fn a_report_has_the_machine_its_adapters_and_what_each_does() {
    let out = succeeds(&["report"]);
    let program = concat!("- program: ternion ", env!("CARGO_PKG_VERSION"));
    for part in ["# Ternion: report", program, "- system: ", "- processor: ", "## Adapters", "\nauto: "] {
        assert!(out.contains(part), "{part}: {out}");
    }
    let cpu = out.lines().find(|line| line.starts_with("| CPU ")).expect("a row of the CPU");
    assert!(cpu.contains("176 ops agree") && !out.contains("failed") && !out.contains(" differ"), "{out}");
    let adapters = ternion::gpu::Adapters::find().summaries().len();
    assert_eq!(out.lines().filter(|line| line.contains("ops agree")).count(), 1 + adapters, "{out}");
    let home = std::env::var("HOME").unwrap_or_default();
    assert!(home.len() < 2 || !out.contains(&home), "{out}");
    let short = succeeds(&["report", "--no-tests"]);
    assert!(short.contains("## Adapters") && !short.contains("The demo model"), "{short}");
}
