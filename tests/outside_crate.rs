//! An application's crate, outside of this workspace and without the command line: `examples/embed_in_app.rs` as its program.

use std::fs;
use std::path::Path;
use std::process::Command;

/// The profile that dependencies are checked with, so that what is there of them already is used.
fn profile(manifest: &str) -> &str {
    manifest.split_once("[profile.release]").map_or("", |(_, profile)| profile)
}

#[test]
fn an_application_compiles_without_the_command_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let app = tempfile::tempdir().unwrap();
    let own = fs::read_to_string(root.join("Cargo.toml")).unwrap();
    let path = serde_json::to_string(root).unwrap();
    let manifest = format!(
        "[package]\nname = \"app\"\nversion = \"0.1.0\"\nedition = \"2024\"\n\n[workspace]\n\n[dependencies]\n\
         ternion = {{ path = {path}, default-features = false, features = [\"demo\"] }}\n\n[profile.release]{}",
        profile(&own)
    );
    fs::write(app.path().join("Cargo.toml"), manifest).unwrap();
    // The versions that are tested, which are at hand.
    fs::copy(root.join("Cargo.lock"), app.path().join("Cargo.lock")).unwrap();
    fs::create_dir(app.path().join("src")).unwrap();
    // The paths of its pictures are the example's.
    let example = fs::read_to_string(root.join("examples/embed_in_app.rs")).unwrap();
    let program = example.replace("env!(\"CARGO_MANIFEST_DIR\")", &path);
    fs::write(app.path().join("src/main.rs"), program).unwrap();

    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let checked = Command::new(env!("CARGO"))
        .args(["check", "--release", "--offline", "--quiet", "--target-dir"])
        .arg(target)
        .current_dir(app.path())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success(), "{said}");
    let tree = Command::new(env!("CARGO"))
        .args(["tree", "--offline", "--edges", "normal", "--prefix", "none", "--format", "{p}"])
        .current_dir(app.path())
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&tree.stdout);
    assert!(tree.contains("wgpu v") && tree.contains("ternion v"), "{tree}");
    for of_the_command_line in ["clap v", "plotters v", "indicatif v", "env_logger v", "csv v"] {
        assert!(!tree.contains(of_the_command_line), "{of_the_command_line}: {tree}");
    }
}
