//! The demo model: built in, equal to its files, and as right as it was in PyTorch (`tests/golden/demo`).
#![cfg(feature = "demo")]

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::path::{Path, PathBuf};

use support::device::device;
use support::golden::Golden;
use support::model_stages::{LoadedModel, PreparedPlan, devices, golden, rms, row};
use tempfile::TempDir;
use ternion::engine::{DeviceChoice, Engine, GenerateOptions, LmHead, Options, Precision, Progress};
use ternion::files::{ModelFiles, Weights};
use ternion::tools::convert::convert;
use ternion::tools::eval::{DataSet, evaluate, is_right};
use ternion::tools::inspect::inspect;
use ternion::unstable::models;
use ternion::unstable::models::LoadOptions;
use ternion::unstable::tensor::{DType, Pack};
use ternion::{Error, Image};

/// Relative rms of what a rounding flip and weights of 16 bits may change.
const FREE: f64 = 0.08;
/// Questions with numbers of every stage.
const SAMPLES: usize = 4;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn model() -> PathBuf {
    root().join("examples/shapes/model")
}

fn data() -> PathBuf {
    root().join("tests/golden/demo")
}

fn demo(device: DeviceChoice) -> Engine {
    Engine::demo(Options { device, autotune: false, ..Options::default() }).expect("the demo model opens")
}

/// The CPU, and a GPU if there is one.
fn choices() -> Vec<DeviceChoice> {
    [DeviceChoice::Cpu].into_iter().chain(device().map(|_| DeviceChoice::Gpu)).collect()
}

#[test]
fn answers_are_those_of_pytorch() {
    let set = DataSet::open(data()).expect("the questions");
    for choice in choices() {
        let found = evaluate(&demo(choice.clone()), &set, 32, Progress::ignore).expect("it runs");
        let theirs = |i: usize| set.questions()[i].entry["pytorch"].as_str().expect("PyTorch's answer");
        let differ = |(i, got): (usize, &String)| (got != theirs(i)).then(|| format!("{got:?} for {:?}", theirs(i)));
        let other: Vec<String> = found.answers.iter().flatten().enumerate().filter_map(differ).collect();
        assert!(100 * other.len() <= set.questions().len(), "{choice:?}: {other:?}");
        let right = |i: usize| is_right(theirs(i), &set.questions()[i].answer);
        let (ours, theirs) = (found.all().correct, (0..set.questions().len()).filter(|&i| right(i)).count());
        assert!(ours.abs_diff(theirs) <= other.len(), "{choice:?}: {ours} right, {theirs} in PyTorch");
    }
}

#[test]
fn a_head_in_8_bits_answers_alike() {
    let set = DataSet::open(data()).expect("the questions");
    let answers = |device: &DeviceChoice, head| {
        let options = Options { device: device.clone(), autotune: false, head, ..Options::default() };
        let engine = Engine::demo(options).expect("the demo model opens");
        assert_eq!(engine.report().head, if head == LmHead::Dense { DType::F16 } else { DType::Int8 });
        evaluate(&engine, &set, 32, Progress::ignore).expect("it runs")
    };
    let (full, n) = (answers(&DeviceChoice::Cpu, LmHead::Dense), set.questions().len());
    for choice in choices() {
        let eight = answers(&choice, LmHead::Int8);
        let same = full.answers.iter().zip(&eight.answers).filter(|(a, b)| a == b).count();
        let right = [&full, &eight].map(|f| f.all().correct);
        println!("{choice:?}: {same} of {n} answers are the same; {} and {} are right", right[0], right[1]);
        assert!(100 * same >= 99 * n, "{choice:?}: {same} of {n} answers are the same");
        assert!(right[0].abs_diff(right[1]) <= n - same);
    }
}

/// What a question's stages differ by: image and logits (relative rms), and the tokens with other experts.
fn compare_sample(
    rig: &mut LoadedModel,
    [image, text]: [&PreparedPlan; 2],
    golden: &Golden,
    sample: usize,
    what: &str,
) {
    let name = |what: &str| format!("sample{sample}.{what}");
    let theirs = golden.f32s(&name("image_embeds"));
    let off = rms(&rig.encode(image, &golden.f32s(&name("pixel_values"))), &theirs);
    assert!(off < FREE, "{what}: the image is off by {off}");

    let (ids, vocab) = (golden.i32s(&name("input_ids")), rig.model.info().vocab);
    let rows = rig.rows(rig.model.info().image.expect("an image").tokens, &ids, 0);
    let n = rows.len();
    let mut logits = rig.logits(text, &rows, &theirs);
    let off_logits = rms(&logits[(n - 1) * vocab..], &golden.f32s(&name("last_logits")));
    assert!(off_logits < FREE, "{what}: the logits are off by {off_logits}");

    let (mut same, mut all) = (0, 0);
    for layer in 0..rig.model.info().layers {
        let tag = format!("layer.{layer}.topk_indices");
        let want = golden.i32s(&name(&tag));
        let found = rig.read_words(text, text.plan.tags[tag.as_str()], want.len());
        for (f, w) in found.chunks(2).zip(want.chunks(2)) {
            all += 1;
            same += usize::from(f.iter().all(|&e| w.contains(&(e as i32))));
        }
        let tag = format!("layer.{layer}.router_logits");
        let want = golden.f32s(&name(&tag));
        let off = rms(&rig.read(text, text.plan.tags[tag.as_str()], want.len()), &want);
        assert!(off < FREE, "{what}: the router of layer {layer} is off by {off}");
    }
    println!("{what}: image {off:.1e}, logits {off_logits:.1e}, equal experts {same} of {all}");
    assert!(20 * (all - same) <= all, "{what}: the experts of {} of {all} tokens differ", all - same);

    let generated = golden.i32s(&name("generated_ids"));
    for (i, &id) in generated.iter().enumerate() {
        let last = &logits[logits.len() - vocab..];
        let best = (0..vocab).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a vocabulary");
        assert_eq!(best as i32, id, "{what}: token {i}");
        logits = rig.logits(text, &[row(id as u32, n + i, 0)], &[]);
    }
}

#[test]
fn stages_are_those_of_pytorch() {
    let golden = golden(&data(), "golden.safetensors");
    for (device, backend) in devices() {
        let mut rig = LoadedModel::open(&model(), backend, u64::MAX);
        let (image, text) = (rig.image(), rig.text(64, 128));
        for sample in 0..SAMPLES {
            compare_sample(&mut rig, [&image, &text], &golden, sample, &format!("sample {sample} on {device}"));
        }
    }
}

#[test]
fn pixels_of_a_picture_are_those_of_pytorch() {
    let (golden, set) = (golden(&data(), "golden.safetensors"), DataSet::open(data()).expect("the questions"));
    let info = demo(DeviceChoice::Cpu).info().image.expect("an image");
    let samples = set.questions().iter().filter_map(|q| Some((q.entry.get("golden")?.as_str()?, &q.image)));
    let mut compared = 0;
    for (sample, file) in samples {
        let image = Image::open(file).and_then(|image| image.resized(info.size)).expect("a picture");
        let (ours, theirs) = (image.pixel_values(info.mean, info.std), golden.f32s(&format!("{sample}.pixel_values")));
        let (off, at) = support::numbers::worst(&ours, &theirs);
        assert!(off < 1e-6, "{sample}: pixel value {at} is off by {off}");
        compared += 1;
    }
    assert_eq!(compared, SAMPLES);
}

#[test]
fn the_model_in_memory_is_the_one_on_disk() {
    let demo = ModelFiles::demo().expect("it is built in");
    let (ours, files) = (Weights::open(&demo).expect("opens"), Weights::open(model()).expect("opens"));
    let load = LoadOptions::anywhere(Pack::F16);
    let config = |files: ModelFiles, weights: &Weights| models::open(files, weights, load).expect("opens").config();
    assert_eq!(config(demo.clone(), &ours), config(model().into(), &files));
    let names = |w: &Weights| w.checkpoint().tensors().cloned().collect::<Vec<_>>();
    assert_eq!(names(&ours), names(&files));
    for tensor in files.checkpoint().tensors() {
        let bytes = |w: &Weights| w.checkpoint().bytes(&tensor.name).expect("its bytes").into_owned();
        assert!(bytes(&ours) == bytes(&files), "{} differs", tensor.name);
    }

    // A conversion of it is what it is made of, and both describe themselves alike.
    let dir = TempDir::new().expect("a directory");
    let report = convert(&demo, dir.path(), None, Precision::F16, Progress::ignore).expect("converts");
    assert!(report.tokenizer && report.tensors == names(&files).len());
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let read = |dir: &Path| std::fs::read(dir.join(name)).expect("written");
        assert!(read(dir.path()) == read(&model()), "{name} differs");
    }
    let described = inspect(&demo, Precision::F16, Progress::ignore).expect("it is inspected");
    let on_disk = inspect(model(), Precision::F16, Progress::ignore).expect("it is inspected");
    assert_eq!((described.tensors, described.parameters), (on_disk.tensors, on_disk.parameters));
}

#[test]
fn broken_files_in_memory_are_errors_with_their_names() {
    const CUT: &[u8] = b"\xFF\0\0\0\0\0\0\0{\"a\"";
    const GOOD: &[u8] = include_bytes!("../examples/shapes/model/model.safetensors");
    type Files = &'static [(&'static str, &'static [u8])];
    let cases: [(Files, &str); 4] = [
        (&[], "m/model.safetensors"),
        (&[("model.safetensors", CUT)], "m/model.safetensors: is cut short"),
        (&[("model.safetensors", GOOD)], "m/config.json"),
        (&[("model.safetensors", GOOD), ("config.json", b"[]")], "m/config.json: is not a JSON object"),
    ];
    for (files, says) in cases {
        let options = Options { device: DeviceChoice::Cpu, ..Options::default() };
        let error = Engine::open(ModelFiles::Memory { name: "m", files }, options).expect_err("it is broken");
        assert!(error.to_string().contains(says), "{error}");
    }
    let files: Files =
        &[("model.safetensors", GOOD), ("config.json", include_bytes!("../examples/shapes/model/config.json"))];
    let options = Options { device: DeviceChoice::Cpu, needs_tokenizer: true, ..Options::default() };
    let error = Engine::open(ModelFiles::Memory { name: "m", files }, options).expect_err("it has no tokenizer");
    assert!(matches!(&error, Error::Argument { name, .. } if name == "tokenizer"), "{error}");
}

#[test]
fn a_question_after_a_reset_is_answered_as_in_a_new_session() {
    let engine = demo(DeviceChoice::Cpu);
    let picture = Image::open(root().join("examples/shapes/samples/spatial_scene_100000.png")).expect("a picture");
    let ask = |session: &mut ternion::Session, question: &str| -> Vec<u32> {
        session.push_question(question).expect("it fits");
        session.generate(GenerateOptions::default()).expect("it runs").map(|t| t.expect("a token").id).collect()
    };
    let questions = ["What color is the circle?", "What shape is red?", "How many shapes are there?"];
    let mut one = engine.session().expect("a session");
    one.push_image(&picture).expect("an image");
    for question in questions {
        let mut fresh = engine.session().expect("a session");
        fresh.push_image(&picture).expect("an image");
        one.reset_text();
        assert_eq!(ask(&mut one, question), ask(&mut fresh, question), "{question}");
        // The experts of the images' rows are still known, and those of the text are the new question's.
        assert_eq!(one.routing().expect("a log"), fresh.routing().expect("a log"), "{question}");
    }
}
