//! What a broken or foreign index of pictures gets instead of a panic: an error that names the file and says what to do.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod device;
    pub mod golden;
    pub mod small_bitgen;
}

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use support::cli::{assert_fails, succeeds, text};
use support::small_bitgen::{draw, model_dir, open, write_tokenizer};
use tempfile::TempDir;
use ternion::apps::bitgen::BitGen;
use ternion::apps::picture_index::PictureIndex;
use ternion::engine::{DeviceChoice, Progress};

/// A good index of three pictures, and its file.
struct SavedIndex {
    dir: TempDir,
    model: Arc<BitGen>,
    good: Vec<u8>,
}

/// What the file holds, to be changed.
struct Parts {
    json: Value,
    features: Vec<f32>,
    shape: Vec<usize>,
    version: Option<&'static str>,
}

impl SavedIndex {
    fn new() -> Self {
        let dir = TempDir::new().expect("a folder");
        let model = Arc::new(open("cnn", DeviceChoice::Cpu, &write_tokenizer(dir.path())));
        let pictures = dir.path().join("pictures");
        draw(&pictures, 0..3);
        let mut index = PictureIndex::new(dir.path(), model.clone()).expect("an index");
        index.add(&[pictures], Progress::ignore).expect("an update");
        let good = fs::read(index.path()).expect("a file");
        SavedIndex { dir, model, good }
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join(PictureIndex::FILE)
    }

    /// Opens these bytes as an index.
    fn open(&self, bytes: &[u8]) -> ternion::Result<PictureIndex> {
        fs::write(self.file(), bytes).expect("written");
        PictureIndex::open(self.dir.path(), self.model.clone())
    }

    /// The error must name the file and have these texts.
    #[track_caller]
    fn refuses(&self, bytes: &[u8], texts: &[&str]) {
        let error = self.open(bytes).expect_err("a broken file").to_string();
        for text in [PictureIndex::FILE].iter().chain(texts) {
            assert!(error.contains(text), "no {text:?} in: {error}");
        }
    }

    /// The good file with something changed.
    fn changed(&self, change: impl FnOnce(&mut Parts)) -> Vec<u8> {
        let file = SafeTensors::deserialize(&self.good).expect("the good file");
        let (features, pictures) = (file.tensor("features").expect("it"), file.tensor("pictures").expect("it"));
        let json = serde_json::from_slice(pictures.data()).expect("JSON");
        let (shape, values) = (features.shape().to_vec(), bytemuck::pod_collect_to_vec(features.data()));
        let mut parts = Parts { json, features: values, shape, version: Some("1") };
        change(&mut parts);
        let json = parts.json.to_string().into_bytes();
        let bytes: &[u8] = bytemuck::cast_slice(&parts.features);
        let tensors = [
            ("features", TensorView::new(Dtype::F32, parts.shape, bytes).expect("a tensor")),
            ("pictures", TensorView::new(Dtype::U8, vec![json.len()], &json).expect("a tensor")),
        ];
        let metadata = parts.version.map(|v| HashMap::from([("ternion.pictures".to_owned(), v.to_owned())]));
        safetensors::serialize(tensors, metadata).expect("a file")
    }

    #[track_caller]
    fn refuses_changed(&self, change: impl FnOnce(&mut Parts), texts: &[&str]) {
        self.refuses(&self.changed(change), &[texts, &["the option `rebuild`"]].concat());
    }
}

#[test]
fn the_good_file_written_again_is_good() {
    let rig = SavedIndex::new();
    let index = rig.open(&rig.changed(|_| {})).expect("an index");
    assert_eq!((index.len(), index.folders().len()), (3, 1));
}

#[test]
fn a_file_cut_anywhere_and_with_any_byte_changed_is_an_error_or_an_index() {
    let rig = SavedIndex::new();
    for cut in (0..rig.good.len()).step_by(7).chain(rig.good.len() - 8..rig.good.len()) {
        rig.refuses(&rig.good[..cut], &[]);
    }
    let header = 8 + usize::from(rig.good[0]) + 256 * usize::from(rig.good[1]);
    for at in (0..header).chain((header..rig.good.len()).step_by(11)) {
        let mut bytes = rig.good.clone();
        bytes[at] ^= 0x15;
        if let Err(error) = rig.open(&bytes) {
            assert!(error.to_string().contains(PictureIndex::FILE), "byte {at}: {error}");
        }
    }
    rig.refuses(&[&rig.good[..], b"more"].concat(), &[]);
}

#[test]
fn files_of_another_kind_are_no_index() {
    let rig = SavedIndex::new();
    rig.refuses(b"", &[]);
    rig.refuses(b"<html></html>", &["HTML"]);
    rig.refuses(&fs::read(model_dir("cnn").join("pytorch_model.bin")).expect("read"), &["not an index of pictures"]);
    rig.refuses(&rig.changed(|p| p.version = None), &["not an index of pictures", "the option `rebuild`"]);
    rig.refuses(&rig.changed(|p| p.version = Some("2")), &["version", "\"2\"", "the option `rebuild`"]);
    fs::remove_file(rig.file()).expect("removed");
    fs::create_dir(rig.file()).expect("made");
    assert!(PictureIndex::open(rig.dir.path(), rig.model.clone()).is_err(), "a folder of that name");
}

#[test]
fn features_that_are_none_are_refused() {
    let rig = SavedIndex::new();
    for value in [f32::NAN, f32::INFINITY, -f32::INFINITY, 1e30] {
        rig.refuses_changed(|p| p.features[70] = value, &["row 1", "length", "expected 1"]);
    }
    rig.refuses_changed(|p| p.features[..64].fill(0.0), &["row 0", "length 0"]);
    rig.refuses_changed(|p| p.features.iter_mut().for_each(|v| *v *= 1.1), &["row 0", "length 1.1"]);
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let rig = SavedIndex::new();
    rig.refuses_changed(|p| p.shape = vec![192], &["features", "[192]"]);
    rig.refuses_changed(|p| (p.features, p.shape) = (vec![1.0; 2], vec![2, 1]), &["2 rows", "hashes of 3"]);
    let narrow = rig.changed(|p| {
        p.features = (0..12).map(|i| f32::from(u8::from(i % 4 == 0))).collect();
        p.shape = vec![3, 4];
    });
    rig.refuses(&narrow, &["[3, 4]", "[3, 64]"]);
    rig.refuses(&rig.changed(|p| (p.features, p.shape) = (vec![], vec![3, 0])), &["[3, 0]", "[3, 64]"]);
}

#[test]
fn what_it_says_of_pictures_is_not_trusted() {
    let rig = SavedIndex::new();
    let picture = |p: &mut Parts, key: &str, value: Value| p.json["folders"][0]["pictures"][1][key] = value;
    for path in ["../p.png", "/etc/passwd.png", "a/../../p.png", "", "."] {
        rig.refuses_changed(|p| picture(p, "path", path.into()), &["leads out"]);
    }
    rig.refuses_changed(|p| picture(p, "path", "p00.png".into()), &["p00.png", "twice"]);
    rig.refuses_changed(|p| picture(p, "row", 3.into()), &["row 3", "there are 3"]);
    rig.refuses_changed(|p| picture(p, "row", u64::MAX.into()), &["row"]);
    rig.refuses_changed(|p| picture(p, "row", (-1).into()), &["pictures"]);
    rig.refuses_changed(|p| picture(p, "bytes", "many".into()), &["pictures"]);
    rig.refuses_changed(|p| picture(p, "more", 1.into()), &["pictures", "more"]);
    rig.refuses_changed(|p| p.json["sha256"][0] = "ab".into(), &["\"ab\"", "SHA-256"]);
    rig.refuses_changed(|p| p.json["sha256"][0] = p.json["sha256"][1].clone(), &["same hash"]);
    rig.refuses_changed(|p| p.json["sha256"] = json!([]), &["hashes of 0"]);
    let twice = |p: &mut Parts| {
        let folder = p.json["folders"][0].clone();
        p.json["folders"].as_array_mut().expect("a list").push(folder);
    };
    rig.refuses_changed(twice, &["folder", "twice"]);
    rig.refuses_changed(|p| p.json = json!([]), &["pictures"]);
    rig.refuses_changed(|p| p.json["model"] = "abcdef".into(), &["another model", "abcdef"]);
    rig.refuses_changed(|p| p.json["model"] = "é".repeat(20).into(), &["another model"]);
}

#[test]
fn a_broken_index_is_made_again_by_the_command() {
    let rig = SavedIndex::new();
    let (model, tokenizer) = (text(model_dir("cnn")), text(rig.dir.path().join("tokenizer.json")));
    let (dir, pictures) = (text(rig.dir.path()), text(rig.dir.path().join("pictures")));
    let base = ["search", "-m", &model, "--tokenizer", &tokenizer, "--device", "cpu", "--precision", "f32"];
    let args = |more: &[&'static str]| [&base[..], &["--index", &dir], more].concat();
    fs::write(rig.file(), &rig.good[..rig.good.len() / 2]).expect("written");
    for more in [&["t1"][..], &["t1", "--rebuild"], &["--update"]] {
        assert_fails(&support::cli::ternion(&args(more)), &args(more), &[PictureIndex::FILE, "--rebuild"]);
    }
    let out = succeeds(&[&args(&["t1", "--rebuild"])[..], &["--add", &pictures]].concat());
    assert_eq!(out.lines().count(), 4, "{out}");
    let json: Value = serde_json::from_str(&succeeds(&args(&["--update", "--json"]))).expect("JSON");
    assert_eq!(json["update"]["unchanged"], 3);
}
