//! The context of a session: its cache of keys and values, in 8 bits too, which grows, and what happens when it is full.

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::ops::ControlFlow;
use std::path::PathBuf;

use support::device::device;
use support::golden::Golden;
use support::model_stages::rms;
use ternion::apps::attention_rollout::AttentionRollout;
use ternion::engine::{
    ContextShift, DeviceChoice, Engine, GenerateOptions, KvPrecision, LogitsHook, Options, Precision, Sampling,
    Session, StopReason,
};
use ternion::unstable::tensor::DType;
use ternion::{Error, Result};

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

/// Keeps the logits of each step, and chooses given tokens as far as there are any.
#[derive(Debug, Default)]
struct Forced {
    tokens: Vec<u32>,
    logits: Vec<Vec<f32>>,
}

impl LogitsHook for Forced {
    fn adjust(&mut self, logits: &mut [f32], _: &[(usize, Vec<f32>)], _: &dyn Fn(u32) -> Result<String>) -> Result<()> {
        if let Some(&token) = self.tokens.get(self.logits.len()) {
            logits[token as usize] += 1e6;
        }
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
        let all = Options { context: Some(256), reserve: Some(256), ..options(choice.clone()) };
        let open = |precision, kv| Engine::open(tiny(), Options { kv, precision, ..all.clone() }).unwrap();
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

/// Tokens of a prompt.
fn ids(n: u32, seed: u32) -> Vec<u32> {
    (0..n).map(|i| 3 + (i * 7 + seed * 31) % 400).collect()
}

/// Texts of different lengths that are generated side by side; where attention went, and how often each expert was chosen.
fn side_by_side(engine: &Engine) -> (Vec<Vec<u32>>, Vec<Vec<f32>>) {
    let start = |i| {
        let mut session = engine.session().unwrap();
        session.push_tokens(&ids([3, 30, 9][i], i as u32)).unwrap();
        session
    };
    let (mut sessions, mut rollout) = ((0..3).map(start).collect::<Vec<_>>(), AttentionRollout::new(engine));
    let mut looked = rollout.attention(&mut sessions[2], 5).unwrap().layers;
    let mut tokens = vec![Vec::new(); 3];
    let lengths = [70, 12, 40].map(greedy);
    for (session, token) in engine.generate_all(&mut sessions, lengths).unwrap() {
        tokens[session].push(token.unwrap().id);
    }
    looked.extend(rollout.attention(&mut sessions[2], 45).unwrap().layers);
    // Another session has the rows of one that is gone, and one goes on beside it.
    drop(sessions.remove(1));
    sessions.push(start(1));
    for session in &mut sessions {
        tokens.push(session.generate(greedy(40)).unwrap().map(|t| t.unwrap().id).collect());
    }
    looked.extend(sessions.iter().flat_map(|session| session.expert_shares().unwrap()));
    (tokens, looked)
}

#[test]
fn a_cache_that_grows_gives_what_one_of_full_size_gives() {
    for (choice, kv) in choices().into_iter().flat_map(|c| [(c.clone(), KvPrecision::Dense), (c, KvPrecision::Int8)]) {
        let open = |reserve| {
            let device = choice.clone();
            let options = Options { kv, context: Some(150), reserve: Some(reserve), sessions: 4, ..options(device) };
            Engine::open(tiny(), options).unwrap()
        };
        let (grown, whole) = (open(2), open(150));
        let [first, all] = [&grown, &whole].map(|engine| engine.report().memory_bytes);
        assert_eq!([&grown, &whole].map(|engine| engine.report().max_memory_bytes), [all; 2], "{choice:?}, {kv:?}");
        // Four sessions have 148 rows more each.
        let row = (all - first) / (4 * 148);
        assert!(row >= 3 * 2 * 2 * 20, "{choice:?}, {kv:?}: {first} of {all} bytes at first");
        let mut session = grown.session().unwrap();
        session.push_tokens(&ids(60, 0)).unwrap();
        session.generate(greedy(2)).unwrap().for_each(|token| drop(token.unwrap()));
        let now = grown.memory_bytes().unwrap();
        // A state of 8-bit integers is a multiple of 16 bytes.
        assert!(now.abs_diff(first + (64 - 2) * row) <= 6 * 16, "{choice:?}, {kv:?}: {now} after {first}, {row} a row");
        drop(session);
        assert_eq!(side_by_side(&grown), side_by_side(&whole), "{choice:?}, {kv:?}");
        let [now, full] = [&grown, &whole].map(|engine| engine.memory_bytes().unwrap());
        assert!(now < full, "{choice:?}, {kv:?}: {now} of {full}");
    }
}

#[test]
fn sessions_of_several_threads_grow_while_others_run() {
    for choice in choices() {
        let options = Options { context: Some(150), reserve: Some(3), sessions: 4, ..options(choice.clone()) };
        let engine = Engine::open(tiny(), options).unwrap();
        let text = |i: u32| {
            let mut session = engine.session().unwrap();
            session.push_tokens(&ids(2 + 5 * i, i + 9)).unwrap();
            session.generate(greedy(60 + i as usize)).unwrap().map(|t| t.unwrap().id).collect::<Vec<u32>>()
        };
        let together: Vec<Vec<u32>> = std::thread::scope(|s| {
            let threads: Vec<_> = (0..4).map(|i| s.spawn(move || text(i))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(together, (0..4).map(text).collect::<Vec<_>>(), "{choice:?}");
    }
}

#[test]
fn rows_reserved_are_some_of_the_context() {
    for reserve in [0, 49] {
        let options = Options { context: Some(48), reserve: Some(reserve), ..options(DeviceChoice::Cpu) };
        let error = Engine::open(tiny(), options).unwrap_err().to_string();
        assert!(error.contains("reserve") && error.contains("1..=48"), "{error}");
    }
}

fn small(choice: DeviceChoice) -> Engine {
    Engine::open(tiny(), Options { context: Some(48), reserve: Some(5), sessions: 2, ..options(choice) }).unwrap()
}

#[test]
fn a_full_context_ends_a_text_or_is_an_error_with_both_numbers() {
    let engine = small(DeviceChoice::Cpu);
    let mut session = engine.session().unwrap();
    let error = session.push_tokens(&ids(49, 0)).unwrap_err().to_string();
    assert!(error.contains("49 tokens") && error.contains("48"), "{error}");
    session.push_tokens(&ids(40, 0)).unwrap();
    let error = session.generate(greedy(9)).unwrap_err().to_string();
    assert!(error.contains("49 tokens") && error.contains("48"), "{error}");
    for n in [8, 0] {
        let mut stream = session.generate(GenerateOptions { max_tokens: None, ..greedy(0) }).unwrap();
        assert_eq!(stream.by_ref().filter(|t| t.is_ok()).count(), n);
        assert_eq!(stream.stop_reason(), Some(StopReason::Context));
    }
    let error = session.push_tokens(&[5]).unwrap_err().to_string();
    assert!(error.contains("49 tokens") && error.contains("48"), "{error}");
}

/// A text that goes on past its context, and at every shift what a new session gives that has the tokens that stay.
#[test]
fn a_shifted_context_is_that_of_a_session_with_the_tokens_that_stay() {
    for choice in choices() {
        let engine = small(choice);
        for keep in [None, Some(0), Some(7), Some(40)] {
            let start = |ids: &[u32]| {
                let mut session = engine.session().unwrap();
                session.shift_context(Some(ContextShift { keep }));
                session.push_tokens(ids).unwrap();
                session
            };
            let mut session = start(&ids(30, 1));
            let (mut all, mut found) = (ids(30, 1), Vec::new());
            for part in 0..5 {
                let stream = session.generate(greedy(19)).unwrap();
                let new: Vec<u32> = stream.map(|t| t.unwrap().id).collect();
                assert_eq!(new.len(), 19, "part {part}");
                found.extend_from_slice(&new);
                all.extend(new);
                let kept = session.tokens();
                assert!(kept.len() <= 48 && kept.len() + session.forgotten() == all.len());
                let first = keep.unwrap_or(1);
                assert_eq!(kept[..first], all[..first]);
                assert!(all.ends_with(&kept[first..]), "part {part}, {keep:?}");
                // What comes next is what comes of these tokens alone.
                let mut other = start(kept);
                let next = |s: &mut Session| s.generate(greedy(1)).unwrap().map(|t| t.unwrap().id).collect::<Vec<_>>();
                let (mine, theirs) = (next(&mut session), next(&mut other));
                assert_eq!(mine, theirs, "part {part}, {keep:?}");
                assert_eq!(session.tokens(), other.tokens());
                all.extend(mine);
            }
            assert!(session.forgotten() > 48, "{}", session.forgotten());
            let mut again = start(&ids(30, 1));
            let mut repeated = Vec::new();
            for _ in 0..5 {
                repeated.extend(again.generate(greedy(19)).unwrap().map(|t| t.unwrap().id));
                again.generate(greedy(1)).unwrap().for_each(|t| drop(t.unwrap()));
            }
            assert_eq!(found, repeated, "the same again");
        }
    }
}

#[test]
fn what_must_stay_and_does_not_fit_is_an_error() {
    let engine = small(DeviceChoice::Cpu);
    let mut session = engine.session().unwrap();
    session.shift_context(Some(ContextShift { keep: Some(20) }));
    session.push_tokens(&ids(30, 0)).unwrap();
    let error = session.push_tokens(&ids(29, 1)).unwrap_err().to_string();
    assert!(error.contains("49 tokens") && error.contains("48"), "{error}");
    assert_eq!(session.tokens(), ids(30, 0), "it stays as it was");
    session.push_tokens(&ids(28, 1)).unwrap();
    assert_eq!(session.tokens(), [ids(20, 0), ids(28, 1)].concat());
    session.truncate(25);
    assert_eq!((session.tokens().len(), session.forgotten()), (25, 10));
    session.truncate(20);
    assert_eq!((session.tokens(), session.forgotten()), (&ids(20, 0)[..], 0), "what left stood behind the cut");
    session.shift_context(Some(ContextShift { keep: Some(48) }));
    session.push_tokens(&ids(28, 0)).unwrap();
    let error = session.generate(greedy(1)).unwrap().next().unwrap().unwrap_err().to_string();
    assert!(error.contains("48"), "{error}");
}

/// Draws and penalties go on over a shift as the host would have them.
#[test]
fn a_shift_leaves_draws_and_penalties_to_what_stays() {
    for choice in choices() {
        let engine = small(choice);
        let sampled = |hooked: bool, seed| {
            let mut session = engine.session().unwrap();
            session.shift_context(Some(ContextShift::default()));
            session.push_tokens(&ids(20, 3)).unwrap();
            let sampling =
                Sampling { temperature: 1.5, top_k: 40, repetition_penalty: 1.3, seed, ..Sampling::greedy() };
            let options = GenerateOptions { sampling, ..greedy(100) };
            let mut hook = Forced::default();
            let stream = match hooked {
                true => session.generate_with(options, &mut hook).unwrap(),
                false => session.generate(options).unwrap(),
            };
            stream.map(|t| t.unwrap().id).collect::<Vec<u32>>()
        };
        assert_eq!(sampled(false, 7), sampled(true, 7));
        assert_ne!(sampled(false, 7), sampled(false, 8));
    }
}

/// A conversation in messages that goes on past its context: each question is answered, and its form is whole.
#[test]
fn a_chat_goes_on_past_its_context() {
    for choice in choices() {
        let engine = Engine::open(tiny(), Options { context: Some(64), sessions: 2, ..options(choice) }).unwrap();
        let chat = || {
            let mut session = engine.session().unwrap();
            session.shift_context(Some(ContextShift::default()));
            let mut answers = Vec::new();
            for i in 0..12 {
                session.push_question(["What is it?", "And now?", "Which colour is the box?"][i % 3]).unwrap();
                let asked = session.tokens().to_vec();
                answers.push(session.generate(greedy(10)).unwrap().map(|t| t.unwrap().id).collect::<Vec<u32>>());
                let mut other = engine.session().unwrap();
                other.push_tokens(&asked).unwrap();
                if asked.len() + 10 <= 64 {
                    let want: Vec<u32> = other.generate(greedy(10)).unwrap().map(|t| t.unwrap().id).collect();
                    assert_eq!(answers[i], want, "question {i}");
                }
            }
            assert!(session.forgotten() > 0);
            answers
        };
        let answers = chat();
        assert!(answers.iter().all(|answer| answer.len() == 10));
        assert_eq!(answers, chat());
    }
}

#[test]
fn an_estimate_is_what_the_model_takes_and_a_limit_holds() {
    let gguf =
        |name: &str| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/gguf/tiny/{name}.gguf"));
    let mut refused = 0;
    for choice in choices() {
        for files in [tiny(), gguf("qwen3_q1_0"), gguf("llama_q2_0_linear_rope")] {
            let own = Options { tokenizer: None, reserve: Some(16), sessions: 2, ..options(choice.clone()) };
            let estimate = Engine::estimate(files.as_path(), &own).unwrap();
            let engine = Engine::open(files.as_path(), own.clone()).unwrap();
            let (found, most) = (engine.report().memory_bytes, engine.report().max_memory_bytes);
            let what = format!("{choice:?}, {}: {found} and {most}, {estimate:?}", files.display());
            // Ternary codes of 1 bit, which tensors have that hold no zero, are known by reading them alone.
            let unread = estimate.weight_bytes / 6;
            assert!((found..=found + unread).contains(&estimate.bytes()), "{what}");
            assert!((most..=most + unread).contains(&estimate.max_bytes()), "{what}");
            drop(engine);

            let limited = |bytes| Options { max_memory: Some(bytes), ..own.clone() };
            let mut begun = false;
            let opened = Engine::open_with(files.as_path(), limited(estimate.least_bytes - 1), |_| {
                begun = true;
                ControlFlow::Continue(())
            });
            let error = opened.unwrap_err();
            let wanted = Some(estimate.least_bytes - 1);
            assert!(matches!(&error, Error::OutOfMemory { available, .. } if *available == wanted), "{error}");
            assert!(!begun && error.to_string().contains("max_memory"), "{error}");

            // Room for the whole context of one session and not for both.
            let limit = found + (most - found) / 2;
            let Ok(engine) = Engine::open(files.as_path(), limited(limit)) else { continue };
            if engine.paging().unwrap().is_some() {
                continue;
            }
            let mut sessions = [(); 2].map(|()| engine.session().unwrap());
            let grow = |session: &mut Session| -> Result<()> {
                while session.room() > 8 {
                    session.push_tokens(&[3; 4])?;
                    session.generate(greedy(1))?.try_for_each(|token| token.map(|_| ()))?;
                    assert!(engine.memory_bytes()? <= limit, "{what}");
                }
                Ok(())
            };
            let error = sessions.iter_mut().find_map(|session| grow(session).err()).expect("the cache is full");
            assert!(matches!(error, Error::OutOfMemory { .. }) && error.to_string().contains("max_memory"), "{error}");
            refused += 1;
            let [session, _] = &mut sessions;
            session.truncate(4);
            assert_eq!(session.generate(greedy(2)).unwrap().filter(Result::is_ok).count(), 2);
        }
    }
    assert!(refused > 0, "no cache was refused");
}
