//! Checkpoints of every form, and what each broken, hostile or foreign file gets instead of a panic.

mod support {
    pub mod torch_files;
}

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
#[cfg(unix)]
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use ternion::Error;
use ternion::files::{Checkpoint, StorageDType};
use zip::CompressionMethod::Deflated;
use zip::write::SimpleFileOptions;

use support::torch_files::pickled::*;
use support::torch_files::{six, six_floats, stored, torch_file, without_sums, zip_of};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embernet").join(name)
}

/// Writes `bytes` as file `name` of `dir`.
fn put(dir: &Path, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, bytes).unwrap();
    path
}

fn write_at(file: &mut fs::File, bytes: &[u8], at: usize) {
    file.seek(SeekFrom::Start(at as u64)).unwrap();
    file.write_all(bytes).unwrap();
}

/// What opening `bytes` as a file says.
fn refusal(bytes: impl AsRef<[u8]>) -> Error {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "model.file", bytes);
    let error = Checkpoint::open(&path).unwrap_err();
    if !matches!(error, Error::Limit { .. }) {
        assert!(error.to_string().contains("model.file"), "the file is not named: {error}");
    }
    error
}

#[track_caller]
fn assert_says(error: Error, parts: &[&str]) {
    let text = error.to_string();
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

fn read_all(checkpoint: &Checkpoint, name: &str) -> Vec<f32> {
    checkpoint.read_f32(name, 0..checkpoint.get(name).unwrap().elements()).unwrap()
}

fn open_bytes(bytes: Vec<u8>) -> Checkpoint {
    // The map keeps the content after the directory is gone.
    let dir = tempfile::tempdir().unwrap();
    Checkpoint::open(put(dir.path(), "m", bytes)).unwrap()
}

#[test]
fn every_form_of_a_checkpoint_holds_the_same_tensors() {
    let reference = Checkpoint::open(golden("oddgrid/model.safetensors")).unwrap();
    assert!(reference.tensors().count() > 100);
    for form in ["pytorch_model.bin", "final_model.pt", "save_pretrained_format", "save_pretrained_format/model.pt"] {
        let checkpoint = Checkpoint::open(golden("oddgrid").join(form)).unwrap();
        assert_eq!(
            read_all(&checkpoint, "decoder.lm_head.weight"),
            read_all(&reference, "decoder.embed_tokens.weight")
        );
        let tied = checkpoint.tensors().filter(|tensor| tensor.name == "decoder.lm_head.weight");
        assert_eq!(tied.count(), 1, "tied tensors are listed under both names");
        assert_eq!(checkpoint.tensors().count(), reference.tensors().count() + 1, "{form}");
        for tensor in reference.tensors() {
            assert_eq!(checkpoint.get(&tensor.name), Some(tensor), "{form}");
            assert_eq!(checkpoint.bytes(&tensor.name).unwrap(), reference.bytes(&tensor.name).unwrap(), "{form}");
        }
    }
}

#[test]
fn tensors_are_listed_by_name_and_survive_release() {
    let checkpoint = Checkpoint::open(golden("tiny")).unwrap();
    assert!(checkpoint.path().ends_with("model.safetensors"));
    assert!(checkpoint.tensors().is_sorted_by_key(|tensor| &tensor.name));
    let name = "decoder.embed_tokens.weight";
    let before = read_all(&checkpoint, name);
    checkpoint.release(name);
    checkpoint.release("no such tensor");
    assert_eq!(read_all(&checkpoint, name), before);
    assert_eq!(checkpoint.read_f32(name, 3..7).unwrap(), before[3..7]);
}

#[test]
fn things_that_are_no_checkpoint_are_told_apart() {
    assert_says(refusal(""), &["empty"]);
    assert_says(refusal("1234567"), &["not a model file", "7 bytes"]);
    assert_says(refusal("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"), &["git lfs pull"]);
    assert_says(refusal("<!DOCTYPE html>\n<html>404</html>"), &["HTML"]);
    assert_says(refusal("Just some text, long enough."), &["not a model file"]);
    assert_says(refusal("{\"architectures\": []}"), &["not a model file"]);
    assert_says(refusal(vec![0; 100]), &["not a model file"]);
    assert_says(
        refusal(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03."),
        &["not supported", "torch.save"],
    );
    let mut tar = b"pickle\0".to_vec();
    tar.resize(257, 0);
    tar.extend_from_slice(b"ustar\x0000");
    assert_says(refusal(tar), &["not supported", "tar"]);
    assert_says(refusal([&100_000_001u64.to_le_bytes()[..], b"{\"a\":"].concat()), &["100000001", "100000000"]);
    assert_says(refusal([&u64::MAX.to_le_bytes()[..], b"{\"a\":"].concat()), &["18446744073709551615"]);
}

#[test]
fn a_directory_without_a_checkpoint_lists_what_was_looked_for() {
    let dir = tempfile::tempdir().unwrap();
    let error = Checkpoint::open(dir.path()).unwrap_err();
    let safetensors = "model.safetensors, model.safetensors.index.json";
    assert_says(error, &[safetensors, "pytorch_model.bin, pytorch_model.bin.index.json, model.pt, final_model.pt"]);
    put(dir.path(), "model.onnx", "x");
    put(dir.path(), "config.json", "x");
    assert_says(Checkpoint::open(dir.path()).unwrap_err(), &["what is there: model.onnx"]);
    assert!(matches!(Checkpoint::open(dir.path().join("none")), Err(Error::Io { .. })));
}

/// Shortens the file at `path` to each of `lengths`, which descend, and opens it.
fn assert_cuts_fail(path: &Path, lengths: impl Iterator<Item = u64>) {
    let file = OpenOptions::new().write(true).open(path).unwrap();
    for length in lengths {
        file.set_len(length).unwrap();
        assert!(Checkpoint::open(path).is_err(), "cut to {length} bytes");
    }
}

#[test]
fn a_safetensors_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden("oddgrid/model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap());
    let path = put(dir.path(), "model.safetensors", &bytes);
    let data_cuts = (header..bytes.len() as u64).rev().step_by(1009);
    assert_cuts_fail(&path, data_cuts.chain((0..=header).rev()));
    let need = bytes.len() as u64 - header;
    let cut = refusal(&bytes[..bytes.len() - 1]);
    assert_says(cut, &["cut short", &need.to_string(), &(need - 1).to_string()]);
}

#[test]
fn a_torch_file_cut_anywhere_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = fs::read(golden("oddgrid/pytorch_model.bin")).unwrap();
    let length = bytes.len() as u64;
    let path = put(dir.path(), "pytorch_model.bin", &bytes);
    let near_the_end = (length - 2000..length).rev();
    assert_cuts_fail(&path, near_the_end.chain((300..length - 2000).rev().step_by(257)).chain((0..300).rev()));
}

/// Flips bytes of a file in `places`, one to three a time, and reads what can still be opened.
fn fuzz(bytes: &[u8], places: &[std::ops::Range<usize>], cases: usize) {
    let dir = tempfile::tempdir().unwrap();
    let path = put(dir.path(), "fuzzed", bytes);
    let mut file = OpenOptions::new().write(true).open(&path).unwrap();
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 16) as usize % below
    };
    let mut opened = 0;
    for _ in 0..cases {
        let flips: Vec<usize> = (0..1 + random(3))
            .map(|_| {
                let place = &places[random(places.len())];
                place.start + random(place.len())
            })
            .collect();
        for &at in &flips {
            write_at(&mut file, &[bytes[at] ^ (1 + random(255) as u8)], at);
        }
        if let Ok(checkpoint) = Checkpoint::open(&path) {
            opened += 1;
            for tensor in checkpoint.tensors() {
                let end = tensor.elements();
                let _ = checkpoint.read_f32(&tensor.name, end.saturating_sub(3)..end);
            }
        }
        for &at in &flips {
            write_at(&mut file, &bytes[at..at + 1], at);
        }
    }
    assert!(opened < cases, "some flips are noticed");
}

#[test]
fn flipped_bytes_of_a_safetensors_header_never_panic() {
    let bytes = fs::read(golden("oddgrid/model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    fuzz(&bytes, &[0..header, 0..16], 2000);
}

#[test]
fn flipped_bytes_of_a_torch_pickle_and_zip_directory_never_panic() {
    let bytes = without_sums(fs::read(golden("oddgrid/pytorch_model.bin")).unwrap());
    let length = bytes.len();
    fuzz(&bytes, &[0..26_700, 60..2_000, length - 12_000..length, length - 22..length], 2000);
}

#[test]
fn a_call_in_a_pickle_is_not_run_and_is_named_where_a_tensor_should_be() {
    let dir = tempfile::tempdir().unwrap();
    let proof = dir.path().join("ran");
    let system = call("os", "system", &[text(&format!("touch {}", proof.display()))]);
    let good = tensor(six_floats(), 0, &[6], &[1]);
    let as_tensor = dict(&[("good", good.clone()), ("evil", system.clone())]);
    let checkpoint = open_bytes(torch_file(as_tensor));
    assert_eq!(read_all(&checkpoint, "good").len(), 6, "an object in a tensor's place stops only who reads it");
    assert_says(checkpoint.read_f32("evil", 0..1).unwrap_err(), &["\"evil\"", "os.system", "not run"]);
    assert_says(refusal(torch_file(dict(&[("model", dict(&[("evil", system.clone())]))]))), &["\"evil\"", "os.system"]);
    assert_says(refusal(torch_file(system.clone())), &["os.system"]);
    let as_storage = tensor(system.clone(), 0, &[6], &[1]);
    let checkpoint = open_bytes(torch_file(dict(&[("good", good.clone()), ("w", as_storage)])));
    assert_says(checkpoint.bytes("w").unwrap_err(), &["\"w\"", "os.system"]);
    let aside = dict(&[("model_state_dict", dict(&[("w", good)])), ("config", system)]);
    assert_eq!(open_bytes(torch_file(aside)).tensors().count(), 1, "an object beside the tensors is no matter");
    assert!(!proof.exists(), "nothing is run");
}

#[test]
fn broken_tensors_of_a_torch_file_are_named() {
    let with = |tensor: Vec<u8>| refusal(torch_file(dict(&[("layer.w", tensor)])));
    let f32s = six_floats;
    assert_says(with(tensor(f32s(), 0, &[-1], &[1])), &["\"layer.w\"", "-1"]);
    assert_says(with(tensor(f32s(), 0, &[6], &[-1])), &["\"layer.w\"", "strides", "-1"]);
    assert_says(with(tensor(f32s(), -2, &[1], &[1])), &["\"layer.w\"", "offset is -2"]);
    assert_says(with(tensor(f32s(), 0, &[1; 9], &[1; 9])), &["\"layer.w\"", "9 dimensions"]);
    assert_says(with(tensor(f32s(), 0, &[i64::MAX, 4], &[1, 1])), &["\"layer.w\"", "overflows"]);
    assert_says(with(tensor(f32s(), i64::MAX, &[2], &[i64::MAX])), &["\"layer.w\""]);
    assert_says(with(tensor(f32s(), 1, &[2, 3], &[3, 1])), &["\"layer.w\"", "needs 7", "has 6"]);
    assert_says(with(tensor(f32s(), 0, &[1 << 40], &[0])), &["\"layer.w\"", "1099511627776 elements"]);
    assert_says(with(tensor(storage("FloatStorage", "7", 6), 0, &[6], &[1])), &["\"layer.w\"", "data/7 is missing"]);
    assert_says(with(tensor(storage("FloatStorage", "../../0", 6), 0, &[6], &[1])), &["missing"]);
    assert_says(with(tensor(storage("FloatStorage", "0", 7), 0, &[6], &[1])), &["needs 28 bytes", "has 24"]);
    assert_says(with(tensor(storage("FloatStorage", "0", -6), 0, &[6], &[1])), &["\"layer.w\"", "-6 elements"]);
    assert_says(with(tensor(storage("QInt8Storage", "0", 6), 0, &[6], &[1])), &["\"layer.w\"", "torch.QInt8Storage"]);
    let tensor_twice = tensor(f32s(), 0, &[6], &[1]);
    let twice = dict(&[("w", tensor_twice.clone()), ("w", tensor_twice)]);
    assert_says(refusal(torch_file(twice)), &["\"w\"", "twice"]);
}

#[test]
fn a_torch_file_without_tensors_lists_its_keys() {
    let error = refusal(torch_file(dict(&[("epoch", int(3)), ("model", dict(&[])), ("hook", call("a", "b", &[]))])));
    assert_says(error, &["no tensors", "\"epoch\" (the int 3)", "\"model\" (a dict)", "\"hook\" (an object of a.b)"]);
    assert_says(refusal(torch_file(int(3))), &["the int 3", "state_dict()"]);
}

#[test]
fn a_broken_pickle_is_named_with_its_offset() {
    let unknown = zip_of(stored(), &[("m/data.pkl", b"\x80\x02}i.")]);
    assert_says(refusal(unknown), &["m/data.pkl at byte 3", "0x69"]);
    let huge_int = [&b"\x8a\xff"[..], &[1; 255]].concat();
    assert_says(refusal(torch_file(dict(&[("w", huge_int)]))), &["no tensors", "more than 64 bits"]);
    assert_says(refusal(zip_of(stored(), &[("m/data", b"")])), &["0 data.pkl"]);
    assert_says(refusal(zip_of(stored(), &[("a/data.pkl", b"}."), ("b/data.pkl", b"}.")])), &["2 data.pkl"]);
    let big_endian = zip_of(stored(), &[("m/data.pkl", b"}."), ("m/byteorder", b"big")]);
    assert_says(refusal(big_endian), &["not supported", "little-endian"]);
}

#[test]
fn a_tensor_over_an_untyped_storage_has_its_own_format() {
    let (no, none) = (b"\x89".to_vec(), b"N".to_vec());
    let untyped = storage("UntypedStorage", "0", 24);
    let args = [untyped, int(4), ints(&[2]), ints(&[1]), no, none, global("torch", "uint32")];
    let checkpoint = open_bytes(torch_file(dict(&[("w", call("torch._utils", "_rebuild_tensor_v3", &args))])));
    assert_eq!(*checkpoint.read_words("w").unwrap(), [4f32.to_bits(), 5f32.to_bits()]);
}

#[test]
fn views_parameters_and_wrapped_names_of_torch_files_are_read() {
    let transposed = tensor(six_floats(), 0, &[3, 2], &[1, 3]);
    let parameter =
        call("torch._utils", "_rebuild_parameter", &[tensor(six_floats(), 4, &[2], &[1]), b"\x88".to_vec()]);
    let scalar = tensor(six_floats(), 5, &[], &[]);
    let empty = tensor(six_floats(), 0, &[0, 4], &[4, 1]);
    let pairs = [("module.t", transposed), ("module.p", parameter), ("module.s", scalar), ("module.e", empty)];
    let value = dict(&[("state_dict", dict(&pairs))]);
    for bytes in [torch_file(value.clone()), zip_of(stored(), &[("data.pkl", &pickle(5, value)), ("data/0", &six())])] {
        let checkpoint = open_bytes(bytes);
        let names: Vec<&str> = checkpoint.tensors().map(|tensor| tensor.name.as_str()).collect();
        assert_eq!(names, ["e", "p", "s", "t"]);
        assert_eq!(read_all(&checkpoint, "t"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        assert_eq!(checkpoint.read_f32("t", 1..3).unwrap(), [3.0, 1.0]);
        assert_eq!(read_all(&checkpoint, "p"), [4.0, 5.0]);
        assert_eq!(read_all(&checkpoint, "s"), [5.0]);
        assert!(read_all(&checkpoint, "e").is_empty());
    }
}

/// A file of one tensor under hostile but harmless entry names.
fn one_tensor(options: SimpleFileOptions) -> Vec<u8> {
    let value = pickle(2, dict(&[("w", tensor(six_floats(), 0, &[6], &[1]))]));
    let prefix = "../../tmp/";
    let names = [format!("{prefix}data.pkl"), format!("{prefix}data/0"), "/etc/data/1".to_string()];
    zip_of(options, &[(&names[0], &value), (&names[1], &six()), (&names[2], b"x")])
}

#[test]
fn stored_deflated_and_large_archives_read_alike_whatever_their_names() {
    for options in [stored(), stored().large_file(true), stored().compression_method(Deflated)] {
        assert_eq!(read_all(&open_bytes(one_tensor(options)), "w"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    }
}

#[test]
fn an_archive_that_lies_about_sizes_is_refused() {
    let directory = |bytes: &[u8], name: &[u8]| {
        let names = bytes.windows(name.len()).rposition(|window| window == name).unwrap();
        names - 46
    };
    let lie = |options, size: u32| {
        let mut bytes = one_tensor(options);
        let at = directory(&bytes, b"../../tmp/data/0") + 24;
        bytes[at..at + 4].copy_from_slice(&size.to_le_bytes());
        refusal(bytes)
    };
    let deflated = stored().compression_method(Deflated);
    assert!(matches!(lie(deflated, 3 << 30), Error::Limit { .. }), "a bomb is refused unread");
    assert_says(lie(deflated, 23), &["data/0", "23"]);
    assert_says(lie(deflated, 25), &["data/0", "25"]);
    assert_says(lie(stored(), 1 << 20), &["data/0"]);
}

fn safetensors_file(tensors: &[(&str, safetensors::Dtype, &[usize], &[u8])]) -> Vec<u8> {
    let views = tensors.iter().map(|&(name, dtype, shape, bytes)| {
        (name, safetensors::tensor::TensorView::new(dtype, shape.to_vec(), bytes).unwrap())
    });
    let metadata = [("format".to_string(), "pt".to_string())].into();
    safetensors::serialize(views, Some(metadata)).unwrap()
}

#[test]
fn a_tensor_of_another_format_or_range_is_named() {
    use safetensors::Dtype;
    let words: Vec<u8> = [1u32, 0xffff_fffe].iter().flat_map(|word| word.to_le_bytes()).collect();
    let checkpoint = open_bytes(safetensors_file(&[
        ("ids", Dtype::I64, &[1], &[0; 8]),
        ("words", Dtype::U32, &[2], &words),
        ("half", Dtype::BF16, &[2], &[0x80, 0x3f, 0, 0xc0]),
    ]));
    assert_eq!(checkpoint.metadata()["format"], "pt");
    assert_eq!(*checkpoint.read_words("words").unwrap(), [1, 0xffff_fffe]);
    assert_eq!(read_all(&checkpoint, "half"), [1.0, -2.0]);
    assert_eq!(checkpoint.get("ids").unwrap().stored, StorageDType::I64);
    assert_says(checkpoint.read_f32("ids", 0..1).unwrap_err(), &["\"ids\" of i64", "f64, f32, f16 or bf16"]);
    assert_says(checkpoint.read_words("half").unwrap_err(), &["\"half\" of bf16", "u32"]);
    assert_says(checkpoint.read_f32("half", 1..3).unwrap_err(), &["\"half\"", "1..3", "2 elements"]);
    assert_says(checkpoint.read_f32("gone", 0..1).unwrap_err(), &["gone", "missing"]);
    assert!(checkpoint.get("gone").is_none());
}

/// A directory with two shards, and an index that says `weight_map`.
fn sharded(weight_map: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "one.safetensors", safetensors_file(&[("a", safetensors::Dtype::U8, &[2], &[1, 2])]));
    put(dir.path(), "two.safetensors", safetensors_file(&[("b", safetensors::Dtype::U8, &[1], &[3])]));
    put(dir.path(), "model.safetensors.index.json", format!("{{\"metadata\":{{}},\"weight_map\":{weight_map}}}"));
    dir
}

#[test]
fn shards_are_read_as_one_checkpoint() {
    let dir = sharded(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    assert_eq!(*checkpoint.bytes("a").unwrap(), [1, 2]);
    assert_eq!(*checkpoint.bytes("b").unwrap(), [3]);
}

#[test]
fn an_index_that_does_not_fit_its_shards_is_refused() {
    let error = |weight_map: &str| Checkpoint::open(sharded(weight_map).path()).unwrap_err();
    assert_says(error(r#"{"a":"three.safetensors"}"#), &["\"three.safetensors\"", "missing", "\"a\""]);
    assert_says(error(r#"{"a":"one.safetensors","z":"one.safetensors"}"#), &["one.safetensors", "missing: z"]);
    assert_says(error(r#"{"a":"one.safetensors","a":"one.safetensors"}"#), &["\"a\"", "twice"]);
    for outside in ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "..", ".", "", "a\\\\b", "C:x"] {
        assert_says(error(&format!(r#"{{"a":"{outside}"}}"#)), &["plain file name"]);
    }
    assert_says(error("[1]"), &["index.json", "line 1"]);
    assert_says(error(r#"{"b":"model.safetensors.index.json"}"#), &["not a model file"]);
}

#[cfg(unix)]
#[test]
fn a_shard_may_be_a_link_that_leads_anywhere() {
    let dir = sharded(r#"{"a":"one.safetensors","b":"link.safetensors"}"#);
    symlink("two.safetensors", dir.path().join("link.safetensors")).unwrap();
    assert!(Checkpoint::open(dir.path()).is_ok());
    // A download cache: everything in one folder is a link into another.
    let cache = tempfile::tempdir().unwrap();
    for name in ["one.safetensors", "link.safetensors", "model.safetensors.index.json"] {
        symlink(dir.path().join(name), cache.path().join(name)).unwrap();
    }
    assert!(Checkpoint::open(cache.path()).is_ok());
    let other = tempfile::tempdir().unwrap();
    let away = other.path().join("two.safetensors");
    fs::rename(dir.path().join("two.safetensors"), &away).unwrap();
    fs::remove_file(dir.path().join("link.safetensors")).unwrap();
    symlink(&away, dir.path().join("link.safetensors")).unwrap();
    assert_eq!(*Checkpoint::open(dir.path()).unwrap().bytes("b").unwrap(), [3]);
    fs::remove_file(away).unwrap();
    assert_says(Checkpoint::open(dir.path()).unwrap_err(), &["\"link.safetensors\"", "missing"]);
}

/// The resident part of the map of `path`, in KiB.
#[cfg(target_os = "linux")]
fn resident(path: &Path) -> Option<u64> {
    let maps = fs::read_to_string("/proc/self/smaps").ok()?;
    let (_, after) = maps.split_once(path.to_str()?)?;
    after.lines().find_map(|line| line.strip_prefix("Rss:"))?.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(target_os = "linux")]
#[test]
fn opening_a_large_file_leaves_its_tensors_on_disk_and_release_drops_them() {
    let dir = tempfile::tempdir().unwrap();
    let elements = 850 << 20;
    let header = format!(r#"{{"w":{{"dtype":"F32","shape":[{elements}],"data_offsets":[0,{}]}}}}"#, elements * 4);
    let path = dir.path().join("model.safetensors");
    let mut file = fs::File::create(&path).unwrap();
    write_at(&mut file, &[&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat(), 0);
    file.set_len((8 + header.len() + elements * 4) as u64).unwrap();
    let checkpoint = Checkpoint::open(&path).unwrap();
    let Some(opened) = resident(&path) else { return };
    assert!(opened < 1024, "{opened} KiB are resident after opening");
    assert_eq!(checkpoint.read_f32("w", elements - (4 << 20)..elements).unwrap(), vec![0.0; 4 << 20]);
    assert!(resident(&path).unwrap() >= 16 << 10);
    checkpoint.release("w");
    assert!(resident(&path).unwrap() < 1024);
}
