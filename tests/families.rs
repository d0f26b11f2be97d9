//! Causal language models from published forms of files against the originals' numbers, on every backend and capability
//! subset: logits with activations of floats, and with 8-bit ones; greedy tokens.
//!
//! `TERNION_GOLDENS=DIR cargo test --release --test families` does it for any folder of the layout of `tests/golden/gguf`
//! (`tiny/NAME.gguf` with `NAME.logits.f32` or `NAME.ref.f32`, `hf/NAME`) and of `hf_*/tiny/NAME`.

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::fs;
use std::path::{Path, PathBuf};

use support::device::{backends, device};
use support::golden::golden_root;
use support::model_stages::{PreparedPlan, golden, row, variants};
use ternion::engine::{DeviceChoice, Engine, GenerateOptions, Options, Precision};
use ternion::files::Weights;
use ternion::unstable::cpu::Cpu;
use ternion::unstable::models::{Activations, ChatModel, HiddenAct, LoadOptions, TextShape, open_chat, slots};
use ternion::unstable::ops::Row;
use ternion::unstable::plan::{Backend, Step};
use ternion::unstable::tensor::Pack;

/// Rows of the cache.
const CAPACITY: usize = 64;
/// Tokens of a text that are read at once; the others come one by one, as a text is generated.
const PROMPT: usize = 16;
/// Largest error of logits with activations of floats, as a share of their standard deviation.
const FLOATS_TOLERANCE: f32 = 1e-3;
/// The same of the mean error with 8-bit activations, where no other program's error is known.
const INT8_TOLERANCE: f32 = 0.1;
/// Largest mean error with 8-bit activations, by that of the other program. Where its scales are for 32 columns too, the
/// backends lie between 0.88 and 0.96 of it, since scales are chosen by the error that they give.
const NATIVE_SHARE: f32 = 1.0;

/// A file, and the logits of each token of a text.
struct Case {
    path: PathBuf,
    ids: Vec<u32>,
    want: Vec<f32>,
    /// The logits of a program that uses 8-bit activations.
    native: Option<Vec<f32>>,
    hidden_act: Option<HiddenAct>,
}

/// The golden logits of folders in Hugging Face's form: those of the GGUF file with the same weights.
const SAME_WEIGHTS: [(&str, &str); 5] = [
    ("bitnet_autobitlinear_offline", "bitnet_b158_i2s_relu2.ref"),
    ("llama_bitlinear_inverse", "llama_i2s.logits"),
    ("qwen3_unpacked_f16", "qwen3_pq2_0.logits"),
    ("qwen3_mlx_2bit", "qwen3_pq2_0.logits"),
    ("qwen3_mlx_1bit", "qwen3_q1_0.logits"),
];
/// Families that these tests are about.
const PREFIXES: [&str; 3] = ["qwen3_", "llama_", "bitnet_"];

fn floats(path: &Path) -> Option<Vec<f32>> {
    let bytes = fs::read(path).ok()?;
    Some(bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

fn ids(tiny: &Path) -> Vec<u32> {
    let text = fs::read(tiny.join("ids.json")).expect("the tokens of the goldens");
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    json["ids"].as_array().expect("a list").iter().map(|id| id.as_u64().expect("a token") as u32).collect()
}

/// All files of the golden root; one without any fails.
fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for root in variants("tiny/ids.json") {
        let tiny = root.join("tiny");
        let of = |path: PathBuf, golden: &str, native: Option<Vec<f32>>| {
            let want = floats(&tiny.join(format!("{golden}.f32")))?;
            let silu = path.file_name().is_some_and(|name| name.to_string_lossy().contains("scale_tensors"));
            Some(Case { path, ids: ids(&tiny), want, native, hidden_act: silu.then_some(HiddenAct::SiLu) })
        };
        let mut files: Vec<PathBuf> =
            fs::read_dir(&tiny).expect("a folder").map(|e| e.expect("an entry").path()).collect();
        files.sort();
        for path in files.into_iter().filter(|path| path.extension().is_some_and(|end| end == "gguf")) {
            let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
            if PREFIXES.iter().any(|prefix| stem.starts_with(prefix)) {
                let native = floats(&tiny.join(format!("{stem}.native.f32")));
                let found = of(path.clone(), &format!("{stem}.logits"), native.clone());
                all.extend(found.or_else(|| of(path, &format!("{stem}.ref"), native)));
            }
        }
        for (folder, golden) in SAME_WEIGHTS {
            let path = root.join("hf").join(folder);
            if path.exists() {
                all.extend(of(path, golden, None));
            }
        }
    }
    assert!(!all.is_empty(), "{}: no such files", golden_root().display());
    all
}

/// A model on a backend, read a prompt at once and then token by token.
struct Runner {
    model: Box<dyn ChatModel>,
    backend: Box<dyn Backend>,
    programs: [PreparedPlan; 2],
}

impl Runner {
    fn new(case: &Path, mut backend: Box<dyn Backend>, options: LoadOptions) -> Self {
        let fail = |e: ternion::Error| -> ! { panic!("{}: {e}", case.display()) };
        let weights = Weights::open(case).unwrap_or_else(|e| fail(e));
        let model = open_chat(case, &weights, options).unwrap_or_else(|e| fail(e));
        let programs = [PROMPT, 1].map(|rows| {
            let kv_dtype = options.dense.dtype();
            let shape = TextShape {
                max_rows: rows,
                max_outputs: rows,
                kv_rows: CAPACITY,
                context: CAPACITY,
                sessions: 1,
                kv_dtype,
                images: false,
            };
            PreparedPlan::prepare(model.record_text(&shape).expect("a plan"), &weights, backend.as_mut())
        });
        Runner { model, backend, programs }
    }

    /// Logits of some tokens of a text, from position `from` on.
    fn step(&mut self, which: usize, ids: &[u32], from: usize) -> Vec<f32> {
        let (n, program, backend) = (ids.len(), &self.programs[which], self.backend.as_mut());
        let rows: Vec<Row> = ids.iter().enumerate().map(|(i, &id)| row(id, from + i, 0)).collect();
        program.write(backend, slots::ROWS, bytemuck::cast_slice(&rows));
        program.write(backend, slots::OUTPUTS, &(0..n as u32).collect::<Vec<u32>>());
        backend.run(program.id, &Step::new(n, n, from + n), 0..program.plan.nodes.len()).expect("it runs");
        program.output(backend, slots::LOGITS, n * self.model.info().vocab)
    }

    /// Logits of all tokens of a text.
    fn logits(&mut self, ids: &[u32]) -> Vec<f32> {
        let mut all = Vec::new();
        for (i, ids) in ids[..ids.len().min(PROMPT)].chunks(PROMPT).enumerate() {
            all.extend(self.step(0, ids, i * PROMPT));
        }
        for (i, id) in ids.iter().enumerate().skip(PROMPT) {
            all.extend(self.step(1, &[*id], i));
        }
        all
    }
}

fn std(values: &[f32]) -> f32 {
    let n = values.len() as f64;
    let mean = values.iter().map(|&v| f64::from(v)).sum::<f64>() / n;
    (values.iter().map(|&v| (f64::from(v) - mean).powi(2)).sum::<f64>() / n).sqrt() as f32
}

fn worst(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |worst, (a, b)| if (a - b).abs() <= worst { worst } else { (a - b).abs() })
}

fn rms(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    (a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>() / a.len() as f64).sqrt() as f32
}

/// The plain CPU, and every backend that is checked against it.
fn all_backends() -> Vec<(String, Box<dyn Backend>)> {
    let mut all: Vec<(String, Box<dyn Backend>)> = vec![("plain CPU".into(), Box::new(Cpu::plain()))];
    all.extend(backends());
    all
}

#[test]
fn logits_with_floats_are_the_originals() {
    for case in cases() {
        let activations = Activations::Floats;
        let options = LoadOptions { activations, hidden_act: case.hidden_act, ..LoadOptions::anywhere(Pack::F32) };
        for (device, backend) in all_backends() {
            let found = Runner::new(&case.path, backend, options).logits(&case.ids);
            let (off, spread) = (worst(&found, &case.want), std(&case.want));
            eprintln!("{} on {device}: {:.1e} of the spread", case.path.display(), off / spread);
            assert!(off <= FLOATS_TOLERANCE * spread, "{} on {device}: off by {off}", case.path.display());
        }
    }
}

#[test]
fn logits_with_8_bit_activations_are_near_them() {
    let mut far = Vec::new();
    for case in cases() {
        let options = LoadOptions { hidden_act: case.hidden_act, ..LoadOptions::anywhere(Pack::F16) };
        // A bitnet's codes have one scale a row, as in its training; those of the other program have more.
        let native = case.native.as_ref().filter(|_| !case.path.to_string_lossy().contains("bitnet_"));
        let bound = native.map(|native| NATIVE_SHARE * rms(native, &case.want));
        let bound = bound.unwrap_or(INT8_TOLERANCE * std(&case.want));
        for (device, backend) in all_backends() {
            let found = Runner::new(&case.path, backend, options).logits(&case.ids);
            let off = rms(&found, &case.want);
            let line = format!("{} on {device}: off by {off:.4}, at most {bound:.4}", case.path.display());
            eprintln!("{line}");
            far.extend((off.is_nan() || off > bound).then_some(line));
        }
    }
    assert!(far.is_empty(), "{}", far.join("\n"));
}

/// The folders of models that transformers ran, with the file of what it computed in f32.
fn transformers() -> Vec<(PathBuf, &'static str)> {
    let files = ["golden_online_f32.safetensors", "golden_offline_f32.safetensors", "golden_f32.safetensors"];
    let of = |file: &'static str| variants(file).into_iter().map(move |dir| (dir, file));
    let all: Vec<_> =
        files.into_iter().flat_map(of).filter(|(dir, _)| dir.join("model.safetensors").exists()).collect();
    assert!(!all.is_empty(), "{}: no such folders", golden_root().display());
    all
}

#[test]
fn integers_are_those_of_transformers() {
    for (dir, file) in transformers() {
        let golden = golden(&dir, file);
        let ids: Vec<u32> = golden.i32s("input_ids").iter().map(|&id| id as u32).collect();
        let (want, steps) = (golden.f32s("logits"), golden.f32s("step_logits"));
        let generated: Vec<u32> = golden.i32s("generated_ids").iter().map(|&id| id as u32).collect();
        for (device, backend) in all_backends() {
            let mut runner = Runner::new(&dir, backend, LoadOptions::anywhere(Pack::F32));
            let name = format!("{} on {device}", dir.display());
            // One code that rounds the other way changes a row, and what follows it.
            let (found, spread) = (runner.logits(&ids), std(&want));
            eprintln!(
                "{name}: rms {:.1e}, worst {:.1e} of the spread",
                rms(&found, &want) / spread,
                worst(&found, &want) / spread
            );
            assert!(rms(&found, &want) <= 0.02 * spread, "{name}: {}", rms(&found, &want));
            let vocab = runner.model.info().vocab;
            let mut last = found[found.len() - vocab..].to_vec();
            for (i, &token) in generated.iter().enumerate() {
                let best = (0..vocab).max_by(|&a, &b| last[a].total_cmp(&last[b])).expect("a token");
                assert_eq!(best as u32, token, "{name}: token {i}");
                let off = rms(&last, &steps[i * vocab..][..vocab]);
                assert!(off <= 0.05 * spread, "{name}: logits of token {i} are off by {off}");
                last = runner.step(1, &[token], ids.len() + i);
            }
        }
    }
}

/// A conversation of two turns with each GGUF file of this repository; the tokens of both answers.
fn conversation(path: &Path, device: DeviceChoice) -> Vec<Vec<u32>> {
    let fail = |e: ternion::Error| -> ! { panic!("{}: {e}", path.display()) };
    let (autotune, precision) = (false, Precision::F32);
    let activations = Activations::Floats;
    let hidden_act = path.to_string_lossy().contains("scale_tensors").then_some(HiddenAct::SiLu);
    let options = Options { device, autotune, precision, activations, hidden_act, ..Options::default() };
    let engine = Engine::open(path, options).unwrap_or_else(|e| fail(e));
    let mut session = engine.session().unwrap_or_else(|e| fail(e));
    let mut answers = Vec::new();
    for question in ["Hello, what is this?", "And now?"] {
        session.push_message("user", question).unwrap_or_else(|e| fail(e));
        let options = GenerateOptions { max_tokens: Some(12), ..GenerateOptions::default() };
        let stream = session.generate(options).unwrap_or_else(|e| fail(e));
        answers.push(stream.map(|token| token.unwrap_or_else(|e| fail(e)).id).collect());
    }
    answers
}

#[test]
fn conversations_are_the_same_on_every_device() {
    let tiny = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf/tiny");
    let mut files: Vec<PathBuf> = fs::read_dir(&tiny).expect("a folder").map(|e| e.expect("an entry").path()).collect();
    files.retain(|path| path.extension().is_some_and(|end| end == "gguf"));
    files.sort();
    for path in files {
        let on_cpu = conversation(&path, DeviceChoice::Cpu);
        assert!(on_cpu.iter().all(|answer| !answer.is_empty()), "{}: {on_cpu:?}", path.display());
        assert_ne!(on_cpu[0], on_cpu[1], "{}: the second question changes nothing", path.display());
        if device().is_some() {
            assert_eq!(on_cpu, conversation(&path, DeviceChoice::Gpu), "{}", path.display());
        }
    }
}
