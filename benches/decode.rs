//! A full-size EmberNet with random weights: decoding, prefill and image encoding through the engine, on the CPU and on
//! the best adapter: `cargo bench --bench decode`. A software adapter decodes only: the rest takes it minutes.
//!
//! Before, the device is compared node by node with the plain definitions, on the demo model, whose ops are the same;
//! `ops` compares them at these sizes. The control row reads memory and does nothing else. `ternion bench` measures more.

#[path = "../tests/support"]
mod support {
    pub mod device;
}
mod timing;

use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use support::device::device;
use ternion::engine::{DeviceChoice, DeviceOptions, Progress, choose_device};
use ternion::gpu::{AdapterKind, Adapters};
use ternion::tools::check::{CheckOptions, check};
use ternion::tools::synthetic;
use ternion::unstable::cpu::Cpu;
use ternion::unstable::ops::PROBE_CHUNK;
use ternion::unstable::plan::{Backend, PlanBuilder, Step};
use ternion::unstable::tensor::{DType, Spec};
use ternion::{Engine, GenerateOptions, Image, ModelFiles, Options, Session};
use timing::{Timed, quick};

/// Tokens of a prompt.
const PROMPT: usize = 96;
/// Bytes that the control row reads.
const CONTROL: usize = 128 << 20;

/// A device with the kernels that suit its kind, whatever was timed on it before.
fn usual(device: &DeviceChoice) -> DeviceOptions {
    DeviceOptions { autotune: false, ..device.clone().into() }
}

/// Panics if a node of the demo model differs from its plain definition.
fn check_device(device: &DeviceChoice) {
    let options = CheckOptions { device: usual(device), ..CheckOptions::default() };
    let found = check(ModelFiles::demo().expect("the demo model"), &options, Progress::ignore).expect("it runs");
    assert!(found.first.is_none(), "{device:?}: {:?}", found.first);
}

/// Reads memory.
fn control(device: &DeviceChoice) -> Timed {
    let backend: Box<dyn Backend> = match device {
        DeviceChoice::Cpu => Box::new(Cpu::new()),
        other => choose_device(&usual(other)).expect("the device").0,
    };
    let p = PlanBuilder::new();
    let x = p.input("x", Spec::fixed(&[CONTROL / (4 * PROBE_CHUNK), 32, PROBE_CHUNK / 32], DType::U32));
    p.output("y", p.bandwidth_probe(x));
    Timed::new(backend, p.finish().expect("a plan").into(), Step::FULL, |backend, program| {
        let words = vec![0x5A5A_5A5A; PROBE_CHUNK];
        let chunks = (0..CONTROL / 4).step_by(PROBE_CHUNK);
        chunks.for_each(|at| backend.write(program, x, at, &words).expect("it fits"));
    })
}

fn generate(session: &mut Session, tokens: usize) {
    let options = GenerateOptions { max_tokens: Some(tokens), eos: Some(u32::MAX), ..GenerateOptions::default() };
    session.generate(options).expect("it generates").for_each(|token| drop(token.expect("a token")));
}

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| 7919 * (i + 1) % 32000).collect()
}

fn picture() -> Image {
    let rgb = (0..3 * 320 * 240).map(|i| (i % 251) as u8).collect();
    Image { width: 320, height: 240, rgb }
}

/// Repeats something that it times itself.
fn timed(n: u64, mut once: impl FnMut() -> Duration) -> Duration {
    (0..n).map(|_| once()).sum()
}

/// A session with `depth` tokens in its cache and one behind them.
fn behind(engine: &Engine, depth: usize) -> Session {
    let mut session = engine.session().expect("a session");
    session.push_tokens(&tokens(depth)).expect("it fits");
    generate(&mut session, 1);
    session
}

/// `each` tokens behind the first `depth + 1`.
fn decode(session: &mut Session, depth: usize, each: usize, n: u64) -> Duration {
    timed(n, || {
        session.truncate(depth + 1);
        let start = Instant::now();
        generate(session, each);
        start.elapsed()
    })
}

fn prefill(engine: &Engine, n: u64) -> Duration {
    let mut session = engine.session().expect("a session");
    timed(n, || {
        session.reset();
        session.push_tokens(&tokens(PROMPT)).expect("it fits");
        let start = Instant::now();
        generate(&mut session, 1);
        start.elapsed()
    })
}

fn encode(engine: &Engine, picture: &Image, n: u64) -> Duration {
    let mut session = engine.session().expect("a session");
    timed(n, || {
        session.reset();
        let start = Instant::now();
        session.push_image(picture).expect("it is encoded");
        start.elapsed()
    })
}

fn on(c: &mut Criterion, name: &str, device: DeviceChoice, software: bool) {
    check_device(&device);
    let mut group = timing::group(c, name);
    group.throughput(Throughput::Bytes(CONTROL as u64));
    let mut reads = None;
    group.bench_function("control: memory is read", |b| {
        let reads = reads.get_or_insert_with(|| control(&device));
        b.iter_custom(|n| reads.run(n));
    });
    drop(reads);
    let options = Options { device, autotune: false, sessions: 1, ..Options::default() };
    let engine = Engine::open(synthetic::embernet().expect("a model"), options).expect("it opens");
    let each = if quick() || software { 2 } else { 16 };
    let depths: &[usize] = if software { &[1] } else { &[1, 512] };
    for &depth in depths {
        group.throughput(Throughput::Elements(each as u64));
        let mut session = None;
        group.bench_function(format!("decode behind {depth} tokens"), |b| {
            let session = session.get_or_insert_with(|| behind(&engine, depth));
            b.iter_custom(|n| decode(session, depth, each, n));
        });
    }
    if !software {
        group.throughput(Throughput::Elements(PROMPT as u64));
        group.bench_function(format!("prefill of {PROMPT} tokens"), |b| b.iter_custom(|n| prefill(&engine, n)));
        let picture = picture();
        group.throughput(Throughput::Elements(1));
        group.bench_function("image", |b| b.iter_custom(|n| encode(&engine, &picture, n)));
    }
    group.finish();
}

fn model(c: &mut Criterion) {
    on(c, "cpu", DeviceChoice::Cpu, false);
    if device().is_some() {
        let adapters = Adapters::find();
        let kind = adapters.best(true).and_then(|i| adapters.summaries().into_iter().nth(i)).map(|a| a.kind);
        on(c, "gpu", DeviceChoice::Gpu, kind == Some(AdapterKind::Software));
    }
}

criterion_group!(benches, model);
criterion_main!(benches);
