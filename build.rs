//! Tells the crate its commit (`TERNION_COMMIT`), where it can be known: from the environment variable of that name, from
//! the file that `cargo package` puts into a package, or from git.
//!
//! It is the commit at which the sources were compiled last, with `-dirty` where they differed from it. Sources that stay
//! the same are not compiled again for a new commit.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the library is compiled from.
const SOURCES: [&str; 5] = ["src", "shaders", "Cargo.toml", "Cargo.lock", "build.rs"];
/// Digits of a commit.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-env-changed=TERNION_COMMIT");
    SOURCES.iter().for_each(|path| println!("cargo::rerun-if-changed={path}"));
    let Some(root) = env::var_os("CARGO_MANIFEST_DIR") else { return };
    let named = env::var("TERNION_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = named.or_else(|| of_package(root.as_ref())).or_else(|| of_checkout(root.as_ref()));
    if let Some(commit) = commit.filter(|c| c.chars().all(|c| c.is_ascii_alphanumeric() || "-._+".contains(c))) {
        println!("cargo::rustc-env=TERNION_COMMIT={commit}");
    }
}

/// The commit of a package from a registry: `"sha1": "…"` in its file.
fn of_package(root: &Path) -> Option<String> {
    let text = fs::read_to_string(root.join(".cargo_vcs_info.json")).ok()?;
    let (_, rest) = text.split_once("\"sha1\"")?;
    let commit = rest.split('"').nth(1)?;
    let dirty = if text.contains("\"dirty\": true") { "-dirty" } else { "" };
    Some(format!("{}{dirty}", commit.get(..DIGITS)?))
}

/// The commit of a git checkout of this crate, and not of another one that holds it.
fn of_checkout(root: &Path) -> Option<String> {
    let git = |args: &[&str]| {
        let ran = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).trim().to_owned())
    };
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if fs::canonicalize(top).ok()? != fs::canonicalize(root).ok()? {
        return None;
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let changed = git(&[&["status", "--porcelain", "--"], &SOURCES[..]].concat())?;
    Some(format!("{}{}", commit.get(..DIGITS)?, if changed.is_empty() { "" } else { "-dirty" }))
}
