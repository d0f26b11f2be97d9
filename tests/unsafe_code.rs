//! Where `unsafe` may stand, and why. Everything else is safe Rust; each block says besides why it is sound (a lint asks for it).

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Files, and folders with all of theirs, that hold `unsafe`, and what for.
const ALLOWED: [(&str, &str); 10] = [
    ("src/alloc.rs", "advice about large pages"),
    ("src/cli/mod.rs", "an environment variable, before there are threads"),
    ("src/cpu_level.rs", "calls of functions for the processor that was found"),
    ("src/files/checkpoint/bytes.rs", "mapped files"),
    ("src/gpu/pipeline.rs", "kernels whose loops end by what is checked before"),
    ("src/ops/simd", "vector instructions, and outputs that tasks share in parts"),
    ("src/threads", "tasks that borrow from who waits for them; a question to the system"),
    ("src/tools/bench/machine.rs", "a question to the system"),
    ("tests/chat.rs", "a terminal"),
    ("tests/support/peak.rs", "an allocator that counts"),
];
/// Files of `src/ops` with outputs that tasks share in parts, each of which belongs to one of them.
const SHARED: [&str; 14] = [
    "affine",
    "attention",
    "attention_weights",
    "bandwidth_probe",
    "combine",
    "kv_cache",
    "layer_norm",
    "norm_quantise",
    "quantise_groups",
    "rms_norm",
    "rope_kv_write",
    "sample",
    "swiglu",
    "unary",
];

/// Rust files below a folder.
fn sources(folder: &Path, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|end| end == "rs") {
            all.push(path);
        }
    }
}

/// Whether code, comments and texts aside, holds the word.
fn holds_unsafe(source: &str) -> bool {
    let code = source.lines().map(|line| line.split("//").next().unwrap_or_default());
    code.filter(|line| !line.contains("unsafe_op_in_unsafe_fn")).any(|line| {
        let after = |word: &str| line.contains(&format!("unsafe {word}"));
        ["{", "fn", "impl", "extern", "trait"].into_iter().any(after) || line.contains("unsafe(")
    })
}

#[test]
fn unsafe_stands_only_where_the_list_says() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = vec![root.join("build.rs")];
    for folder in ["src", "examples", "benches", "tests", "fuzz"] {
        sources(&root.join(folder), &mut files);
    }
    assert!(files.len() > 300, "only {} files were seen", files.len());
    let shared: Vec<String> = SHARED.iter().map(|name| format!("src/ops/{name}.rs")).collect();
    let allowed: Vec<&str> = ALLOWED.iter().map(|(place, _)| *place).chain(shared.iter().map(String::as_str)).collect();
    let mut used = BTreeSet::new();
    for file in files.iter().filter(|file| !file.ends_with("tests/unsafe_code.rs")) {
        if !holds_unsafe(&fs::read_to_string(file).expect("UTF-8 source")) {
            continue;
        }
        let name = file.strip_prefix(root).expect("below the root");
        let place = allowed.iter().find(|place| name.starts_with(place));
        used.insert(*place.unwrap_or_else(|| panic!("{} holds `unsafe`, and is not in the list", name.display())));
    }
    let unused: Vec<&&str> = allowed.iter().filter(|place| !used.contains(**place)).collect();
    assert!(unused.is_empty(), "no `unsafe` is left in {unused:?}");
}
