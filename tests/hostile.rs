//! The fuzzers' functions (`fuzz/`) with fixed seeds: good files, files with a few changes, and what once made one of them fail.
//! `TERNION_MUTATIONS=5000` makes more of them than the tests of each day.

mod support {
    pub mod hostile;
    pub mod mutation;
}

use std::fs;
use std::path::Path;

use support::hostile::TARGETS;
use support::mutation::survives;

#[test]
fn good_files_and_changed_ones_are_read_or_refused() {
    for target in TARGETS {
        for (i, seed) in (target.seeds)().iter().enumerate() {
            (target.read)(seed);
            survives(&format!("{} {i}", target.name), seed, |_, bytes| (target.read)(bytes));
        }
    }
}

/// Files that made a fuzzer stop, by the names of the forms.
#[test]
fn what_once_failed_is_read_or_refused() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/failed");
    let mut count = 0;
    for target in TARGETS {
        for entry in fs::read_dir(folder.join(target.name)).into_iter().flatten().flatten() {
            (target.read)(&fs::read(entry.path()).expect("a file"));
            count += 1;
        }
    }
    assert!(count > 0 || !folder.exists(), "{} holds nothing that is run", folder.display());
}

#[test]
fn every_form_has_a_fuzzer() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/Cargo.toml");
    let manifest = fs::read_to_string(manifest).expect("the fuzzers' manifest");
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"", target.name)), "{} has no fuzzer", target.name);
    }
}
