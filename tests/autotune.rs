//! Choosing kernel variants by timing: the answer stays the same, and the choice is kept where it was told to be.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
}

use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use support::cli::{Ran, command, has_adapter, text};
use tempfile::TempDir;
use ternion::Error;
use ternion::engine::{DeviceChoice, Engine, Progress};

/// Answers a question of the demo model on the best adapter, which shows in its answer and in what it logs.
fn answer(cache: &Path, more: &[&str]) -> Ran {
    let picture = text(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes/samples/spatial_scene_100001.png"));
    let question = ["run", "-v", "--device", "gpu", "--image", &picture, "-p", "Describe the image."];
    let mut command = command(&[&question[..], more].concat());
    let ran: Ran = command.env("TERNION_CACHE", cache).output().expect("the command runs").into();
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    ran
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).expect("a folder").map(|f| f.expect("a file").path()).collect()
}

#[test]
fn the_answer_is_the_same_and_the_choice_is_kept() {
    if !has_adapter() {
        return;
    }
    let dir = TempDir::new().expect("a folder");
    let usual = answer(dir.path(), &["--no-autotune"]);
    assert!(files(dir.path()).is_empty(), "nothing is chosen");
    assert!(!usual.err.contains("chosen"), "{}", usual.err);

    let first = answer(dir.path(), &[]);
    assert_eq!(first.out, usual.out);
    assert!(first.err.contains("chosen in"), "{}", first.err);
    let [file] = files(dir.path()).try_into().expect("one file");
    let chosen = fs::read_to_string(&file).expect("text");

    let second = answer(dir.path(), &[]);
    assert_eq!(second.out, usual.out);
    assert!(second.err.contains("as chosen before") && !second.err.contains("chosen in"), "{}", second.err);
    assert_eq!(fs::read_to_string(&file).expect("text"), chosen);

    // Of a variant that no op has any more, only that choice is made again.
    fs::write(&file, chosen.replacen("\"variant\": \"", "\"variant\": \"gone-", 1)).expect("written");
    let again = answer(dir.path(), &[]);
    assert!(again.out == usual.out && again.err.contains("chosen in"), "{}", again.err);
    let text = fs::read_to_string(&file).expect("text");
    assert!(!text.contains("gone-") && text.lines().count() == chosen.lines().count(), "{text}");

    fs::write(&file, "{ \"version\": ").expect("written");
    let third = answer(dir.path(), &[]);
    assert_eq!(third.out, usual.out);
    assert!(third.err.contains("is passed over") && third.err.contains("chosen in"), "{}", third.err);
    assert_ne!(fs::read_to_string(&file).expect("text"), "{ \"version\": ");
}

#[test]
fn nothing_is_chosen_for_a_model_that_does_not_open() {
    if !has_adapter() {
        return;
    }
    let (dir, model) = (TempDir::new().expect("a folder"), TempDir::new().expect("a folder"));
    let shapes = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes");
    for (family, file) in [("model", "model.safetensors"), ("model", "config.json")] {
        fs::copy(shapes.join(family).join(file), model.path().join(file)).expect("copied");
    }
    let model = text(model.path());
    for (args, problem) in [
        (["run", "-v", "--device", "gpu", "-m", &model, "-p", "x"], "tokenizer"),
        (["run", "-v", "--device", "gpu", "-p", "x", "--context", "99999999"], "context"),
    ] {
        let ran: Ran = command(&args).env("TERNION_CACHE", dir.path()).output().expect("the command runs").into();
        assert!(ran.code == Some(2) && ran.err.contains(problem), "{}", ran.err);
        assert!(!ran.err.contains("chosen") && files(dir.path()).is_empty(), "{}", ran.err);
    }
}

#[test]
fn without_a_folder_nothing_is_chosen() {
    if has_adapter() {
        let ran = answer(Path::new(""), &[]);
        assert!(!ran.err.contains("chosen"), "{}", ran.err);
    }
}

#[test]
fn timing_kernels_is_told_and_can_be_ended() {
    if !has_adapter() {
        return;
    }
    let dir = TempDir::new().expect("a folder");
    let open = |end: bool| {
        let (mut told, options) = (Vec::new(), Engine::builder().device(DeviceChoice::Gpu).autotune(true));
        let progress = |at: Progress| {
            let timing = at.what.starts_with("timing the kernels of ");
            if timing {
                told.push((at.done, at.total));
            }
            if timing && end { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let opened = options.cache(dir.path()).progress(progress).open_demo().map(|_| ());
        (opened, told)
    };
    let (opened, told) = open(true);
    assert!(matches!(opened, Err(Error::Cancelled(_))) && told.len() == 1 && files(dir.path()).is_empty());
    let (opened, told) = open(false);
    let total = told[0].1;
    assert!(opened.is_ok() && total > 0 && told == (0..total).map(|done| (done, total)).collect::<Vec<_>>());
    assert!(open(false).1.is_empty(), "once");
}
