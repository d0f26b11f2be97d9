//! The crates that Ternion is built of, as `deny.toml` allows them: licences, versions, sources. `cargo deny check` looks up
//! advisories besides, which takes a network.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// The list `key` of `deny.toml`.
fn list(key: &str) -> BTreeSet<String> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("deny.toml");
    let text = std::fs::read_to_string(file).expect("deny.toml");
    let list = text.split(&format!("\n{key} = [")).nth(1).and_then(|rest| rest.split(']').next());
    let list = list.unwrap_or_else(|| panic!("deny.toml has no list {key}"));
    list.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// What is built on this machine, tests included.
fn packages() -> Vec<Value> {
    let output = |command: &mut Command| {
        let output = command.current_dir(env!("CARGO_MANIFEST_DIR")).output().expect("cargo runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8")
    };
    let version = output(Command::new(env!("CARGO")).args(["version", "--verbose"]));
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).expect("a host").to_owned();
    let args = ["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", &host];
    let all: Value = serde_json::from_str(&output(Command::new(env!("CARGO")).args(args))).expect("JSON");
    let nodes = all["resolve"]["nodes"].as_array().expect("a graph").iter();
    let built: BTreeSet<&str> = nodes.filter_map(|node| node["id"].as_str()).collect();
    let packages = all["packages"].as_array().expect("packages").iter();
    packages.filter(|package| package["id"].as_str().is_some_and(|id| built.contains(id))).cloned().collect()
}

/// Whether a licence of this expression, one of its `OR`s with all of its `AND`s, is allowed.
fn is_allowed(expression: &str, allowed: &BTreeSet<String>) -> bool {
    let flat = expression.replace(['(', ')'], "").replace(" / ", " OR ").replace('/', " OR ");
    // `(A OR B) AND C` is read as `A OR (B AND C)`: stricter for A's sake, but for C, which is looked at besides.
    let all = flat.split(" AND ").all(|part| part.split(" OR ").any(|one| allowed.contains(one.trim())));
    all && !flat.is_empty()
}

#[test]
fn licences_are_those_that_are_allowed() {
    let allowed = list("allow");
    assert!(is_allowed("MIT/Apache-2.0", &allowed) && is_allowed("(MIT OR GPL-3.0) AND Unicode-3.0", &allowed));
    assert!(!is_allowed("GPL-3.0", &allowed) && !is_allowed("MIT AND GPL-3.0", &allowed) && !is_allowed("", &allowed));
    let packages = packages();
    assert!(packages.len() > 100, "only {} packages were seen", packages.len());
    for package in packages {
        let licence = package["license"].as_str().unwrap_or_default();
        assert!(
            is_allowed(licence, &allowed),
            "{} is under {licence:?}, which deny.toml does not allow",
            package["name"]
        );
    }
}

#[test]
fn no_crate_comes_in_two_versions_that_is_not_listed() {
    let listed = list("skip");
    // On any system, not only this one: `Cargo.lock` has the crates of all.
    let lock = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock")).expect("Cargo.lock");
    let mut versions: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in lock.split("[[package]]").skip(1) {
        let text = |key: &str| package.split(&format!("\n{key} = \"")).nth(1)?.split('"').next().map(str::to_owned);
        let [name, version] = ["name", "version"].map(|key| text(key).unwrap_or_else(|| panic!("no {key}: {package}")));
        versions.entry(name).or_default().insert(version);
    }
    assert!(versions.len() > 200, "only {} crates were seen", versions.len());
    versions.retain(|_, versions| versions.len() > 1);
    for (name, versions) in &versions {
        assert!(listed.contains(name), "{name} comes in the versions {versions:?}; deny.toml lists those that may");
    }
    for name in &listed {
        assert!(versions.contains_key(name), "{name} comes in one version; deny.toml need not list it");
    }
}

#[test]
fn all_crates_come_from_the_one_registry() {
    for package in packages() {
        let own = package["name"] == env!("CARGO_PKG_NAME");
        let registry = package["source"].as_str().is_some_and(|source| source.starts_with("registry+"));
        assert!(own || registry, "{} comes from {}", package["name"], package["source"]);
    }
}
