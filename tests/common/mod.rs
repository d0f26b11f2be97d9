//! What the integration tests share: golden files, adapters, recording with data, running, comparing.
#![allow(dead_code)] // Each test uses a part.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::{Arc, Once};

use safetensors::{Dtype, SafeTensors};
use ternion::cpu::Cpu;
use ternion::gpu::{Adapters, Device, Gpu};
use ternion::plan::{Backend, Caps, Plan, PlanBuilder, Slot, Step, Tuning};
use ternion::quant::{Packed, WeightQuant, stack};
use ternion::tensor::{DType, Lead, Pack, Spec, WeightPart, WeightRef, code_words};

/// The folder of golden data: `TERNION_GOLDENS`, else `tests/golden`.
pub fn golden_root() -> PathBuf {
    let own = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::env::var_os("TERNION_GOLDENS").map_or_else(own, PathBuf::from)
}

/// A safetensors file of golden data, in memory.
pub struct Golden {
    path: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    /// Opens a file below [`golden_root`].
    pub fn open(path: &str) -> Self {
        let path = golden_root().join(path);
        let bytes = std::fs::read(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Golden { path, bytes }
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.file().names().into_iter().map(str::to_owned).collect();
        names.sort();
        names
    }

    /// Shape of a tensor.
    pub fn shape(&self, name: &str) -> Vec<usize> {
        self.tensor(name, None).0
    }

    /// Elements of an F32 tensor.
    pub fn f32s(&self, name: &str) -> Vec<f32> {
        bytemuck::pod_collect_to_vec(&self.tensor(name, Some(Dtype::F32)).1)
    }

    /// Elements of an I32 tensor.
    pub fn i32s(&self, name: &str) -> Vec<i32> {
        bytemuck::pod_collect_to_vec(&self.tensor(name, Some(Dtype::I32)).1)
    }

    /// Elements of an I8 tensor.
    pub fn i8s(&self, name: &str) -> Vec<i8> {
        bytemuck::pod_collect_to_vec(&self.tensor(name, Some(Dtype::I8)).1)
    }

    fn file(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).unwrap_or_else(|e| panic!("{}: {e}", self.path.display()))
    }

    fn tensor(&self, name: &str, dtype: Option<Dtype>) -> (Vec<usize>, Vec<u8>) {
        let view = self.file();
        let view = view.tensor(name).unwrap_or_else(|e| panic!("{}: {name}: {e}", self.path.display()));
        assert!(dtype.is_none_or(|d| d == view.dtype()), "{name} is {:?}", view.dtype());
        (view.shape().to_vec(), view.data().to_vec())
    }
}

/// An open adapter, software ones included. Without one it says so once, or panics if `REQUIRE_GPU=1`.
pub fn device() -> Option<Device> {
    static SKIPPED: Once = Once::new();
    let adapters = Adapters::find();
    let Some(best) = adapters.best(true) else {
        assert!(std::env::var("REQUIRE_GPU").as_deref() != Ok("1"), "REQUIRE_GPU=1, and there is no adapter");
        SKIPPED.call_once(|| eprintln!("skipped: no adapter"));
        return None;
    };
    Some(adapters.open(best).expect("the adapter opens"))
}

/// A backend on the best adapter, with its capabilities as `mask` leaves them.
pub fn gpu(mask: impl FnOnce(Caps) -> Caps) -> Option<Gpu> {
    let device = device()?;
    let caps = mask(device.caps);
    Some(Gpu::new(device, caps).expect("a GPU backend"))
}

/// Every backend that is checked against the plain definitions: the fast CPU, and the GPU with every subset of the
/// adapter's capabilities, and with every tuning.
pub fn backends() -> Vec<(String, Box<dyn Backend>)> {
    let mut all: Vec<(String, Box<dyn Backend>)> = vec![("fast CPU".into(), Box::new(Cpu::new()))];
    let Some(full) = device().map(|d| d.caps) else { return all };
    let tuned = Tuning::ALL.into_iter().filter(|&t| t != full.tuning).map(|tuning| Caps { tuning, ..full });
    for caps in full.subsets().into_iter().chain(tuned) {
        let gpu = gpu(|_| caps).expect("the adapter is still there");
        all.push((format!("GPU {:?}, {:?}", caps.defines(), caps.tuning), Box::new(gpu)));
    }
    all
}

/// What is written before a run: weights by name, and words of slots.
#[derive(Default)]
pub struct Feed {
    /// Names and words of weights.
    pub weights: Vec<(String, Vec<u32>)>,
    /// Words of inputs and states.
    pub slots: Vec<(Slot, Vec<u32>)>,
}

/// What unwritten words hold.
pub const UNWRITTEN: u32 = 0x5A5A_5A5A;

/// Runs a plan once and reads slots. Slots that are read and not fed start as [`UNWRITTEN`].
pub fn run(backend: &mut dyn Backend, plan: &Arc<Plan>, feed: &Feed, step: Step, read: &[Slot]) -> Vec<Vec<u32>> {
    for (name, words) in &feed.weights {
        backend.load_weight(name, words.clone()).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    let program = backend.prepare(plan.clone(), true).unwrap_or_else(|e| panic!("prepare: {e}"));
    for &slot in read {
        backend.write(program, slot, 0, &vec![UNWRITTEN; plan.spec(slot).words()]).expect("unwritten words");
    }
    for (slot, words) in &feed.slots {
        backend.write(program, *slot, 0, words).expect("words fit their slot");
    }
    backend.run(program, &step, 0..plan.nodes.len()).unwrap_or_else(|e| panic!("run: {e}"));
    let ranges: Vec<_> = read.iter().map(|&s| (s, 0..plan.spec(s).words())).collect();
    backend.read(program, &ranges).unwrap_or_else(|e| panic!("read: {e}"))
}

/// Records a plan together with the data that goes into it.
pub struct Rig {
    /// The plan so far.
    pub p: PlanBuilder,
    name: String,
    feed: RefCell<Feed>,
}

impl Rig {
    /// `name` keeps weights and states of different plans apart on one backend.
    pub fn new(name: &str) -> Self {
        Rig { p: PlanBuilder::new(), name: name.to_owned(), feed: RefCell::default() }
    }

    /// The plan and its data.
    pub fn finish(self) -> (Arc<Plan>, Feed) {
        let name = self.name;
        let plan = self.p.finish().unwrap_or_else(|e| panic!("{name}: {e}: {:?}", std::error::Error::source(&e)));
        (Arc::new(plan), self.feed.into_inner())
    }

    fn fed(&self, slot: Slot, words: Vec<u32>) -> Slot {
        assert_eq!(words.len(), self.p.spec(slot).words(), "{}: words of {}", self.name, self.p.spec(slot));
        self.feed.borrow_mut().slots.push((slot, words));
        slot
    }

    /// An F32 input.
    pub fn f32s(&self, name: &str, shape: &[usize], lead: Lead, data: &[f32]) -> Slot {
        self.fed(self.p.input(name, Spec::led(shape, DType::F32, lead)), bits(data))
    }

    /// A U32 input.
    pub fn u32s(&self, name: &str, shape: &[usize], lead: Lead, data: &[u32]) -> Slot {
        self.fed(self.p.input(name, Spec::led(shape, DType::U32, lead)), data.to_vec())
    }

    /// An input of codes `[rows, sets, d]`, and its meta: `inv_k` and the sums.
    pub fn codes(&self, shape: [usize; 3], lead: Lead, codes: &[i8], inv_k: f32) -> [Slot; 2] {
        let mut words = Vec::new();
        let mut meta = Vec::new();
        for row in codes.chunks_exact(shape[2]) {
            let mut padded = row.to_vec();
            padded.resize(4 * code_words(shape[2]), 0);
            words.extend(bytemuck::pod_collect_to_vec::<i8, u32>(&padded));
            meta.extend([inv_k, row.iter().map(|&c| f32::from(c)).sum()]);
        }
        let slot = self.p.input("codes", Spec::led(&shape, DType::Codes, lead));
        [self.fed(slot, words), self.f32s("meta", &[shape[0], shape[1], 2], lead, &meta)]
    }

    /// A dense weight in F32, F16 or Int8.
    pub fn weight(&self, name: &str, shape: &[usize], pack: Pack, data: &[f32]) -> Slot {
        let words = match pack {
            Pack::F16 => f16_words(data),
            Pack::Int8 => ternion::quant::int8::pack(data, shape[shape.len() - 1]).unwrap(),
            _ => bits(data),
        };
        self.add_weight(name, shape, pack, words)
    }

    /// A stack of ternary matrices.
    pub fn ternary(&self, name: &str, parts: &[Packed]) -> Slot {
        let shape = [parts.len(), parts.iter().map(|p| p.rows).sum(), parts[0].cols];
        self.add_weight(name, &shape, Pack::Ternary(WeightQuant::SignMean), stack(parts))
    }

    fn add_weight(&self, name: &str, shape: &[usize], pack: Pack, words: Vec<u32>) -> Slot {
        let (cols, name) = (shape[shape.len() - 1], format!("{}.{name}", self.name));
        let rows = 0..shape.iter().product::<usize>() / cols;
        let weight = WeightRef { parts: vec![WeightPart { name, rows, cols }], pack };
        let slot = self.p.weight(&weight, shape);
        self.feed.borrow_mut().weights.push((weight.to_string(), words));
        slot
    }

    /// A state with what it holds before the step.
    pub fn state(&self, name: &str, shape: &[usize], dtype: DType, words: Vec<u32>) -> Slot {
        self.fed(self.p.state(&format!("{}.{name}", self.name), Spec::fixed(shape, dtype)), words)
    }
}

/// Floats as words.
pub fn bits(data: &[f32]) -> Vec<u32> {
    data.iter().map(|v| v.to_bits()).collect()
}

/// Words as floats.
pub fn floats(words: &[u32]) -> Vec<f32> {
    words.iter().map(|&w| f32::from_bits(w)).collect()
}

/// Floats as words of two f16 each.
pub fn f16_words(data: &[f32]) -> Vec<u32> {
    let half = |v: f32| u32::from(half::f16::from_f32(v).to_bits());
    data.chunks(2).map(|p| half(p[0]) | half(p.get(1).copied().unwrap_or(0.0)) << 16).collect()
}

/// The worst difference of two lists relative to `max(1, |want|)`: its size and index. NaN is worse than any number.
pub fn worst(found: &[f32], want: &[f32]) -> (f32, usize) {
    assert_eq!(found.len(), want.len(), "lengths");
    let mut worst = (0.0, 0);
    for (i, (f, w)) in found.iter().zip(want).enumerate() {
        let equal = f.to_bits() == w.to_bits();
        let diff = if equal { 0.0 } else { (f - w).abs() / w.abs().max(1.0) };
        let diff = if diff.is_nan() { f32::INFINITY } else { diff };
        if diff > worst.0 {
            worst = (diff, i);
        }
    }
    worst
}

/// Says where two lists differ by more than `tol` ([`worst`]), if they do.
pub fn compare(found: &[f32], want: &[f32], tol: f32) -> Result<(), String> {
    let (diff, at) = worst(found, want);
    if diff <= tol {
        return Ok(());
    }
    Err(format!("differs by {diff:e} > {tol:e} at {at} of {}: found {}, expected {}", want.len(), found[at], want[at]))
}

/// Reproducible numbers.
pub struct Noise(pub u64);

impl Noise {
    /// 32 random bits (splitmix64).
    pub fn word(&mut self) -> u32 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 32) as u32
    }

    /// Floats in ±scale.
    pub fn f32s(&mut self, n: usize, scale: f32) -> Vec<f32> {
        (0..n).map(|_| (f64::from(self.word()) / f64::from(u32::MAX) * 2.0 - 1.0) as f32 * scale).collect()
    }

    /// Activation codes of all 8 bits.
    pub fn acts(&mut self, n: usize) -> Vec<i8> {
        (0..n).map(|_| self.word() as u8 as i8).collect()
    }

    /// A ternary matrix; without zeros it takes 1 bit a code.
    pub fn packed(&mut self, rows: usize, cols: usize, zeros: bool, scale: f32) -> Packed<'static> {
        let code = |w: u32| if zeros { (w % 3) as i8 - 1 } else { (w % 2) as i8 * 2 - 1 };
        let codes: Vec<i8> = (0..rows * cols).map(|_| code(self.word())).collect();
        Packed::new(rows, cols, &codes, scale)
    }
}
