//! BitGenModel's recorded plans on a backend, stage by stage against the original's numbers.

use std::path::Path;

use ternion::files::{Image, Weights};
use ternion::unstable::models::{BitGenModel, ForwardShape, LoadOptions, RobotSizes, robot_slots, slots};
use ternion::unstable::ops::{MASKED, Row};
use ternion::unstable::plan::{Backend, Plan, Step};
use ternion::unstable::tensor::Pack;

use crate::support::golden::Golden;
use crate::support::model_stages::{PreparedPlan, Report, golden};
use crate::support::numbers::{bits, floats};

/// What the original adds to the scores of tokens that a mask leaves out.
const LEFT_OUT: f32 = -10_000.0;

fn sigmoid(v: f32) -> f32 {
    1.0 / (1.0 + (-v).exp())
}

/// `[a, b, width]` → `[b, a, width]`.
pub fn swapped(x: &[f32], a: usize, b: usize, width: usize) -> Vec<f32> {
    (0..b).flat_map(|j| (0..a).flat_map(move |i| x[(i * b + j) * width..][..width].to_vec())).collect()
}

/// Both pictures of a variant.
pub fn images(dir: &Path) -> Vec<Image> {
    [0, 1].map(|i| Image::open(dir.join(format!("image{i}.png"))).expect("an image")).to_vec()
}

/// A model with its weights on a backend.
pub struct LoadedRobot {
    model: BitGenModel,
    weights: Weights,
    backend: Box<dyn Backend>,
    golden: Golden,
    samples: usize,
    length: usize,
    pub what: String,
}

impl LoadedRobot {
    pub fn open(dir: &Path, device: &str, backend: Box<dyn Backend>) -> Self {
        let weights = Weights::open(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let options = LoadOptions::anywhere(Pack::F32);
        let model = BitGenModel::open(dir, &weights, options).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let golden = golden(dir, "golden_bitgen.safetensors");
        let shape = golden.shape("input_ids");
        let what = format!("{} on {device}", dir.display());
        LoadedRobot { model, weights, backend, golden, samples: shape[0], length: shape[1], what }
    }

    fn prepare(&mut self, plan: ternion::Result<Plan>) -> PreparedPlan {
        let plan = plan.unwrap_or_else(|e| panic!("{e}: {:?}", std::error::Error::source(&e)));
        PreparedPlan::prepare(plan, &self.weights, self.backend.as_mut())
    }

    /// More samples, rows and keys than are used.
    fn shape(&self, images: bool, masked: bool) -> ForwardShape {
        let (samples, n) = (self.samples + 1, self.samples * self.length);
        ForwardShape { samples, rows: n + 5, keys: self.length + 3, outputs: n + 2, images, masked }
    }

    fn write(&mut self, program: &PreparedPlan, input: &str, words: &[u32]) {
        program.write(self.backend.as_mut(), input, words);
    }

    fn output(&mut self, program: &PreparedPlan, name: &str, n: usize) -> Vec<f32> {
        program.output(self.backend.as_mut(), name, n)
    }

    fn state(&mut self, program: &PreparedPlan, name: &str, n: usize) -> Vec<f32> {
        let slot = program.plan.state(name).unwrap_or_else(|| panic!("no state {name}"));
        floats(&self.backend.read(program.id, &[(slot, 0..n)]).expect("a state")[0])
    }

    fn behind(program: &PreparedPlan, state: &str) -> usize {
        program.plan.producer(program.plan.state(state).expect("a state")).expect("it is written") + 1
    }

    /// Runs nodes up to `end`, stage by stage. Where there are golden numbers of a stage, these are compared, and written
    /// over its own.
    fn walk(
        &mut self,
        program: &PreparedPlan,
        step: &Step,
        from: usize,
        end: usize,
        prefix: &str,
        report: &mut Report,
    ) {
        let (plan, names, mut next) = (program.plan.clone(), self.golden.names(), from);
        let mut stages: Vec<_> = plan.tags.iter().map(|(tag, &slot)| (plan.producer(slot), tag, slot)).collect();
        stages.sort();
        for (producer, tag, slot) in stages {
            let name = format!("{prefix}.{tag}");
            let behind = producer.map_or(0, |node| node + 1);
            if !names.contains(&name) || !(from..=end).contains(&behind) {
                continue;
            }
            self.backend.run(program.id, step, next..behind.max(next)).expect("some nodes");
            next = behind.max(next);
            let spec = plan.spec(slot);
            let n = step.rows_of(spec) * spec.width();
            let found = floats(&self.backend.read(program.id, &[(slot, 0..n)]).expect("a stage")[0]);
            let want = self.golden.f32s(&name);
            report.compare(&format!("{}: {name}", self.what), &found, &want, spec.width());
            self.backend.write(program.id, slot, 0, &bits(&want)).expect("the golden numbers");
        }
        self.backend.run(program.id, step, next..end).expect("the rest");
    }

    fn step(&self) -> Step {
        let rows = self.samples * self.length;
        Step::new(rows, self.samples, self.length)
    }

    /// Writes what a forward plan reads on texts without a cache.
    fn feed(&mut self, program: &PreparedPlan, shape: &ForwardShape) {
        let (n, ids) = (self.length, self.golden.i32s("input_ids"));
        let each =
            |f: &dyn Fn(usize, usize) -> u32| -> Vec<u32> { (0..self.samples * n).map(|r| f(r / n, r % n)).collect() };
        let span = |i: usize| if shape.masked { n } else { i + 1 };
        let row = |r: usize| Row {
            token: ids[r] as u32,
            pos: (r % n) as u32,
            seq_base: (r / n * shape.keys) as u32,
            seq_len: span(r % n) as u32,
        };
        let rows: Vec<Row> = (0..ids.len()).map(row).collect();
        let patches = self.model.sizes().patches() as u32;
        let patch_rows: Vec<u32> = (0..ids.len()).flat_map(|r| [0, 0, (r / n) as u32 * patches, patches]).collect();
        let inputs = [
            (slots::ROWS, bytemuck::cast_slice(&rows).to_vec()),
            (robot_slots::PLACES, each(&|s, i| (s * shape.keys + i) as u32)),
            (robot_slots::OF_SAMPLE, each(&|s, _| s as u32)),
            (robot_slots::SPANS, (0..self.samples).flat_map(|s| [(s * n) as u32, n as u32]).collect()),
            (robot_slots::FIRST, (0..self.samples).map(|s| (s * n) as u32).collect()),
            (robot_slots::PATCH_ROWS, patch_rows),
            (slots::OUTPUTS, (0..ids.len() as u32).collect()),
        ];
        for (name, words) in inputs.iter().filter(|(name, _)| program.plan.input(name).is_some()) {
            self.write(program, name, words);
        }
        if shape.masked {
            let keep = self.golden.f32s("attn_mask");
            let added = |r: usize, key: usize| match key {
                key if key > r % n => MASKED,
                key => (1.0 - keep[r / n * n + key]) * LEFT_OUT,
            };
            let mask: Vec<f32> = (0..ids.len()).flat_map(|r| (0..shape.keys).map(move |key| added(r, key))).collect();
            self.write(program, robot_slots::MASK, &bits(&mask));
        }
    }

    /// Puts what both images become into the states that a plan with images reads.
    pub fn see(&mut self, dir: &Path, report: &mut Report) {
        let (samples, n) = (self.samples + 1, self.model.sizes().patches());
        let (patches, all) = (self.model.record_patches(samples), self.model.record_images(samples));
        let (patches, all) = (self.prepare(patches), self.prepare(all));
        let info = self.model.image_info();
        for (i, image) in images(dir).iter().enumerate() {
            let places: Vec<u32> = (0..=n).map(|p| (i * n + p).wrapping_sub(1) as u32).collect();
            let places = [&[u32::MAX], &places[1..]].concat();
            self.write(&patches, slots::PIXELS, &bits(&image.bilinear_values(info.size, info.mean, info.std)));
            self.write(&patches, robot_slots::PLACES, &places);
            self.backend.run(patches.id, &Step::FULL, 0..patches.plan.nodes.len()).expect("an image");
        }
        let step = Step::new(2 * n, 2, n);
        self.walk(&all, &step, 0, all.plan.nodes.len(), "image", report);
        let features = self.output(&all, robot_slots::FEATURES, 2 * self.model.sizes().d);
        report.compare("image_features", &features, &self.golden.f32s("image.image_features"), self.model.sizes().d);
    }

    /// One golden case, each stage fed with golden inputs.
    pub fn check(&mut self, prefix: &str, images: bool, masked: bool, report: &mut Report) {
        let shape = self.shape(images, masked);
        let (plan, step, sizes) = (self.model.record_forward(&shape), self.step(), self.model.sizes().clone());
        let program = self.prepare(plan);
        self.feed(&program, &shape);
        let [first, second] = [robot_slots::SIGNS, robot_slots::SCORES].map(|state| Self::behind(&program, state));
        self.walk(&program, &step, 0, first, prefix, report);
        let (samples, steps) = (self.samples, sizes.reasoning_steps);
        let signs = self.state(&program, robot_slots::SIGNS, samples * steps * 2);
        let stops = |&t: &usize| (0..samples).all(|s| sigmoid(signs[2 * (s * steps + t) + 1]) < 0.5);
        let counted = (3..steps).find(stops).map_or(steps, |t| t + 1);
        let spans: Vec<u32> = (0..samples).flat_map(|s| [(s * steps) as u32, counted as u32]).collect();
        self.write(&program, robot_slots::COUNTED, &spans);
        let name = |what: &str| format!("{prefix}.{what}");
        if self.golden.names().contains(&name("reasoning.states")) {
            let states = self.state(&program, robot_slots::STATES, samples * steps * sizes.reasoning);
            let part = |x: &[f32], width: usize| -> Vec<f32> {
                x.chunks(steps * width).flat_map(|x| x[..counted * width].to_vec()).collect()
            };
            let found = swapped(&part(&states, sizes.reasoning), samples, counted, sizes.reasoning);
            report.compare("states", &found, &self.golden.f32s(&name("reasoning.states")), sizes.reasoning);
            let found: Vec<f32> = part(&signs, 2).into_iter().map(sigmoid).collect();
            let found = swapped(&found, samples, counted, 2);
            for (i, what) in ["confidences", "gates"].iter().enumerate() {
                let found: Vec<f32> = found.iter().copied().skip(i).step_by(2).collect();
                report.compare(what, &found, &self.golden.f32s(&name(&format!("reasoning.{what}"))), 1);
            }
        }
        self.walk(&program, &step, first, second, prefix, report);
        if self.golden.names().contains(&name("robot.all_logits")) {
            let scores = self.state(&program, robot_slots::SCORES, samples * sizes.robots.len());
            report.compare("scores", &scores, &self.golden.f32s(&name("robot.all_logits")), sizes.robots.len());
        }
        if images {
            let features = self.output(&program, robot_slots::FEATURES, samples * sizes.d);
            report.compare("text_features", &features, &self.golden.f32s(&name("text_features")), sizes.d);
        }
        let last = Step { outputs: step.rows, ..step };
        self.backend.run(program.id, &last, second..program.plan.nodes.len()).expect("logits");
        let logits = self.output(&program, slots::LOGITS, step.rows as usize * sizes.vocab);
        report.compare("logits", &logits, &self.golden.f32s(&name("logits")), sizes.vocab);
        for i in 0..sizes.layers {
            for (state, kind) in robot_slots::keys(i).iter().zip(["k", "v"]) {
                let width = sizes.kv_width();
                let keys = self.state(&program, state, samples * shape.keys * width);
                let sample = |s: usize| &keys[s * shape.keys * width..][..self.length * width];
                let from = self.length.saturating_sub(sizes.window) * width;
                let last: Vec<f32> = (0..samples).flat_map(|s| by_head(&sample(s)[from..], &sizes)).collect();
                let want = self.golden.f32s(&name(&format!("cache.{i}.{kind}")));
                report.compare(&format!("cache.{i}.{kind}"), &last, &want, sizes.head[0]);
            }
        }
    }

    /// The text decoder on the golden embeddings of the case with images.
    pub fn check_decoder(&mut self, report: &mut Report) {
        let (n, d, vocab) = (self.samples * self.length, self.model.sizes().d, self.model.sizes().vocab);
        let program = self.prepare(self.model.record_decoder(n + 1, n + 1));
        let embeddings = self.golden.f32s("image.final_ln.out");
        let mean = |x: &[f32]| -> Vec<f32> {
            (0..d).map(|i| x.iter().skip(i).step_by(d).sum::<f32>() / self.length as f32).collect()
        };
        let contexts: Vec<f32> = embeddings.chunks(self.length * d).flat_map(|x| mean(x).repeat(self.length)).collect();
        let ids = self.golden.i32s("input_ids");
        let row = |(r, &id): (usize, &i32)| {
            let (pos, base) = ((r % self.length) as u32, (r / self.length * self.length) as u32);
            Row { token: id as u32, pos, seq_base: base, seq_len: pos + 1 }
        };
        let rows: Vec<Row> = ids.iter().enumerate().map(row).collect();
        self.write(&program, slots::ROWS, bytemuck::cast_slice(&rows));
        self.write(&program, slots::OUTPUTS, &(0..n as u32).collect::<Vec<u32>>());
        self.write(&program, robot_slots::CONTEXT, &bits(&contexts));
        let step = Step::new(n, n, self.length);
        self.backend.run(program.id, &step, 0..program.plan.nodes.len()).expect("the decoder");
        let logits = self.output(&program, slots::LOGITS, n * vocab);
        report.compare("decoder_logits", &logits, &self.golden.f32s("image.decoder_logits"), vocab);
    }
}

/// `[keys, heads · head]` → `[heads, keys, head]`.
pub fn by_head(keys: &[f32], sizes: &RobotSizes) -> Vec<f32> {
    swapped(keys, keys.len() / sizes.kv_width(), sizes.n_heads, sizes.head[0])
}
