//! GGUF checkpoints: tensors under canonical names, configurations, shards, and what each broken file is told.

mod support {
    pub mod gguf_files;
}

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use ternion::engine::{HiddenAct, Precision, Progress};
use ternion::files::config::ModelConfig;
use ternion::files::{Checkpoint, ModelFiles, StorageDType, Weights};
use ternion::tools::inspect::{InspectOptions, inspect};
use ternion::unstable::tensor::{GroupCodes, WeightPart};
use ternion::{Error, Result};

use support::gguf_files::{GgufFile, value};

fn tiny(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/tiny").join(format!("{name}.gguf"))
}

fn memory(bytes: &[u8]) -> ModelFiles {
    let files: &'static [(&str, &[u8])] = vec![(ModelFiles::CHECKPOINT, &*bytes.to_vec().leak())].leak();
    ModelFiles::Memory { name: "m", files }
}

fn open(file: &GgufFile) -> Checkpoint {
    Checkpoint::open(memory(&file.bytes())).unwrap()
}

fn refusal(bytes: &[u8]) -> String {
    Checkpoint::open(memory(bytes)).unwrap_err().to_string()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn config(files: impl Into<ModelFiles>) -> Result<Value> {
    let files = files.into();
    ModelConfig::of(&files, &Checkpoint::open(&files)?).map(|config| config.keys.into())
}

/// Keys of an architecture, and no tensors.
fn keys(architecture: &str, more: &[(&str, Vec<u8>)]) -> GgufFile {
    let mut all = vec![("general.architecture".to_owned(), value::text(architecture))];
    all.extend(more.iter().map(|(key, value)| (key.to_string(), value.clone())));
    GgufFile { keys: all, ..GgufFile::new(&[]) }
}

fn stored(checkpoint: &Checkpoint, name: &str) -> (String, Vec<usize>) {
    let info = checkpoint.get(name).unwrap_or_else(|| panic!("{name} is not there"));
    (info.stored.to_string(), info.shape.clone())
}

#[test]
fn tensors_have_the_names_of_hugging_face() {
    let qwen = Checkpoint::open(tiny("qwen3_q1_0_tied_yarn")).unwrap();
    assert_eq!(stored(&qwen, "model.embed_tokens.weight"), ("Q1_0".into(), vec![480, 256]));
    assert_eq!(stored(&qwen, "model.layers.1.self_attn.q_proj.weight"), ("Q1_0".into(), vec![512, 256]));
    assert_eq!(stored(&qwen, "model.layers.0.self_attn.k_norm.weight"), ("f32".into(), vec![128]));
    assert_eq!(stored(&qwen, "model.norm.weight"), ("f32".into(), vec![256]));
    assert!(qwen.get("lm_head.weight").is_none());
    let bitnet = Checkpoint::open(tiny("bitnet_tq2_0_scale_tensors")).unwrap();
    assert_eq!(stored(&bitnet, "model.layers.1.mlp.down_proj.weight"), ("TQ2_0".into(), vec![256, 512]));
    assert_eq!(stored(&bitnet, "model.layers.1.mlp.down_proj.scale"), ("f32".into(), vec![1]));
    assert_eq!(stored(&bitnet, "model.layers.1.mlp.ffn_sub_norm.weight"), ("f32".into(), vec![512]));
    assert_eq!(stored(&bitnet, "model.embed_tokens.weight"), ("f16".into(), vec![480, 256]));
    let names = |c: &Checkpoint| c.tensors().filter(|t| !t.name.starts_with("model.")).count();
    assert_eq!((names(&qwen), names(&bitnet)), (0, 0));
}

#[test]
fn the_two_forms_of_q2_0_are_told_apart_by_the_offsets() {
    let form = |name: &str| {
        let checkpoint = Checkpoint::open(tiny(name)).unwrap();
        stored(&checkpoint, "model.layers.0.mlp.up_proj.weight").0
    };
    assert_eq!(form("llama_q2_0_linear_rope"), "Q2_0");
    assert_eq!(form("qwen3_q2_0_g128_legacy"), "Q2_0_g128");
    let file = |bytes: usize, rows: u64| keys("x", &[]).tensor("w", &[128, rows], 42, &vec![0; bytes]);
    assert_eq!(stored(&open(&file(16 * 36, 16)), "w").0, "Q2_0", "by the length of the file");
    assert_eq!(stored(&open(&file(16 * 34, 16)), "w").0, "Q2_0_g128");
    let neither = refusal(&file(16 * 40, 16).bytes());
    assert_says(&neither, &["type 42", "neither Q2_0 with groups of 64 or Q2_0_g128", "fit none"]);
    let rows_of_64 = keys("x", &[]).tensor("w", &[64, 2], 42, &[0; 36]);
    assert_eq!(stored(&open(&rows_of_64), "w").0, "Q2_0", "rows are whole blocks");
    // Two rows are 4 blocks of 18 bytes or 2 of 34, both of which are 96 bytes with the fill.
    let undecided = refusal(&file(72, 2).bytes());
    assert_says(&undecided, &["type 42", "Q2_0 with groups of 64", "Q2_0_g128 with groups of 128", "fit both"]);
    let other = file(72, 2).tensor("v", &[128, 16], 42, &[0; 16 * 34]);
    assert_eq!(stored(&open(&other), "w").0, "Q2_0_g128", "another tensor of the type decides");
}

#[test]
fn blocks_are_read_in_whole_ones() {
    let checkpoint = Checkpoint::open(tiny("bitnet_b158_i2s_relu2")).unwrap();
    let name = "model.layers.0.self_attn.q_proj.weight";
    let elements = checkpoint.get(name).unwrap().elements();
    let all = checkpoint.read_f32(name, 0..elements).unwrap();
    let scale = all.iter().fold(0.0f32, |max, v| max.max(v.abs()));
    assert!(
        scale > 0.0 && all.iter().all(|v| [0.0, scale, -scale].contains(v)),
        "the tensor's scale is behind its codes"
    );
    assert_eq!(checkpoint.read_f32(name, 256..1024).unwrap(), all[256..1024]);
    let blocks = checkpoint.blocks(name, 128..384).unwrap();
    assert_eq!((blocks.format.name(), blocks.bytes.len(), blocks.tail.len()), ("I2_S", 64, 32));
    assert_eq!(checkpoint.bytes(name).unwrap().len(), elements / 4 + 32);
    assert_eq!(checkpoint.get(name).unwrap().bytes(), elements / 4 + 32);
    let says = |error: Error, parts: &[&str]| assert_says(&error.to_string(), parts);
    says(checkpoint.read_f32(name, 0..100).unwrap_err(), &["0..100", "cuts blocks of 128"]);
    says(checkpoint.blocks(name, 64..128).unwrap_err(), &["64..128", "cuts blocks of 128"]);
    says(checkpoint.blocks("model.norm.weight", 0..32).unwrap_err(), &["f32", "needed as blocks"]);
    says(checkpoint.read_words(name).unwrap_err(), &["of I2_S", "u32"]);
    says(checkpoint.read_f32(name, 0..elements + 128).unwrap_err(), &["not within"]);
}

#[test]
fn a_file_cut_at_any_byte_of_its_tensors_is_said_to_be_cut_short() {
    let file = keys("x", &[]).tensor("a", &[4], 0, &[0; 16]).tensor("b", &[128], 41, &[0; 18]);
    let (whole, data) = (file.bytes(), file.header().len());
    assert_eq!(whole.len(), data + 64);
    for end in data..data + 32 + 18 {
        assert_says(&refusal(&whole[..end]), &["cut short", "fetch it again"]);
    }
    for end in data + 32 + 18..=whole.len() {
        assert!(Checkpoint::open(memory(&whole[..end])).is_ok(), "{end}: what is behind the last tensor is fill");
    }
}

#[test]
fn tensors_lie_behind_one_another() {
    let file = keys("x", &[]).tensor("a", &[4], 0, &[0; 16]).tensor("b", &[4], 0, &[0; 16]);
    let at = file.header().len() - 32;
    let offset = file.bytes().windows(8).rposition(|w| w == 32u64.to_le_bytes()).unwrap();
    assert!(offset < file.header().len() && offset > at - 64);
    let mut bytes = file.bytes();
    bytes[offset..offset + 8].copy_from_slice(&0u64.to_le_bytes());
    assert_says(&refusal(&bytes), &["tensor \"a\"", "begins at byte 0"]);
    let mut gap = file.bytes();
    gap.extend([0; 64]);
    gap[offset..offset + 8].copy_from_slice(&64u64.to_le_bytes());
    assert_says(&refusal(&gap), &["tensor \"a\"", "[4] of f32 needs 16 bytes", "there are 64"]);
    let mut behind = file.bytes();
    behind.extend([0; 64]);
    assert_says(&refusal(&behind), &["tensor \"b\"", "needs 16 bytes", "there are 96"]);
    let cut = keys("x", &[]).tensor("w", &[96], 41, &[0; 32]);
    assert_says(&refusal(&cut.bytes()), &["tensor \"w\"", "[96]", "whole blocks of Q1_0", "128 elements"]);
    let rows = keys("x", &[]).tensor("w", &[64, 2], 41, &[0; 18]);
    assert_says(&refusal(&rows.bytes()), &["[2, 64]", "whole blocks of Q1_0"]);
}

#[test]
fn a_type_that_is_not_read_stops_no_other_tensor() {
    let floats: Vec<u8> = [1.0f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    let named = [(3, "Q4_1"), (7777, "unknown"), (38, "TL1"), (39, "TL2"), (40, "NVFP4"), (37, "I8_S")];
    for (id, name) in named {
        let file = keys("x", &[]).tensor("output_norm.weight", &[2], 0, &floats);
        let file = file.tensor("blk.0.attn_q.weight", &[32], id, &[0; 70]).tensor("output.weight", &[2], 0, &floats);
        let checkpoint = open(&file);
        assert_eq!(checkpoint.read_f32("lm_head.weight", 0..2).unwrap(), [1.0, 2.0]);
        let error = checkpoint.read_f32("model.layers.0.self_attn.q_proj.weight", 0..32).unwrap_err().to_string();
        assert_says(&error, &["q_proj.weight", &format!("type {id} ({name}"), "96 bytes", "not read"]);
        assert_eq!(error.contains("kernel") || error.contains("block layouts"), (38..=40).contains(&id), "{error}");
    }
    let last = open(&keys("x", &[]).tensor("w", &[32], 38, &[0; 70]));
    assert_says(&last.unreadable()["w"], &["96 bytes", "depends on a kernel"]);
}

#[test]
fn a_file_of_123_tensors_is_known_by_its_first_bytes() {
    let file = (0..123).fold(keys("x", &[]), |file, i| file.tensor(&format!("t{i}"), &[1], 0, &[0; 4]));
    assert_eq!(file.bytes()[8], b'{');
    assert_eq!(open(&file).tensors().count(), 123);
}

#[test]
fn shards_are_one_checkpoint() {
    let shard = |i: u16, count: u16, tensors: i32, name: &str, x: f32| {
        let split = [("split.no", value::u16(i)), ("split.count", value::u16(count))];
        let total = ("split.tensors.count", value::i32(tensors));
        keys("x", &[&split[..], &[total]].concat()).tensor(name, &[1], 0, &x.to_le_bytes()).bytes()
    };
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).unwrap();
    put("m-00001-of-00003.gguf", shard(0, 3, 3, "a", 1.0));
    put("m-00002-of-00003.gguf", shard(1, 3, 3, "b", 2.0));
    let says = |path: PathBuf, parts: &[&str]| assert_says(&Checkpoint::open(path).unwrap_err().to_string(), parts);
    says(dir.path().to_owned(), &["m-00003-of-00003.gguf", "is missing", "needs it"]);
    put("m-00003-of-00003.gguf", shard(2, 3, 3, "c", 3.0));
    let all = Checkpoint::open(dir.path()).unwrap();
    let read = |name: &str| all.read_f32(name, 0..1).unwrap()[0];
    assert_eq!(["a", "b", "c"].map(read), [1.0, 2.0, 3.0]);
    says(dir.path().join("m-00002-of-00003.gguf"), &["split.no", "is 1, expected 0", "the first of the files"]);
    put("m-00003-of-00003.gguf", shard(2, 3, 3, "b", 3.0));
    says(dir.path().to_owned(), &["\"b\"", "twice"]);
    put("m-00003-of-00003.gguf", shard(1, 3, 3, "c", 3.0));
    says(dir.path().to_owned(), &["m-00003", "split.no", "is 1, expected 2"]);
    put("m-00003-of-00003.gguf", shard(2, 3, 3, "c", 3.0));
    put("m-00001-of-00003.gguf", shard(0, 3, 4, "a", 1.0));
    says(dir.path().to_owned(), &["split.tensors.count", "is 4", "3 tensors"]);
    put("m-00001-of-00003.gguf", shard(0, 2000, 4, "a", 1.0));
    says(dir.path().to_owned(), &["split.count", "2000"]);
    put("other.gguf", shard(0, 2, 2, "a", 1.0));
    says(dir.path().join("other.gguf"), &["first of 2 files", "-00001-of-00002.gguf"]);
    assert_says(&refusal(&shard(0, 2, 2, "a", 1.0)), &["first of several files"]);
}

#[test]
fn configurations_have_the_keys_of_hugging_face() {
    let qwen = json!({
        "model_type": "qwen3", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6,
        "max_position_embeddings": 512, "vocab_size": 480, "tie_word_embeddings": true, "hidden_act": "silu",
        "attention_bias": false, "mlp_bias": false, "rope_interleave": false,
        "rope_scaling": {
            "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 32.0,
            "beta_slow": 1.0, "extrapolation_factor": 1.0, "attention_factor": 1.0 + 0.1 * 4.0f64.ln(),
        },
    });
    let mut found = config(tiny("qwen3_q1_0_tied_yarn")).unwrap();
    // The last of them are behind a vocabulary that was learned.
    let mut token = |key: &str| found.as_object_mut().unwrap().remove(key).unwrap().as_u64().unwrap();
    let (bos, eos, pad) = (token("bos_token_id"), token("eos_token_id"), token("pad_token_id"));
    assert_eq!((bos, eos), (pad + 5, pad + 2));
    assert_eq!(found, qwen);
    let llama = config(tiny("llama_q2_0_linear_rope")).unwrap();
    assert_eq!(llama["rope_scaling"], json!({"rope_type": "linear", "factor": 2.5}));
    assert_eq!([&llama["rope_interleave"], &llama["tie_word_embeddings"]], [true, false]);
    assert_eq!(llama["rms_norm_eps"], 1e-5);
    let bitnet = config(tiny("bitnet_b158_i2s_relu2")).unwrap();
    assert_eq!([&bitnet["model_type"], &bitnet["hidden_act"]], ["bitnet", "relu2"]);
    assert_eq!([&bitnet["rope_interleave"], &bitnet["tie_word_embeddings"]], [false, true]);
}

#[test]
fn the_activation_of_a_bitnet_is_never_guessed() {
    let of = |architecture: &str, vocab: u32, more: &[(&str, Vec<u8>)]| {
        let vocab_key = format!("{architecture}.vocab_size");
        let all = [&[(vocab_key.as_str(), value::u32(vocab))], more].concat();
        config(memory(&keys(architecture, &all).bytes())).unwrap()["hidden_act"].clone()
    };
    assert_eq!(of("bitnet-b1.58", 480, &[]), "relu2");
    assert_eq!(of("bitnet-25", 128_256, &[]), "relu2");
    assert_eq!(of("bitnet", 128_256, &[]), "relu2");
    assert_eq!(of("bitnet", 32_002, &[]), "silu");
    assert_eq!(of("bitnet", 480, &[]), Value::Null);
    assert_eq!(of("bitnet", 480, &[("bitnet.hidden_activation", value::text("silu"))]), "silu");
    assert_eq!(of("llama", 480, &[]), "silu");
    let told = inspect(tiny("bitnet_tq2_0_scale_tensors"), Precision::F16, Progress::ignore).unwrap();
    assert!(told.problems.iter().any(|problem| problem.contains("SiLU or squared ReLU")), "{:?}", told.problems);
    let options = InspectOptions { hidden_act: Some(HiddenAct::SiLu), ..Precision::F16.into() };
    let told = inspect(tiny("bitnet_tq2_0_scale_tensors"), options, Progress::ignore).unwrap();
    assert!(told.problems.is_empty() && !told.components.is_empty(), "{:?}", told.problems);
}

#[test]
fn defaults_are_those_of_the_format() {
    let of = |more: &[(&str, Vec<u8>)]| {
        let sizes = [("llama.embedding_length", value::u32(2560)), ("llama.attention.head_count", value::u32(20))];
        config(memory(&keys("llama", &[&sizes, more].concat()).bytes()))
    };
    let plain = of(&[]).unwrap();
    assert_eq!((&plain["head_dim"], &plain["num_key_value_heads"]), (&json!(128), &json!(20)));
    assert_eq!((&plain["rope_theta"], plain.get("rope_scaling")), (&json!(10_000.0), None));
    assert_eq!((plain.get("partial_rotary_factor"), plain.get("vocab_size")), (None, None));
    let layers = value::array(&[value::u32(5), value::u32(5)]);
    let each = value::array(&[value::u32(5), value::u32(10)]);
    let key = "llama.attention.head_count_kv";
    assert_eq!(of(&[(key, layers)]).unwrap()["num_key_value_heads"], 5);
    assert_eq!(of(&[(key, each)]).unwrap()["num_key_value_heads"], json!([5, 10]));
    assert_eq!(of(&[("llama.rope.dimension_count", value::u32(64))]).unwrap()["partial_rotary_factor"], 0.5);
    let scaling = |more: &[(&str, Vec<u8>)]| of(more).map(|map| map.get("rope_scaling").cloned());
    let kind = |name: &str| ("llama.rope.scaling.type", value::text(name));
    let factor = |x: f32| ("llama.rope.scaling.factor", value::f32(x));
    let linear = json!({"rope_type": "linear", "factor": 2.0});
    assert_eq!(scaling(&[factor(2.0)]).unwrap(), Some(linear.clone()));
    assert_eq!(scaling(&[("llama.rope.scale_linear", value::f32(2.0))]).unwrap(), Some(linear));
    assert_eq!(scaling(&[kind("linear"), factor(1.0)]).unwrap(), None);
    assert_eq!(scaling(&[kind("none"), factor(2.0)]).unwrap(), None);
    let says = |more: &[(&str, Vec<u8>)], parts: &[&str]| assert_says(&of(more).unwrap_err().to_string(), parts);
    says(&[kind("yarn")], &["llama.rope.scaling.type", "no factor"]);
    says(&[kind("yarn"), factor(4.0)], &["llama.rope.scaling.original_context_length", "is missing"]);
    says(&[kind("longrope"), factor(4.0)], &["\"longrope\"", "linear or yarn"]);
    says(&[kind("linear"), factor(f32::NAN)], &["rope.scaling.factor", "NaN"]);
    says(&[("llama.context_length", value::text("x"))], &["m/model.safetensors: \"llama.context_length\"", "\"x\""]);
    assert_says(&config(memory(&GgufFile::new(&[]).bytes())).unwrap_err().to_string(), &["general.architecture"]);
}

#[test]
fn inspect_says_what_each_tensor_becomes_and_what_is_wrong() {
    let found = inspect(tiny("qwen3_q2_0_g128_legacy"), Precision::F16, Progress::ignore).unwrap();
    assert_eq!(found.tensors.len(), 3 + 2 * 11, "no tensor is there under two names");
    let line = |name: &str| found.tensors.iter().find(|t| t.name == name).unwrap();
    let q = line("model.layers.0.self_attn.q_proj.weight");
    assert_eq!((q.stored.as_str(), q.packed.as_str()), ("Q2_0_g128", "2 bits, scales of 128"));
    assert_eq!(q.packed_bytes, 512 * 256 / 4 + 512 * 2 * 2);
    assert!((q.shares.unwrap().iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert_eq!(line("model.norm.weight").packed, "f32");
    assert!(found.family == "Qwen3", "{}", found.family);
    let odd = keys("qwen35", &[])
        .tensor("a", &[32], 2, &[&[0, 0x2c][..], &[0x79; 16]].concat())
        .tensor("b", &[32], 8, &[7; 34])
        .tensor("c", &[256], 14, &(0..210).map(|i| i * 37 % 251).map(|i| i as u8).collect::<Vec<_>>())
        .tensor("d", &[128], 142, &[0xff; 34])
        .tensor("e", &[64], 38, &[0; 64])
        .tensor("f", &[64], 38, &[0; 64]);
    let found = inspect(memory(&odd.bytes()), Precision::F16, Progress::ignore).unwrap();
    let packed: Vec<&str> = found.tensors.iter().map(|t| t.packed.as_str()).collect();
    let want =
        ["2 bits, scales of 32", "2 bits, scales of 32", "int8, scales of 16", "2 bits, scales of 128, codes of +2"];
    assert_eq!(packed, want);
    let said = found.problems.join("\n");
    assert_says(&said, &["\"e\"", "TL1", "and 1 more", "prism.hadamard.*", "noise", "model_type \"qwen35\""]);
    assert!(matches!(found.tensors[0].stored.as_str(), "Q4_0") && StorageDType::F32.block_elements() == 1);
}

#[test]
fn a_broken_scale_is_named_with_its_own_tensor() {
    let block = |scale: [u8; 2]| [&scale[..], &[0x55; 32]].concat();
    let file = keys("qwen3", &[]).tensor("a", &[128, 1], 142, &block([0, 0x2c])).tensor(
        "b",
        &[128, 1],
        142,
        &block([0, 0x7e]),
    );
    let weights = Weights::open(memory(&file.bytes())).unwrap();
    let part = |name: &str| WeightPart { name: name.to_owned(), rows: 0..1, cols: 128 };
    assert!(weights.group_stack(&[part("a")], 128, GroupCodes::Stored).is_ok());
    let error = weights.group_stack(&[part("a"), part("b")], 128, GroupCodes::Stored).unwrap_err().to_string();
    assert_says(&error, &["tensor b", "NaN"]);
}
