//! GGUF files: what is read from them, and what each broken or hostile one gets instead of a panic.

mod support {
    pub mod gguf_files;
}

use std::path::Path;

use ternion::files::{GgufMetadata, GgufValue, ModelFiles};
use ternion::{Error, Result};

use support::gguf_files::{GgufFile, text, value};

/// The keys of a file with these bytes.
fn keys(bytes: &[u8]) -> Result<GgufMetadata> {
    let files: &'static [(&str, &[u8])] = vec![(ModelFiles::CHECKPOINT, &*bytes.to_vec().leak())].leak();
    let found = GgufMetadata::of(&ModelFiles::Memory { name: "m", files })?;
    found.ok_or_else(|| Error::format("m", "is no GGUF file"))
}

fn refusal(bytes: &[u8]) -> String {
    keys(bytes).unwrap_err().to_string()
}

#[track_caller]
fn assert_says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

/// A file with a key of every type and two tensors.
fn small() -> GgufFile {
    let texts = [value::text("a"), value::text("b c"), value::text("")];
    let keys = [
        ("general.architecture", value::text("qwen3")),
        ("a.u8", value::u8(200)),
        ("a.i8", value::i8(-3)),
        ("a.u16", value::u16(60_000)),
        ("a.i16", value::i16(-300)),
        ("a.u32", value::u32(4_000_000_000)),
        ("a.i32", value::i32(7)),
        ("a.f32", value::f32(1e-6)),
        ("a.bool", value::bool(1)),
        ("a.u64", value::u64(u64::MAX)),
        ("a.i64", value::i64(i64::MIN)),
        ("a.f64", value::f64(0.5)),
        ("tokens", value::array(&texts)),
        ("types", value::array(&[value::i32(1), value::i32(3)])),
        ("scores", value::array(&[value::f32(-1.5), value::f32(2.0)])),
        ("flags", value::array(&[value::bool(1), value::bool(0)])),
    ];
    let bytes: Vec<u8> = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0].iter().flat_map(|x| x.to_le_bytes()).collect();
    GgufFile::new(&keys).tensor("x.weight", &[3, 2], 0, &bytes).tensor("y", &[2], 0, &bytes[..8])
}

#[test]
fn keys_of_both_versions_are_read_with_their_types() {
    for version in [2, 3] {
        let keys = keys(&GgufFile { version, ..small() }.bytes()).unwrap();
        assert_eq!(keys.text("general.architecture").unwrap(), Some("qwen3"));
        assert_eq!(keys.integer("a.u8").unwrap(), Some(200));
        assert_eq!(keys.get("a.i8"), Some(GgufValue::Signed(-3)));
        assert_eq!(keys.integer("a.u16").unwrap(), Some(60_000));
        assert_eq!(keys.float("a.i16").unwrap(), Some(-300.0));
        assert_eq!(keys.integer("a.u32").unwrap(), Some(4_000_000_000));
        assert_eq!(keys.integer("a.i32").unwrap(), Some(7));
        assert_eq!(keys.float("a.f32").unwrap().map(|x| x as f32), Some(1e-6));
        assert_eq!(keys.bool("a.bool").unwrap(), Some(true));
        assert_eq!(keys.integer("a.u64").unwrap(), Some(u64::MAX));
        assert_eq!(keys.get("a.i64"), Some(GgufValue::Signed(i64::MIN)));
        assert_eq!(keys.float("a.f64").unwrap(), Some(0.5));
        assert_eq!(keys.texts("tokens").unwrap(), Some(vec!["a", "b c", ""]));
        assert_eq!(keys.integers("types").unwrap(), Some(vec![1, 3]));
        assert_eq!(keys.floats("scores").unwrap(), Some(vec![-1.5, 2.0]));
        assert_eq!(keys.bools("flags").unwrap(), Some(vec![true, false]));
        assert_eq!(keys.text("a.none").unwrap(), None);
        assert_eq!(keys.keys().count(), 16);
    }
}

#[test]
fn a_value_of_another_type_is_named_with_its_key() {
    let keys = keys(&small().bytes()).unwrap();
    let says = |error: Error, parts: &[&str]| assert_says(&error.to_string(), parts);
    says(keys.text("a.u8").unwrap_err(), &["m/model.safetensors", "\"a.u8\"", "200", "a text"]);
    says(keys.integer("a.i8").unwrap_err(), &["\"a.i8\"", "-3", "at least 0"]);
    says(keys.bool("general.architecture").unwrap_err(), &["\"qwen3\"", "truth value"]);
    says(keys.texts("types").unwrap_err(), &["\"types\"", "1 at place 0", "texts"]);
    says(keys.integers("a.u8").unwrap_err(), &["200", "an array of integers"]);
    says(keys.float("scores").unwrap_err(), &["an array of 2 f32", "a number"]);
    let odd = GgufFile::new(&[("t", value::array(&[value::text("a"), value::text(b"\xff")]))]);
    says(self::keys(&odd.bytes()).unwrap().texts("t").unwrap_err(), &["\"t\"", "at place 1", "UTF-8"]);
}

#[test]
fn a_header_cut_at_any_byte_is_said_to_be_cut_short() {
    let (header, whole) = (small().header(), small().bytes());
    for end in 4..header.len() {
        assert_says(&refusal(&whole[..end]), &["m/model.safetensors", "cut short", "fetch it again"]);
    }
    for end in 0..4 {
        assert!(keys(&whole[..end]).is_err(), "{end} bytes");
    }
}

/// Every byte as the beginning of a field of 1, 4 and 8 bytes, with what breaks counts, lengths and sums.
#[test]
fn hostile_numbers_anywhere_never_panic() {
    let whole = small().bytes();
    let mut refused = 0;
    for at in 4..whole.len() {
        for width in [1, 4, 8] {
            for field in [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, 1 << 31] {
                let mut bytes = whole.clone();
                let end = (at + width).min(bytes.len());
                bytes[at..end].copy_from_slice(&field.to_le_bytes()[..end - at]);
                match keys(&bytes) {
                    Ok(keys) => assert!(keys.keys().all(|key| keys.get(key).is_some())),
                    Err(error) => {
                        assert_says(&error.to_string(), &["m/model.safetensors"]);
                        refused += 1;
                    }
                }
            }
        }
    }
    assert!(refused > 1000, "{refused} were refused");
}

#[test]
fn headers_that_are_wrong_are_refused_with_the_place() {
    let with = |at: usize, field: &[u8]| {
        let mut bytes = small().bytes();
        bytes[at..at + field.len()].copy_from_slice(field);
        refusal(&bytes)
    };
    assert_says(&with(4, &1u32.to_le_bytes()), &["version 1", "expected 2 or 3"]);
    assert_says(&with(4, &4u32.to_le_bytes()), &["version 4", "expected 2 or 3"]);
    assert_says(&with(4, &3u32.to_be_bytes()), &["big-endian"]);
    assert_says(&with(8, &u64::MAX.to_le_bytes()), &["byte 8", "number of tensors is 18446744073709551615"]);
    assert_says(&with(8, &100_000u64.to_le_bytes()), &["byte 8", "100000", "too few"]);
    assert_says(&with(16, &(u64::MAX - 1).to_le_bytes()), &["byte 16", "number of keys"]);
    assert_says(&with(24, &0u64.to_le_bytes()), &["byte 24", "a key is empty"]);
    assert_says(&with(24, &70_000u64.to_le_bytes()), &["byte 24", "length of a key is 70000", "65535"]);
    assert_says(&with(32, b"\xff"), &["byte 24", "UTF-8"]);
    assert_says(&with(52, &13u32.to_le_bytes()), &["byte 52", "general.architecture", "is 13"]);
    assert_says(&with(56, &(1u64 << 30).to_le_bytes()), &["byte 56", "1073741824", "too few"]);
}

#[test]
fn keys_and_tensors_that_are_wrong_are_named() {
    let says = |file: GgufFile, parts: &[&str]| assert_says(&refusal(&file.bytes()), parts);
    let key = |value: Vec<u8>| GgufFile::new(&[("k", value)]);
    says(GgufFile::new(&[("k", value::u8(1)), ("k", value::u8(1))]), &["\"k\"", "twice"]);
    says(key(value::bool(2)), &["\"k\"", "2 as a truth value"]);
    says(key(value::array(&[value::array(&[value::u8(1)])])), &["\"k\"", "array of arrays"]);
    for (alignment, shown) in [(value::u32(0), "0"), (value::u32(24), "24"), (value::i32(32), "32"), (text("x"), "")] {
        says(GgufFile::new(&[("general.alignment", [alignment, vec![0; 8]].concat())]), &[shown]);
    }
    let tensor = |name: &str, dims: &[u64]| small().tensor(name, dims, 0, &[0; 4]);
    says(tensor("", &[1]), &["a tensor's name is empty"]);
    says(tensor(&"x".repeat(64), &[1]), &["length of a tensor's name is 64", "63"]);
    says(tensor("y", &[1]), &["tensor \"y\"", "twice"]);
    says(tensor("z", &[1; 5]), &["tensor \"z\"", "5 dimensions", "at most 4"]);
    for dims in [&[0][..], &[3, 0], &[1 << 62, 4], &[u64::MAX], &[1 << 32, 1 << 32]] {
        says(tensor("z", dims), &["tensor \"z\"", "which no tensor has"]);
    }
    let mut odd = small();
    odd.alignment = 8;
    says(odd, &["tensor \"y\"", "byte 24", "no multiple of 32"]);
    let aligned = |alignment: u32| {
        let mut file = GgufFile::new(&[("general.alignment", value::u32(alignment))]);
        file.alignment = alignment as usize;
        file.tensor("a", &[1], 0, &[0; 4]).tensor("b", &[1], 0, &[0; 4])
    };
    for alignment in [1, 8, 64, 4096] {
        assert!(keys(&aligned(alignment).bytes()).is_ok(), "{alignment}");
    }
    says(GgufFile::new(&[("general.alignment", value::u32(1 << 31))]), &["general.alignment", "up to 2097152"]);
    let far = GgufFile::new(&[("general.alignment", value::u32(1 << 21))]);
    assert!(keys(&far.bytes()).is_ok(), "no tensor needs the place");
    says(far.tensor("a", &[1], 0, &[0; 4]), &["cut short"]);
}

#[test]
fn a_directory_with_one_model_has_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let put = |name: &str| std::fs::write(dir.path().join(name), small().bytes()).unwrap();
    let of = |path: &Path| GgufMetadata::of(&path.into());
    let file = |keys: Result<Option<GgufMetadata>>| keys.unwrap().unwrap().file().to_owned();
    put("mmproj-model.gguf");
    assert_says(&of(dir.path()).unwrap_err().to_string(), &["holds no checkpoint", "mmproj-model.gguf"]);
    put("m-00001-of-00002.gguf");
    put("m-00002-of-00002.gguf");
    assert!(file(of(dir.path())).ends_with("m-00001-of-00002.gguf"));
    put("other.gguf");
    assert_says(&of(dir.path()).unwrap_err().to_string(), &["several GGUF files", "m-00001-of", "other.gguf"]);
    assert!(file(of(&dir.path().join("other.gguf"))).ends_with("other.gguf"));
    std::fs::write(dir.path().join("model.safetensors"), b"\x02\0\0\0\0\0\0\0{}").unwrap();
    assert!(of(dir.path()).unwrap().is_none());
}
