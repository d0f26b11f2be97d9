//! With the option `batch_invariant` a token's logits are the same bit for bit, alone in an engine for one session or beside
//! others in one for many, decoded or read as the end of a prompt; on the CPU without the option, too.

mod support {
    pub mod demo;
    pub mod device;
}

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use support::demo::{generated, greedy, picture};
use support::device::device;
use ternion::engine::{DeviceChoice, KvPrecision, LogitsHook, Options};
use ternion::files::ModelFiles;
use ternion::unstable::plan::Caps;
use ternion::{Engine, Result};

/// Number of devices on which all is tested.
const MAIN: usize = 3;

/// Models with scales by group and by matrix, and for the main devices, of which this is number `i`, one with a mixture of experts
/// that reads pictures.
fn models(i: usize) -> Vec<(String, ModelFiles)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let files = ["gguf/tiny/qwen3_q1_0.gguf", "gguf/tiny/llama_q2_0_linear_rope.gguf", "hf_bitnet/tiny/packed"];
    let files = files.into_iter().map(|name| (name.to_owned(), golden.join(name).into()));
    let demo = (i < MAIN).then(|| ("the demo model".to_owned(), ModelFiles::demo().expect("the demo model")));
    files.chain(demo).collect()
}

/// The CPU, and the adapter as it is, as the other kind of device, and with every other subset of its capabilities.
fn devices() -> Vec<(String, DeviceChoice)> {
    let mut all = vec![("CPU".to_owned(), DeviceChoice::Cpu)];
    let Some(device) = device() else { return all };
    let other = Caps { cpu_driver: !device.caps.cpu_driver, ..device.caps };
    for caps in [device.caps, other].into_iter().chain(device.caps.subsets().into_iter().filter(|&c| c != device.caps))
    {
        let mut masked = device.clone();
        masked.caps = caps;
        all.push((format!("GPU {:?}, of a CPU: {}", caps.defines(), caps.cpu_driver), DeviceChoice::Opened(masked)));
    }
    all
}

/// The bits of each step's logits.
#[derive(Debug, Default)]
struct Kept(Vec<Vec<u32>>);

impl LogitsHook for Kept {
    fn adjust(&mut self, logits: &mut [f32], _: &[(usize, Vec<f32>)], _: &dyn Fn(u32) -> Result<String>) -> Result<()> {
        self.0.push(logits.iter().map(|v| v.to_bits()).collect());
        Ok(())
    }
}

/// Tokens, and the logits that chose them.
fn generate(engine: &Engine, prompt: &[u32], n: usize) -> (Vec<u32>, Vec<Vec<u32>>) {
    let (mut session, mut kept) = (engine.session().unwrap(), Kept::default());
    if engine.info().image.is_some() {
        session.push_image(&picture()).unwrap();
    }
    session.push_tokens(prompt).unwrap();
    let tokens: Result<Vec<_>> = session.generate_with(greedy(n), &mut kept).unwrap().collect();
    (tokens.unwrap().iter().map(|token| token.id).collect(), kept.0)
}

/// Sessions with prompts of other lengths, one after the other until `end`.
fn others(engine: &Engine, seed: u32, end: &AtomicBool) {
    for round in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let mut session = engine.session().unwrap();
        let ids: Vec<u32> = (0..1 + (seed * 7 + round * 5) % 40).map(|i| 3 + (i * 11 + seed) % 90).collect();
        session.push_tokens(&ids).unwrap();
        generated(&mut session, greedy(1 + (round as usize) % 5)).unwrap();
    }
}

/// Whether all ways to a token's logits give the same bits.
fn is_the_same_beside_others(files: &ModelFiles, options: &Options) -> bool {
    let open = |sessions| Engine::open(files.clone(), Options { sessions, ..options.clone() }).unwrap();
    let prompt: Vec<u32> = (0..21).map(|i| 3 + (i * 13) % 90).collect();
    let (tokens, logits) = generate(&open(1), &prompt, 6);
    let (many, end) = (open(6), AtomicBool::new(false));
    thread::scope(|scope| {
        for seed in 0..4 {
            scope.spawn({
                let (many, end) = (&many, &end);
                move || others(many, seed, end)
            });
        }
        let beside = generate(&many, &prompt, 6);
        let read = |k: usize| generate(&many, &[&prompt[..], &tokens[..k]].concat(), 1).1.remove(0);
        let same = beside == (tokens.clone(), logits.clone()) && (1..6).all(|k| read(k) == logits[k]);
        end.store(true, Ordering::Relaxed);
        same
    })
}

#[test]
fn logits_do_not_depend_on_what_else_runs() {
    let options = |device: &DeviceChoice, batch_invariant, kv| Options {
        device: device.clone(),
        batch_invariant,
        kv,
        context: Some(128),
        reserve: Some(64),
        ..Options::default()
    };
    let mut differing = Vec::new();
    for (i, (device_name, device)) in devices().into_iter().enumerate() {
        let on_cpu = device == DeviceChoice::Cpu;
        for (model, files) in models(i) {
            for kv in [KvPrecision::Dense, KvPrecision::Int8].into_iter().take(if i < MAIN { 2 } else { 1 }) {
                let same = is_the_same_beside_others(&files, &options(&device, !on_cpu, kv));
                assert!(same, "{model} on the {device_name}, cache {kv:?}");
            }
            if !on_cpu && i < MAIN && !is_the_same_beside_others(&files, &options(&device, false, KvPrecision::Dense)) {
                differing.push(format!("{model} on the {device_name}"));
            }
        }
    }
    // Else the option were for nothing, or the comparison.
    println!("without the option logits differ of {differing:#?}");
    assert!(!differing.is_empty() || support::device::device().is_none(), "without the option nothing differs");
}
