//! What happens on the CPU before and after the model: pictures, text and sampling, against the original's own data,
//! and files that are broken.
//!
//! The goldens lie under tests/golden, or where the variable TERNION_GOLDENS points.

use std::path::{Path, PathBuf};

use safetensors::SafeTensors;
use ternion::Error;
use ternion::engine::sampler::Sampling;
use ternion::files::{DecodeStream, Image, Tokenizer};

/// The most a resized byte may differ from Pillow's, and the largest share of bytes that may differ at all.
const RESIZE_LEVELS: u8 = 1;
const RESIZE_SHARE: f64 = 0.015;

fn committed() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join("golden")
}

/// Every folder at most three levels below the goldens' root that has a file `name`.
fn variants(name: &str) -> Vec<PathBuf> {
    let root = std::env::var_os("TERNION_GOLDENS").map_or_else(committed, PathBuf::from);
    let mut level = vec![root.clone()];
    let mut found = Vec::new();
    for _ in 0..4 {
        let mut below = Vec::new();
        for dir in level.into_iter().filter(|dir| dir.is_dir()) {
            below.extend(std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()));
            if dir.join(name).is_file() {
                found.push(dir);
            }
        }
        level = below;
    }
    assert!(!found.is_empty(), "no folder with {name} below {}", root.display());
    found.sort();
    found
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let data = tensors.tensor(name).unwrap();
    assert_eq!(data.dtype(), safetensors::Dtype::F32, "{name}");
    data.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
}

/// The picture stored as a tensor `[height, width, 3]`.
fn picture(tensors: &SafeTensors, name: &str) -> Image {
    let data = tensors.tensor(name).unwrap();
    Image::from_rgb(data.shape()[1], data.shape()[0], data.data().to_vec()).unwrap()
}

/// Units in the last place between two floats of one sign.
fn ulps(a: f32, b: f32) -> u32 {
    if a == b { 0 } else { a.to_bits().abs_diff(b.to_bits()) }
}

/// Runs `check` on every picture of every variant: the folder, the tensors, and the picture's name.
fn each_picture(mut check: impl FnMut(&Path, &SafeTensors, &str)) {
    for dir in variants("golden_preprocess.safetensors") {
        let bytes = std::fs::read(dir.join("golden_preprocess.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let mut names: Vec<&str> = tensors.names().into_iter().filter_map(|n| n.strip_suffix(".rgb_u8")).collect();
        names.sort();
        assert!(!names.is_empty(), "{}", dir.display());
        names.into_iter().for_each(|name| check(&dir, &tensors, name));
    }
}

#[test]
fn embernet_pictures_decode_to_the_original_bytes() {
    each_picture(|dir, tensors, name| {
        let image = Image::open(dir.join(format!("image_{name}.png"))).unwrap();
        assert!(image == picture(tensors, &format!("{name}.rgb_u8")), "{} {name}", dir.display());
    });
}

#[test]
fn embernet_resize_is_that_of_pillow() {
    each_picture(|dir, tensors, name| {
        let golden = picture(tensors, &format!("{name}.resized_u8"));
        assert_eq!(golden.width, golden.height);
        let ours = picture(tensors, &format!("{name}.rgb_u8")).resized(golden.width).unwrap();
        assert_eq!(ours.rgb.len(), golden.rgb.len());
        let differences: Vec<u8> = ours.rgb.iter().zip(&golden.rgb).map(|(a, b)| a.abs_diff(*b)).collect();
        let max = differences.iter().copied().max().unwrap();
        let share = differences.iter().filter(|&&d| d > 0).count() as f64 / differences.len() as f64;
        let label = dir.file_name().unwrap().to_string_lossy();
        println!("{label} {name} to {}: at most {max} levels, {:.3} % of the bytes", golden.width, share * 100.0);
        assert!(max <= RESIZE_LEVELS && share <= RESIZE_SHARE, "{label} {name}: {max} levels, {share}");
    });
}

#[test]
fn embernet_pixel_values_are_those_of_the_processor() {
    let mut checked = 0;
    each_picture(|dir, tensors, name| {
        let key = format!("{name}.pixel_values");
        if tensors.tensor(&key).is_err() {
            return;
        }
        let ours = picture(tensors, &format!("{name}.resized_u8")).pixel_values([0.5; 3], [0.5; 3]);
        let golden = floats(tensors, &key);
        assert_eq!(ours.len(), golden.len());
        let worst = ours.iter().zip(&golden).map(|(a, b)| ulps(*a, *b)).max().unwrap();
        println!("{} {name}: at most {worst} units in the last place", dir.display());
        assert!(worst <= 1, "{} {name}: {worst}", dir.display());
        checked += 1;
    });
    assert!(checked > 0);
}

#[test]
fn embernet_sampling_probabilities_are_those_of_the_original() {
    for dir in variants("golden_sampling.json") {
        let cases = std::fs::read_to_string(dir.join("golden_sampling.json")).unwrap();
        let cases: Vec<serde_json::Value> = serde_json::from_str(&cases).unwrap();
        let bytes = std::fs::read(dir.join("golden_sampling.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert!(!cases.is_empty());
        for (n, case) in cases.iter().enumerate() {
            let sampling = Sampling {
                temperature: case["temperature"].as_f64().unwrap() as f32,
                top_k: case["top_k_effective"].as_u64().unwrap() as usize,
                top_p: case["top_p"].as_f64().unwrap() as f32,
                ..Sampling::greedy()
            };
            let key = format!("case{n}.logits");
            let vocab = *tensors.tensor(&key).unwrap().shape().last().unwrap();
            let (logits, golden) = (floats(&tensors, &key), floats(&tensors, &format!("case{n}.probs")));
            let rows = logits.chunks(vocab).flat_map(|row| sampling.probabilities(row).unwrap());
            let worst = rows.zip(golden).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            println!("{} case {n}: at most {worst:e}", dir.display());
            assert!(worst <= 1e-6, "case {n}: {worst}");
        }
    }
}

/// A PNG of one chunk, which says that it is `width` x `height` pixels of RGB, and nothing else.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let crc = chunk.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { 0xEDB8_8320 ^ (c >> 1) } else { c >> 1 })
    });
    let mut png = b"\x89PNG\r\n\x1a\n\0\0\0\x0D".to_vec();
    png.extend(chunk);
    png.extend((!crc).to_be_bytes());
    png.extend(b"\0\0\0\0IDAT\x35\xAF\x06\x1E");
    png
}

#[test]
fn embernet_broken_pictures_are_errors_that_name_them() {
    for (width, height) in [(50000, 50000), (20000, 1), (1, 20000), (16384, 16384)] {
        let error = Image::decode("bomb", &png_header(width, height)).unwrap_err();
        assert!(matches!(error, Error::Limit { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("bomb") && text.contains(&format!("{width} x {height}")), "{text}");
    }
    let whole = each_png();
    let inputs: [(&str, &[u8]); 5] = [
        ("empty", b""),
        ("header only", &png_header(8, 8)),
        ("zero wide", &png_header(0, 8)),
        ("half", &whole[..whole.len() / 2]),
        ("magic", &whole[..8]),
    ];
    for (name, bytes) in inputs {
        let error = Image::decode(name, bytes).unwrap_err();
        assert!(matches!(error, Error::Format { .. }) && error.to_string().starts_with(name), "{error}");
    }
    let error = Image::decode("drawing", b"<?xml version=\"1.0\"?><svg width=\"9\"/>").unwrap_err();
    assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains("PNG"), "{error}");
    assert!(matches!(Image::open("no such picture.png"), Err(Error::Io { .. })));
}

/// The bytes of one of the goldens' pictures.
fn each_png() -> Vec<u8> {
    let mut png = Vec::new();
    each_picture(|dir, _, name| png = std::fs::read(dir.join(format!("image_{name}.png"))).unwrap());
    png
}

#[test]
fn embernet_long_pictures_resize() {
    for (width, height) in [(1, 1), (1, 20000), (20000, 1)] {
        let image = Image::from_rgb(width, height, vec![128; 3 * width * height]).unwrap();
        assert_eq!(image.resized(224).unwrap().rgb, vec![128; 3 * 224 * 224]);
    }
}

#[test]
fn embernet_tokenizer_reads_prompts_and_streams_answers() {
    let tokenizer = Tokenizer::open(committed().join("tokenizer.json")).unwrap();
    assert!(tokenizer.check_vocab(512, "").is_ok());
    let text = "User: <image>\nWhat color is the circle?\nAssistant: a caf\u{e9} \u{1F642} in red";
    let ids = tokenizer.encode(text, true).unwrap();
    assert_eq!(ids[0], tokenizer.token_id("<s>").unwrap());
    assert!(ids.contains(&tokenizer.token_id("<image>").unwrap()));
    assert_eq!(tokenizer.decode(&ids[1..], false).unwrap(), text);
    let mut stream = DecodeStream::new(false);
    let mut streamed = String::new();
    for &id in &ids[1..] {
        let piece = stream.push(&tokenizer, id).unwrap();
        assert!(!piece.contains('\u{FFFD}'));
        streamed.push_str(&piece);
    }
    assert_eq!(streamed + &stream.finish(), text);
}

#[test]
fn embernet_broken_tokenizers_are_errors_that_name_them() {
    let tokenizer = Tokenizer::open(committed().join("tokenizer.json")).unwrap();
    let text = tokenizer.check_vocab(511, "use the model's own file").unwrap_err().to_string();
    assert!(text.contains("id 511") && text.contains("only 511") && text.contains("own file"), "{text}");
    let half = tokenizer.json()[..tokenizer.json().len() / 2].to_vec();
    for json in [half, b"not json".to_vec(), b"{\"version\": \"1.0\"}".to_vec(), Vec::new()] {
        let error = Tokenizer::from_bytes("broken.json", json).err().unwrap();
        assert!(matches!(error, Error::Format { .. }) && error.to_string().starts_with("broken.json"), "{error}");
    }
    assert!(matches!(Tokenizer::open("no such folder"), Err(Error::Io { .. })));
}
