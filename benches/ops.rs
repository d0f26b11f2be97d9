//! Ops on the shapes of EmberNet, BitNet-2B-4T, Bonsai-1.7B and DINOv2-base, on the CPU and on the best adapter: `cargo bench --bench ops`.
//!
//! Each is compared with its plain definition first. Then copies of it with weights or caches of their own run one after
//! the other, 64 MiB or more together, so that they come from memory as they do in a model. Times are the device's own.
//! The control row reads as much memory and does nothing else.

#[path = "../tests/support"]
mod support {
    pub mod device;
    pub mod numbers;
    pub mod recording;
}
mod timing;

use std::cell::OnceCell;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use half::f16;
use support::device::{device, gpu};
use support::numbers::{Noise, compare, f16_words, floats};
use support::recording::Recording;
use ternion::unstable::cpu::Cpu;
use ternion::unstable::ops::{
    ActQuant, AttentionShape, CodeScale, Columns, Experts, GroupFactor, GroupQuant, PROBE_CHUNK, RmsNorm, StackPiece,
};
use ternion::unstable::plan::{Backend, Plan, Slot, Step};
use ternion::unstable::quant::groups::{GroupPacked, GroupShape};
use ternion::unstable::quant::{Bits, Packed};
use ternion::unstable::tensor::{CountedBy, DType, Pack};
use timing::{Timed, quick};

/// Bytes that copies of an op read together at least.
const TOGETHER: usize = 64 << 20;
/// Most copies.
const COPIES: usize = 400;
/// Maximum number of bytes of one piece of a head; adapters bind no more than 128 MiB as a rule.
const PIECE: usize = 120 << 20;
const TOLERANCE: f32 = 1e-4;

/// Records a copy of an op, by number.
type Record = dyn Fn(&Recording, usize) -> Slot;

/// An op with its sizes; its weights are named by the number of the copy.
struct Case {
    name: &'static str,
    /// Bytes of weights or cache that it reads.
    bytes: usize,
    step: Step,
    record: Box<Record>,
}

/// Codes of `rows` rows and their factors, shared by all copies.
fn codes(r: &Recording, rows: usize, sets: usize, d: usize) -> [Slot; 2] {
    r.codes([rows, sets, d], CountedBy::Fixed, &Noise(1).acts(rows * sets * d), 0.02)
}

/// The product of `rows` rows with a ternary matrix, of 2 bits per code with zeros and 1 bit without.
fn ternary(name: &'static str, rows: usize, [out, d]: [usize; 2], zeros: bool) -> Case {
    let matrix: OnceCell<Packed> = OnceCell::new();
    let record = move |r: &Recording, copy: usize| {
        let matrix = matrix.get_or_init(|| Noise(2).packed(out, d, zeros, 0.03));
        let w = r.ternary(&format!("w {copy}"), std::slice::from_ref(matrix));
        r.p.ternary_matmul(codes(r, rows, 1, d), w, &[out], None)
    };
    let bytes = out * d * if zeros { 2 } else { 1 } / 8;
    Case { name, bytes, step: Step::FULL, record: Box::new(record) }
}

/// The product of `rows` rows with a matrix of 1-bit codes that has a scale for each row and 128 columns.
fn groups(name: &'static str, rows: usize, [out, d]: [usize; 2]) -> Case {
    let matrix: OnceCell<GroupPacked> = OnceCell::new();
    let record = move |r: &Recording, copy: usize| {
        let matrix = matrix.get_or_init(|| {
            let shape = GroupShape { rows: out, cols: d, bits: Bits::One, group: 128 };
            let made = GroupPacked::from_words(shape, |row, words, scales| {
                let mut noise = Noise(row as u64);
                words.iter_mut().for_each(|word| *word = noise.word());
                scales.fill(f16::from_f32(0.02));
                Ok(())
            });
            made.expect("a matrix")
        });
        let weights = r.groups(&format!("w {copy}"), std::slice::from_ref(matrix));
        let x = r.f32s("x", &[rows, d], CountedBy::Fixed, &Noise(14).f32s(rows * d, 1.0));
        let act = ActQuant { max_code: 127.0, bound: f32::INFINITY, floor: 1e-5 };
        let codes = r.p.quantise_groups(x, None, None, GroupQuant { act, group: 128, scale: CodeScale::Group });
        r.p.group_matmul(GroupFactor::Codes(codes), &[StackPiece { weights, first: 0, outs: &[out] }], None)
    };
    Case { name, bytes: out * d / 8 + 2 * out * d / 128, step: Step::FULL, record: Box::new(record) }
}

/// Gate and up of EmberNet's two chosen experts and the shared one.
fn experts(name: &'static str, rows: usize) -> Case {
    let experts = Experts { k: 2, n: 8, shared: 1 };
    let matrix: OnceCell<Packed> = OnceCell::new();
    let record = move |r: &Recording, copy: usize| {
        let matrix = matrix.get_or_init(|| Noise(3).packed(2048, 768, false, 0.03));
        let w = r.ternary(&format!("w {copy}"), &vec![matrix.clone(); 18]);
        let chosen: Vec<u32> = (0..2 * rows as u32).map(|i| (5 * i + 3) % 8).collect();
        let expert_ids = r.u32s("expert_ids", &[rows, 2], CountedBy::Fixed, &chosen);
        let groups = (rows > 8).then(|| r.p.group_rows(expert_ids, experts));
        r.p.expert_matmul(codes(r, rows, 6, 768), w, expert_ids, groups, &[2048, 2048], experts)
    };
    // One row reads two experts of eight and the shared one; many rows read them all.
    let bytes = 2 * 2048 * 768 / 8 * if rows == 1 { 3 } else { 9 };
    Case { name, bytes, step: Step::FULL, record: Box::new(record) }
}

/// A head in 16 bits, cut as an engine would cut it.
fn head(name: &'static str, [vocab, d]: [usize; 2]) -> Case {
    let record = move |r: &Recording, copy: usize| {
        let x = r.f32s("x", &[1, d], CountedBy::Fixed, &Noise(4).f32s(d, 1.0));
        let (rows, noise) = (PIECE / (2 * d), Noise(5).f32s(4 * d, 0.05));
        let shards: Vec<Slot> = (0..vocab)
            .step_by(rows)
            .map(|first| {
                let n = rows.min(vocab - first);
                let data: Vec<f32> = noise.iter().copied().cycle().take(n * d).collect();
                r.weight(&format!("w {copy} {first}"), &[n, d], Pack::F16, &data)
            })
            .collect();
        r.p.matmul_sharded(x, &shards)
    };
    Case { name, bytes: 2 * vocab * d, step: Step::FULL, record: Box::new(record) }
}

/// The product of many rows with a matrix in 16 bits.
fn dense(name: &'static str, rows: usize, [out, d]: [usize; 2]) -> Case {
    let record = move |r: &Recording, copy: usize| {
        let x = r.f32s("x", &[rows, d], CountedBy::Fixed, &Noise(11).f32s(rows * d, 0.1));
        let w: Vec<f32> = Noise(12).f32s(4 * d, 0.5).into_iter().cycle().take(out * d).collect();
        r.p.matmul(x, r.weight(&format!("w {copy}"), &[out, d], Pack::F16, &w), None, None)
    };
    Case { name, bytes: 2 * out * d, step: Step::FULL, record: Box::new(record) }
}

/// An image encoder's attention of all rows over all rows, q, k and v side by side.
fn whole_attention(name: &'static str, rows: usize, heads: usize) -> Case {
    let shape = AttentionShape { heads, kv_heads: heads, d: 64 };
    let (d, width) = (64 * heads, 3 * 64 * heads);
    let record = move |r: &Recording, copy: usize| {
        let qkv = r.f32s(&format!("qkv {copy}"), &[rows, width], CountedBy::Fixed, &Noise(13).f32s(rows * width, 1.0));
        let [q, k, v] = [0, 1, 2].map(|i| Columns { slot: qkv, at: i * d });
        r.p.attention(q, k, v, shape)
    };
    Case { name, bytes: 4 * rows * width, step: Step::FULL, record: Box::new(record) }
}

/// EmberNet's attention of one row at some depth.
fn attention(name: &'static str, context: usize) -> Case {
    let shape = AttentionShape { heads: 12, kv_heads: 6, d: 64 };
    let record = move |r: &Recording, copy: usize| {
        let q = r.f32s("q", &[1, 768], CountedBy::Rows, &Noise(6).f32s(768, 1.0));
        let words = f16_words(&Noise(7).f32s(context * 384, 1.0));
        let [k, v] = ["k", "v"].map(|n| r.state(&format!("{n} {copy}"), &[context, 384], DType::F16, words.clone()));
        let rows = r.u32s("rows", &[1, 4], CountedBy::Rows, &[1, context as u32 - 1, 0, context as u32]);
        r.p.cached_attention(q, k, v, rows, shape)
    };
    let step = Step::new(1, 1, context);
    Case { name, bytes: 2 * 2 * context * 384, step, record: Box::new(record) }
}

/// Codes of one row under the norms of q, k and v.
fn norm_quantise(name: &'static str) -> Case {
    let act = ActQuant { max_code: 127.0, bound: 50.0, floor: 1e-4 };
    let record = move |r: &Recording, copy: usize| {
        let x = r.f32s("x", &[1, 768], CountedBy::Fixed, &Noise(8).f32s(768, 2.0));
        let w = r.weight(&format!("w {copy}"), &[3, 768], Pack::F32, &Noise(9).f32s(3 * 768, 1.0));
        r.p.norm_quantise(x, w, RmsNorm::new(1e-5), act)[0]
    };
    Case { name, bytes: 4 * 3 * 768, step: Step::FULL, record: Box::new(record) }
}

fn control() -> Case {
    let bytes = 128 << 20;
    let record = move |r: &Recording, copy: usize| {
        let chunks = bytes / (4 * PROBE_CHUNK);
        let mut noise = Noise(10);
        let words = (0..chunks * PROBE_CHUNK).map(|_| noise.word()).collect();
        r.p.bandwidth_probe(r.state(&format!("x {copy}"), &[chunks, 32, PROBE_CHUNK / 32], DType::U32, words))
    };
    Case { name: "control: memory is read", bytes, step: Step::FULL, record: Box::new(record) }
}

fn cases() -> Vec<Case> {
    vec![
        control(),
        ternary("EmberNet, ternary 768 to 2048, 1 row", 1, [2048, 768], false),
        ternary("EmberNet, ternary 2048 to 768, 1 row", 1, [768, 2048], false),
        ternary("EmberNet, ternary 768 to 2048, 96 rows", 96, [2048, 768], false),
        experts("EmberNet, gate and up of experts, 1 row", 1),
        experts("EmberNet, gate and up of experts, 64 rows", 64),
        head("EmberNet, head 768 to 32002, f16", [32002, 768]),
        attention("EmberNet, attention over 512 tokens", 512),
        attention("EmberNet, attention over 2048 tokens", 2048),
        norm_quantise("EmberNet, norm and codes for q, k, v"),
        ternary("BitNet-2B, ternary 2560 to 6912, 1 row", 1, [6912, 2560], true),
        ternary("BitNet-2B, ternary 6912 to 2560, 1 row", 1, [2560, 6912], true),
        groups("Bonsai-1.7B, 1 bit 2048 to 2048, 1 row", 1, [2048, 2048]),
        groups("Bonsai-1.7B, 1 bit 2048 to 6144, 1 row", 1, [6144, 2048]),
        groups("Bonsai-1.7B, 1 bit 6144 to 2048, 1 row", 1, [2048, 6144]),
        groups("Bonsai-1.7B, 1-bit head 2048 to 151669, 1 row", 1, [151_669, 2048]),
        groups("Bonsai-1.7B, 1 bit 2048 to 6144, 96 rows", 96, [6144, 2048]),
        head("BitNet-2B, head 2560 to 128256, f16", [128_256, 2560]),
        dense("DINOv2-base, dense 768 to 3072, 257 rows, f16", 257, [3072, 768]),
        dense("DINOv2-base, dense 3072 to 768, 257 rows, f16", 257, [768, 3072]),
        whole_attention("DINOv2-base, attention over 257 rows", 257, 12),
    ]
}

impl Case {
    fn record(&self, copies: usize) -> (Arc<Plan>, support::recording::Feed, Vec<Slot>) {
        let rig = Recording::new(self.name);
        let outs = (0..copies).map(|copy| (self.record)(&rig, copy)).collect();
        let (plan, feed) = rig.finish();
        (plan, feed, outs)
    }

    /// Checks one copy against the plain definition.
    fn check(&self, backend: &mut dyn Backend) {
        let (plan, feed, outs) = self.record(1);
        let found = support::recording::run(backend, &plan, &feed, self.step, &outs).concat();
        let want = support::recording::run(&mut Cpu::plain(), &plan, &feed, self.step, &outs).concat();
        let problem = match plan.spec(outs[0]).dtype {
            DType::F32 => compare(&floats(&found), &floats(&want), TOLERANCE),
            DType::Codes => {
                let far = |(a, b): (&i8, &i8)| a.abs_diff(*b) > 1;
                let codes = [&found, &want].map(|w| bytemuck::cast_slice::<u32, i8>(w));
                let n = codes[0].iter().zip(codes[1]).filter(|&pair| far(pair)).count();
                if n == 0 { Ok(()) } else { Err(format!("{n} codes differ")) }
            }
            _ if found == want => Ok(()),
            _ => Err("the words differ".into()),
        };
        problem.unwrap_or_else(|e| panic!("{}: {e}", self.name));
    }

    /// How many copies read much memory together.
    fn copies(&self) -> usize {
        if quick() { 1 } else { TOGETHER.div_ceil(self.bytes).min(COPIES) }
    }

    /// All copies, ready to run on a backend that has been checked.
    fn prepare(&self, mut backend: Box<dyn Backend>) -> Timed {
        self.check(backend.as_mut());
        let (plan, feed, _) = self.record(self.copies());
        for (name, words) in feed.weights {
            backend.load_weight(&name, words).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        Timed::new(backend, plan, self.step, |backend, program| {
            for (slot, words) in feed.slots {
                backend.write(program, slot, 0, &words).expect("words fit their slot");
            }
        })
    }
}

fn ops(c: &mut Criterion) {
    let devices: &[&str] = if device().is_some() { &["cpu", "gpu"] } else { &["cpu"] };
    let backend = |name: &str| -> Box<dyn Backend> {
        if name == "cpu" { Box::new(Cpu::new()) } else { Box::new(gpu(|caps| caps).expect("the adapter")) }
    };
    for &device in devices {
        let mut group = timing::group(c, device);
        for case in cases() {
            group.throughput(Throughput::Bytes((case.bytes * case.copies()) as u64));
            // Made when the filter lets the case through, once for all of its samples.
            let mut timed = None;
            group.bench_function(case.name, |b| {
                let timed = timed.get_or_insert_with(|| case.prepare(backend(device)));
                b.iter_custom(|n| timed.run(n));
            });
        }
        group.finish();
    }
}

criterion_group!(benches, ops);
criterion_main!(benches);
