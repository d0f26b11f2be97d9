//! Weights that move through a bounded memory page by page: kernels read them wherever they lie, and a model gives the same
//! numbers, bit for bit, with any bound.

mod support {
    pub mod device;
    pub mod mutation;
    pub mod numbers;
    pub mod op_cases;
    pub mod recording;
}

use std::collections::{BTreeMap, HashMap};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use support::device::{device, gpu};
use support::mutation::Random;
use support::op_cases::{Case, all};
use support::recording::{Feed, UNWRITTEN, run};
use ternion::engine::{DeviceChoice, GenerateOptions, HiddenAct, LogitsHook, Options, Precision, Sampling};
use ternion::tools::convert::convert;
use ternion::unstable::cpu::Cpu;
use ternion::unstable::plan::{Arena, Backend, Caps, PageSource, PagedWeight, Paging, Plan, SlotKind};
use ternion::unstable::tensor::{DType, WeightRef};
use ternion::{Engine, Error, ModelFiles, Result};

/// Pages out of memory, the first few of which cannot be read.
struct Words {
    stacks: HashMap<String, Vec<u32>>,
    failures: AtomicUsize,
}

impl PageSource for Words {
    fn read(&self, weight: &WeightRef, _: Range<usize>, body: Range<usize>, to: &mut [u32]) -> Result<()> {
        if self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)).is_ok() {
            return Err(Error::argument("the source", "fails"));
        }
        to.copy_from_slice(&self.stacks[&weight.to_string()][body]);
        Ok(())
    }
}

/// The stacks of a plan, with their pages.
fn stacks(plan: &Plan) -> Vec<(WeightRef, usize)> {
    let mut all = BTreeMap::new();
    for node in &plan.nodes {
        let pages = node.op.chosen().map_or(1, |chosen| chosen.all);
        for slot in node.inputs.iter().map(|&slot| plan.slot(slot)) {
            if let (SlotKind::Weight(weight), DType::Ternary | DType::Groups { .. }) = (&slot.kind, slot.spec.dtype) {
                let known: &mut (WeightRef, usize) =
                    all.entry(weight.to_string()).or_insert_with(|| (weight.clone(), pages));
                known.1 = known.1.max(pages);
            }
        }
    }
    all.into_values().collect()
}

/// Makes the stacks of a case move, with frames for all their pages.
fn page(backend: &mut dyn Backend, plan: &Plan, feed: &Feed, failures: usize) {
    let words: HashMap<String, Vec<u32>> = feed.weights.iter().cloned().collect();
    let arena = |(weight, pages): (WeightRef, usize)| {
        let weight = PagedWeight::new(&weight, &words[&weight.to_string()], pages).expect("a stack");
        Arena::new(vec![weight], pages)
    };
    let arenas = stacks(plan).into_iter().map(arena).collect();
    let source = Words { stacks: words.clone(), failures: AtomicUsize::new(failures) };
    backend.load_paging(Paging::new(arenas, Box::new(source))).expect("memory for the arenas");
}

/// What is fed to a case beside its stacks.
fn beside(case: &Case) -> Feed {
    let moving: Vec<String> = stacks(&case.plan).iter().map(|(weight, _)| weight.to_string()).collect();
    let weights = case.feed.weights.iter().filter(|(name, _)| !moving.contains(name)).cloned().collect();
    Feed { weights, slots: case.feed.slots.clone() }
}

/// The CPU, and the GPU as both kinds of device: a name, and whether the driver is a CPU's.
fn kinds() -> Vec<(&'static str, Option<bool>)> {
    let gpus = [("GPU, as a CPU driver", Some(true)), ("GPU, as a GPU", Some(false))];
    [("CPU", None)].into_iter().chain(gpus.into_iter().filter(|_| device().is_some())).collect()
}

fn backend(cpu_driver: Option<bool>) -> Box<dyn Backend> {
    match cpu_driver {
        None => Box::new(Cpu::new()),
        Some(cpu_driver) => Box::new(gpu(|caps| Caps { cpu_driver, ..caps }).expect("the adapter is still there")),
    }
}

#[test]
fn every_op_that_reads_stacks_reads_them_where_their_pages_are() {
    let cases: Vec<Case> = all().into_iter().filter(|case| !stacks(&case.plan).is_empty()).collect();
    let chosen = |case: &&Case| stacks(&case.plan).iter().any(|(_, pages)| *pages > 1);
    assert!(cases.iter().filter(chosen).count() > 10, "few cases choose among experts");
    for (name, kind) in kinds() {
        // One for all, as compiling its kernels takes most of the time; what moves comes before what does not.
        let mut backend = backend(kind);
        for case in &cases {
            let slots: Vec<_> = case.outs.iter().map(|(slot, _)| *slot).collect();
            let want = run(backend.as_mut(), &case.plan, &case.feed, case.step, &slots);
            page(backend.as_mut(), &case.plan, &case.feed, 0);
            let found = run(backend.as_mut(), &case.plan, &beside(case), case.step, &slots);
            assert!(found == want, "{name}: {}, {}: other words", case.op, case.name);
            let moved = backend.paging().expect("what moved");
            assert!(moved.misses as usize <= moved.pages && moved.hits <= moved.misses * 2, "{name}: {moved:?}");
        }
    }
}

#[test]
fn a_page_that_cannot_be_read_is_an_error_and_the_next_step_reads_it() {
    let mut cases = all();
    let at = cases.iter().position(|case| stacks(&case.plan).iter().any(|(_, pages)| *pages > 1)).expect("experts");
    let case = cases.swap_remove(at);
    let slots: Vec<_> = case.outs.iter().map(|(slot, _)| *slot).collect();
    for (name, kind) in kinds() {
        let want = run(backend(kind).as_mut(), &case.plan, &case.feed, case.step, &slots);
        let mut backend = backend(kind);
        page(backend.as_mut(), &case.plan, &case.feed, 2);
        for (weight, words) in beside(&case).weights {
            backend.load_weight(&weight, words).unwrap();
        }
        let program = backend.prepare(case.plan.clone(), true).unwrap();
        for &slot in &slots {
            backend.write(program, slot, 0, &vec![UNWRITTEN; case.plan.spec(slot).words()]).unwrap();
        }
        for (slot, words) in &case.feed.slots {
            backend.write(program, *slot, 0, words).unwrap();
        }
        let mut step = || backend.run(program, &case.step, 0..case.plan.nodes.len());
        for _ in 0..2 {
            assert!(step().unwrap_err().to_string().contains("the source"), "{name}");
        }
        step().unwrap();
        let ranges: Vec<_> = slots.iter().map(|&s| (s, 0..case.plan.spec(s).words())).collect();
        assert!(backend.read(program, &ranges).unwrap() == want, "{name}");
    }
}

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Keeps the logits of each step.
#[derive(Debug, Default)]
struct Kept(Vec<Vec<f32>>);

impl LogitsHook for Kept {
    fn adjust(&mut self, logits: &mut [f32], _: &[(usize, Vec<f32>)], _: &dyn Fn(u32) -> Result<String>) -> Result<()> {
        self.0.push(logits.to_vec());
        Ok(())
    }
}

fn drawn(max_tokens: usize, seed: u64) -> GenerateOptions {
    let sampling = Sampling { temperature: 1.0, seed, ..Sampling::original() };
    GenerateOptions { max_tokens: Some(max_tokens), eos: Some(u32::MAX), sampling, ..GenerateOptions::default() }
}

/// Logits of a long prompt and of a few steps behind it, and the tokens that two sessions draw together.
fn answers(engine: &Engine) -> (Vec<Vec<f32>>, Vec<Vec<u32>>) {
    let mut random = Random::new(7);
    let mut tokens = |n: usize| -> Vec<u32> { (0..n).map(|_| 3 + random.below(60) as u32).collect() };
    let mut session = engine.session().unwrap();
    session.push_tokens(&tokens(70)).unwrap();
    let mut kept = Kept::default();
    let run: Result<Vec<_>> = session.generate_with(drawn(12, 3), &mut kept).unwrap().collect();
    run.unwrap();
    session.reset();
    let mut sessions = [session, engine.session().unwrap()];
    sessions.iter_mut().zip([5, 9]).for_each(|(session, n)| session.push_tokens(&tokens(n)).unwrap());
    let mut together = vec![Vec::new(); 2];
    for (i, token) in engine.generate_all(&mut sessions, [drawn(12, 1), drawn(12, 2)]).unwrap() {
        together[i].push(token.unwrap().id);
    }
    (kept.0, together)
}

/// The devices of [`kinds`].
fn devices() -> Vec<(&'static str, DeviceChoice)> {
    let opened = |cpu_driver| {
        let mut device = device().expect("the adapter is still there");
        device.caps.cpu_driver = cpu_driver;
        DeviceChoice::Opened(device)
    };
    kinds().into_iter().map(|(name, kind)| (name, kind.map_or(DeviceChoice::Cpu, opened))).collect()
}

/// A model, opened in less and less memory on a device, gives what it gives in enough.
fn in_less_memory(name: &str, device: &DeviceChoice, files: &ModelFiles, has_experts: bool) {
    let what = format!("{name}, {files}");
    let own = Options {
        device: device.clone(),
        precision: Precision::F16,
        hidden_act: Some(HiddenAct::Relu2).filter(|_| what.contains("relu2")),
        context: Some(128),
        sessions: 2,
        ..Options::default()
    };
    let open = |max_memory| Engine::open(files.clone(), Options { max_memory, ..own.clone() });
    let resident = open(None).unwrap();
    let want = answers(&resident);
    assert!(resident.paging().unwrap().is_none());
    let Err(Error::OutOfMemory { needed: least, .. }) = open(Some(1)) else { panic!("{what}: opened") };
    assert!(open(Some(least - 1)).is_err_and(|e| e.to_string().contains(&least.to_string())), "{what}");
    let estimate = Engine::estimate(files.clone(), &own).unwrap();
    let most = estimate.bytes();
    assert!(least < most && least == estimate.least_bytes, "{what}: {least} of {most}, {estimate:?}");
    for limit in [least, least + (most - least) / 4, most - 1] {
        let engine = open(Some(limit)).unwrap();
        assert!(answers(&engine) == want, "{what}, {limit}: other numbers");
        let (memory, moved) = (engine.memory_bytes().unwrap(), engine.paging().unwrap().expect("what moved"));
        println!("{what}: {memory} bytes of {limit}, {:.1} % hits: {moved:?}", 100.0 * moved.hit_rate());
        assert!(memory <= limit, "{what}: {memory} of {limit}");
        assert!(moved.misses > 0 && moved.moved_bytes > 0 && moved.frames <= moved.pages, "{what}: {moved:?}");
        assert!(limit != least || moved.page_bytes > moved.frame_bytes, "{what}: all has room: {moved:?}");
        assert!(moved.hits > 0 || !has_experts, "{what}: {moved:?}");
    }
}

#[test]
fn a_model_in_less_memory_gives_the_same_numbers() {
    let packed = tempfile::tempdir().unwrap();
    let convert = |from: PathBuf, to: &str| -> ModelFiles {
        let dir = packed.path().join(to);
        convert(from, &dir, None, Precision::F16, |_| ControlFlow::Continue(())).expect("converts");
        dir.into()
    };
    // From the original's floats, and from packed files; codes as files have them, and words of codes.
    let with_experts = [golden("embernet/tiny").into(), convert(golden("embernet/tiny"), "embernet")];
    let dense = [
        golden("gguf/tiny/qwen3_q1_0.gguf").into(),
        convert(golden("gguf/tiny/qwen3_q1_0.gguf"), "qwen3"),
        golden("gguf/tiny/bitnet_b158_i2s_relu2.gguf").into(),
        golden("gguf/hf/qwen3_mlx_1bit").into(),
    ];
    for (i, (name, device)) in devices().into_iter().enumerate() {
        with_experts.iter().for_each(|files| in_less_memory(name, &device, files, true));
        // Kinds of GPU differ in how they choose experts.
        dense.iter().filter(|_| i < 2).for_each(|files| in_less_memory(name, &device, files, false));
    }
}
