//! The context of a session: its cache of keys and values in 8 bits.

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::path::PathBuf;

use support::device::device;
use support::golden::Golden;
use support::model_stages::rms;
use ternion::Result;
use ternion::engine::{DeviceChoice, Engine, GenerateOptions, KvPrecision, LogitsHook, Options, Precision};
use ternion::tensor::DType;

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embernet/tiny")
}

/// The CPU, and a GPU if there is one.
fn choices() -> Vec<DeviceChoice> {
    let gpu = device().map(|_| DeviceChoice::Gpu);
    [DeviceChoice::Cpu].into_iter().chain(gpu).collect()
}

fn options(device: DeviceChoice) -> Options {
    let tokenizer = Some(tiny().join("../../tokenizer.json"));
    Options { device, autotune: false, precision: Precision::F32, tokenizer, ..Options::default() }
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(n), eos: Some(u32::MAX), ..GenerateOptions::default() }
}

/// Keeps the logits of each step, and chooses given tokens.
#[derive(Debug, Default)]
struct Forced {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

impl LogitsHook for Forced {
    fn adjust(&mut self, logits: &mut [f32], _: &[(usize, Vec<f32>)], _: &dyn Fn(u32) -> Result<String>) -> Result<()> {
        logits[self.tokens[self.logits.len()] as usize] += 1e6;
        self.logits.push(logits.to_vec());
        Ok(())
    }
}

/// Logits of a prompt and of the steps behind it that choose `tokens`.
fn logits(engine: &Engine, prompt: &[u32], tokens: &[u32]) -> Vec<f32> {
    let mut session = engine.session().unwrap();
    session.push_tokens(prompt).unwrap();
    let mut hook = Forced { tokens: tokens.to_vec(), ..Forced::default() };
    let found: Result<Vec<_>> = session.generate_with(greedy(tokens.len()), &mut hook).unwrap().collect();
    assert_eq!(found.unwrap().iter().map(|t| t.id).collect::<Vec<_>>(), tokens);
    for (step, &token) in hook.logits.iter_mut().zip(tokens) {
        step.swap_remove(token as usize);
    }
    hook.logits.concat()
}

#[test]
fn a_cache_in_8_bits_is_half_as_large_and_near() {
    let golden = |file: &str, name: &str| -> Vec<u32> {
        let ids = Golden::open(&tiny().join(file).to_string_lossy()).i32s(name);
        ids.into_iter().map(|id| id as u32).collect()
    };
    let mut prompt = golden("golden_prefill.safetensors", "input_ids");
    prompt.extend((0..150).map(|i| 3 + (i * 37) % 400));
    let tokens = golden("golden_greedy.safetensors", "generated_ids");
    for choice in choices() {
        let open = |precision, kv| Engine::open(tiny(), Options { kv, precision, ..options(choice.clone()) }).unwrap();
        let [dense, int8] = [KvPrecision::Dense, KvPrecision::Int8].map(|kv| open(Precision::F16, kv));
        assert_eq!([&dense, &int8].map(|e| e.report().kv), [Some(DType::F16), Some(DType::Int8)]);
        // 3 layers with 2 heads of 16 for keys, and as many for values, in the rows of 4 sessions.
        let rows = 4 * dense.context() as u64;
        let saved = dense.report().memory_bytes - int8.report().memory_bytes;
        assert!(saved.abs_diff(rows * 3 * 2 * 2 * (32 - 20)) <= 3 * 2 * 16, "{saved} bytes for {rows} rows");
        let exact = logits(&open(Precision::F32, KvPrecision::Dense), &prompt, &tokens);
        let [off_dense, off_int8] = [&dense, &int8].map(|engine| rms(&logits(engine, &prompt, &tokens), &exact));
        println!("{choice:?}: logits are off by {off_dense:.2e} with 16 bits, by {off_int8:.2e} with 8");
        assert!((1e-6..0.08).contains(&off_int8), "{choice:?}: off by {off_int8}");
        assert_eq!(logits(&int8, &prompt, &tokens), logits(&int8, &prompt, &tokens), "the same again");
    }
}

#[test]
fn sessions_with_a_cache_in_8_bits_equal_each_alone() {
    for choice in choices() {
        let engine = Engine::open(tiny(), Options { kv: KvPrecision::Int8, ..options(choice) }).unwrap();
        let ids = |s: u32| (0..5 + 30 * s).map(|i| 3 + (i * 7 + s * 31) % 400).collect::<Vec<u32>>();
        let session = |s: u32| {
            let mut session = engine.session().unwrap();
            session.push_tokens(&ids(s)).unwrap();
            session
        };
        let tokens = |s| session(s).generate(greedy(20)).unwrap().map(|t| t.unwrap().id).collect::<Vec<u32>>();
        let alone: Vec<Vec<u32>> = (0..3).map(tokens).collect();
        let mut sessions: Vec<_> = (0..3).map(session).collect();
        let mut together = vec![Vec::new(); 3];
        for (session, token) in engine.generate_all(&mut sessions, vec![greedy(20); 3]).unwrap() {
            together[session].push(token.unwrap().id);
        }
        assert_eq!(together, alone);
    }
}
