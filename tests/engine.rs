//! The engine as an application uses it: sessions, streams, threads, limits, a lost device.

mod support {
    pub mod device;
    pub mod golden;
    pub mod model_stages;
    pub mod numbers;
}

use std::path::PathBuf;

use support::device::device;
use support::golden::Golden;
use support::model_stages::Greedy;
use ternion::apps::refiner::{Refiner, RefinerOptions};
use ternion::engine::{DeviceChoice, Engine, GenerateOptions, Options, Precision, Sampling, Session, StopReason};
use ternion::files::Image;
use ternion::unstable::ops::TOKEN_IMAGE;
use ternion::{Error, Result};

fn tiny() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/embernet/tiny")
}

fn golden(file: &str) -> Golden {
    Golden::open(&tiny().join(file).to_string_lossy())
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

fn prompt() -> Vec<u32> {
    golden("golden_prefill.safetensors").i32s("input_ids").into_iter().map(|id| id as u32).collect()
}

fn picture() -> Image {
    Image::open(tiny().join("image_97x61.png")).unwrap()
}

/// Tokens of a generation in a new session.
fn generate(engine: &Engine, ids: &[u32], image: Option<&Image>, options: GenerateOptions) -> Result<Vec<u32>> {
    let mut session = engine.session()?;
    if let Some(image) = image {
        session.push_image(image)?;
    }
    session.push_tokens(ids)?;
    session.generate(options)?.map(|t| t.map(|t| t.id)).collect()
}

fn greedy(n: usize) -> GenerateOptions {
    GenerateOptions { max_tokens: Some(n), eos: Some(u32::MAX), ..GenerateOptions::default() }
}

#[test]
fn embernet_engine_gives_the_original_greedy_ids_and_stops_at_eos() {
    let run = golden("golden_greedy.safetensors");
    let (want, logits) = (run.i32s("generated_ids"), run.f32s("step_logits"));
    let eos: serde_json::Value =
        serde_json::from_slice(&std::fs::read(tiny().join("golden_eos.json")).unwrap()).unwrap();
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice.clone())).unwrap();
        let run = |options| -> Vec<i32> {
            let ids = generate(&engine, &prompt(), Some(&picture()), options).unwrap();
            ids.into_iter().map(|id| id as i32).collect()
        };
        let mut tokens = Greedy::new(&tiny(), &format!("{choice:?}"), &want, &logits);
        tokens.run(&run(greedy(want.len())));
        tokens.finish();

        let token = eos["eos_token_id"].as_u64().unwrap() as u32;
        let cut: Vec<i32> = serde_json::from_value(eos["generated_ids"].clone()).unwrap();
        assert!(cut.len() < want.len() && want.starts_with(&cut), "the original's runs are one");
        let vocab = logits.len() / want.len();
        let what = format!("{choice:?} until token {token}");
        let mut tokens = Greedy::new(&tiny(), &what, &cut, &logits[..cut.len() * vocab]);
        tokens.run(&run(GenerateOptions { eos: Some(token), ..greedy(want.len()) }));
        tokens.finish();
    }
}

#[test]
fn sessions_on_threads_equal_each_alone() {
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        let prompts: Vec<Vec<u32>> = (0..3).map(|s| (0..12).map(|i| 3 + (i * 7 + s * 31) % 400).collect()).collect();
        let image = picture();
        let run = |p: &Vec<u32>| generate(&engine, p, Some(&image), greedy(12)).unwrap();
        let alone: Vec<Vec<u32>> = prompts.iter().map(run).collect();
        let together: Vec<Vec<u32>> = std::thread::scope(|s| {
            let threads: Vec<_> = prompts.iter().map(|p| s.spawn(|| run(p))).collect();
            threads.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(alone, together);
    }
}

#[test]
fn images_that_are_encoded_meanwhile_change_no_stream_and_no_image() {
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        let image = picture();
        let turned = image.resized(image.height).unwrap();
        let text = |image| generate(&engine, &prompt(), image, greedy(8)).unwrap();
        let alone = [text(None), text(Some(&image)), text(Some(&turned))];
        assert!(alone[1] != alone[2], "the images differ");
        std::thread::scope(|s| {
            let threads = [None, Some(&image), Some(&turned)].map(|i| s.spawn(move || [text(i), text(i), text(i)]));
            for (thread, alone) in threads.into_iter().zip(&alone) {
                assert!(thread.join().unwrap().iter().all(|tokens| tokens == alone));
            }
        });
    }
}

#[test]
fn the_same_seed_gives_the_same_tokens() {
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        let sampled = |seed| {
            let sampling = Sampling { temperature: 1.5, top_k: 40, seed, ..Sampling::greedy() };
            generate(&engine, &prompt(), None, GenerateOptions { sampling, ..greedy(24) }).unwrap()
        };
        assert_eq!(sampled(7), sampled(7));
        assert_ne!(sampled(7), sampled(8));
    }
}

#[test]
fn a_dropped_stream_leaves_a_session_that_goes_on() {
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        let whole = generate(&engine, &prompt(), Some(&picture()), greedy(10)).unwrap();
        let mut session = engine.session().unwrap();
        session.push_image(&picture()).unwrap();
        session.push_tokens(&prompt()).unwrap();
        let mut ids: Vec<u32> = session.generate(greedy(10)).unwrap().take(4).map(|t| t.unwrap().id).collect();
        ids.extend(session.generate(greedy(6)).unwrap().map(|t| t.unwrap().id));
        assert_eq!(ids, whole);
    }
}

#[test]
fn a_session_can_generate_again_after_the_end_of_text() {
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        let mut session = engine.session().unwrap();
        session.push_tokens(&prompt()).unwrap();
        let first = session.generate(greedy(1)).unwrap().next().unwrap().unwrap().id;
        session.reset();
        session.push_tokens(&prompt()).unwrap();
        for _ in 0..2 {
            let until_first = GenerateOptions { eos: Some(first), ..greedy(4) };
            let ids: Vec<u32> = session.generate(until_first).unwrap().map(|t| t.unwrap().id).collect();
            assert_eq!(ids, [first]);
        }
    }
}

#[test]
fn a_reset_session_keeps_its_image() {
    let engine = Engine::open(tiny(), options(DeviceChoice::Cpu)).unwrap();
    let whole = generate(&engine, &prompt(), Some(&picture()), greedy(6)).unwrap();
    let mut session = engine.session().unwrap();
    session.push_image(&picture()).unwrap();
    for _ in 0..2 {
        session.push_tokens(&prompt()).unwrap();
        let ids: Vec<u32> = session.generate(greedy(6)).unwrap().map(|t| t.unwrap().id).collect();
        assert_eq!(ids, whole);
        session.reset_text();
    }
    session.reset();
    assert!(session.is_empty());
}

/// Generates to the end, or drops the stream after `n` tokens.
fn some(session: &mut Session, n: usize, options: GenerateOptions) -> Vec<u32> {
    session.generate(options).unwrap().take(n).map(|t| t.unwrap().id).collect()
}

fn with_prompt(engine: &Engine) -> Session {
    let mut session = engine.session().unwrap();
    session.push_tokens(&prompt()).unwrap();
    session
}

#[test]
fn several_tokens_in_one_go_are_those_of_single_steps() {
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice.clone())).unwrap();
        let mut session = with_prompt(&engine);
        let single: Vec<u32> = (0..60).flat_map(|_| some(&mut session, 1, greedy(1))).collect();
        let mut session = with_prompt(&engine);
        let mut stream = session.generate(greedy(60)).unwrap();
        let together: Vec<u32> = stream.by_ref().map(|t| t.unwrap().id).collect();
        assert_eq!(together, single);
        let waits = stream.stats().waits;
        println!("{choice:?}: {waits} waits for 60 tokens");
        assert_eq!(waits < 60, choice != DeviceChoice::Cpu, "{waits}");

        // Wherever the stream is dropped, the rest comes as if it had not been.
        for n in [2, 3, 5, 8, 13, 21, 34] {
            let mut session = with_prompt(&engine);
            let mut ids = some(&mut session, n, greedy(60));
            assert_eq!(session.tokens().len(), prompt().len() + n);
            session.expert_shares().unwrap();
            ids.extend(some(&mut session, 60, greedy(60 - n)));
            assert_eq!(ids, single, "dropped after {n} tokens");
        }
    }
}

#[test]
fn a_conversation_goes_on_after_an_end_among_tokens_chosen_in_one_go() {
    let single = |session: &mut Session, n| (0..n).flat_map(|_| some(session, 1, greedy(1))).collect::<Vec<u32>>();
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        let whole = some(&mut with_prompt(&engine), 60, greedy(60));
        for end in [3, 9, 14, 22, 31, 40] {
            let first = whole.iter().position(|&id| id == whole[end]).unwrap();
            let talk = |session: &mut Session, together: bool| {
                session.push_tokens(&[7, 8, 9]).unwrap();
                if together { some(session, 20, greedy(20)) } else { single(session, 20) }
            };
            let (mut session, mut reference) = (with_prompt(&engine), with_prompt(&engine));
            let until = GenerateOptions { eos: Some(whole[end]), ..greedy(60) };
            assert_eq!(some(&mut session, 60, until), whole[..=first]);
            single(&mut reference, first);
            assert_eq!(session.tokens(), reference.tokens());
            assert_eq!(talk(&mut session, true), talk(&mut reference, false));
        }
    }
}

#[test]
fn the_device_samples_what_the_host_would() {
    // A refiner that changes nothing leaves the choice to the host.
    let neutral = || Refiner::new(RefinerOptions { use_logit: false, ..RefinerOptions::default() }).unwrap();
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        for (top_k, repetition_penalty, seed) in [(40, 1.0, 1), (64, 1.3, u64::MAX), (7, 0.8, 3), (512, 1.3, 4)] {
            let drawn =
                Sampling { temperature: 1.5, top_k, top_p: 0.95, repetition_penalty, seed, ..Sampling::greedy() };
            let sampling = match seed {
                1 => Sampling { frequency_penalty: 0.4, min_p: 0.02, ..drawn },
                3 => {
                    Sampling { presence_penalty: 0.6, logit_bias: [(5, f32::NEG_INFINITY), (77, 4.0)].into(), ..drawn }
                }
                _ => drawn,
            };
            let sampled = |hooked: bool| {
                let options = GenerateOptions { sampling: sampling.clone(), ..greedy(40) };
                let (mut session, mut hook) = (with_prompt(&engine), neutral());
                // The second generation begins with what occurred in the first.
                let mut both = Vec::new();
                for n in [23, 40] {
                    let stream = match hooked {
                        true => session.generate_with(options.clone(), &mut hook).unwrap(),
                        false => session.generate(options.clone()).unwrap(),
                    };
                    both.extend(stream.take(n).map(|token| token.unwrap().id));
                }
                both
            };
            assert_eq!(sampled(false), sampled(true), "{sampling:?}");
        }
    }
}

#[test]
fn sessions_in_one_call_equal_each_alone() {
    for choice in choices() {
        let engine = Engine::open(tiny(), options(choice)).unwrap();
        let sampling = Sampling { temperature: 1.2, top_k: 30, repetition_penalty: 1.2, seed: 9, ..Sampling::greedy() };
        let all = [greedy(30), GenerateOptions { sampling, ..greedy(25) }, greedy(7)];
        let ids = |s: u32| (0..5 + 9 * s).map(|i| 3 + (i * 7 + s * 31) % 400).collect::<Vec<u32>>();
        let alone: Vec<Vec<u32>> =
            (0..3).map(|s| generate(&engine, &ids(s), None, all[s as usize].clone()).unwrap()).collect();
        let mut sessions: Vec<Session> = (0..3).map(|_| engine.session().unwrap()).collect();
        for (s, session) in (0..).zip(&mut sessions) {
            session.push_tokens(&ids(s)).unwrap();
        }
        let mut together = vec![Vec::new(); 3];
        let mut batch = engine.generate_all(&mut sessions, all.clone()).unwrap();
        for (session, token) in batch.by_ref() {
            together[session].push(token.unwrap().id);
        }
        assert_eq!(together, alone);
        let ends: Vec<_> = batch.streams().iter().map(|s| (s.stop_reason(), s.stats().generated)).collect();
        assert_eq!(ends, [30, 25, 7].map(|n| (Some(StopReason::Length), n)));

        assert!(matches!(engine.generate_all(&mut sessions, all[..2].to_vec()), Err(Error::Argument { .. })));
        let other = Engine::open(tiny(), options(DeviceChoice::Cpu)).unwrap();
        assert!(matches!(other.generate_all(&mut sessions, all), Err(Error::Argument { .. })));
        assert_eq!(other.generate_all(&mut [], []).unwrap().count(), 0);
    }
}

#[test]
fn however_many_sessions_decode_the_tokens_are_the_same() {
    for choice in choices() {
        // Programs for 1, 8, 16 and 20 rows.
        let engine = Engine::open(tiny(), Options { sessions: 20, ..options(choice.clone()) }).unwrap();
        let want = generate(&engine, &[3, 5, 7], None, greedy(6)).unwrap();
        for n in [1, 2, 9, 17] {
            let mut sessions: Vec<Session> = (0..n).map(|_| engine.session().unwrap()).collect();
            sessions.iter_mut().for_each(|session| session.push_tokens(&[3, 5, 7]).unwrap());
            let mut all = vec![Vec::new(); n];
            for (session, token) in engine.generate_all(&mut sessions, vec![greedy(6); n]).unwrap() {
                all[session].push(token.unwrap().id);
            }
            assert!(all.iter().all(|tokens| *tokens == want), "{n} sessions on {choice:?}: {all:?}, alone {want:?}");
        }
    }
}

#[test]
fn long_prompts_run_in_chunks_with_the_same_result() {
    for choice in choices() {
        let runs: Vec<Vec<u32>> = [5, 64]
            .map(|prefill_rows| {
                let options = Options { prefill_rows, sessions: 1, ..options(choice.clone()) };
                let engine = Engine::open(tiny(), options).unwrap();
                generate(&engine, &prompt(), Some(&picture()), greedy(8)).unwrap()
            })
            .to_vec();
        assert_eq!(runs[0], runs[1], "{choice:?}");
    }
}

#[test]
fn streams_say_why_they_end_and_count_experts() {
    let engine = Engine::open(tiny(), options(DeviceChoice::Cpu)).unwrap();
    let mut session = engine.session().unwrap();
    session.push_question("What is this?").unwrap();
    let mut stream = session.generate(greedy(5)).unwrap();
    assert_eq!(stream.by_ref().count(), 5);
    assert_eq!((stream.stop_reason(), stream.stats().generated), (Some(StopReason::Length), 5));
    let text: String = session.generate(greedy(8)).unwrap().map(|t| t.unwrap().text).collect();
    let stop: String = text.chars().skip(1).take(2).collect();
    let shares = session.expert_shares().unwrap();
    assert_eq!((shares.len(), shares[0].len()), (3, 8));
    assert!(shares.iter().all(|layer| (layer.iter().sum::<f32>() - 1.0).abs() < 1e-4));

    let mut session = engine.session().unwrap();
    session.push_question("What is this?").unwrap();
    session.generate(greedy(5)).unwrap().for_each(drop);
    let mut stream = session.generate(GenerateOptions { stop: vec![stop.clone()], ..greedy(8) }).unwrap();
    let shown: String = stream.by_ref().map(|t| t.unwrap().text).collect();
    assert_eq!(stream.stop_reason(), Some(StopReason::StopString), "{text:?} has {stop:?}");
    assert!(text.starts_with(&shown) && !shown.contains(&stop), "{shown:?} of {text:?}");
}

#[test]
fn what_does_not_fit_is_refused_with_both_numbers() {
    let options = Options { context: Some(40), sessions: 1, ..options(DeviceChoice::Cpu) };
    let engine = Engine::open(tiny(), options).unwrap();
    let mut session = engine.session().unwrap();
    assert!(matches!(engine.session(), Err(Error::SessionsFull { open: 1, max: 1 })), "one session is all");
    let error = session.push_tokens(&[5; 41]).unwrap_err().to_string();
    assert!(error.contains("41") && error.contains("40"), "{error}");
    session.push_tokens(&[5; 30]).unwrap();
    let error = session.generate(greedy(11)).unwrap_err().to_string();
    assert!(error.contains("41") && error.contains("40"), "{error}");
    assert_eq!(session.generate(GenerateOptions { eos: Some(u32::MAX), ..Default::default() }).unwrap().count(), 10);
    assert!(matches!(session.push_tokens(&[512]), Err(Error::Argument { .. })), "outside the vocabulary");
    drop(session);
    let mut session = engine.session().unwrap();
    assert!(matches!(session.generate(greedy(1)), Err(Error::Argument { .. })), "nothing was pushed");
    session.push_tokens(&[5]).unwrap();
    assert!(matches!(session.push_image(&picture()), Err(Error::Argument { .. })), "images come first");
    assert!(matches!(session.push_tokens(&[TOKEN_IMAGE]), Err(Error::Argument { .. })));
}

#[test]
fn half_precision_stays_close_to_full() {
    for choice in choices() {
        let engine = Engine::open(tiny(), Options { precision: Precision::F16, ..options(choice) }).unwrap();
        let ids = generate(&engine, &prompt(), Some(&picture()), greedy(4)).unwrap();
        let want = golden("golden_greedy.safetensors").i32s("generated_ids");
        assert_eq!(ids[0], want[0] as u32, "the first token has a wide margin");
    }
}

#[test]
fn a_weight_that_is_not_a_number_is_named_at_opening() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = std::fs::read(tiny().join("model.safetensors")).unwrap();
    let n = bytes.len();
    bytes[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(dir.path().join("model.safetensors"), bytes).unwrap();
    for file in ["config.json", "embernet_config.json", "siglip_vision_config.json"] {
        std::fs::copy(tiny().join(file), dir.path().join(file)).unwrap();
    }
    let error = Engine::open(dir.path(), options(DeviceChoice::Cpu)).unwrap_err().to_string();
    assert!(error.contains("NaN") && error.contains("vision_encoder"), "{error}");
}

/// Finite weights whose products are not: text never comes of that, on no device.
#[test]
fn a_number_that_overflows_ends_in_an_error() {
    for name in ["moe.router.weight", "post_attention_layernorm.weight"] {
        let dir = with_config(|_| {});
        let path = dir.path().join("model.safetensors");
        let mut bytes = std::fs::read(&path).unwrap();
        let name = format!("decoder.layers.0.{name}");
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let data = file.tensor(&name).unwrap().data();
        let (at, len) = (data.as_ptr() as usize - bytes.as_ptr() as usize, data.len());
        bytes[at..at + len].chunks_exact_mut(4).for_each(|v| v.copy_from_slice(&3e38f32.to_le_bytes()));
        std::fs::write(&path, bytes).unwrap();
        for choice in choices() {
            let device = format!("{choice:?}");
            let engine = Engine::open(dir.path(), options(choice)).unwrap();
            let found = generate(&engine, &prompt(), None, greedy(3));
            assert!(matches!(found, Err(Error::NonFiniteLogits(_))), "{name} on {device}: {found:?}");
        }
    }
}

#[test]
fn engines_are_shared_between_threads() {
    fn assert_shared<T: Send + Sync>() {}
    assert_shared::<Engine>();
    fn assert_sent<T: Send>() {}
    assert_sent::<ternion::engine::Session>();
}

/// A copy of the tiny model with another `config.json`.
fn with_config(edit: impl FnOnce(&mut serde_json::Value)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["model.safetensors", "embernet_config.json", "siglip_vision_config.json"] {
        std::fs::copy(tiny().join(file), dir.path().join(file)).unwrap();
    }
    let mut config = serde_json::from_slice(&std::fs::read(tiny().join("config.json")).unwrap()).unwrap();
    edit(&mut config);
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn four_bit_activations_and_absmean_weights_are_chosen_by_the_configuration() {
    let ids = |edit: fn(&mut serde_json::Value)| {
        let dir = with_config(edit);
        choices()
            .into_iter()
            .map(|choice| {
                let engine = Engine::open(dir.path(), options(choice)).unwrap();
                generate(&engine, &prompt(), Some(&picture()), greedy(12)).unwrap()
            })
            .collect::<Vec<_>>()
    };
    let plain = ids(|_| {});
    for other in [ids(|c| c["activation_bits_override"] = 4.into()), ids(|c| c["weight_quant"] = "absmean".into())] {
        assert_ne!(other, plain);
        assert!(other.windows(2).all(|pair| pair[0] == pair[1]), "devices differ: {other:?}");
    }
    let broken = with_config(|c| c["weight_quant"] = "other".into());
    let error = Engine::open(broken.path(), options(DeviceChoice::Cpu)).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("sign_mean"), "{error}");
}
