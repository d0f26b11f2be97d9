//! Models with values that no model has: numbers that are not finite, codes that stand for nothing, families that nobody knows.
//! Each is refused when it is opened, by the name of what holds it.

mod support {
    pub mod gguf_files;
}

use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use support::gguf_files::{GgufFile, value};
use ternion::engine::{DeviceChoice, Precision, Progress};
use ternion::files::{Checkpoint, StorageDType};
use ternion::tools::inspect::inspect;
use ternion::{Engine, ModelFiles, Options};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn read(name: &str) -> Vec<u8> {
    std::fs::read(golden(name)).expect("a golden file")
}

/// What opening the small EmberNet with this checkpoint says.
fn ember(checkpoint: &[u8]) -> ternion::Result<Engine> {
    let configs = ["config.json", "siglip_vision_config.json"];
    let configs = configs.map(|name| (name, read(&format!("embernet/oddgrid/{name}"))));
    let files = [(ModelFiles::CHECKPOINT, checkpoint.to_vec())].into_iter().chain(configs);
    let options = Options { device: DeviceChoice::Cpu, context: Some(64), ..Options::default() };
    Engine::open(ModelFiles::from_bytes("m", files), options)
}

/// The tensors of 32-bit floats of a file, with the place of their first byte.
fn floats(file: &[u8]) -> Vec<(String, usize)> {
    let all = SafeTensors::deserialize(file).expect("a safetensors file");
    let place = |bytes: &[u8]| bytes.as_ptr().addr() - file.as_ptr().addr();
    let tensors = all.iter().filter(|(_, tensor)| tensor.dtype() == Dtype::F32 && !tensor.data().is_empty());
    tensors.map(|(name, tensor)| (name.to_owned(), place(tensor.data()))).collect()
}

#[test]
fn a_weight_that_is_not_finite_is_named() {
    let good = read("embernet/oddgrid/model.safetensors");
    let unread: Vec<String> = {
        let report = inspect(golden("embernet/oddgrid"), Precision::F32, Progress::ignore).expect("a model");
        let unread = report.tensors.iter().filter(|tensor| tensor.packed_bytes == 0);
        unread.map(|tensor| tensor.name.clone()).collect()
    };
    let all = floats(&good);
    assert!(all.len() > 30, "only {} tensors", all.len());
    for (i, (name, at)) in all.iter().filter(|(name, _)| !unread.contains(name)).enumerate() {
        let bad = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY][i % 3];
        let mut bytes = good.clone();
        bytes[*at..at + 4].copy_from_slice(&bad.to_le_bytes());
        match ember(&bytes) {
            Ok(_) => panic!("{name} with {bad} is accepted"),
            Err(error) => assert!(error.to_string().contains(name.as_str()), "{name} with {bad}: {error}"),
        }
    }
}

/// A model of `files` with all bits of one byte of codes set, of the first tensor that `is_coded`.
fn with_a_code_of_3(files: &str, name: &str, is_coded: impl Fn(StorageDType) -> bool) {
    let checkpoint = Checkpoint::open(golden(files).join(name)).expect("a model");
    let coded = checkpoint.tensors().find(|tensor| is_coded(tensor.stored)).expect("a tensor of codes");
    let bytes = checkpoint.bytes(&coded.name).expect("its bytes").into_owned();
    let mut changed = read(&format!("{files}/{name}"));
    let at = changed.windows(64).position(|window| window == &bytes[..64]).expect("the codes lie in the file");
    changed[at] = 0xff;
    let config = golden(files).join("config.json");
    let config = config.exists().then(|| ("config.json", read(&format!("{files}/config.json"))));
    let files = [(ModelFiles::CHECKPOINT, changed)].into_iter().chain(config);
    let options = Options { device: DeviceChoice::Cpu, context: Some(32), ..Options::default() };
    let opened = Engine::open(ModelFiles::from_bytes("m", files), options);
    let error = opened.expect_err("a code of 3").to_string();
    assert!(error.contains(&coded.name) && error.contains("has a code of 3"), "{error}");
}

#[test]
fn codes_that_stand_for_nothing_are_named() {
    let i2_s = |stored: StorageDType| stored.to_string().contains("I2_S");
    with_a_code_of_3("gguf/tiny", "bitnet_b158_i2s_relu2.gguf", i2_s);
    let bytes = |stored| stored == StorageDType::U8;
    with_a_code_of_3("gguf/hf/bitnet_autobitlinear_offline", "model.safetensors", bytes);
}

#[test]
fn families_that_nobody_knows_are_told_with_those_that_are_read() {
    let config = br#"{"model_type": "mamba9", "architectures": ["Mamba9ForCausalLM"]}"#;
    let weights = read("embernet/oddgrid/model.safetensors");
    let files = [(ModelFiles::CHECKPOINT, &weights[..]), ("config.json", config)];
    let gguf = GgufFile::new(&[("general.architecture", value::text("mamba9"))]).bytes();
    for files in [ModelFiles::from_bytes("m", files), ModelFiles::from_bytes("m", [(ModelFiles::CHECKPOINT, gguf)])] {
        let options = Options { device: DeviceChoice::Cpu, ..Options::default() };
        let error = Engine::open(files, options).expect_err("an unknown family").to_string();
        assert!(
            ["mamba9", "qwen3", "llama", "bitnet"].iter().all(|name| error.to_lowercase().contains(name)),
            "{error}"
        );
    }
}
