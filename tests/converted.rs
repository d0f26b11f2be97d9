//! Converted causal language models: the words of every weight, the configuration, and what belongs to conversations are as
//! they were in the published file.

mod support {
    pub mod golden;
}

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;
use support::golden::golden_root;
use tempfile::TempDir;
use ternion::engine::{Precision, Progress};
use ternion::files::{GgufMetadata, SamplingDefaults, SpecialTokens, Tokenizer, Weights};
use ternion::tools::convert::{ConvertOptions, convert};
use ternion::tools::inspect::inspect;
use ternion::unstable::models::{self, ChatModel, HiddenAct, LoadOptions, TextShape};
use ternion::unstable::tensor::{DType, Pack};

/// Files and folders that a family opens without being told anything.
fn models() -> Vec<PathBuf> {
    let root = golden_root().join("gguf");
    let in_folder = |folder: &str| {
        let entries = fs::read_dir(root.join(folder)).unwrap_or_else(|e| panic!("{folder}: {e}"));
        entries.map(|entry| entry.expect("an entry").path()).collect::<Vec<_>>()
    };
    let is_model = |path: &PathBuf| path.is_dir() || path.extension().is_some_and(|end| end == "gguf");
    let mut all: Vec<PathBuf> = [in_folder("tiny"), in_folder("hf")].concat().into_iter().filter(is_model).collect();
    all.retain(|path| open(path).is_ok());
    all.sort();
    assert!(all.len() > 4, "{all:?}");
    all
}

fn open(path: &Path) -> ternion::Result<(Weights, Box<dyn ChatModel>)> {
    let weights = Weights::open(path)?;
    let model = models::open_chat(path, &weights, LoadOptions::anywhere(Pack::F16))?;
    Ok((weights, model))
}

#[test]
fn every_weight_has_the_same_words() {
    for path in models() {
        let dir = TempDir::new().expect("a directory");
        let report =
            convert(&path, dir.path(), None, Precision::F16, Progress::ignore).unwrap_or_else(|e| panic!("{e}"));
        assert!(report.ternary > 10, "{}: {report:?}", path.display());
        let [(old, a), (new, b)] =
            [path.as_path(), dir.path()].map(|path| open(path).unwrap_or_else(|e| panic!("{e}")));
        assert_eq!(a.config(), b.config(), "{}", path.display());
        let shape = TextShape {
            max_rows: 2,
            max_outputs: 1,
            kv_rows: 8,
            context: 8,
            sessions: 1,
            kv_dtype: DType::F16,
            images: false,
        };
        let [a, b] = [a, b].map(|model| model.record_text(&shape).expect("records"));
        assert_eq!(a.nodes.len(), b.nodes.len());
        let (mut packed, mut all) = (0, 0);
        for ((was, spec), (is, same)) in a.weights().zip(b.weights()) {
            let what = || format!("{}: {was} and {is}", path.display());
            assert_eq!(spec, same, "{}", what());
            assert!(old.load(was).expect("loads") == new.load(is).expect("loads"), "{}", what());
            all += 1;
            packed += usize::from(is.parts.iter().all(|part| new.packed(&part.name).is_some()));
        }
        assert!(packed >= 8 && packed < all, "{}: {packed} of {all}", path.display());
    }
}

#[test]
fn a_second_conversion_writes_the_same_file() {
    let path = golden_root().join("gguf/hf/qwen3_mlx_1bit");
    let [once, twice] = [(); 2].map(|()| TempDir::new().expect("a directory"));
    convert(&path, once.path(), None, Precision::F16, Progress::ignore).expect("converts");
    let report = convert(once.path(), twice.path(), None, Precision::F16, Progress::ignore).expect("converts");
    let [a, b] = [&once, &twice].map(|dir| fs::read(dir.path().join("model.safetensors")).expect("read"));
    assert!(a == b && report.left_out == 0);
    let [old, new] =
        [path.as_path(), once.path()].map(|path| inspect(path, Precision::F16, Progress::ignore).expect("inspects"));
    assert_eq!((old.parameters, old.ternary_parameters), (new.parameters, new.ternary_parameters));
    assert!(
        new.stored_bytes < old.stored_bytes + old.stored_bytes / 10,
        "{} and {}",
        old.stored_bytes,
        new.stored_bytes
    );
}

#[test]
fn an_activation_that_was_chosen_is_written_down() {
    let path = golden_root().join("gguf/tiny/bitnet_tq2_0_scale_tensors.gguf");
    let dir = TempDir::new().expect("a directory");
    let error = convert(&path, dir.path(), None, Precision::F16, Progress::ignore).unwrap_err().to_string();
    assert!(error.contains("the option `hidden_act`"), "{error}");
    let options = ConvertOptions { hidden_act: Some(HiddenAct::SiLu), ..Precision::F16.into() };
    convert(&path, dir.path(), None, options, Progress::ignore).expect("converts");
    let (_, model) = open(dir.path()).expect("it opens");
    assert_eq!(model.config()["hidden_act"], "silu");
}

#[test]
fn conversations_are_those_of_the_file() {
    let with_tokenizer = |path: &PathBuf| {
        let keys = GgufMetadata::of(&path.into()).ok().flatten();
        keys.is_some_and(|keys| keys.get("tokenizer.ggml.model").is_some())
    };
    let path = models().into_iter().find(with_tokenizer).expect("a file with a tokenizer");
    let dir = TempDir::new().expect("a directory");
    convert(&path, dir.path(), None, Precision::F16, Progress::ignore).expect("converts");
    let [old, new] = [path.as_path(), dir.path()].map(|path| {
        let files = path.into();
        let tokenizer = Tokenizer::beside(&files).expect("opens").expect("a tokenizer");
        let special = SpecialTokens::of(&files, &tokenizer).expect("reads");
        let ids = tokenizer.encode("some words, 12 of them", true).expect("encodes");
        (special, ids, SamplingDefaults { file: None, ..SamplingDefaults::of(&files).expect("reads") })
    });
    assert_eq!(old, new);
    let template = |files: &Path| {
        let (_, model) = open(files).expect("opens");
        let tokenizer = Tokenizer::beside(&files.into()).expect("opens");
        let opened = model.prompt().open(&files.into(), tokenizer.as_ref()).expect("opens").expect("a prompt");
        (opened.stop, opened.note.is_some(), format!("{:?}", opened.prompt).len())
    };
    assert_eq!(template(&path).0, template(dir.path()).0);
    let config = fs::read(dir.path().join("generation_config.json")).expect("written");
    let config: Value = serde_json::from_slice(&config).expect("JSON");
    assert!(config["eos_token_id"].is_array(), "{config}");
    // A conversion replaces an earlier one, and what that wrote beside the weights goes where there is no more of it.
    let [bare, other] = [(); 2].map(|()| TempDir::new().expect("a directory"));
    for name in ["config.json", "model.safetensors"] {
        fs::copy(dir.path().join(name), bare.path().join(name)).expect("copied");
    }
    let files = |input: &Path| {
        convert(input, other.path(), None, Precision::F16, Progress::ignore).unwrap_or_else(|e| panic!("{e}"));
        fs::read_dir(other.path()).expect("a directory").count()
    };
    assert!(files(&path) > 3);
    assert_eq!(files(bare.path()), 2);
}
