//! The floors of the architecture, and the sizes of files and functions, checked on the source text.

use std::path::{Path, PathBuf};

/// Floors from the ground up; a file may use strictly lower floors, or its own folder. The ground is one: a weight's
/// packing is part of its dtype.
const FLOORS: &[&[&str]] = &[
    &["bounds", "error", "int8", "pages", "tensor", "ternary", "threads"],
    &["plan", "files"],
    &["ops", "cpu", "gpu"],
    &["models"],
    &["runtime"],
    &["lib", "main", "cli"],
];

/// Longest file.
const MAX_LINES: usize = 500;
/// Longest function.
const MAX_FUNCTION: usize = 60;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Files with one of these endings below `dir`, with their text.
fn files(dir: &str, endings: &[&str]) -> Vec<(PathBuf, String)> {
    let mut all = Vec::new();
    let mut folders = vec![root().join(dir)];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("a folder entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|e| endings.iter().any(|x| e == *x)) {
                let text = std::fs::read_to_string(&path).expect("UTF-8 source");
                all.push((path.strip_prefix(root()).expect("below the root").to_owned(), text));
            }
        }
    }
    all.sort();
    all
}

/// `gpu` of `src/gpu/mod.rs`, `tensor` of `src/tensor.rs`.
fn module(path: &Path) -> String {
    let name = path.iter().nth(1).expect("a file below src").to_string_lossy();
    name.trim_end_matches(".rs").to_owned()
}

fn floor(module: &str) -> Option<usize> {
    FLOORS.iter().position(|f| f.contains(&module))
}

/// Source without comments, so that only code counts.
fn code(text: &str) -> String {
    text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// Modules (and top-level names) that a source mentions as `crate::name` or `crate::{name, …}`.
fn mentioned(code: &str) -> Vec<String> {
    let mut names = Vec::new();
    for rest in code.split("crate::").skip(1) {
        let item = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
        let Some(list) = rest.strip_prefix('{') else {
            names.push(item(rest));
            continue;
        };
        let (mut depth, mut start) = (0, true);
        for (i, c) in list.char_indices() {
            if start && depth == 0 && c.is_alphanumeric() {
                names.push(item(&list[i..]));
                start = false;
            }
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' => start = true,
                _ => {}
            }
        }
    }
    names
}

/// What floor breaches a file has.
fn breaches(path: &Path, text: &str) -> Vec<String> {
    let own = module(path);
    let Some(own_floor) = floor(&own) else {
        return vec![format!("{}: {own} is on no floor", path.display())];
    };
    let mut all = Vec::new();
    for name in mentioned(&code(text)) {
        // The macros live in `plan`, whose floor they have; `Error` and `Result` are those of `error`.
        let used = match name.as_str() {
            "params" | "shader" => "plan",
            "Error" | "Result" => "error",
            other => other,
        };
        let lower = floor(used).is_some_and(|f| f < own_floor.max(1));
        if used != own && !lower {
            all.push(format!("{}: {own} uses crate::{name}", path.display()));
        }
    }
    all
}

#[test]
fn every_file_uses_lower_floors_only() {
    let sources = files("src", &["rs"]);
    assert!(sources.len() > 20, "{} sources", sources.len());
    let all: Vec<String> = sources.iter().flat_map(|(p, t)| breaches(p, t)).collect();
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn a_breach_is_found() {
    let found = |path: &str, text: &str| !breaches(Path::new(path), text).is_empty();
    assert!(found("src/gpu/x.rs", "use crate::cpu::Cpu;"));
    assert!(found("src/plan/x.rs", "use crate::{error::Error, ops::{self, Row}};"));
    assert!(found("src/models/x.rs", "fn f() { crate::runtime::g() }"));
    assert!(found("src/helpers.rs", ""));
    assert!(!found("src/ops/x.rs", "use crate::{params, plan::{Op, Io}}; use crate::ops::expect; // crate::gpu"));
}

#[test]
fn models_never_mention_a_device() {
    for (path, text) in files("src/models", &["rs"]) {
        let code = code(&text);
        for word in ["wgpu", "crate::cpu", "crate::gpu", "dyn Backend"] {
            assert!(!code.contains(word), "{} mentions {word}", path.display());
        }
    }
}

#[test]
fn nothing_is_printed_by_macros_that_panic() {
    for (path, text) in files("src", &["rs"]) {
        for word in ["print!(", "println!(", "dbg!("] {
            let found = code(&text).lines().any(|line| line.contains(word) && !line.contains("prop_"));
            assert!(!found, "{}: {word}…) panics where a stream cannot be written", path.display());
        }
    }
}

#[test]
fn no_file_is_long() {
    let dirs = [("src", "rs"), ("shaders", "wgsl"), ("tests", "rs"), ("benches", "rs"), ("examples", "rs")];
    let all = dirs.iter().flat_map(|(dir, ending)| files(dir, &[ending]));
    let long: Vec<String> = all
        .filter(|(_, text)| text.lines().count() > MAX_LINES)
        .map(|(path, text)| format!("{}: {} lines", path.display(), text.lines().count()))
        .collect();
    assert!(long.is_empty(), "{}", long.join("\n"));
}

/// First line, length and signature of every function that is formatted with its closing brace under its `fn`.
fn functions(text: &str) -> Vec<(usize, usize, String)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut all = Vec::new();
    for (i, line) in lines.iter().enumerate() {
        let trimmed = line.trim_start();
        let before = trimmed.split("fn ").next().unwrap_or("");
        let modifiers = before
            .split_whitespace()
            .all(|w| matches!(w, "pub" | "const" | "async" | "unsafe" | "extern" | "\"C\"") || w.starts_with("pub("));
        if !trimmed.contains("fn ") || !modifiers {
            continue;
        }
        let close = format!("{}}}", &line[..line.len() - trimmed.len()]);
        let one_line = line.ends_with('}') || line.ends_with(';');
        let length = if one_line { 1 } else { lines[i..].iter().position(|l| *l == close).map_or(1, |n| n + 1) };
        all.push((i + 1, length, trimmed.to_owned()));
    }
    all
}

#[test]
fn no_function_is_long() {
    let dirs = [("src", "rs"), ("shaders", "wgsl"), ("tests", "rs"), ("benches", "rs"), ("examples", "rs")];
    let (mut long, mut n) = (Vec::new(), 0);
    for (path, text) in dirs.iter().flat_map(|(dir, ending)| files(dir, &[ending])) {
        for (line, length, signature) in functions(&text) {
            n += 1;
            if length > MAX_FUNCTION {
                long.push(format!("{}:{line}: {length} lines: {signature}", path.display()));
            }
        }
    }
    assert!(n > 300, "{n} functions found");
    assert!(long.is_empty(), "{}", long.join("\n"));
}
