//! Files that are sound and unusual: what torch, trainers and people's tools write beside the plain form. Each opens as if it
//! were plain, or is refused with the reason.

mod support {
    pub mod torch_files;
}

use std::collections::BTreeMap;
use std::fs;
#[cfg(unix)]
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use tempfile::TempDir;
use ternion::engine::{Precision, Progress};
use ternion::files::{Checkpoint, Weights};
use ternion::tools::inspect::inspect;
use ternion::unstable::models;
use ternion::unstable::models::{LoadOptions, Model};
use ternion::unstable::tensor::Pack;
use ternion::{Error, Result};

use support::torch_files::pickled::*;
use support::torch_files::{six_floats, stored, torch_file, zip_of};

fn open_bytes(bytes: Vec<u8>) -> Checkpoint {
    // The map keeps the content after the directory is gone.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m");
    fs::write(&path, bytes).unwrap();
    Checkpoint::open(path).unwrap()
}

fn read_all(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    checkpoint.read_f32(name, 0..checkpoint.get(name).unwrap().elements()).unwrap()
}

#[track_caller]
fn assert_says<T>(result: Result<T>, parts: &[&str]) -> Error {
    let Err(error) = result else { panic!("it opens, and should not say {parts:?}") };
    for part in parts {
        assert!(error.to_string().contains(part), "{part:?} is not in: {error}");
    }
    error
}

const NONE: &[u8] = b"N";
const NO: &[u8] = b"\x89";
const YES: &[u8] = b"\x88";

fn hooks() -> Vec<u8> {
    call("collections", "OrderedDict", &[])
}

/// [`six_floats`] as a tensor with what torch knows of it besides.
fn marked(metadata: Vec<u8>) -> Vec<u8> {
    let args = [six_floats(), int(0), ints(&[6]), ints(&[1]), NO.to_vec(), hooks(), metadata];
    call("torch._utils", "_rebuild_tensor_v2", &args)
}

#[test]
fn a_view_with_the_other_sign_is_never_read_as_its_storage() {
    let flags = |flags: &[(&str, &[u8])]| {
        let pairs: Vec<(&str, Vec<u8>)> = flags.iter().map(|&(key, value)| (key, value.to_vec())).collect();
        dict(&pairs)
    };
    let plain = [NONE.to_vec(), flags(&[]), flags(&[("neg", NO), ("conj", NO)])];
    for metadata in plain {
        assert_eq!(read_all(&open_bytes(torch_file(dict(&[("w", marked(metadata))]))), "w")[5], 5.0);
    }
    let good = tensor(six_floats(), 0, &[6], &[1]);
    for (mark, metadata) in [("neg", flags(&[("neg", YES)])), ("conj", flags(&[("conj", YES)])), ("the int 3", int(3))]
    {
        let checkpoint = open_bytes(torch_file(dict(&[("good", good.clone()), ("w", marked(metadata))])));
        assert_eq!(read_all(&checkpoint, "good")[5], 5.0);
        assert_says(checkpoint.read_f32("w", 0..6), &["\"w\"", mark, "resolve_neg()"]);
    }
}

#[test]
fn every_call_that_writes_a_dense_tensor_is_known() {
    let plain = || tensor(six_floats(), 0, &[6], &[1]);
    let state = || dict(&[("is_ternary", YES.to_vec())]);
    let old = call("torch._utils", "_rebuild_tensor", &[six_floats(), int(0), ints(&[6]), ints(&[1])]);
    let args = tuple(&[six_floats(), int(0), ints(&[6]), ints(&[1]), NO.to_vec(), hooks()]);
    let of_type = |function: &str, module: &str, class: &str| {
        let function = global("torch._utils", function);
        call("torch._tensor", "_rebuild_from_type_v2", &[function, global(module, class), args.clone(), state()])
    };
    let parameter =
        |name: &str, more: &[Vec<u8>]| call("torch._utils", name, &[&[plain(), YES.to_vec(), hooks()], more].concat());
    let all = [
        ("old", old),
        ("parameter", parameter("_rebuild_parameter", &[])),
        ("with state", parameter("_rebuild_parameter_with_state", &[state()])),
        ("typed", of_type("_rebuild_tensor_v2", "torch", "Tensor")),
        ("typed parameter", of_type("_rebuild_tensor_v2", "torch.nn.parameter", "Parameter")),
    ];
    for (what, value) in all {
        let checkpoint = open_bytes(torch_file(dict(&[("w", value)])));
        assert_eq!(read_all(&checkpoint, "w"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0], "{what}");
    }
    let strange = [
        ("quantised", of_type("_rebuild_qtensor", "torch", "Tensor"), "_rebuild_qtensor"),
        ("another class", of_type("_rebuild_tensor_v2", "other.tensors", "Packed"), "other.tensors.Packed"),
    ];
    for (what, value, named) in strange {
        let checkpoint = open_bytes(torch_file(dict(&[("good", plain()), ("w", value)])));
        assert_says(checkpoint.read_f32("w", 0..6), &["\"w\"", named]);
        assert_eq!(checkpoint.tensors().count(), 1, "{what}");
    }
}

#[test]
fn an_expanded_view_is_read_and_a_huge_one_is_left_alone() {
    let wide = tensor(six_floats(), 2, &[3, 2], &[0, 1]);
    let huge = tensor(six_floats(), 0, &[1 << 40], &[0]);
    let checkpoint = open_bytes(torch_file(dict(&[("wide", wide), ("huge", huge)])));
    assert_eq!(read_all(&checkpoint, "wide"), [2.0, 3.0, 2.0, 3.0, 2.0, 3.0]);
    assert_eq!(checkpoint.read_f32("wide", 3..5).unwrap(), [3.0, 2.0]);
    assert_says(checkpoint.read_f32("huge", 0..1), &["\"huge\"", "1099511627776 elements", "contiguous copy"]);
}

#[test]
fn what_is_no_tensor_stays_beside_the_tensors() {
    let complex = tensor(storage("ComplexFloatStorage", "0", 3), 0, &[3], &[1]);
    let pairs = [
        ("good", tensor(six_floats(), 0, &[6], &[1])),
        ("complex", complex),
        ("state", dict(&[("scale", int(1))])),
        ("scalar", call("numpy.core.multiarray", "scalar", &[int(3)])),
        ("none", NONE.to_vec()),
    ];
    let checkpoint = open_bytes(torch_file(dict(&pairs)));
    assert_eq!(checkpoint.tensors().count(), 1);
    let names: Vec<&str> = checkpoint.unreadable().keys().map(String::as_str).collect();
    assert_eq!(names, ["complex", "none", "scalar", "state"]);
    for (name, why) in [("complex", "ComplexFloatStorage"), ("state", "a dict"), ("scalar", "numpy"), ("none", "None")]
    {
        assert_says(checkpoint.read_f32(name, 0..1), &[&format!("{name:?}"), why]);
    }
}

#[test]
fn tensors_are_found_under_the_keys_of_trainers() {
    let tensors = || dict(&[("w", tensor(six_floats(), 0, &[6], &[1]))]);
    let other = || dict(&[("w", tensor(six_floats(), 3, &[1], &[1]))]);
    let files = [
        dict(&[("net", tensors())]),
        dict(&[("module", tensors()), ("epoch", int(3))]),
        dict(&[("ema", dict(&[("model", tensors())]))]),
        dict(&[("ema", other()), ("model", tensors())]),
        dict(&[("state_dict", dict(&[("module._orig_mod.w", tensor(six_floats(), 0, &[6], &[1]))]))]),
    ];
    for file in files {
        assert_eq!(read_all(&open_bytes(torch_file(file)), "w").len(), 6);
    }
}

const LOAD: LoadOptions = LoadOptions::anywhere(Pack::F32);

/// A small EmberNet in parts.
#[derive(Clone)]
struct Ember {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
}

impl Ember {
    fn dir() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embernet/oddgrid")
    }

    fn good() -> Self {
        let checkpoint = Checkpoint::open(Self::dir()).unwrap();
        let tensor = |name: &str| checkpoint.bytes(name).unwrap().into_owned();
        let all = checkpoint.tensors().filter(|t| t.stored.reads_as_f32());
        let tensors = all.map(|t| (t.name.clone(), (Dtype::F32, t.shape.clone(), tensor(&t.name)))).collect();
        Ember { tensors }
    }

    fn renamed(self, name: impl Fn(&str) -> String) -> Self {
        Ember { tensors: self.tensors.into_iter().map(|(old, tensor)| (name(&old), tensor)).collect() }
    }

    /// With zeros of another shape.
    fn reshaped(mut self, name: &str, shape: &[usize]) -> Self {
        let bytes = vec![0; 4 * shape.iter().product::<usize>()];
        self.tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), bytes));
        self
    }

    fn bytes(&self, keep: impl Fn(&str) -> bool) -> Vec<u8> {
        let kept = self.tensors.iter().filter(|(name, _)| keep(name));
        let view = |(name, (dtype, shape, bytes)): (&String, &(Dtype, Vec<usize>, Vec<u8>))| {
            (
                name.clone(),
                TensorView::new(*dtype, shape.clone(), bytes).unwrap().data().to_vec(),
                *dtype,
                shape.clone(),
            )
        };
        let all: Vec<_> = kept.map(view).collect();
        let views = all
            .iter()
            .map(|(name, data, dtype, shape)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    /// In a folder of its own.
    fn write(&self) -> TempDir {
        let dir = configs();
        fs::write(dir.path().join("model.safetensors"), self.bytes(|_| true)).unwrap();
        dir
    }

    fn open(&self) -> Result<Box<dyn Model>> {
        open(self.write().path())
    }
}

/// A folder with the small EmberNet's configuration.
fn configs() -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "embernet_config.json", "siglip_vision_config.json"] {
        fs::copy(Ember::dir().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

fn open(dir: &Path) -> Result<Box<dyn Model>> {
    models::open(dir, &Weights::open(dir)?, LOAD)
}

#[test]
fn a_model_opens_under_wrapped_names_and_says_what_others_begin_with() {
    let good = Ember::good();
    let names: Vec<String> = good.open().unwrap().reads().keys().cloned().collect();
    for wrapper in ["module._orig_mod.", "_fsdp_wrapped_module.", "model."] {
        let model = good.clone().renamed(|name| format!("{wrapper}{name}")).open().unwrap();
        assert!(model.reads().keys().eq(&names), "{wrapper}");
    }
    let error =
        assert_says(good.clone().renamed(|name| format!("student.{name}")).open(), &["begin with \"student.\""]);
    assert!(matches!(error, Error::Format { .. }), "{error}");
    let decoder = "decoder.embed_tokens.weight";
    let mut headless = good.clone();
    headless.tensors.remove(decoder);
    let error = assert_says(headless.open(), &[decoder, "1 tensors"]);
    assert!(matches!(&error, Error::MissingTensors { names, .. } if names.len() == 1), "once: {error}");
}

#[test]
fn a_tied_embedding_opens_under_its_other_name() {
    let head = Ember::good().renamed(|name| name.replace("embed_tokens", "lm_head"));
    assert!(!head.tensors.contains_key("decoder.embed_tokens.weight"));
    assert!(head.open().unwrap().reads().contains_key("decoder.embed_tokens.weight"));
}

#[test]
fn all_tensors_of_other_shapes_are_in_one_error() {
    let [a, b] = ["decoder.norm.weight", "decoder.layers.0.input_layernorm.weight"];
    let odd = Ember::good().reshaped(a, &[7]).reshaped(b, &[3, 2]);
    assert_says(odd.open(), &[a, b, "[7]", "[3, 2]"]);
}

#[test]
fn what_the_model_does_not_read_may_have_any_number_format() {
    let mut odd = Ember::good();
    for (name, dtype, bytes) in [("c64", Dtype::C64, 8), ("f4", Dtype::F4, 1), ("scales", Dtype::F8_E8M0, 2)] {
        odd.tensors.insert(format!("decoder.{name}"), (dtype, vec![8 * bytes / dtype.bitsize()], vec![0; bytes]));
    }
    assert!(odd.open().is_ok());
    let dir = odd.write();
    let found = inspect(dir.path(), Precision::F32, Progress::ignore).unwrap();
    assert_eq!(found.unreadable.keys().collect::<Vec<_>>(), ["decoder.c64", "decoder.f4", "decoder.scales"]);
    let norm = odd.tensors.get_mut("decoder.norm.weight").unwrap();
    *norm = (Dtype::C64, vec![norm.1[0] / 2], norm.2.clone());
    assert_says(odd.open(), &["\"decoder.norm.weight\"", "C64"]);
}

#[test]
fn sizes_of_the_image_encoder_are_bounded() {
    let at = |name: &str| format!("vision_encoder.encoder.vision_model.{name}");
    let (patch, positions) = (at("embeddings.patch_embedding.weight"), at("embeddings.position_embedding.weight"));
    let fc1 = at("encoder.layers.0.mlp.fc1.weight");
    let good = Ember::good();
    let d = good.tensors[&positions].1[1];
    let cases: [(&str, &[usize]); 6] = [
        (&patch, &[d, 3, 0, 0]),
        (&patch, &[0, 3, 16, 16]),
        (&patch, &[0, 3, 1 << 20, 1 << 20]),
        (&positions, &[1 << 40, 0]),
        (&positions, &[0, d]),
        (&fc1, &[0, d]),
    ];
    for (name, shape) in cases {
        let error = assert_says(good.clone().reshaped(name, shape).open(), &[name, &format!("{shape:?}")]);
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
    let large = good.clone().reshaped(&patch, &[1, 3, 1000, 1000]).reshaped(&positions, &[49, d]);
    assert_says(large.open(), &[&patch, "4096 pixels"]);
    let flat = good.reshaped("vision_encoder.compressor.pre_norm.weight", &[0]);
    assert_says(flat.open(), &["vision_encoder.compressor.pre_norm.weight", "[0]"]);
}

#[test]
fn an_error_names_the_file_that_it_is_in() {
    let dir = Ember::good().write();
    let put = |name: &str, json: &str| fs::write(dir.path().join(name), json).unwrap();
    put("siglip_vision_config.json", r#"{"num_attention_heads": 3}"#);
    assert_says(open(dir.path()), &["siglip_vision_config.json: num_attention_heads", "is 3"]);
    put("siglip_vision_config.json", r#"{"num_attention_heads": 0}"#);
    assert_says(open(dir.path()), &["siglip_vision_config.json: num_attention_heads", "is 0"]);
    fs::copy(Ember::dir().join("siglip_vision_config.json"), dir.path().join("siglip_vision_config.json")).unwrap();
    put("embernet_config.json", r#"{"pad_token_id": -1}"#);
    assert_says(open(dir.path()), &["embernet_config.json: pad_token_id", "is -1"]);
}

#[test]
fn json_beside_a_model_may_have_a_byte_order_mark_and_numbers_that_are_not_finite() {
    let dir = Ember::good().write();
    let path = dir.path().join("config.json");
    let text = fs::read_to_string(&path).unwrap();
    let odd = text.replacen('{', "\u{feff}{\"best_loss\": NaN, \"limits\": [-Infinity, Infinity],", 1);
    fs::write(&path, &odd).unwrap();
    assert!(open(dir.path()).is_ok());
    let units: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    fs::write(&path, units).unwrap();
    assert_says(open(dir.path()), &["config.json", "UTF-16"]);
    fs::write(&path, text.replacen("\"vocab_size\":", "\"vocab_size\": NaN, \"old\":", 1)).unwrap();
    assert_says(open(dir.path()), &["config.json", "vocab_size", "NaN"]);
}

/// An index of two shards of the small EmberNet, and the shards, in the folder `dir`.
fn write_shards(dir: &Path, ends: [&str; 2], index: &str, write: impl Fn(&Ember, bool) -> Vec<u8>) {
    let good = Ember::good();
    let of = |name: &str| usize::from(name.starts_with("decoder."));
    let map: BTreeMap<&String, &str> = good.tensors.keys().map(|name| (name, ends[of(name)])).collect();
    for (i, end) in ends.iter().enumerate() {
        fs::write(dir.join(end), write(&good, i == 1)).unwrap();
    }
    fs::write(dir.join(index), serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
}

/// The tensors of an EmberNet's half as a torch file.
fn torch_half(model: &Ember, decoder: bool) -> Vec<u8> {
    let half: Vec<_> = model.tensors.iter().filter(|(name, _)| name.starts_with("decoder.") == decoder).collect();
    let value = |i: usize, shape: &[usize], bytes: &[u8]| {
        let sizes: Vec<i64> = shape.iter().map(|&n| n as i64).collect();
        let strides: Vec<i64> = (0..sizes.len()).map(|d| sizes[d + 1..].iter().product()).collect();
        tensor(storage("FloatStorage", &i.to_string(), bytes.len() as i64 / 4), 0, &sizes, &strides)
    };
    let pairs = half.iter().enumerate().map(|(i, (name, (_, shape, bytes)))| (name.as_str(), value(i, shape, bytes)));
    let pickle = pickle(2, dict(&pairs.collect::<Vec<_>>()));
    let names: Vec<String> = (0..half.len()).map(|i| format!("m/data/{i}")).collect();
    let storages = names.iter().zip(&half).map(|(name, (_, (_, _, bytes)))| (name.as_str(), bytes.as_slice()));
    zip_of(stored(), &[("m/data.pkl", pickle.as_slice())].into_iter().chain(storages).collect::<Vec<_>>())
}

fn assert_same_weights(dir: &Path) {
    let (found, want) = (Checkpoint::open(dir).unwrap(), Checkpoint::open(Ember::dir()).unwrap());
    assert!(open(dir).is_ok());
    for name in Ember::good().tensors.keys() {
        assert_eq!(found.bytes(name).unwrap(), want.bytes(name).unwrap(), "{name}");
    }
}

#[test]
fn shards_of_torch_files_are_read_as_one_checkpoint() {
    let dir = configs();
    let ends = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"];
    write_shards(dir.path(), ends, "pytorch_model.bin.index.json", torch_half);
    assert_same_weights(dir.path());
}

#[test]
fn a_single_file_comes_before_an_index() {
    let dir = Ember::good().write();
    fs::write(dir.path().join("model.safetensors.index.json"), "{").unwrap();
    fs::write(dir.path().join("pytorch_model.bin"), "x").unwrap();
    assert_same_weights(dir.path());
}

#[cfg(unix)]
#[test]
fn shards_may_be_links_to_another_folder() {
    let (disk, dir) = (tempfile::tempdir().unwrap(), configs());
    let ends = ["one.safetensors", "two.safetensors"];
    let half = |model: &Ember, decoder: bool| model.bytes(|name| name.starts_with("decoder.") == decoder);
    write_shards(disk.path(), ends, "model.safetensors.index.json", half);
    fs::copy(disk.path().join("model.safetensors.index.json"), dir.path().join("model.safetensors.index.json"))
        .unwrap();
    for end in ends {
        symlink(disk.path().join(end), dir.path().join(end)).unwrap();
    }
    assert_same_weights(dir.path());
}
