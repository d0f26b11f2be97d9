//! BitGen's stage 1 against the original's numbers (in `tests/golden`; `TERNION_GOLDENS=DIR` checks another set).

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::path::{Path, PathBuf};

use support::golden::Golden;
use support::model_stages::{Greedy, PreparedPlan, Report, devices, golden, rms, variants};
use support::numbers::{bits, floats};
use ternion::apps::bitgen::{BitGen, BitGenOptions, CaptionOptions, MemoryNoise};
use ternion::engine::{DeviceChoice, DeviceOptions, Precision};
use ternion::files::{Image, Weights};
use ternion::unstable::models::{BitGenStage1, EncoderShape, LoadOptions, bitgen_slots, slots};
use ternion::unstable::ops::Row;
use ternion::unstable::plan::{Backend, Plan, Step};
use ternion::unstable::tensor::{DType, Pack};

/// The variants; a root without any fails.
fn bitgens() -> Vec<PathBuf> {
    let found = variants("golden_stage1.safetensors");
    assert!(!found.is_empty(), "no BitGen variant");
    found
}

/// A model with its weights on a backend.
struct LoadedBitGen {
    model: BitGenStage1,
    weights: Weights,
    backend: Box<dyn Backend>,
    golden: Golden,
    /// Tokens of a sample.
    length: usize,
    what: String,
}

/// Rows of samples, `length` tokens each; causal or bidirectional.
fn rows(ids: &[i32], length: usize, causal: bool) -> Vec<Row> {
    let row = |(i, &id): (usize, &i32)| {
        let (pos, base) = (i % length, i / length * length);
        let seq_len = if causal { pos + 1 } else { length };
        Row { token: id as u32, pos: pos as u32, seq_base: base as u32, seq_len: seq_len as u32 }
    };
    ids.iter().enumerate().map(row).collect()
}

/// Each vector of `d` `times` times over.
fn repeated(vectors: &[f32], d: usize, times: usize) -> Vec<f32> {
    vectors.chunks(d).flat_map(|v| v.repeat(times)).collect()
}

/// `[channels, pixels]` → `[pixels, channels]`.
fn transposed(x: &[f32], channels: usize) -> Vec<f32> {
    let pixels = x.len() / channels;
    (0..x.len()).map(|i| x[i % channels * pixels + i / channels]).collect()
}

impl LoadedBitGen {
    fn open(dir: &Path, device: &str, backend: Box<dyn Backend>) -> Self {
        let weights = Weights::open(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let options = LoadOptions::anywhere(Pack::F32);
        let model = BitGenStage1::open(dir, &weights, options).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let what = format!("{} on {device}", dir.file_name().unwrap_or_default().display());
        let golden = golden(dir, "golden_stage1.safetensors");
        let length = golden.shape("input_ids")[1];
        LoadedBitGen { model, weights, backend, golden, length, what }
    }

    fn prepare(&mut self, plan: ternion::Result<Plan>) -> PreparedPlan {
        let plan = plan.unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
        PreparedPlan::prepare(plan, &self.weights, self.backend.as_mut())
    }

    fn write(&mut self, program: &PreparedPlan, input: &str, words: &[u32]) {
        program.write(self.backend.as_mut(), input, words);
    }

    fn output(&mut self, program: &PreparedPlan, name: &str, n: usize) -> Vec<f32> {
        program.output(self.backend.as_mut(), name, n)
    }

    fn run(&mut self, program: &PreparedPlan, step: &Step) {
        self.backend.run(program.id, step, 0..program.plan.nodes.len()).expect("a step");
    }

    /// Runs stage by stage. Where there are golden numbers of a stage, these are compared, and written over its own.
    fn walk(&mut self, program: &PreparedPlan, step: &Step, prefix: &str, report: &mut Report) {
        let (plan, names) = (program.plan.clone(), self.golden.names());
        let mut stages: Vec<_> =
            plan.tags.iter().filter_map(|(tag, &slot)| Some((plan.producer(slot)?, tag, slot))).collect();
        stages.sort();
        let mut next = 0;
        for (producer, tag, slot) in stages {
            let name = format!("{prefix}.{tag}");
            if !names.contains(&name) {
                continue;
            }
            let to = (producer + 1).max(next);
            self.backend.run(program.id, step, next..to).expect("some nodes");
            next = to;
            let (spec, shape) = (plan.spec(slot), self.golden.shape(&name));
            let n = step.rows_of(spec) * spec.width();
            let words = self.backend.read(program.id, &[(slot, 0..n)]).expect("a stage").remove(0);
            if spec.dtype == DType::U32 {
                let found: Vec<i32> = words.into_iter().map(|v| v as i32).collect();
                assert_eq!(found, self.golden.i32s(&name), "{}: {name}", self.what);
                continue;
            }
            let mut want = self.golden.f32s(&name);
            if tag.starts_with("cnn.") {
                want = transposed(&want, shape[1]);
            }
            // The class token's row is not among the golden ones where it is dropped.
            let front = n.checked_sub(want.len()).expect("as many rows as the golden ones, or more");
            report.compare(&format!("{}: {name}", self.what), &floats(&words[front..]), &want, spec.width());
            self.backend.write(program.id, slot, front, &bits(&want)).expect("the golden numbers");
        }
        self.backend.run(program.id, step, next..plan.nodes.len()).expect("the rest");
    }

    /// Pixel values of image `i`.
    fn pixels(&self, dir: &Path, i: usize) -> Vec<u32> {
        let (image, info) = (Image::open(dir.join(format!("image{i}_224x224.png"))).unwrap(), self.model.image_info());
        bits(&image.bilinear_values(info.size, info.mean, info.std))
    }

    /// What both images give: features, and what text is fused with.
    fn images(&mut self, dir: &Path, report: &mut Report) -> [Vec<f32>; 2] {
        let program = self.prepare(self.model.record_image(1));
        let d = self.model.sizes().d;
        let mut all = [Vec::new(), Vec::new()];
        for i in [1, 0] {
            self.write(&program, slots::PIXELS, &self.pixels(dir, i));
            if i == 0 {
                self.walk(&program, &Step::FULL, "det", report);
            } else {
                self.run(&program, &Step::FULL);
            }
            for (all, name) in all.iter_mut().zip([bitgen_slots::FEATURES, bitgen_slots::IMAGE]) {
                all.splice(0..0, self.output(&program, name, d));
            }
        }
        all
    }

    /// Writes what an encoder reads, and returns the step.
    fn feed_encoder(&mut self, program: &PreparedPlan, ids: &[i32], image: Option<&[f32]>, noise: bool) -> Step {
        let d = self.model.sizes().d;
        let samples = ids.len() / self.length;
        let value = |weights: &Weights, name: &str| {
            let name = format!("episodic_memory.gpm.{name}");
            weights.checkpoint().read_f32(&name, 0..weights.shape(&name).unwrap().iter().product()).unwrap()
        };
        let (mut memory, logvar) = (value(&self.weights, "memory_mean"), value(&self.weights, "memory_logvar")[0]);
        if noise {
            let eps = self.golden.f32s("noise_eps");
            memory.iter_mut().zip(eps).for_each(|(m, e)| *m += e * (0.5 * logvar).exp());
        }
        let quality = value(&self.weights, "memory_quality");
        let spans: Vec<u32> = (0..samples as u32).flat_map(|s| [s * self.length as u32, self.length as u32]).collect();
        self.write(program, slots::ROWS, bytemuck::cast_slice(&rows(ids, self.length, false)));
        self.write(program, bitgen_slots::SPANS, &spans);
        self.write(program, bitgen_slots::MEMORY, &bits(&memory));
        self.write(program, bitgen_slots::QUALITY, &bits(&quality));
        if let Some(image) = image {
            self.write(program, bitgen_slots::IMAGE, &bits(&repeated(image, d, self.length)));
        }
        Step::new(ids.len(), samples, self.length)
    }

    fn encoder(&mut self, images: bool) -> PreparedPlan {
        self.prepare(self.model.record_encoder(&EncoderShape { max_rows: 2 * self.length + 3, max_samples: 3, images }))
    }

    /// Writes what a decoder reads, all rows' logits wanted, and returns the step.
    fn feed_decoder(&mut self, program: &PreparedPlan, ids: &[i32], length: usize, contexts: &[f32]) -> Step {
        let (d, n) = (self.model.sizes().d, ids.len() as u32);
        self.write(program, slots::ROWS, bytemuck::cast_slice(&rows(ids, length, true)));
        self.write(program, slots::OUTPUTS, &(0..n).collect::<Vec<u32>>());
        self.write(program, bitgen_slots::CONTEXT, &bits(&repeated(contexts, d, length)));
        Step::new(ids.len(), ids.len(), length)
    }

    fn decoder(&mut self) -> PreparedPlan {
        self.prepare(self.model.record_decoder(2 * self.length + 3, 2 * self.length + 3))
    }

    /// The mean of each sample's golden embeddings.
    fn contexts(&self, name: &str) -> Vec<f32> {
        let (embeddings, d) = (self.golden.f32s(name), self.model.sizes().d);
        let mean = |sample: &[f32]| -> Vec<f32> {
            (0..d).map(|i| sample.iter().skip(i).step_by(d).sum::<f32>() / self.length as f32).collect()
        };
        embeddings.chunks(self.length * d).flat_map(mean).collect()
    }

    /// Compares a free run, in which rounding flips may spread.
    fn check_free(&self, name: &str, found: &[f32], tol: f64) {
        let off = rms(found, &self.golden.f32s(name));
        println!("{}: {name} is off by {off:.1e}", self.what);
        assert!(off < tol, "{}: {name} is off by {off}", self.what);
    }
}

/// Relative rms where nothing is rounded, and where a rounding flip may spread.
const EXACT: f64 = 1e-5;
const FREE: f64 = 0.05;

fn for_each(mut f: impl FnMut(&Path, LoadedBitGen)) {
    for dir in bitgens() {
        for (device, backend) in devices() {
            f(&dir, LoadedBitGen::open(&dir, device, backend));
        }
    }
}

#[test]
fn features_and_similarities_match() {
    for_each(|dir, mut rig| {
        let mut report = Report::default();
        let [features, _] = rig.images(dir, &mut report);
        let texts = rig.prepare(rig.model.record_features(5));
        let ids = rig.golden.i32s("input_ids");
        let first: Vec<i32> = ids.iter().copied().step_by(rig.length).collect();
        rig.write(&texts, slots::ROWS, bytemuck::cast_slice(&rows(&first, 1, false)));
        let n = first.len();
        rig.run(&texts, &Step::new(n, n, 1));
        let d = rig.model.sizes().d;
        let words = rig.output(&texts, bitgen_slots::FEATURES, n * d);
        for prefix in ["det", "noise"] {
            rig.check_free(&format!("{prefix}.image_features"), &features, EXACT);
            rig.check_free(&format!("{prefix}.text_features"), &words, EXACT);
        }
        rig.check_free("single.image_features", &features[..d], EXACT);
        rig.check_free("single.text_features", &words[..d], EXACT);
        let dot = |t: &[f32], i: &[f32]| t.iter().zip(i).map(|(a, b)| a * b).sum::<f32>();
        let cosines: Vec<f32> = words.chunks(d).flat_map(|t| features.chunks(d).map(move |i| dot(t, i))).collect();
        rig.check_free("det.cosine_t2i", &cosines, EXACT);
        let temperature = rig.golden.f32s("det.temperature")[0];
        let scaled: Vec<f32> = cosines.iter().map(|c| c / temperature).collect();
        rig.check_free("det.sim_t2i_batch", &scaled, EXACT);
        report.finish(&rig.what);
    });
}

#[test]
fn encoder_and_decoder_stages_fed_with_golden_inputs_match() {
    for_each(|dir, mut rig| {
        let mut report = Report::default();
        let [_, common] = rig.images(dir, &mut report);
        let (encoder, decoder, ids) = (rig.encoder(true), rig.decoder(), rig.golden.i32s("input_ids"));
        for (prefix, noise) in [("det", false), ("noise", true)] {
            let step = rig.feed_encoder(&encoder, &ids, Some(&common), noise);
            rig.walk(&encoder, &step, prefix, &mut report);
            let contexts = rig.contexts(&format!("{prefix}.embeddings"));
            let step = rig.feed_decoder(&decoder, &ids, rig.length, &contexts);
            rig.walk(&decoder, &step, prefix, &mut report);
        }
        let without = rig.encoder(false);
        let step = rig.feed_encoder(&without, &ids, None, false);
        rig.walk(&without, &step, "text_only", &mut report);
        report.finish(&rig.what);
    });
}

#[test]
fn free_runs_alone_in_a_batch_and_without_images_match() {
    for_each(|dir, mut rig| {
        let [_, common] = rig.images(dir, &mut Report::default());
        let (d, ids) = (rig.model.sizes().d, rig.golden.i32s("input_ids"));
        let (with, without, decoder) = (rig.encoder(true), rig.encoder(false), rig.decoder());
        let target = rig.golden.i32s("text_only.target_ids");
        type Case<'a> = (&'a str, &'a [i32], Option<&'a [f32]>, &'a [i32], usize);
        let cases: [Case; 3] = [
            ("det", &ids, Some(&common), &ids, rig.length),
            ("single", &ids[..rig.length], Some(&common[..d]), &ids[..rig.length], rig.length),
            ("text_only", &ids, None, &target, target.len() / 2),
        ];
        for (prefix, ids, image, target, length) in cases {
            let encoder = if image.is_some() { &with } else { &without };
            let step = rig.feed_encoder(encoder, ids, image, false);
            rig.run(encoder, &step);
            let embeddings = rig.output(encoder, bitgen_slots::EMBEDDINGS, ids.len() * d);
            rig.check_free(&format!("{prefix}.embeddings"), &embeddings, EXACT);
            let contexts = rig.output(encoder, bitgen_slots::CONTEXT, step.outputs as usize * d);
            let step = rig.feed_decoder(&decoder, target, length, &contexts);
            rig.run(&decoder, &step);
            let logits = rig.output(&decoder, slots::LOGITS, target.len() * rig.model.sizes().vocab);
            rig.check_free(&format!("{prefix}.decoder_logits"), &logits, FREE);
        }
    });
}

#[test]
fn greedy_captions_match() {
    for_each(|dir, mut rig| {
        let [_, common] = rig.images(dir, &mut Report::default());
        let (d, vocab, ids) = (rig.model.sizes().d, rig.model.sizes().vocab, rig.golden.i32s("input_ids"));
        let (encoder, decoder) = (rig.encoder(true), rig.decoder());
        let step = rig.feed_encoder(&encoder, &ids[..rig.length], Some(&common[..d]), false);
        rig.run(&encoder, &step);
        let context = rig.output(&encoder, bitgen_slots::CONTEXT, d);
        let (want, steps) = (rig.golden.i32s("greedy.ids"), rig.golden.f32s("greedy.step_logits"));
        let mut tokens = vec![ids[0]];
        let mut greedy = Greedy::new(dir, &rig.what, &want[1..], &steps);
        for (i, want) in want[1..].iter().enumerate() {
            let step = rig.feed_decoder(&decoder, &tokens, tokens.len(), &context);
            rig.run(&decoder, &step);
            let logits = rig.output(&decoder, slots::LOGITS, tokens.len() * vocab);
            let last = &logits[logits.len() - vocab..];
            let off = rms(last, &steps[i * vocab..(i + 1) * vocab]);
            assert!(off < FREE, "{}: step {i} is off by {off}", rig.what);
            greedy.step(i, last);
            tokens.push(*want);
        }
        greedy.finish();
    });
}

#[test]
fn images_of_other_sizes_are_resized_as_the_original_does() {
    let mut compared = 0;
    for_each(|dir, mut rig| {
        if !dir.join("golden_resize.safetensors").exists() {
            return;
        }
        let resize = golden(dir, "golden_resize.safetensors");
        let shape = resize.shape("image_u8_hwc");
        let path = dir.join(format!("image_resize_{}x{}.png", shape[1], shape[0]));
        let info = rig.model.image_info();
        let pixels = Image::open(path).unwrap().bilinear_values(info.size, info.mean, info.std);
        let mut report = Report::default();
        report.compare("vision_input", &pixels, &resize.f32s("vision_input"), info.size);
        let program = rig.prepare(rig.model.record_image(1));
        rig.write(&program, slots::PIXELS, &bits(&pixels));
        rig.run(&program, &Step::FULL);
        let want = resize.f32s("vision_features");
        let slot = program.plan.tags["vision_features"];
        let spec = program.plan.spec(slot);
        let words = rig.backend.read(program.id, &[(slot, 0..spec.len())]).unwrap().remove(0);
        report.compare("vision_features", &floats(&words[spec.len() - want.len()..]), &want, spec.width());
        report.finish(&rig.what);
        compared += 1;
    });
    assert!(compared > 0, "no resized image");
}

#[test]
fn checkpoint_forms_load_to_the_same_words() {
    let mut compared = 0;
    for dir in bitgens() {
        let options = LoadOptions { max_binding: 1 << 14, ..LoadOptions::anywhere(Pack::F16) };
        let words = |path: &Path| -> Vec<Vec<u32>> {
            let weights = Weights::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
            let model = BitGenStage1::open(path, &weights, options).unwrap_or_else(|e| panic!("{e}"));
            let encoder = EncoderShape { max_rows: 4, max_samples: 1, images: true };
            let plans = [model.record_image(1), model.record_encoder(&encoder), model.record_decoder(4, 4)];
            plans.iter().flatten().flat_map(|p| p.weights().map(|(w, _)| weights.load(w).unwrap())).collect()
        };
        let state_dict = words(&dir.join("pytorch_model.bin"));
        for entry in std::fs::read_dir(&dir).unwrap().flatten().filter(|e| e.path().is_dir()) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let trainers = words(&entry.path().join(format!("{name}.pt")));
            assert!(trainers == state_dict, "{name} loads to other words");
            compared += 1;
        }
    }
    println!("{compared} checkpoints of the trainer compared with the state dict");
}

#[test]
fn the_library_gives_the_originals_similarities_captions_and_read_counts() {
    for dir in bitgens() {
        for device in [DeviceChoice::Cpu, DeviceChoice::Gpu] {
            if device == DeviceChoice::Gpu && support::device::device().is_none() {
                continue;
            }
            let golden = golden(&dir, "golden_stage1.safetensors");
            let (shape, ids) = (golden.shape("input_ids"), golden.i32s("input_ids"));
            let ids: Vec<u32> = ids.into_iter().map(|id| id as u32).collect();
            let device = DeviceOptions { autotune: false, ..device.into() };
            let model =
                BitGen::open(&dir, BitGenOptions { device, precision: Precision::F32, ..Default::default() }).unwrap();
            let what = format!("{} on {}", dir.display(), model.device());
            let images = [0, 1].map(|i| Image::open(dir.join(format!("image{i}_224x224.png"))).unwrap());
            let texts: Vec<&[u32]> = ids.chunks(shape[1]).collect();
            let found = model.similarity(&texts, &images).unwrap().concat();
            assert!(rms(&found, &golden.f32s("det.sim_t2i_batch")) < EXACT, "{what}: {found:?}");
            check_batches(&model, &images, &what);

            let want = golden.i32s("greedy.ids");
            let options = CaptionOptions { max_tokens: want.len(), ..Default::default() };
            let whole = model.caption(texts[0], Some(&images[0]), &options).unwrap();
            let found: Vec<i32> = whole.iter().map(|&id| id as i32).collect();
            assert_eq!(found[0], want[0], "{what}: the first token is given");
            let mut greedy = Greedy::new(&dir, &what, &want[1..], &golden.f32s("greedy.step_logits"));
            greedy.run(&found[1..]);
            greedy.finish();
            let eos = CaptionOptions { eos: Some(whole[3]), ..options.clone() };
            let cut = model.caption(texts[0], Some(&images[0]), &eos).unwrap();
            assert!(whole.starts_with(&cut) && cut.len() <= 4, "{what}: {cut:?} of {whole:?}");
            check_reads(&dir, &golden, &texts, &images, &what);
            refuses(&model, &images[0]);
        }
    }
}

/// Each slot that any token of a pass has read counts one more, in the original's pass of two samples.
fn check_reads(dir: &Path, golden: &Golden, texts: &[&[u32]], images: &[Image], what: &str) {
    let options = BitGenOptions { device: DeviceChoice::Cpu.into(), precision: Precision::F32, ..Default::default() };
    let given = MemoryNoise::Given(golden.f32s("noise_eps"));
    for (prefix, noise) in [("det", &MemoryNoise::None), ("noise", &given)] {
        let model = BitGen::open(dir, options.clone()).unwrap();
        let mut memory = model.memory();
        let read = |i: usize| model.encode(texts[i], Some(&images[i]), noise).unwrap().read;
        memory.count_reads(&[read(0), read(1)].concat());
        assert_eq!(memory.read_count, golden.f32s(&format!("{prefix}.memory.read_count_after")), "{what}: {prefix}");
        let total = |counts: &[f32]| counts.iter().sum::<f32>();
        assert!(total(&model.memory().read_count) > total(&memory.read_count), "{what}: two passes count more");
    }
}

/// Images of a batch are encoded as each is alone.
fn check_batches(model: &BitGen, [a, b]: &[Image; 2], what: &str) {
    let alone = [a, b].map(|image| model.image_features(std::slice::from_ref(image)).unwrap().remove(0));
    for n in [0, 2, 4, 5, 9] {
        let images: Vec<Image> = [a, b].into_iter().cycle().take(n).cloned().collect();
        let found = model.image_features(&images).unwrap();
        assert_eq!(found.len(), n, "{what}");
        for (i, found) in found.iter().enumerate() {
            let off = found.iter().zip(&alone[i % 2]).map(|(f, w)| (f - w).abs()).fold(0.0, f32::max);
            assert!(off < 1e-6, "{what}: image {i} of {n} is off by {off}");
        }
    }
}

/// What callers can do wrong is an error that says so.
fn refuses(model: &BitGen, image: &Image) {
    let long = vec![0; model.sizes().positions + 1];
    let unknown = [model.sizes().vocab as u32];
    for text in [&[][..], &long, &unknown] {
        assert!(matches!(model.text_features(&[text]), Err(ternion::Error::Argument { .. })));
        assert!(matches!(model.encode(text, Some(image), &MemoryNoise::None), Err(ternion::Error::Argument { .. })));
    }
    let none = CaptionOptions { max_tokens: 0, ..Default::default() };
    assert!(matches!(model.caption(&[0], None, &none), Err(ternion::Error::Argument { .. })));
    let short = MemoryNoise::Given(vec![0.0]);
    assert!(matches!(model.encode(&[0], None, &short), Err(ternion::Error::Argument { .. })));
}
