//! A system that gives no more threads or no more memory: what it refuses is an error, or is done without.
#![cfg(all(unix, feature = "cli"))]

mod support {
    pub mod cli;
}

use std::path::Path;
use std::process::{Command, Stdio};

use support::cli::{Ran, command, text};
use tempfile::TempDir;

fn example(path: &str) -> String {
    text(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes").join(path))
}

/// Runs the command where no thread can be made: each would have a stack larger than the address space.
#[track_caller]
fn alone(args: &[&str]) -> String {
    let ran: Ran = command(args).env("RUST_MIN_STACK", (1u64 << 47).to_string()).output().expect("it runs").into();
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
    ran.out
}

#[test]
fn without_more_threads_one_does_the_same() {
    let (bitgen, scene) = (example("bitgen/model"), example("samples/spatial_scene_100001.png"));
    let dir = TempDir::new().expect("a folder");
    let to = text(dir.path().join("converted"));
    let question = ["run", "--device", "cpu", "--image", &scene, "-p", "Describe the image.", "-n", "4"];
    assert_eq!(alone(&question), support::cli::succeeds(&question));
    let similarity = ["similarity", "-m", &bitgen, "--device", "cpu", "--image", &scene, "--text", "red circle"];
    assert_eq!(alone(&similarity), support::cli::succeeds(&similarity));
    alone(&["inspect", &bitgen]);
    alone(&["convert", &bitgen, &to]);
    alone(&["bench", "--device", "cpu", "-m", &bitgen, "-r", "1"]);
}

#[test]
#[cfg(target_os = "linux")]
fn one_thread_is_one_thread() {
    // What loads weights, prepares pictures and measures the bandwidth counts, too.
    let bitgen = example("bitgen/model");
    let mut child = command(&["bench", "--device", "cpu", "--threads", "1", "-m", &bitgen, "-r", "1"]).spawn().unwrap();
    let (tasks, mut most) = (format!("/proc/{}/task", child.id()), 0);
    while child.try_wait().unwrap().is_none() {
        most = most.max(std::fs::read_dir(&tasks).map_or(0, Iterator::count));
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    assert!(child.wait().unwrap().success());
    assert_eq!(most, 1);
}

/// Runs the command with at most this much address space.
#[cfg(target_os = "linux")]
fn within(kilobytes: usize, args: &[&str]) -> Ran {
    let mut limited = Command::new("sh");
    limited.arg("-c").arg(format!("ulimit -v {kilobytes}; exec \"$0\" \"$@\""));
    limited.arg(env!("CARGO_BIN_EXE_ternion")).args(args);
    limited.stdin(Stdio::null()).output().expect("the command runs").into()
}

#[test]
#[cfg(target_os = "linux")]
fn memory_that_is_refused_is_an_error() {
    // The published sizes: 333 MB of weights, and what is computed in between.
    let bench = ["bench", "--device", "cpu", "--threads", "1", "-p", "2", "-n", "0", "-r", "1"];
    for megabytes in [150, 330, 350] {
        let ran = within(1000 * megabytes, &bench);
        assert!(
            ran.code == Some(2) && ran.err.contains("bytes of memory"),
            "{megabytes} MB: {:?} {}",
            ran.code,
            ran.err
        );
    }
}
