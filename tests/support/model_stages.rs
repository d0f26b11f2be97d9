//! Running recorded models against the originals' numbers, stage by stage.
#![allow(dead_code)] // Each test uses a part.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ternion::files::Weights;
use ternion::unstable::cpu::Cpu;
use ternion::unstable::models;
use ternion::unstable::models::{ChatModel, LoadOptions, TextShape, slots};
use ternion::unstable::ops::{Row, TOKEN_IMAGE};
use ternion::unstable::plan::{Backend, Plan, ProgramId, Slot, Step};
use ternion::unstable::tensor::{DType, Pack};

use crate::support::device::gpu;
use crate::support::golden::{Golden, golden_root};
use crate::support::numbers::{bits, floats};

/// Folders at most four levels below the golden root that hold `file`.
pub fn variants(file: &str) -> Vec<PathBuf> {
    let (mut found, mut level) = (Vec::new(), vec![golden_root()]);
    for _ in 0..5 {
        let mut next = Vec::new();
        for dir in level {
            if dir.join(file).exists() {
                found.push(dir.clone());
            }
            let entries = std::fs::read_dir(&dir).into_iter().flatten().flatten();
            next.extend(entries.map(|e| e.path()).filter(|p| p.is_dir()));
        }
        level = next;
    }
    found.sort();
    found
}

/// The EmberNet variants; a root without any fails.
pub fn embernets() -> Vec<PathBuf> {
    let found: Vec<PathBuf> = variants("golden_prefill.safetensors")
        .into_iter()
        .filter(|d| d.join("embernet_config.json").exists())
        .collect();
    assert!(!found.is_empty(), "{}: no EmberNet variant", golden_root().display());
    found
}

/// A golden file of a variant.
pub fn golden(dir: &Path, file: &str) -> Golden {
    Golden::open(&dir.join(file).to_string_lossy())
}

/// The picture of an EmberNet variant's prefill: which of its preprocessed ones has the vectors of the prefill.
pub fn main_picture(dir: &Path) -> String {
    let want = golden(dir, "golden_prefill.safetensors").f32s("image_embeds.raw");
    let preprocess = golden(dir, "golden_preprocess.safetensors");
    let names = preprocess.names();
    let stems = names.iter().filter_map(|n| n.strip_suffix(".image_embeds.raw"));
    let off = |stem: &str| rms(&preprocess.f32s(&format!("{stem}.image_embeds.raw")), &want);
    let (nearest, off) = stems.map(|s| (s, off(s))).min_by(|a, b| a.1.total_cmp(&b.1)).expect("a picture");
    assert!(off < 1e-5, "{}: no picture has the vectors of the prefill: {nearest} is off by {off}", dir.display());
    nearest.to_owned()
}

/// The plain CPU, the fast CPU, and the GPU if there is one.
pub fn devices() -> Vec<(&'static str, Box<dyn Backend>)> {
    let mut all: Vec<(&'static str, Box<dyn Backend>)> =
        vec![("plain CPU", Box::new(Cpu::plain())), ("fast CPU", Box::new(Cpu::new()))];
    if let Some(gpu) = gpu(|caps| caps) {
        all.push(("GPU", Box::new(gpu)));
    }
    all
}

/// A model with its weights on a backend.
pub struct LoadedModel {
    pub model: Box<dyn ChatModel>,
    pub weights: Weights,
    pub backend: Box<dyn Backend>,
}

/// A prepared plan.
pub struct PreparedPlan {
    pub plan: Arc<Plan>,
    pub id: ProgramId,
}

impl PreparedPlan {
    /// Loads what a plan needs and prepares it so that every slot can be read.
    pub fn prepare(plan: Plan, weights: &Weights, backend: &mut dyn Backend) -> Self {
        for (weight, _) in plan.weights() {
            if backend.weight_bytes(&weight.to_string()).is_none() {
                let words = weights.load(weight).unwrap_or_else(|e| panic!("{weight}: {e}"));
                backend.load_weight(&weight.to_string(), words).expect("it fits");
            }
        }
        let plan = Arc::new(plan);
        let id = backend.prepare(plan.clone(), true).unwrap_or_else(|e| panic!("prepare: {e}"));
        PreparedPlan { plan, id }
    }

    /// Writes the first words of an input.
    pub fn write(&self, backend: &mut dyn Backend, input: &str, words: &[u32]) {
        let slot = self.plan.input(input).unwrap_or_else(|| panic!("no input {input}"));
        backend.write(self.id, slot, 0, words).unwrap_or_else(|e| panic!("{input}: {e}"));
    }

    /// The first numbers of an output.
    pub fn output(&self, backend: &mut dyn Backend, name: &str, n: usize) -> Vec<f32> {
        floats(&backend.read(self.id, &[(self.plan.outputs[name], 0..n)]).expect("a result")[0])
    }
}

impl LoadedModel {
    /// Opens a variant in full precision. Weights above `max_binding` bytes are cut.
    pub fn open(dir: &Path, backend: Box<dyn Backend>, max_binding: u64) -> Self {
        Self::open_with_head(dir, backend, Pack::F32, max_binding)
    }

    /// The same with another form of the matrix that gives the logits.
    pub fn open_with_head(dir: &Path, backend: Box<dyn Backend>, head: Pack, max_binding: u64) -> Self {
        let weights = Weights::open(dir).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        let options = LoadOptions { head, max_binding, ..LoadOptions::anywhere(Pack::F32) };
        let model = models::open_chat(dir, &weights, options).unwrap_or_else(|e| panic!("{}: {e}", dir.display()));
        LoadedModel { model, weights, backend }
    }

    /// Replaces a weight before the first plan is prepared.
    pub fn scale_weight(&mut self, tensor: &str, factor: f32) {
        let plan = self.model.record_text(&text_shape(1, 1, 16)).expect("a plan");
        for (weight, _) in plan.weights().filter(|(w, _)| w.parts[0].name == tensor) {
            let words = self.weights.load(weight).expect("the weight loads");
            let scaled: Vec<f32> = floats(&words).into_iter().map(|v| v * factor).collect();
            self.backend.load_weight(&weight.to_string(), bits(&scaled)).expect("it fits");
        }
    }

    /// Loads what a plan needs and prepares it so that every slot can be read.
    pub fn prepare(&mut self, plan: Plan) -> PreparedPlan {
        PreparedPlan::prepare(plan, &self.weights, self.backend.as_mut())
    }

    /// The image plan.
    pub fn image(&mut self) -> PreparedPlan {
        let plan = self.model.record_image().expect("an image plan");
        self.prepare(plan)
    }

    /// A text plan in which every row's logits can be read.
    pub fn text(&mut self, rows: usize, capacity: usize) -> PreparedPlan {
        let plan = self.model.record_text(&text_shape(rows, rows, capacity)).expect("a text plan");
        self.prepare(plan)
    }

    pub fn write(&mut self, program: &PreparedPlan, slot: Slot, values: &[f32]) {
        self.backend.write(program.id, slot, 0, &bits(values)).unwrap_or_else(|e| panic!("write: {e}"));
    }

    pub fn read_words(&mut self, program: &PreparedPlan, slot: Slot, n: usize) -> Vec<u32> {
        let mut read = self.backend.read(program.id, &[(slot, 0..n)]).unwrap_or_else(|e| panic!("read: {e}"));
        read.remove(0)
    }

    pub fn read(&mut self, program: &PreparedPlan, slot: Slot, n: usize) -> Vec<f32> {
        floats(&self.read_words(program, slot, n))
    }

    pub fn run(&mut self, program: &PreparedPlan, step: &Step, nodes: Range<usize>) {
        self.backend.run(program.id, step, nodes).unwrap_or_else(|e| panic!("run: {e}"));
    }

    /// Writes rows, all of them outputs, and the vectors of the image rows in front; returns the step.
    pub fn batch(&mut self, program: &PreparedPlan, rows: &[Row], image: &[f32]) -> Step {
        let input = |name: &str| program.plan.input(name).expect("the plan has this input");
        let all: Vec<u32> = (0..rows.len() as u32).collect();
        self.backend.write(program.id, input(slots::ROWS), 0, bytemuck::cast_slice(rows)).expect("rows");
        self.backend.write(program.id, input(slots::OUTPUTS), 0, &all).expect("outputs");
        self.write(program, input(slots::IMAGE_ROWS), image);
        let context = rows.iter().map(|r| r.seq_len).max().unwrap_or(0);
        Step::new(rows.len(), rows.len(), context as usize)
    }

    /// Logits of every row of a batch, `[rows, vocab]`.
    pub fn logits(&mut self, program: &PreparedPlan, rows: &[Row], image: &[f32]) -> Vec<f32> {
        let step = self.batch(program, rows, image);
        self.run(program, &step, 0..program.plan.nodes.len());
        let vocab = self.model.info().vocab;
        self.read(program, program.plan.outputs[slots::LOGITS], rows.len() * vocab)
    }

    /// Image tokens `[n, d]` of pixel values `[3, s, s]`.
    pub fn encode(&mut self, program: &PreparedPlan, pixels: &[f32]) -> Vec<f32> {
        let input = program.plan.input(slots::PIXELS).expect("pixels");
        self.write(program, input, pixels);
        self.run(program, &Step::FULL, 0..program.plan.nodes.len());
        let out = program.plan.outputs[slots::IMAGE];
        self.read(program, out, program.plan.spec(out).len())
    }

    /// Rows of a sequence: `n_image` image rows, then a prompt.
    pub fn rows(&self, n_image: usize, ids: &[i32], base: usize) -> Vec<Row> {
        let token = |id: &i32| self.model.prompt_token(*id as u32, n_image > 0);
        let tokens = std::iter::repeat_n(TOKEN_IMAGE, n_image).chain(ids.iter().map(token));
        tokens.enumerate().map(|(pos, token)| row(token, pos, base)).collect()
    }
}

/// One row.
pub fn row(token: u32, pos: usize, base: usize) -> Row {
    Row { token, pos: pos as u32, seq_base: base as u32, seq_len: pos as u32 + 1 }
}

fn text_shape(max_rows: usize, max_outputs: usize, kv_rows: usize) -> TextShape {
    TextShape { max_rows, max_outputs, kv_rows, context: kv_rows, sessions: 1, kv_dtype: DType::F32, images: true }
}

/// How values compare with golden ones: rows beyond 1e-5 of the largest value (or of 1) are rounding flips.
#[derive(Default)]
pub struct Report {
    pub rows: usize,
    pub flips: Vec<String>,
    pub worst: f32,
}

impl Report {
    /// Compares rows of `width` values.
    pub fn compare(&mut self, what: &str, found: &[f32], want: &[f32], width: usize) {
        assert_eq!(found.len(), want.len(), "{what}: length");
        let size = want.iter().fold(1.0f32, |a, v| a.max(v.abs()));
        for (r, (f, w)) in found.chunks(width).zip(want.chunks(width)).enumerate() {
            let diff = f.iter().zip(w).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / size;
            assert!(diff <= 5e-2, "{what}: row {r} differs by {diff} of {size}, more than a rounding flip");
            self.rows += 1;
            if diff > 1e-5 {
                self.flips.push(format!("{what} row {r}: {diff:.1e}"));
            } else {
                self.worst = self.worst.max(diff);
            }
        }
    }

    /// Fails if more than 1 % of the rows are flips.
    pub fn finish(self, name: &str) {
        println!("{name}: {} rows, worst {:.1e}, flips {:?}", self.rows, self.worst, self.flips);
        assert!(100 * self.flips.len() <= self.rows, "{name}: more than 1 % flips: {:?}", self.flips);
    }
}

/// What a rounding flip may change a logit by, unless a variant's `golden_noise.json` knows of a larger change.
const FLIP: f32 = 5e-2;

/// The original's tokens of a greedy run. Where its first logit leads the second by no more than both may move, a rounding
/// flip may choose the other token, in a correct model too: such tokens are not compared, all others are.
pub struct Greedy {
    what: String,
    ids: Vec<i32>,
    wide: Vec<bool>,
    compared: usize,
}

impl Greedy {
    /// The tokens of a variant's run, and the logits `[ids, vocab]` that each was chosen from.
    pub fn new(dir: &Path, what: &str, ids: &[i32], logits: &[f32]) -> Self {
        let flip = moved(dir).max(FLIP);
        let margin = |logits: &[f32]| {
            let top = |[a, b]: [f32; 2], &v: &f32| if v > a { [v, a] } else { [a, b.max(v)] };
            let [first, second] = logits.iter().fold([f32::NEG_INFINITY; 2], top);
            first - second
        };
        let wide: Vec<bool> = logits.chunks(logits.len() / ids.len()).map(|l| margin(l) > 2.0 * flip).collect();
        assert_eq!(wide.len(), ids.len(), "{what}: logits of each token");
        Greedy { what: what.into(), ids: ids.to_vec(), wide, compared: 0 }
    }

    /// Compares token `i` with the one that these logits choose behind the original's tokens.
    pub fn step(&mut self, i: usize, logits: &[f32]) {
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).expect("a vocabulary");
        self.token(i, best as i32);
    }

    /// Compares a run behind its own tokens: where it goes another way at a narrow margin, the rest is another text.
    pub fn run(&mut self, found: &[i32]) {
        for (i, &id) in found.iter().enumerate() {
            if !self.token(i, id) {
                return;
            }
        }
        assert_eq!(found.len(), self.ids.len(), "{}: tokens", self.what);
    }

    fn token(&mut self, i: usize, found: i32) -> bool {
        if self.wide[i] {
            assert_eq!(found, self.ids[i], "{}: token {i}", self.what);
            self.compared += 1;
        }
        found == self.ids[i]
    }

    /// Says how many tokens were compared, and fails if they are fewer than a quarter.
    pub fn finish(self) {
        let (n, all) = (self.compared, self.ids.len());
        println!("{}: {n} of {all} greedy tokens compared", self.what);
        assert!(4 * n >= all && n > 0, "{}: only {n} of {all} greedy tokens could be compared", self.what);
    }
}

/// How far the original's own last logits move when its input is changed by a millionth, where a variant says so.
fn moved(dir: &Path) -> f32 {
    let Ok(text) = std::fs::read(dir.join("golden_noise.json")) else { return 0.0 };
    let json: serde_json::Value = serde_json::from_slice(&text).expect("JSON");
    let last = |trial: &serde_json::Value| trial[1].as_f64().expect("a change of all logits, and of the last");
    json["trials"].as_array().expect("trials").iter().map(last).fold(0.0, f64::max) as f32
}

/// Relative root mean square difference.
pub fn rms(found: &[f32], want: &[f32]) -> f64 {
    assert_eq!(found.len(), want.len(), "lengths");
    let square = |v: f64| v * v;
    let diff: f64 = found.iter().zip(want).map(|(a, b)| square(f64::from(a - b))).sum();
    let size: f64 = want.iter().map(|b| square(f64::from(*b))).sum();
    (diff / size.max(1e-30)).sqrt()
}

/// Runs a program stage by stage. After each tagged stage that has golden numbers these are compared, and written over
/// the stage's own, so that an error cannot hide in or blow up through what follows.
pub fn forced_walk(rig: &mut LoadedModel, program: &PreparedPlan, step: &Step, golden: &Golden, report: &mut Report) {
    let plan = program.plan.clone();
    let names = golden.names();
    let mut stages: Vec<(usize, &str, Slot)> =
        plan.tags.iter().filter_map(|(tag, &slot)| Some((plan.producer(slot)?, tag.as_str(), slot))).collect();
    stages.sort();
    let mut next = 0;
    for (producer, tag, slot) in stages {
        rig.run(program, step, next..(producer + 1).max(next));
        next = (producer + 1).max(next);
        let spec = plan.spec(slot).clone();
        let n = step.rows_of(&spec) * spec.width();
        if names.iter().any(|n| n == tag) {
            if spec.dtype == DType::U32 {
                let found: Vec<i32> = rig.read_words(program, slot, n).into_iter().map(|v| v as i32).collect();
                assert_eq!(found, golden.i32s(tag), "{tag}");
                continue;
            }
            let want = golden.f32s(tag);
            report.compare(tag, &rig.read(program, slot, n), &want, spec.width());
            if tag.starts_with("layer.") && tag.ends_with(".out") {
                compare_difference(
                    rig,
                    program,
                    golden,
                    &tag.replace(".out", ".mid"),
                    tag,
                    &tag.replace(".out", ".moe_out"),
                    n,
                    report,
                );
            }
            rig.write(program, slot, &want);
        } else if tag.ends_with(".mid") {
            let (from, name) = (tag.replace(".mid", ".in"), tag.replace(".mid", ".attn_out"));
            let want = compare_difference(rig, program, golden, &from, tag, &name, n, report);
            rig.write(program, slot, &want);
        } else if tag.ends_with(".sum") {
            let from = if tag == "projector.sum" { "projector.q".into() } else { tag.replace(".sum", ".in") };
            let name = if tag == "projector.sum" { "projector.ffn".into() } else { tag.replace(".sum", ".out") };
            compare_difference(rig, program, golden, &from, tag, &name, n, report);
        } else if let Some(layer) = tag.strip_suffix(".experts_out") {
            // Slots behind the chosen experts are those of the one that all tokens share, if there is one.
            let (slots, chosen) = (spec.shape[1], golden.shape(&format!("{layer}.topk_indices"))[1]);
            let name = format!("{layer}.shared_expert_out");
            assert_eq!(slots - chosen, usize::from(names.contains(&name)), "{tag}: shared experts");
            if slots > chosen {
                let found = rig.read(program, slot, n);
                let of_row = |r: &[f32]| r[chosen * spec.width()..].to_vec();
                let shared: Vec<f32> = found.chunks(slots * spec.width()).flat_map(of_row).collect();
                report.compare(tag, &shared, &golden.f32s(&name), spec.width());
            }
        }
    }
    rig.run(program, step, next..plan.nodes.len());
}

/// Compares `b − a` with golden `name`; returns `a + name`.
#[allow(clippy::too_many_arguments)] // One call a stage; a struct would only rename them.
fn compare_difference(
    rig: &mut LoadedModel,
    program: &PreparedPlan,
    golden: &Golden,
    a: &str,
    b: &str,
    name: &str,
    n: usize,
    report: &mut Report,
) -> Vec<f32> {
    let width = program.plan.spec(program.plan.tags[b]).width();
    let (a, b) = (rig.read(program, program.plan.tags[a], n), rig.read(program, program.plan.tags[b], n));
    let want = golden.f32s(name);
    let difference: Vec<f32> = b.iter().zip(&a).map(|(b, a)| b - a).collect();
    report.compare(name, &difference, &want, width);
    a.iter().zip(&want).map(|(a, w)| a + w).collect()
}
