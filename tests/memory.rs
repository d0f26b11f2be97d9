//! BitGen's episodic memory: what remembering writes, its file in every form, and what broken ones get.
#![cfg(feature = "cli")]

mod support {
    pub mod cli;
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::fs;
use std::path::{Path, PathBuf};

use support::cli::{assert_fails, succeeds, ternion, text};
use support::golden::Golden;
use support::model_stages::rms;
use ternion::Error;
use ternion::apps::bitgen::{BitGen, BitGenOptions, EpisodicMemory, MemoryNoise};
use ternion::engine::{DeviceChoice, DeviceOptions, Precision};
use ternion::files::{Image, Lock, Weights};

const SIZES: [usize; 2] = [6, 4];

fn stage1(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/bitgen_stage1").join(name)
}

fn options(device: DeviceChoice) -> BitGenOptions {
    let device = DeviceOptions { autotune: false, ..device.into() };
    BitGenOptions { device, precision: Precision::F32, ..Default::default() }
}

fn open() -> BitGen {
    BitGen::open(stage1("cnn"), options(DeviceChoice::Cpu)).unwrap()
}

fn golden() -> Golden {
    Golden::open(&stage1("cnn/golden_stage1.safetensors").to_string_lossy())
}

/// The first sample's tokens and image.
fn sample() -> (Vec<u32>, Image) {
    let golden = golden();
    let length = golden.shape("input_ids")[1];
    let ids = golden.i32s("input_ids")[..length].iter().map(|&id| id as u32).collect();
    (ids, Image::open(stage1("cnn/image0_224x224.png")).unwrap())
}

/// A memory of six slots of four, no two values alike.
fn small() -> EpisodicMemory {
    let values = |n: usize, first: f32, step: f32| (0..n).map(|i| first + step * i as f32).collect::<Vec<f32>>();
    EpisodicMemory {
        width: SIZES[1],
        mean: values(24, -1.0, 0.125),
        logvar: -0.5,
        quality: values(6, 1.0, -0.125),
        read_count: values(6, 0.0, 1.0),
        write_count: vec![2.0, 1.0, 0.0, 0.0, 1.0, 0.0],
        age: vec![3.0; 6],
    }
}

#[test]
fn what_is_remembered_is_what_the_tokens_ask_with() {
    let (ids, image) = sample();
    let mut devices = vec![DeviceChoice::Cpu];
    devices.extend(support::device::device().map(|_| DeviceChoice::Gpu));
    for device in devices {
        let model = BitGen::open(stage1("cnn"), options(device.clone())).unwrap();
        let before = model.memory();
        let encoded = model.encode(&ids, Some(&image), &MemoryNoise::None).unwrap();
        let want = golden().f32s("det.memory.x_proj");
        let off = rms(&encoded.query, &want[..encoded.query.len()]);
        assert!(off < 1e-5, "{device:?}: queries are off by {off}");

        let written = model.remember(&ids, Some(&image)).unwrap();
        let (width, alpha) = (before.width, 0.2);
        let length = |i: usize| encoded.query[i * width..(i + 1) * width].iter().map(|v| v * v).sum::<f32>();
        assert_eq!(written.len(), ids.len());
        assert!(written.windows(2).all(|w| length(w[0].item) >= length(w[1].item)), "the longest come first");
        // No slot was written before: the first slots come first.
        assert!(written.iter().enumerate().all(|(i, w)| w.slot == i));
        let after = model.memory();
        for w in &written {
            for k in 0..width {
                let (old, new) = (before.mean[w.slot * width + k], after.mean[w.slot * width + k]);
                let want = (1.0 - alpha) * old + alpha * encoded.query[w.item * width + k];
                assert!((new - want).abs() < 1e-5, "{device:?}: slot {}: {new} for {want}", w.slot);
            }
        }
        assert_eq!(after.mean[written.len() * width..], before.mean[written.len() * width..]);
        assert_eq!(after.statistics().writes, ids.len() as f64);
        let again = model.remember(&ids, Some(&image)).unwrap();
        assert_eq!(again[0].slot, ids.len(), "{device:?}: the least written slots are next");

        // The next pass reads what was written.
        let changed = model.encode(&ids, Some(&image), &MemoryNoise::None).unwrap();
        assert!(rms(&changed.embeddings, &encoded.embeddings) > 1e-3, "{device:?}: nothing was remembered");
    }
}

#[test]
fn an_application_remembers_across_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("memory.safetensors");
    let (ids, image) = sample();
    let model = open();
    model.remember(&ids, Some(&image)).unwrap();
    model.save_memory(&file).unwrap();
    let (saved, passed) = (model.memory(), model.encode(&ids, None, &MemoryNoise::None).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside the file");

    let model = open();
    assert_ne!(model.memory(), saved);
    model.open_memory(&file).unwrap();
    assert_eq!(model.memory(), saved);
    assert_eq!(model.encode(&ids, None, &MemoryNoise::None).unwrap(), passed);
    // An earlier file is replaced.
    model.save_memory(&file).unwrap();
    assert_eq!(EpisodicMemory::open(&file, [32, 64]).unwrap(), model.memory());
}

#[test]
fn every_form_opens_to_the_same_memory() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("memory.safetensors");
    small().save(&file).unwrap();
    assert_eq!(EpisodicMemory::open(&file, SIZES).unwrap(), small());
    let originals = stage1("memory/memory.pt");
    assert_eq!(EpisodicMemory::open(&originals, SIZES).unwrap(), small(), "what the original's save_memory writes");
    let weights = Weights::open(stage1("cnn")).unwrap();
    let loaded = EpisodicMemory::load(&weights, [32, 64]).unwrap();
    assert_eq!(EpisodicMemory::open(stage1("cnn/pytorch_model.bin"), [32, 64]).unwrap(), loaded);
}

/// Writes a safetensors file: name, shape, values.
fn write(file: &Path, tensors: &[(&str, Vec<usize>, Vec<f32>)], metadata: &[(&str, &str)]) {
    let bytes: Vec<Vec<u8>> = tensors.iter().map(|(_, _, v)| bytemuck::cast_slice(v).to_vec()).collect();
    let views = tensors.iter().zip(&bytes).map(|((name, shape, _), bytes)| {
        let view = safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).unwrap();
        (name.to_string(), view)
    });
    let metadata = metadata.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
    safetensors::serialize_to_file(views, Some(metadata), file).unwrap();
}

type Tensors = Vec<(&'static str, Vec<usize>, Vec<f32>)>;

fn tensors() -> Tensors {
    let m = small();
    vec![
        ("memory_mean", vec![6, 4], m.mean),
        ("memory_logvar", vec![1], vec![m.logvar]),
        ("memory_quality", vec![6], m.quality),
        ("memory_read_count", vec![6], m.read_count),
        ("memory_write_count", vec![6], m.write_count),
        ("memory_age", vec![6], m.age),
    ]
}

#[test]
fn broken_files_get_typed_errors_that_name_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("broken.safetensors");
    let refused = |change: &dyn Fn(&mut Tensors), metadata: &[(&str, &str)], says: &[&str]| {
        let mut all = tensors();
        change(&mut all);
        write(&file, &all, metadata);
        let error = EpisodicMemory::open(&file, SIZES).unwrap_err();
        let text = error.to_string();
        says.iter().for_each(|s| assert!(text.contains(s), "{s:?} is not in: {text}"));
        assert!(text.contains("broken.safetensors"), "{text}");
        error
    };
    let same = |_: &mut Tensors| {};
    write(&file, &tensors(), &[]);
    assert_eq!(EpisodicMemory::open(&file, SIZES).unwrap(), small(), "the file is sound before it is broken");

    let error = refused(&|t| t[0].2[5] = f32::NAN, &[], &["memory_mean", "element 5 is NaN"]);
    assert!(matches!(error, Error::Format { .. }));
    refused(&|t| t[0].2[5] = f32::INFINITY, &[], &["memory_mean", "element 5 is inf"]);
    refused(&|t| t[1].2[0] = 100.0, &[], &["memory_logvar", "is 100"]);
    refused(&|t| t[2].2[1] = -0.5, &[], &["memory_quality", "element 1 is -0.5"]);
    refused(&|t| t[4].2[3] = -1.0, &[], &["memory_write_count", "element 3 is -1"]);
    let error = refused(&|t| drop(t.remove(5)), &[], &["memory_age"]);
    assert!(matches!(error, Error::MissingTensors { .. }));
    refused(&|t| drop(t.remove(0)), &[], &["memory_mean"]);
    let error = refused(&|t| t[3] = ("memory_read_count", vec![3, 2], vec![0.0; 6]), &[], &["[3, 2]", "[6]"]);
    assert!(matches!(error, Error::Shape { .. }));
    refused(&|t| t.push(("other.memory_mean", vec![1], vec![0.0])), &[], &["2 memories"]);
    let error = refused(&same, &[("ternion.memory", "2")], &["form 2"]);
    assert!(matches!(error, Error::Unsupported { .. }));
    for sizes in [[6, 8], [12, 4]] {
        let error = EpisodicMemory::open(stage1("memory/memory.pt"), sizes).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }) && error.to_string().contains("[6, 4]"), "{error}");
    }

    for sound in [stage1("memory/memory.pt"), {
        small().save(&file).unwrap();
        file.clone()
    }] {
        let (whole, cut) = (fs::read(sound).unwrap(), dir.path().join("cut"));
        for n in (0..whole.len()).step_by(37) {
            fs::write(&cut, &whole[..n]).unwrap();
            let error = EpisodicMemory::open(&cut, SIZES).unwrap_err();
            assert!(error.to_string().contains("cut"), "{n} bytes: {error}");
        }
    }
    assert!(matches!(EpisodicMemory::open(dir.path().join("none"), SIZES), Err(Error::Io { .. })));
    assert!(matches!(small().save(dir.path().join("none/memory")), Err(Error::Io { .. })));
}

#[test]
fn what_does_not_fit_the_model_leaves_its_memory_as_it_was() {
    let model = open();
    let before = model.memory();
    assert!(matches!(model.set_memory(small()), Err(Error::Argument { .. })));
    let short = EpisodicMemory { age: vec![0.0], ..before.clone() };
    assert!(matches!(model.set_memory(short), Err(Error::Argument { .. })));
    assert!(matches!(model.open_memory(stage1("memory/memory.pt")), Err(Error::Shape { .. })));
    assert!(matches!(model.remember(&[], None), Err(Error::Argument { .. })));
    assert_eq!(model.memory(), before);
}

#[test]
fn the_configuration_says_how_the_memory_is_written() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(stage1("cnn/pytorch_model.bin"), dir.path().join("pytorch_model.bin")).unwrap();
    let config = fs::read_to_string(stage1("cnn/config.json")).unwrap();
    let with = |key: &str, value: &str| {
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config[key] = serde_json::from_str(value).unwrap();
        fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
        BitGen::open(dir.path(), options(DeviceChoice::Cpu))
    };
    let (ids, _) = sample();
    let whole = with("memory_alpha", "1").unwrap();
    let query = whole.encode(&ids, None, &MemoryNoise::None).unwrap().query;
    for w in whole.remember(&ids, None).unwrap() {
        assert_eq!(whole.memory().mean[w.slot * 64..][..64], query[w.item * 64..][..64]);
    }
    let never = with("direct_writing", "false").unwrap();
    assert!(matches!(never.remember(&ids, None), Err(Error::Unsupported { .. })));
    assert_eq!(never.memory().statistics().writes, 0.0);
    for (key, value) in [("memory_alpha", "1.5"), ("memory_alpha", "\"much\""), ("direct_writing", "1")] {
        let error = with(key, value).unwrap_err();
        assert!(matches!(&error, Error::Config { .. }) && error.to_string().contains(key), "{error}");
    }
}

#[test]
fn the_command_remembers_what_it_is_told() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/shapes");
    let (model, picture) = (text(root.join("bitgen/model")), text(root.join("samples/spatial_scene_100000.png")));
    let dir = tempfile::tempdir().unwrap();
    let (file, other) = (dir.path().join("memory.safetensors"), text(dir.path().join("other")));
    let kept = text(&file);
    let run = ["run", "-m", &model, "--image", &picture, "--device", "cpu"];
    let statistics = || EpisodicMemory::open(&file, [32, 128]).unwrap().statistics();
    let said = |prompt: &str, more: &[&str]| {
        let args: Vec<&str> =
            run.into_iter().chain(["--memory", &kept, "-p", prompt]).chain(more.iter().copied()).collect();
        succeeds(&args)
    };
    let plain = said("describe the image", &[]);
    let first = statistics();
    assert!(first.reads > 0.0 && first.writes == 0.0, "{first:?}");
    assert!(!said("red circle", &["--remember"]).is_empty());
    let second = statistics();
    assert_eq!((second.writes, second.written_slots), (1.0, 1), "a phrase is one token");
    assert!(second.reads > first.reads);
    assert_eq!(succeeds(&[&run[..], &["-p", "describe the image"]].concat()), plain, "the model's own is as it was");

    let refused = |more: &[&str], says: &[&str]| {
        let args: Vec<&str> = run.into_iter().chain(more.iter().copied()).collect();
        assert_fails(&ternion(&args), &args, says);
    };
    let lock = Lock::of(&file).unwrap();
    refused(&["--memory", &kept, "-p", "x", "--remember"], &["memory.safetensors", "another program"]);
    assert_eq!(statistics(), second);
    drop(lock);
    refused(&["--remember", "-p", "x"], &["--memory"]);
    refused(&["--memory", &other, "--remember"], &["remember", "prompt"]);
    refused(&["--memory", &picture], &["spatial_scene_100000.png"]);
    let small_one = text(stage1("memory/memory.pt"));
    refused(&["--memory", &small_one], &["memory.pt", "[32, 128]", "[6, 4]"]);
    let question =
        ["run", "--device", "cpu", "--image", &picture, "-p", "What color is the circle?", "--memory", &other];
    assert_fails(&ternion(&question), &question, &["memory", "BitGen"]);
    assert!(!Path::new(&other).exists());
}
