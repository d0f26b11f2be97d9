//! The map of the source, which says what each room may use, and the sizes of files and functions, checked on the source
//! text.

use std::path::{Path, PathBuf};

/// What each room (a file or folder of `src`) may use, beside itself and what the rooms that it names may use.
const MAP: &[(&str, &[&str])] = &[
    // The ground is one: a weight's packing is part of its dtype.
    ("architecture", &[]),
    ("bounds", &[]),
    ("error", &["tensor", "quant", "alloc", "bounds", "threads", "cpu_level"]),
    ("tensor", &["error"]),
    ("threads", &["error"]),
    ("cpu_level", &["error"]),
    ("alloc", &["error"]),
    ("quant", &["error"]),
    ("plan", &["error"]),
    ("files", &["error"]),
    ("ops", &["plan"]),
    ("cpu", &["plan"]),
    ("gpu", &["plan"]),
    ("models", &["ops", "files"]),
    ("models::decoder", &["models"]),
    ("models::vision", &["models"]),
    // Every family without a line of its own. Families do not use each other: what two share is in a room of its own.
    (FAMILY, &["models::decoder", "models::vision"]),
    ("models::bitgen", &["models::decoder", "models::vision"]),
    ("models::bitgen_stage1", &["models::bitgen"]),
    ("models::robot", &["models::bitgen"]),
    ("engine", &[FAMILY, "models::bitgen_stage1", "models::robot", "cpu", "gpu"]),
    ("apps::attention_rollout", &["engine"]),
    ("apps::bitgen", &["engine"]),
    ("apps::picture_index", &["apps::bitgen"]),
    ("apps::refiner", &["engine"]),
    ("apps::robots", &["engine"]),
    ("tools", &["apps::bitgen", "apps::robots"]),
    // The command line is a program of its own: of the library it sees what is public.
    ("cli", &["tools", "apps::picture_index", "apps::refiner", "apps::attention_rollout"]),
    ("main", &["cli"]),
];

/// Stands for each file or folder of `models` that is neither in the map nor in [`NO_FAMILY`].
const FAMILY: &str = "models::*";

/// The modules of `models` that belong to all families.
const NO_FAMILY: &[&str] = &["check_steps", "layers", "load", "prompt", "registry", "section", "slots"];

/// Folders whose files need no order among themselves.
const MAX_UNORDERED: usize = 12;

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

/// Source without comments, so that only code counts.
fn code(text: &str) -> String {
    text.lines().map(|l| l.split("//").next().unwrap_or("")).collect::<Vec<_>>().join("\n")
}

/// The module of a file: `gpu` of `src/gpu/mod.rs`, `ops::simd::dense` of `src/ops/simd/dense.rs`.
fn module(path: &Path) -> Vec<String> {
    let mut names: Vec<String> = path.with_extension("").iter().skip(1).map(|n| n.to_string_lossy().into()).collect();
    if names.last().is_some_and(|name| name == "mod") {
        names.pop();
    }
    names
}

/// Paths that a source names, from the crate's root: `crate::`, `super::` and, in the program, the library's name in
/// front, and groups in braces.
fn mentioned(own: &[String], code: &str) -> Vec<Vec<String>> {
    let (mut all, mut scopes, mut at) = (Vec::new(), Vec::<bool>::new(), 0);
    let word = |from: usize| code[from..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').count();
    while let Some(c) = code[at..].chars().next() {
        let n = word(at);
        match (c, &code[at..at + n]) {
            ('{', _) => scopes.push(code[..at].lines().last().is_some_and(|l| l.trim_start().starts_with("mod "))),
            ('}', _) => drop(scopes.pop()),
            (_, first @ ("crate" | "super" | "ternion")) if code[at + n..].starts_with("::") => {
                let inner = scopes.iter().filter(|is_mod| **is_mod).count();
                let base = if first == "super" { [own, &vec!["tests".to_owned(); inner]].concat() } else { vec![] };
                let base = if first == "super" { base[..base.len().saturating_sub(1)].to_vec() } else { base };
                at += n + 2 + leaves(base, &code[at + n + 2..], &mut all);
                continue;
            }
            _ => {}
        }
        at += n.max(c.len_utf8());
    }
    all
}

/// Adds the paths of a use tree behind `base` to `all`; returns how many bytes it has.
fn leaves(mut base: Vec<String>, tree: &str, all: &mut Vec<Vec<String>>) -> usize {
    let mut at = 0;
    loop {
        let rest = &tree[at..];
        if rest.starts_with('{') {
            at += 1;
            while !tree[at..].starts_with('}') && at < tree.len() {
                let skip =
                    tree[at..].chars().next().map_or(1, |c| if c.is_ascii_alphanumeric() { 0 } else { c.len_utf8() });
                at += if skip > 0 { skip } else { leaves(base.clone(), &tree[at..], all) };
            }
            return at + 1;
        }
        let n = rest.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').count();
        match &rest[..n] {
            "super" => drop(base.pop()),
            "self" => {}
            name => base.push(name.to_owned()),
        }
        at += n;
        if n == 0 || !tree[at..].starts_with("::") {
            all.push(base);
            return at;
        }
        at += 2;
    }
}

/// What the map has of a room.
fn edges(room: &str) -> Option<&'static [&'static str]> {
    MAP.iter().find(|(name, _)| *name == room).map(|(_, edges)| *edges)
}

/// The room of a path: the longest beginning that the map has, or a family of models.
fn room(path: &[String]) -> Option<String> {
    if let [models, name, ..] = path
        && models == "models"
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !NO_FAMILY.contains(&name.as_str())
    {
        return Some(format!("models::{name}"));
    }
    let rooms = MAP.iter().map(|(room, _)| *room);
    let found = rooms.filter(|room| room.split("::").eq(path.iter().take(room.split("::").count())));
    found.max_by_key(|room| room.len()).map(str::to_owned)
}

/// The names that the `mod.rs` of `module` exports, each with the path behind it: `["models", "ROBOTS"]` with
/// `["models", "robot", "file", "ROBOTS"]`.
fn exports(module: &str, text: &str) -> Vec<(Vec<String>, Vec<String>)> {
    let (text, mut all) = (code(text), Vec::new());
    for keyword in ["\npub use ", "\npub(crate) use "] {
        for (at, _) in text.match_indices(keyword) {
            leaves(vec![module.to_owned()], &text[at + keyword.len()..], &mut all);
        }
    }
    let named = |path: Vec<String>| Some((vec![module.to_owned(), path.last()?.clone()], path));
    all.into_iter().filter_map(named).collect()
}

/// All that a room may use.
fn allowed(room: &str) -> Vec<&'static str> {
    let mut all: Vec<&str> = Vec::new();
    let mut next = edges(room).or_else(|| edges(FAMILY)).unwrap_or_default().to_vec();
    while let Some(room) = next.pop() {
        if !all.contains(&room) {
            all.push(room);
            next.extend(edges(room).unwrap_or_default());
        }
    }
    all
}

/// The inner order of a folder: the names behind `Order:` in the documentation of its `mod.rs`.
fn order(docs: &str) -> Vec<String> {
    let Some((_, list)) = docs.split_once("//! Order:") else { return Vec::new() };
    let paragraph: Vec<&str> =
        list.lines().map(|l| l.trim_start_matches("//!").trim()).take_while(|l| !l.is_empty()).collect();
    let text = paragraph.join(" ");
    text.split(',').map(|name| name.trim().trim_matches(['`', '.', ' ']).to_owned()).collect()
}

/// What breaches of the map, and of the order of its folder, a file has.
fn breaches(path: &Path, text: &str, order: &[String], exports: &[(Vec<String>, Vec<String>)]) -> Vec<String> {
    let own = module(path);
    // The facade, and lists of modules and of families.
    if ["lib"] == own[..] || ["apps"] == own[..] || ["models", "registry"] == own[..] {
        return Vec::new();
    }
    let Some(own_room) = room(&own) else { return vec![format!("{}: is in no room of the map", path.display())] };
    let (allowed, folder) = (allowed(&own_room), &own[..own.len() - 1]);
    let may_use = |room: &str| allowed.contains(&if edges(room).is_some() { room } else { FAMILY });
    let place = |name: &String| order.iter().position(|n| n == name);
    let mut all = Vec::new();
    for used in mentioned(&own, &code(text)) {
        // What the crate's root has for all: the macros of `plan`, and the error.
        let used = match used.first().map(String::as_str) {
            Some("params" | "shader") => vec!["plan".to_owned()],
            Some("Error" | "Result") => vec!["error".to_owned()],
            // Where programs outside find the lower rooms.
            Some("unstable") => used[1..].to_vec(),
            _ => used,
        };
        let exported = exports.iter().find(|(name, _)| used.starts_with(name));
        let used = exported.map_or(used.clone(), |(name, path)| [&path[..], &used[name.len()..]].concat());
        let within = used.starts_with(folder) && !folder.is_empty() && used.len() > folder.len();
        match room(&used) {
            Some(room) if room == own_room && !order.is_empty() && within => {
                let (a, b) = (place(&own[folder.len()]), place(&used[folder.len()]));
                if b.is_some() && a < b {
                    all.push(format!("{}: uses {}, which comes later", path.display(), used.join("::")));
                }
            }
            Some(room) if room == own_room || may_use(&room) => {}
            _ => all.push(format!("{}: {own_room} uses {}", path.display(), used.join("::"))),
        }
    }
    all
}

#[test]
fn every_file_uses_what_the_map_allows() {
    let sources = files("src", &["rs"]);
    assert!(sources.len() > 20, "{} sources", sources.len());
    let docs =
        |folder: &Path| sources.iter().find(|(p, _)| *p == folder.join("mod.rs")).map_or("", |(_, t)| t.as_str());
    let exports = exports("models", docs(Path::new("src/models")));
    assert!(exports.len() > 20, "{} exports", exports.len());
    let mut all = Vec::new();
    for (path, text) in &sources {
        let order = order(docs(path.parent().expect("a folder")));
        let order = if path.ends_with("mod.rs") { &[][..] } else { &order[..] };
        all.extend(breaches(path, text, order, &exports));
    }
    assert!(all.is_empty(), "{}", all.join("\n"));
}

#[test]
fn long_folders_have_an_order() {
    let sources = files("src", &["rs"]);
    let mut folders: Vec<&Path> = sources.iter().filter_map(|(p, _)| p.parent()).collect();
    folders.dedup();
    for folder in folders.into_iter().filter(|f| f.iter().count() > 1) {
        let own = |p: &Path| p.parent() == Some(folder) && !p.ends_with("mod.rs");
        let names: Vec<String> = sources.iter().filter(|(p, _)| own(p)).filter_map(|(p, _)| module(p).pop()).collect();
        let docs = sources.iter().find(|(p, _)| *p == folder.join("mod.rs")).map_or("", |(_, text)| text.as_str());
        assert!(docs.starts_with("//! "), "{} does not say what is in it", folder.display());
        let order = order(docs);
        assert!(
            names.len() <= MAX_UNORDERED || !order.is_empty(),
            "{}: {} files, no order",
            folder.display(),
            names.len()
        );
        let missing: Vec<&String> = names.iter().filter(|n| !order.is_empty() && !order.contains(n)).collect();
        assert!(missing.is_empty(), "{}: not in the order: {missing:?}", folder.display());
    }
}

#[test]
fn a_breach_is_found() {
    let order: Vec<String> = ["first", "second"].map(str::to_owned).into();
    let exports = exports("models", "mod x;\npub use registry::Family;\npub use robot::{BitGenModel, file::ROBOTS};\n");
    let found = |path: &str, text: &str| !breaches(Path::new(path), text, &order, &exports).is_empty();
    assert!(found("src/gpu/x.rs", "use crate::cpu::Cpu;"));
    assert!(found("src/plan/x.rs", "use crate::{error::Error, ops::{self, Row}};"));
    assert!(found("src/models/x.rs", "fn f() { crate::engine::g() }"));
    assert!(found("src/models/x.rs", "use super::super::engine::Engine;"));
    assert!(found("src/gpu/x.rs", "mod tests { }\nuse super::super::{cpu::Cpu};"));
    assert!(found("src/engine/first.rs", "use super::second::X;"));
    assert!(found("src/apps/robots/x.rs", "use crate::apps::bitgen::BitGen;"));
    assert!(found("src/models/robot/x.rs", "use crate::models::bitgen_stage1::config::BitGenSizes;"));
    assert!(found("src/models/embernet/x.rs", "use crate::models::{Family, ROBOTS};"));
    assert!(found("src/models/vision/x.rs", "use super::super::embernet::config::SIGLIP;"));
    assert!(found("src/models/foo.rs", "use crate::models::embernet::config::X;"));
    assert!(found("src/models/foo/x.rs", "use crate::models::bitgen::config::X;"));
    assert!(found("src/models/layers.rs", "use crate::models::foo::X;"));
    assert!(found("src/ops/x.rs", "use crate::models::foo::X;"));
    assert!(found("src/helpers.rs", ""));
    assert!(!found("src/models/robot/x.rs", "use crate::models::{Family, bitgen::config::DINO, robot::X, ROBOTS};"));
    assert!(!found("src/models/foo.rs", "use crate::models::{decoder::Decoder, load::Tensor, slots, vision::cnn::X};"));
    assert!(!found("src/tools/x.rs", "use crate::models::foo::FOO;"));
    assert!(!found("src/engine/second.rs", "use super::first::X;\nmod tests {\n    use super::super::first::X; }"));
    assert!(!found("src/ops/x.rs", "use crate::{params, plan::{Op, Io}}; use crate::ops::expect; // crate::gpu"));
}

/// The crates of the manifest's `[dependencies]` and of those for one system, and whether they are optional.
fn dependencies(manifest: &str) -> Vec<(String, bool)> {
    let (mut all, mut inside) = (Vec::new(), false);
    for line in manifest.lines() {
        if line.starts_with('[') {
            inside = line.ends_with("dependencies]") && line != "[dev-dependencies]";
        } else if let Some((name, rest)) = line.split_once(" = ").filter(|_| inside) {
            all.push((name.replace('-', "_"), rest.contains("optional = true")));
        }
    }
    all
}

#[test]
fn crates_of_the_command_line_are_not_the_librarys() {
    let manifest = std::fs::read_to_string(root().join("Cargo.toml")).expect("a manifest");
    let (_, cli) = manifest.split_once("\ncli = [").expect("a feature");
    let (cli, _) = cli.split_once(']').expect("its end");
    let is_cli = |path: &Path| path.starts_with("src/cli") || path.ends_with("main.rs");
    let sources = files("src", &["rs"]);
    let names = |text: &str, name: &str| {
        let text = code(text);
        let whole = |at: usize| !text[..at].ends_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':');
        text.match_indices(&format!("{name}::")).any(|(at, _)| whole(at))
    };
    let crates = dependencies(&manifest);
    assert!(crates.len() > 30, "{} crates", crates.len());
    for (name, optional) in crates {
        let by = |cli: bool| sources.iter().any(|(path, text)| is_cli(path) == cli && names(text, &name));
        // One that nothing names is there for its features.
        assert_eq!(
            optional,
            by(true) && !by(false),
            "{name}: is optional (left), only the command line uses it (right)"
        );
        let listed =
            cli.contains(&format!("\"dep:{}\"", name.replace('_', "-"))) || cli.contains(&format!("\"dep:{name}\""));
        assert_eq!(optional, listed, "{name}: is optional (left), is of the feature cli (right)");
    }
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
