//! Small plans of the shapes of an EmberNet with random weights, timed with one variant after the other.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gpu::Gpu;
use crate::ops::{Act, ActQuant, AttentionShape, BitInput, Experts, RmsNorm, split_mix};
use crate::plan::{Backend, Caps, Plan, PlanBuilder, ProgramId, Slot, Step};
use crate::quant::{Bits, Packed, stack};
use crate::tensor::{DType, Lead, Spec};

/// A plan that is timed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trial {
    /// The experts of a layer, for one token: most of what decoding reads.
    Layer,
    /// Attention of one token over 512.
    Attention,
    /// A part of the logits of one token.
    Dense,
    /// Codes of 64 tokens and their product with a ternary matrix.
    Prompt,
}

const D: usize = 768;
const D_FF: usize = 2048;
const HEADS: AttentionShape = AttentionShape { heads: 12, kv_heads: 6, d: 64 };
const CONTEXT: usize = 512;
const EXPERTS: Experts = Experts { k: 2, n: 2, shared: 1 };
const PROMPT: usize = 64;
/// Rows of the dense weight.
const LOGITS: usize = 4096;
const NORM: RmsNorm = RmsNorm::new(1e-5);
const ACT: ActQuant = ActQuant { max_code: 127.0, bound: 50.0, floor: 1e-4 };

/// Length of a series of runs, about, and most runs of one.
const SERIES: (Duration, usize) = (Duration::from_millis(3), 64);
/// Series; the fastest counts.
const ROUNDS: usize = 4;

/// The plans, on a backend.
pub struct Trials {
    gpu: Gpu,
    plans: [(Trial, Arc<Plan>, Step); 4],
}

impl Trials {
    /// Records all plans.
    pub fn new(gpu: Gpu) -> Result<Self> {
        let step = |rows: usize| Step { rows: rows as u32, outputs: 1, context: CONTEXT as u32, reserved: 0 };
        let plans = [
            (Trial::Layer, plan(layer)?, step(1)),
            (Trial::Attention, plan(attention)?, step(1)),
            (Trial::Dense, plan(dense)?, step(1)),
            (Trial::Prompt, plan(prompt)?, step(PROMPT)),
        ];
        Ok(Trials { gpu, plans })
    }

    /// The time of a run of each of these plans, all together.
    ///
    /// # Errors
    /// Those of [`Backend::prepare`] and [`Backend::run`]: a driver may not take a variant.
    pub fn time(&mut self, which: &[Trial], caps: Caps) -> Result<Duration> {
        self.gpu.set_caps(caps);
        let mut total = Duration::ZERO;
        for (_, plan, step) in self.plans.iter().filter(|(trial, ..)| which.contains(trial)) {
            total += time(&mut self.gpu, plan, step)?;
        }
        Ok(total)
    }
}

/// The time of a run, without the first one, which compiles.
fn time(gpu: &mut Gpu, plan: &Arc<Plan>, step: &Step) -> Result<Duration> {
    let program = gpu.prepare(plan.clone(), false)?;
    let time = time_of(gpu, program, plan, step);
    gpu.release(program);
    time
}

fn time_of(gpu: &mut Gpu, program: ProgramId, plan: &Plan, step: &Step) -> Result<Duration> {
    if let Some(rows) = plan.input("rows") {
        gpu.write(program, rows, 0, &[0, CONTEXT as u32 - 1, 0, CONTEXT as u32])?;
    }
    if let Some(top) = plan.input("top") {
        gpu.write(program, top, 0, &[0, 1])?;
    }
    let outputs: Vec<_> = plan.outputs.values().map(|&slot| (slot, 0..1)).collect();
    let mut series = |times: usize| -> Result<Duration> {
        let start = Instant::now();
        gpu.repeat(program, step, times)?;
        gpu.read(program, &outputs)?;
        Ok(start.elapsed() / times as u32)
    };
    series(1)?;
    let times = (SERIES.0.as_nanos() / series(1)?.as_nanos().max(1)).clamp(1, SERIES.1 as u128) as usize;
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        best = best.min(series(times)?);
    }
    Ok(best)
}

fn plan(record: fn(&PlanBuilder) -> Slot) -> Result<Arc<Plan>> {
    let p = PlanBuilder::new();
    let y = record(&p);
    p.output("y", y);
    Ok(Arc::new(p.finish()?))
}

fn layer(p: &PlanBuilder) -> Slot {
    let input = BitInput { pre: None, norm: NORM, act: ACT };
    let x = floats(p, "x", 1, D);
    let top = p.input("top", Spec::led(&[1, EXPERTS.k], DType::U32, Lead::Rows));
    let mix = floats(p, "mix", 1, EXPERTS.k);
    let up = matrices(p, "up", &[D_FF; 2 * EXPERTS.all()], D);
    let h = p.bit_swiglu(x, input, up, D_FF, top, (EXPERTS, Act::SiLu { clamp: None }));
    let down = matrices(p, "down", &[D; EXPERTS.all()], D_FF);
    p.bit_combine(h, input, down, [top, mix], EXPERTS, (x, 100.0))
}

fn attention(p: &PlanBuilder) -> Slot {
    let q = floats(p, "q", 1, HEADS.heads * HEADS.d);
    let cache = |name| p.state(name, Spec::fixed(&[CONTEXT, HEADS.kv_heads * HEADS.d], DType::F16));
    let rows = p.input("rows", Spec::led(&[1, 4], DType::U32, Lead::Rows));
    p.cached_attention(q, cache("keys"), cache("values"), rows, HEADS)
}

fn dense(p: &PlanBuilder) -> Slot {
    // Two halves a word between 1/8 and 1/4, of either sign.
    let word = |i| split_mix(1, i) as u32 & 0x83FF_83FF | 0x3000_3000;
    let words = move || (0..(LOGITS * D / 2) as u64).map(word).collect();
    let w = p.constant("logits", Spec::fixed(&[LOGITS, D], DType::F16), words);
    p.matmul(floats(p, "x", 1, D), w, None, None)
}

fn prompt(p: &PlanBuilder) -> Slot {
    let [norms, weights] = matrices(p, "prompt", &[D_FF], D);
    let act = p.norm_quantise(floats(p, "x", PROMPT, D), norms, NORM, ACT);
    p.ternary_matmul(act, weights, &[D_FF], None)
}

fn floats(p: &PlanBuilder, name: &str, rows: usize, width: usize) -> Slot {
    p.input(name, Spec::led(&[rows, width], DType::F32, Lead::Rows))
}

/// Norms of 1 and random 1-bit matrices of these rows, side by side.
fn matrices(p: &PlanBuilder, name: &str, outs: &[usize], cols: usize) -> [Slot; 2] {
    let n = outs.len();
    let ones = move || vec![1f32.to_bits(); n * cols];
    let norms = p.constant(&format!("{name} norms"), Spec::fixed(&[n, cols], DType::F32), ones);
    let matrix = move |(part, &rows): (usize, &usize)| {
        let words: Vec<u32> =
            (0..Bits::One.matrix_words(rows, cols) as u64).map(|i| split_mix(part as u64, i) as u32).collect();
        Packed { rows, cols, bits: Bits::One, scale: 0.1, words: words.into() }
    };
    let rows = outs.to_vec();
    let words = move || stack(&rows.iter().enumerate().map(matrix).collect::<Vec<_>>());
    let spec = Spec::fixed(&[n, outs.iter().sum(), cols], DType::Ternary);
    [norms, p.constant(name, spec, words)]
}
