//! Tells the crate its commit (`TERNION_COMMIT`), where it can be known: from the environment variable of that name, from
//! the file that `cargo package` puts into a package, or from git.
//!
//! It is the commit at which the library was compiled last, with `-dirty` where its sources differed from it. Sources that
//! stay the same are not compiled again for a new commit, nor is the library for a change of the command line alone.

use std::path::Path;
use std::process::Command;
use std::{env, fs};

/// What the library is compiled from, beside the entries of `src`.
const OTHER_SOURCES: [&str; 4] = ["shaders", "Cargo.toml", "Cargo.lock", "build.rs"];
/// Entries of `src` that are the command line's.
const NOT_LIBRARY: [&str; 2] = ["cli", "main.rs"];
/// Digits of a commit.
const DIGITS: usize = 12;

fn main() {
    println!("cargo::rerun-if-env-changed=TERNION_COMMIT");
    let Some(root) = env::var_os("CARGO_MANIFEST_DIR") else { return };
    let sources = sources(root.as_ref());
    sources.iter().for_each(|path| println!("cargo::rerun-if-changed={path}"));
    let named = env::var("TERNION_COMMIT").ok().filter(|commit| !commit.is_empty());
    let commit = named.or_else(|| of_package(root.as_ref())).or_else(|| of_checkout(root.as_ref(), &sources));
    if let Some(commit) = commit.filter(|c| c.chars().all(|c| c.is_ascii_alphanumeric() || "-._+".contains(c))) {
        println!("cargo::rustc-env=TERNION_COMMIT={commit}");
    }
}

/// Paths of what the library is compiled from.
fn sources(root: &Path) -> Vec<String> {
    let entries = fs::read_dir(root.join("src")).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let own = names.filter(|name| !NOT_LIBRARY.contains(&name.as_str())).map(|name| format!("src/{name}"));
    let all = own.chain(OTHER_SOURCES.map(str::to_owned));
    // Cargo takes a file that is missing for one that has changed.
    all.filter(|path| root.join(path).exists()).collect()
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
fn of_checkout(root: &Path, sources: &[String]) -> Option<String> {
    let git = |args: &[&str]| {
        let ran = Command::new("git").arg("-C").arg(root).args(args).output().ok()?;
        ran.status.success().then(|| String::from_utf8_lossy(&ran.stdout).trim().to_owned())
    };
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if fs::canonicalize(top).ok()? != fs::canonicalize(root).ok()? {
        return None;
    }
    let commit = git(&["rev-parse", "HEAD"])?;
    let paths: Vec<&str> = sources.iter().map(String::as_str).collect();
    let changed = git(&[&["status", "--porcelain", "--"], &paths[..]].concat())?;
    Some(format!("{}{}", commit.get(..DIGITS)?, if changed.is_empty() { "" } else { "-dirty" }))
}
