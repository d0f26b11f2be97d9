//! What becomes of a command whose stdout or stderr cannot be written: the rest of its work is done, and codes stay.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
}

use std::fs::File;
use std::process::Stdio;

use support::cli::{Ran, command, text};

const PICTURE: &str = "examples/shapes/samples/spatial_scene_100001.png";
const BITGEN: &str = "examples/shapes/bitgen/model";

/// A pipe that nobody reads.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    writer.into()
}

/// Stderrs that cannot be written: one without a reader, and a full disk where there is such a device.
fn broken() -> Vec<Stdio> {
    let full = File::options().write(true).open("/dev/full").ok().map(Stdio::from);
    [Some(closed()), full].into_iter().flatten().collect()
}

/// Runs a command with a stdout that nobody reads.
fn unread(args: &[&str]) -> Ran {
    command(args).stdout(closed()).output().expect("the command runs").into()
}

#[test]
fn an_answer_comes_whole_whatever_becomes_of_stderr() {
    let index = tempfile::tempdir().unwrap();
    let index = text(index.path());
    let run = ["run", "-v", "--device", "cpu", "-p", "What is 2 + 3?", "-n", "4"];
    let search =
        ["search", "-m", BITGEN, "--device", "cpu", "--index", &index, "--add", "examples/shapes/samples", "red"];
    for args in [&run[..], &search, &["inspect", BITGEN], &["check", "--device", "cpu", "-m", BITGEN]] {
        for stderr in broken() {
            let ran: Ran = command(args).stderr(stderr).output().expect("the command runs").into();
            assert_eq!(ran.code, Some(0), "{args:?}");
            assert!(!ran.out.is_empty(), "{args:?} says nothing");
        }
    }
    for stderr in broken() {
        let mut missing = command(&["run", "--device", "cpu", "-p", "x", "--image", "there/is/none.png"]);
        assert_eq!(missing.stderr(stderr).output().expect("the command runs").status.code(), Some(2));
    }
}

#[test]
fn what_a_run_writes_does_not_depend_on_who_reads_its_text() {
    let folder = tempfile::tempdir().unwrap();
    let [memory, routing, attention, bars] =
        ["m.safetensors", "r.svg", "a.svg", "b.svg"].map(|name| text(folder.path().join(name)));
    let caption = ["run", "-m", BITGEN, "--device", "cpu", "--image", PICTURE, "-p", "red circle", "--memory", &memory];
    let ran = unread(&[&caption[..], &["--remember"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let ask = ["run", "--device", "cpu", "--image", PICTURE, "-p", "What is it?", "-n", "3"];
    let ran = unread(&[&ask[..], &["--routing", &routing, "--attention", "-1", &attention]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.err);
    let model = "examples/shapes/model";
    unread(&["bench", "--device", "cpu", "-m", model, "-p", "2", "-n", "2", "-r", "1", "--plot", &bars]);
    for file in [&memory, &routing, &attention, &bars] {
        assert!(std::fs::metadata(file).is_ok_and(|m| m.len() > 0), "{file} is not written");
    }
    // Nobody reads on, and nothing else is asked for: the answer ends with its reader.
    assert_eq!(unread(&ask).code, Some(0));
}

#[test]
fn an_error_of_the_engine_is_not_hidden_by_a_closed_stdout() {
    let folder = tempfile::tempdir().unwrap();
    let file = text(folder.path().join("a.svg"));
    let ask = ["run", "--device", "cpu", "--image", PICTURE, "-p", "What is it?", "-n", "3"];
    let ran = unread(&[&ask[..], &["--attention", "99", &file]].concat());
    assert_eq!(ran.code, Some(2), "{}", ran.err);
    assert!(ran.err.contains("no text token 99"), "{}", ran.err);
}
