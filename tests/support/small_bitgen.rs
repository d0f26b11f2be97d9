//! A small BitGen for the tests of similarity and search: its checkpoint, a tokenizer of words, and drawn pictures.
#![allow(dead_code)] // Each test uses a part.

use std::fs;
use std::path::{Path, PathBuf};

use image::{ImageFormat, RgbImage};
use serde_json::{Map, Value, json};
use ternion::apps::bitgen::{BitGen, BitGenOptions};
use ternion::engine::{DeviceChoice, DeviceOptions, Precision};
use ternion::files::Image;

use crate::support::device::device;
use crate::support::golden::golden_root;

/// Tokens of the golden models.
const VOCAB: usize = 512;

/// A golden model.
pub fn model_dir(variant: &str) -> PathBuf {
    golden_root().join("bitgen_stage1").join(variant)
}

/// Writes a tokenizer that makes token `n` of the word `tn` into a folder.
pub fn write_tokenizer(dir: &Path) -> PathBuf {
    let vocab: Map<String, Value> = (0..VOCAB).map(|id| (format!("t{id}"), id.into())).collect();
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": { "type": "WhitespaceSplit" }, "post_processor": null, "decoder": null,
        "model": { "type": "WordLevel", "vocab": vocab, "unk_token": "t0" },
    });
    let path = dir.join("tokenizer.json");
    fs::write(&path, tokenizer.to_string()).expect("written");
    path
}

/// Opens a golden model in full precision.
pub fn open(variant: &str, choice: DeviceChoice, tokenizer: &Path) -> BitGen {
    let device = DeviceOptions { autotune: false, ..choice.into() };
    let options = BitGenOptions { device, precision: Precision::F32, tokenizer: Some(tokenizer.to_owned()) };
    BitGen::open(model_dir(variant), options).expect("a model")
}

/// The CPU, and the GPU if there is one.
pub fn choices() -> Vec<DeviceChoice> {
    let mut all = vec![DeviceChoice::Cpu];
    all.extend(device().map(|_| DeviceChoice::Gpu));
    all
}

/// A drawn picture; each number gives another.
pub fn drawn(number: usize) -> Image {
    let pixel = |x: u32, y: u32| {
        let n = number as u32 + 1;
        image::Rgb([(x * n * 5) as u8, (y * n * 7 + n * 31) as u8, ((x + 2 * y) * n + 90 * n) as u8])
    };
    let picture = RgbImage::from_fn(40 + number as u32 % 7, 30, pixel);
    Image::from_rgb(picture.width() as usize, picture.height() as usize, picture.into_raw()).expect("a picture")
}

/// A drawn picture as a PNG.
pub fn png(number: usize) -> Vec<u8> {
    let image = drawn(number);
    let picture = RgbImage::from_raw(image.width as u32, image.height as u32, image.rgb).expect("a picture");
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture.write_to(&mut bytes, ImageFormat::Png).expect("encoded");
    bytes.into_inner()
}

/// Writes drawn pictures into a folder, which is made: `p00.png` and so on.
pub fn draw(dir: &Path, numbers: impl IntoIterator<Item = usize>) {
    fs::create_dir_all(dir).expect("made");
    for number in numbers {
        fs::write(dir.join(format!("p{number:02}.png")), png(number)).expect("written");
    }
}
