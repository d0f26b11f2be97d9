//! Running the `ternion` command, for the tests of what it prints and of its exit codes.
#![allow(dead_code)] // Each test uses a part.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use ternion::gpu::Adapters;

/// A path as an argument.
pub fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().to_str().expect("a UTF-8 path").to_owned()
}

/// The command, with no stdin and its output caught. It does not choose kernels by timing them unless a test gives it a
/// folder to keep the choice in.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ternion"));
    command.env("TERNION_CACHE", "");
    // Without it, a graphics driver's library prints an `error:` line of its own.
    for variable in ["RUST_LOG", "TERNION_MODEL", "TERNION_DEVICE"] {
        command.env_remove(variable);
    }
    command.args(args).env("XDG_RUNTIME_DIR", std::env::temp_dir());
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a finished command did.
pub struct Ran {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8 output");
        Ran { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
    }
}

/// Runs it to its end.
pub fn ternion(args: &[&str]) -> Ran {
    command(args).output().expect("the command runs").into()
}

/// The same with text on stdin.
pub fn fed(args: &[&str], input: &[u8]) -> Ran {
    let mut child = command(args).stdin(Stdio::piped()).spawn().expect("the command runs");
    child.stdin.take().expect("stdin").write_all(input).expect("the command reads stdin");
    child.wait_with_output().expect("the command ends").into()
}

/// Its stdout; the exit code must be 0.
#[track_caller]
pub fn succeeds(args: &[&str]) -> String {
    let ran = ternion(args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.err);
    ran.out
}

/// Exit code 2, one line `error: …`, and the texts in it or in its causes.
#[track_caller]
pub fn assert_fails(ran: &Ran, args: &[&str], texts: &[&str]) {
    assert_eq!(ran.code, Some(2), "{args:?}: {}{}", ran.out, ran.err);
    let errors = ran.err.lines().filter(|l| l.starts_with("error: ")).count();
    assert_eq!(errors, 1, "{args:?}: {}", ran.err);
    assert!(!ran.err.contains("panicked"), "{args:?}: {}", ran.err);
    for text in texts {
        assert!(ran.err.contains(text), "{args:?} does not say {text:?}: {}", ran.err);
    }
}

/// Whether there is an adapter; without one it says so, or panics if `REQUIRE_GPU=1`.
pub fn has_adapter() -> bool {
    let found = Adapters::find().best(true).is_some();
    assert!(found || std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, and there is no adapter");
    if !found {
        eprintln!("skipped: no adapter");
    }
    found
}
