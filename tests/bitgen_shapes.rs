//! The trained small BitGen: it finds drawn scenes by text and texts by scene, and says what they show, as it did in
//! PyTorch (`tests/golden/bitgen_shapes`).
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::ops::ControlFlow;
use std::path::PathBuf;

use serde_json::Value;
use support::cli::{succeeds, ternion, text};
use support::device::device;
use support::golden::Golden;
use support::model_stages::rms;
use ternion::Image;
use ternion::apps::bitgen::{BitGen, BitGenOptions, MemoryNoise};
use ternion::engine::{DeviceChoice, DeviceOptions, GenerateOptions, Precision, StopReason};

/// Relative rms of features: no activation is rounded on their way, and PyTorch has computed with the packed numbers.
const EXACT: f64 = 1e-5;
/// Scenes with PyTorch's numbers of every stage, and those that a GPU describes.
const SAMPLES: usize = 4;
const DESCRIBED_ON_A_GPU: usize = 25;
const PROMPT: &str = "describe the image";

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    root().join("examples/shapes/bitgen/model")
}

/// A scene, the phrase that finds it, and what is said of it.
struct Scene {
    image: Image,
    phrase: String,
    shows: String,
    pytorch: String,
}

fn scenes() -> Vec<Scene> {
    let dir = root().join("tests/golden/bitgen_shapes");
    let list = std::fs::read(dir.join("captions.json")).expect("the captions");
    let list: Vec<Value> = serde_json::from_slice(&list).expect("a list");
    let scene = |entry: &Value| {
        let text = |key: &str| entry[key].as_str().unwrap_or_else(|| panic!("no {key}")).to_owned();
        let image = Image::open(dir.join(text("image"))).expect("a picture");
        Scene { image, phrase: text("caption"), shows: text("description"), pytorch: text("pytorch") }
    };
    list.iter().map(scene).collect()
}

/// The model on the CPU, and on a GPU if there is one, as users open it.
fn models() -> Vec<(DeviceChoice, BitGen)> {
    let choices = [DeviceChoice::Cpu].into_iter().chain(device().map(|_| DeviceChoice::Gpu));
    let open = |choice: DeviceChoice| {
        let device = DeviceOptions { autotune: false, ..choice.clone().into() };
        let model = BitGen::open(model(), BitGenOptions { device, ..Default::default() }).expect("it opens");
        (choice, model)
    };
    choices.map(open).collect()
}

/// In how many rows of a square matrix the number on the diagonal is among the `k` largest; equal ones count as larger.
fn recall(matrix: &[Vec<f32>], k: usize) -> usize {
    let rank = |(i, row): (usize, &Vec<f32>)| row.iter().enumerate().filter(|&(j, v)| j != i && *v >= row[i]).count();
    matrix.iter().enumerate().map(rank).filter(|&rank| rank < k).count()
}

#[test]
fn scenes_are_found_by_text_and_texts_by_scene() {
    let (scenes, golden) = (scenes(), Golden::open("bitgen_shapes/golden.safetensors"));
    for (choice, model) in models() {
        let texts: Vec<Vec<u32>> = scenes.iter().map(|s| model.tokens(&s.phrase).expect("tokens")).collect();
        let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
        let images: Vec<Image> = scenes.iter().map(|s| s.image.clone()).collect();
        let (text, image) = (model.text_features(&texts).unwrap(), model.image_features(&images).unwrap());
        let phrases: Vec<&str> = scenes.iter().map(|s| s.phrase.as_str()).collect();
        assert_eq!(model.features_of(&phrases).unwrap(), text, "{choice:?}: texts as they are written");
        for i in 0..SAMPLES {
            let ids: Vec<u32> =
                golden.i32s(&format!("sample{i}.caption_ids")).into_iter().map(|id| id as u32).collect();
            assert_eq!(texts[i], ids, "the tokens of {:?}", scenes[i].phrase);
            for (found, name) in [(&text[i], "text_feature"), (&image[i], "image_feature")] {
                let off = rms(found, &golden.f32s(&format!("sample{i}.{name}")));
                assert!(off < EXACT, "{choice:?}: {name} {i} is off by {off}");
            }
        }
        let cosine = |t: &[f32], i: &[f32]| t.iter().zip(i).map(|(a, b)| a * b).sum::<f32>() / model.temperature();
        let matrix: Vec<Vec<f32>> = text.iter().map(|t| image.iter().map(|i| cosine(t, i)).collect()).collect();
        let off = rms(&matrix.concat(), &golden.f32s("similarity"));
        assert!(off < EXACT, "{choice:?}: similarities are off by {off}");
        let across: Vec<Vec<f32>> = (0..image.len()).map(|i| matrix.iter().map(|row| row[i]).collect()).collect();
        for (what, matrix) in [("text to picture", &matrix), ("picture to text", &across)] {
            let [first, five] = [1, 5].map(|k| recall(matrix, k));
            println!("{choice:?}: {what}: recall@1 {first}, @5 {five} of {}", matrix.len());
            assert!(matrix.len() == 100 && first >= 97 && five >= 99, "{choice:?}: {what}: {first}, {five}");
        }
    }
}

#[test]
fn captions_are_those_of_pytorch() {
    let scenes = scenes();
    for (choice, model) in models() {
        let some = if choice == DeviceChoice::Cpu { scenes.len() } else { DESCRIBED_ON_A_GPU };
        let (mut right, mut same) = (0, 0);
        for scene in &scenes[..some] {
            let (options, mut said) = (GenerateOptions::default(), String::new());
            let caption = model
                .describe(Some(PROMPT), Some(&scene.image), &options, &MemoryNoise::None, |piece| {
                    said.push_str(piece);
                    ControlFlow::Continue(())
                })
                .expect("a caption");
            assert_eq!((said.as_str(), caption.end), (caption.text.as_str(), StopReason::Eos));
            right += usize::from(caption.text == scene.shows);
            same += usize::from(caption.text == scene.pytorch);
        }
        println!("{choice:?}: captions exactly right: {right} of {some}, as PyTorch's: {same}");
        assert!(right * 100 >= some * 97 && same * 100 >= some * 97, "{choice:?}: {right} right, {same} the same");
    }
}

#[test]
fn tokens_and_logits_of_a_caption_are_those_of_pytorch() {
    let (scenes, golden) = (scenes(), Golden::open("bitgen_shapes/golden.safetensors"));
    let device = DeviceOptions { autotune: false, ..DeviceChoice::Cpu.into() };
    let options = BitGenOptions { device, precision: Precision::F32, ..Default::default() };
    let model = BitGen::open(model(), options).expect("it opens");
    for (i, scene) in scenes[..SAMPLES].iter().enumerate() {
        let ids = |name: &str| -> Vec<u32> {
            golden.i32s(&format!("sample{i}.{name}")).into_iter().map(|id| id as u32).collect()
        };
        let prompt = model.tokens(PROMPT).expect("tokens");
        assert_eq!(prompt, ids("prompt_ids"));
        let encoded = model.encode(&prompt, Some(&scene.image), &MemoryNoise::None).expect("it runs");
        let off = rms(&encoded.embeddings, &golden.f32s(&format!("sample{i}.embeddings")));
        assert!(off < EXACT, "embeddings {i} are off by {off}");
        let (said, vocab) = (ids("greedy_ids"), model.sizes().vocab);
        let steps = golden.f32s(&format!("sample{i}.step_logits"));
        for (n, want) in steps.chunks(vocab).enumerate() {
            let found = model.logits(&said[..n + 1], &encoded.context).expect("it runs");
            // A rounding flip of an activation may spread.
            let off = rms(&found, want);
            assert!(off < 0.05, "logits {n} of scene {i} are off by {off}");
        }
        let options = GenerateOptions { max_tokens: Some(said.len() - 1), ..Default::default() };
        let all = |_: &str| ControlFlow::Continue(());
        let caption = model.describe(Some(PROMPT), Some(&scene.image), &options, &MemoryNoise::None, all);
        assert_eq!(caption.expect("a caption").tokens, said[1..]);
    }
}

#[test]
fn texts_that_are_unknown_or_read_in_part_are_warned_of() {
    let open =
        |choice: DeviceChoice| BitGen::open(model(), BitGenOptions { device: choice.into(), ..Default::default() });
    let bitgen = open(DeviceChoice::Cpu).expect("it opens");
    let of = |text: &str| {
        let found = bitgen.feature_text(text).expect("tokens");
        (found.read, found.ignored, found.unknown)
    };
    assert_eq!(of("Red circle."), ("Red circle".into(), String::new(), false));
    assert_eq!(of("red circle and a dog"), ("red circle".into(), "and a dog".into(), false));
    assert_eq!(of("a photo of the blue star"), ("photo".into(), "of the blue star".into(), true));

    let (path, scene) = (text(model()), root().join("tests/golden/bitgen_shapes/scene_0.png"));
    let folder = tempfile::TempDir::new().expect("a folder");
    std::fs::copy(&scene, folder.path().join("scene.png")).expect("a copy");
    let (folder, scene) = (text(folder.path()), text(scene));
    let similarity = ["similarity", "-m", &path, "--device", "cpu", "--image", &scene, "--text"];
    let search = ["search", "-m", &path, "--device", "cpu", "--index", &folder, "--add", &folder];
    for command in [&similarity[..], &search] {
        let warnings = |text: &str| -> Vec<String> {
            let ran = ternion(&[command, &[text]].concat());
            assert_eq!(ran.code, Some(0), "{}", ran.err);
            ran.err.lines().filter(|line| line.starts_with("warning: ")).map(str::to_owned).collect()
        };
        assert!(warnings("blue star").is_empty(), "{:?}", warnings("blue star"));
        for (text, says) in [
            ("dog", &["does not know \"dog\"", "first token"][..]),
            ("a photo of the blue star", &["does not know \"photo\", \"of\""]),
            ("red circle and a dog", &["only \"red circle\"", "\"and a dog\" does not count"]),
        ] {
            let found = warnings(text);
            assert!(found.len() == 1 && says.iter().all(|says| found[0].contains(says)), "{text}: {found:?}");
        }
    }
    let ran = ternion(&["run", "-m", &path, "--device", "cpu", "--image", &scene, "-p", "describe the zebra"]);
    assert!(ran.code == Some(0) && ran.err.contains("does not know \"zebra\""), "{}", ran.err);
}

#[test]
fn the_command_writes_captions_and_the_model_is_small() {
    let scene = text(root().join("tests/golden/bitgen_shapes/scene_0.png"));
    let path = text(model());
    let args = ["run", "-m", &path, "--device", "cpu", "--image", &scene];
    let want = "two shapes: yellow square, green triangle\n";
    // The start of a text alone is a prompt, too.
    assert_eq!(succeeds(&args), want);
    assert_eq!(succeeds(&[&args[..], &["-p", PROMPT, "-v"]].concat()), want);
    let stopped = ternion(&[&args[..], &["-v", "--stop", ", green"]].concat());
    assert_eq!((stopped.code, stopped.out.as_str()), (Some(0), "two shapes: yellow square\n"), "{}", stopped.err);
    for wanted in ["device: CPU", "the picture and 1 token in", "ms/token", "a stop text came"] {
        assert!(stopped.err.contains(wanted), "no {wanted:?}: {}", stopped.err);
    }
    let noise = |seed| succeeds(&[&args[..], &["--memory-noise", seed]].concat());
    assert_eq!(noise("3"), noise("3"));
    let files = std::fs::read_dir(model()).expect("the model").flatten();
    let bytes: u64 = files.map(|f| f.metadata().expect("a file").len()).sum();
    assert!(bytes < 3 << 20, "{bytes} bytes");
}
