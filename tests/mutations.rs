//! Files of every form with something changed at random: whatever becomes of them, nothing panics, and the command ends with
//! one of its exit codes. `TERNION_MUTATIONS=5000` makes more of them than the tests of each day.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod device;
    pub mod golden;
    pub mod mutation;
    pub mod small_bitgen;
    pub mod torch_files;
}

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image::ImageFormat;
use serde_json::{Map, Value, json};
use support::cli::{ternion, text};
use support::golden::golden_root;
use support::mutation::survives;
use support::torch_files::without_sums;
use tempfile::TempDir;
use ternion::apps::picture_index::PictureIndex;
use ternion::engine::{DeviceChoice, Precision, Progress};
use ternion::files::{Checkpoint, Image, Tokenizer};
use ternion::tools::convert::convert;
use ternion::tools::inspect::inspect;

/// Every so many mutations, the command is run on it as well.
const COMMAND_EVERY: usize = 10;

fn ember() -> PathBuf {
    golden_root().join("embernet/oddgrid")
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    fs::read(path).expect("a golden file")
}

/// A folder with the small EmberNet's configuration and a tokenizer of words.
fn folder() -> TempDir {
    let dir = tempfile::tempdir().expect("a folder");
    for name in ["config.json", "embernet_config.json", "siglip_vision_config.json"] {
        fs::copy(ember().join(name), dir.path().join(name)).expect("copied");
    }
    let config: Value = serde_json::from_slice(&read(ember().join("config.json"))).expect("JSON");
    let size = |key| config[key].as_u64().or(config["language_decoder"][key].as_u64());
    let words = size("vocab_size").expect("a size");
    fs::write(dir.path().join("tokenizer.json"), tokenizer(words).to_string()).expect("written");
    dir
}

fn tokenizer(words: u64) -> Value {
    let vocab: Map<String, Value> = (0..words).map(|id| (format!("t{id}"), id.into())).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" },
    })
}

/// Opens, describes and converts the model in a folder; now and then the command does it.
fn try_model(case: usize, dir: &Path) {
    let out = tempfile::tempdir().expect("a folder");
    let _ = inspect(dir, Precision::F32, Progress::ignore);
    let _ = convert(dir, &out.path().join("packed"), None, Precision::F32, Progress::ignore);
    if !case.is_multiple_of(COMMAND_EVERY) {
        return;
    }
    let (model, packed) = (text(dir), text(out.path().join("by command")));
    let all: [&[&str]; 3] = [
        &["inspect", &model],
        &["run", "-m", &model, "--device", "cpu", "-p", "t1 t2", "-n", "1"],
        &["convert", &model, &packed],
    ];
    for args in all {
        let ran = ternion(args);
        assert!(matches!(ran.code, Some(0..=2)), "{args:?}: {:?}: {}", ran.code, ran.err);
        assert!(!ran.err.contains("panicked"), "{args:?}: {}", ran.err);
    }
}

/// Mutates the file `name` of a folder that holds a good model.
fn mutate_model(dir: &Path, name: &str) {
    let (path, good) = (dir.join(name), read(dir.join(name)));
    fs::write(&path, &good).expect("written");
    survives(name, &good, |case, bytes| {
        // A new file each time: the old one may be mapped.
        fs::remove_file(&path).expect("removed");
        fs::write(&path, bytes).expect("written");
        try_model(case, dir);
    });
}

#[test]
fn mutated_safetensors_files() {
    let dir = folder();
    fs::copy(ember().join("model.safetensors"), dir.path().join("model.safetensors")).expect("copied");
    mutate_model(dir.path(), "model.safetensors");
}

#[test]
fn mutated_torch_files() {
    let dir = folder();
    fs::write(dir.path().join("pytorch_model.bin"), without_sums(read(ember().join("pytorch_model.bin"))))
        .expect("written");
    mutate_model(dir.path(), "pytorch_model.bin");
}

#[test]
fn mutated_packed_files() {
    let (dir, out) = (folder(), tempfile::tempdir().expect("a folder"));
    fs::copy(ember().join("model.safetensors"), dir.path().join("model.safetensors")).expect("copied");
    let packed = out.path().join("packed");
    convert(dir.path(), &packed, None, Precision::F16, Progress::ignore).expect("a good model");
    mutate_model(&packed, "model.safetensors");
}

#[test]
fn mutated_indices_of_shards() {
    let dir = folder();
    fs::copy(ember().join("model.safetensors"), dir.path().join("one.safetensors")).expect("copied");
    fs::copy(ember().join("pytorch_model.bin"), dir.path().join("two.bin")).expect("copied");
    let checkpoint = Checkpoint::open(dir.path().join("one.safetensors")).expect("a good file");
    let shard = |i: usize| if i.is_multiple_of(2) { "one.safetensors" } else { "two.bin" };
    let map: BTreeMap<&str, &str> =
        checkpoint.tensors().enumerate().map(|(i, tensor)| (tensor.name.as_str(), shard(i))).collect();
    let index = json!({"metadata": {"total_size": 1}, "weight_map": map}).to_string();
    fs::write(dir.path().join("model.safetensors.index.json"), index).expect("written");
    assert!(inspect(dir.path(), Precision::F32, Progress::ignore).is_ok());
    mutate_model(dir.path(), "model.safetensors.index.json");
}

#[test]
fn mutated_configurations() {
    for name in ["config.json", "embernet_config.json", "siglip_vision_config.json"] {
        let dir = folder();
        fs::copy(ember().join("model.safetensors"), dir.path().join("model.safetensors")).expect("copied");
        mutate_model(dir.path(), name);
    }
}

#[test]
fn mutated_bitgens() {
    for (model, config) in [("bitgen_stage1/dino_tiny", "config.json"), ("bitgen_model/tiny", "config.json")] {
        let (from, dir) = (golden_root().join(model), tempfile::tempdir().expect("a folder"));
        for entry in fs::read_dir(&from).expect("a folder").flatten().filter(|entry| entry.path().is_file()) {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).expect("copied");
        }
        mutate_model(dir.path(), config);
    }
}

fn try_tokenizer(tokenizer: ternion::Result<Tokenizer>) {
    let Ok(tokenizer) = tokenizer else { return };
    if let Ok(ids) = tokenizer.encode("What is it? t1 t2 \u{e9}\u{1f600} <image>", true) {
        let _ = tokenizer.decode(&ids, false);
        let _ = tokenizer.check_vocab(100, "");
    }
}

#[test]
fn mutated_tokenizers() {
    let words = tokenizer(300).to_string();
    survives("tokenizer.json", words.as_bytes(), |_, bytes| {
        try_tokenizer(Tokenizer::from_bytes("words", bytes.to_vec()));
    });
}

#[test]
fn mutated_vocabularies_and_merges() {
    let plain = |b: u8| matches!(b, 33..=126 | 161..=172 | 174..=255);
    let odd: Vec<u8> = (0..=255).filter(|&b| !plain(b)).collect();
    let char_of = |b: u8| match odd.iter().position(|&other| other == b) {
        Some(rank) => char::from_u32(0x100 + rank as u32).expect("a character"),
        None => char::from(b),
    };
    let mut vocab: Map<String, Value> = (0..=255u8).map(|b| (char_of(b).to_string(), b.into())).collect();
    for (i, word) in ["he", "ll", "hell", "hello", "<|endoftext|>"].into_iter().enumerate() {
        vocab.insert(word.to_owned(), (256 + i).into());
    }
    let files =
        [("vocab.json", Value::Object(vocab).to_string()), ("merges.txt", "#version: 0.2\nh e\nl l\nhe ll\n".into())];
    let dir = tempfile::tempdir().expect("a folder");
    let put = |name: &str, bytes: &[u8]| fs::write(dir.path().join(name), bytes).expect("written");
    files.iter().for_each(|(name, content)| put(name, content.as_bytes()));
    assert!(Tokenizer::open(dir.path()).is_ok());
    for (name, content) in &files {
        survives(name, content.as_bytes(), |_, bytes| {
            put(name, bytes);
            try_tokenizer(Tokenizer::open(dir.path()));
        });
        put(name, content.as_bytes());
    }
}

#[test]
fn mutated_pictures() {
    let png = image::load_from_memory(&support::small_bitgen::png(3)).expect("a picture");
    for format in [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif] {
        let mut bytes = std::io::Cursor::new(Vec::new());
        png.write_to(&mut bytes, format).expect("encoded");
        survives(&format!("{format:?}"), &bytes.into_inner(), |_, bytes| {
            if let Ok(image) = Image::decode("picture", bytes) {
                let _ = image.resized(32);
            }
        });
    }
}

#[test]
fn mutated_indices_of_pictures() {
    let dir = tempfile::tempdir().expect("a folder");
    let model = Arc::new(support::small_bitgen::open(
        "cnn",
        DeviceChoice::Cpu,
        &support::small_bitgen::write_tokenizer(dir.path()),
    ));
    let pictures = dir.path().join("pictures");
    support::small_bitgen::draw(&pictures, 0..3);
    let mut index = PictureIndex::new(dir.path(), model.clone()).expect("an index");
    index.add(&[pictures], Progress::ignore).expect("an update");
    let (path, good) = (index.path(), read(index.path()));
    drop(index);
    survives("index", &good, |_, bytes| {
        fs::remove_file(&path).expect("removed");
        fs::write(&path, bytes).expect("written");
        if let Ok(index) = PictureIndex::open(dir.path(), model.clone()) {
            let _ = index.by_text("t1 t2", 3);
            let _ = index.folders().len() + index.pictures().count();
        }
    });
}
