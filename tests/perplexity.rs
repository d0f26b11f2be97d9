//! `ternion perplexity`: the number is that of the definition, whatever runs together, and what is refused.
#![cfg(all(feature = "cli", feature = "demo"))]

mod support {
    pub mod cli;
}

use std::fs;

use serde_json::Value;
use support::cli::{assert_fails, has_adapter, succeeds, ternion, text};
use tempfile::TempDir;
use ternion::engine::{DeviceChoice, Options};
use ternion::{Engine, Error};

const WINDOW: usize = 48;

/// Sentences that the demo model might say, in an order without a period.
fn sentences() -> String {
    let colors = ["red", "green", "blue", "purple", "orange"];
    let shapes = ["circle", "square", "triangle", "star"];
    let sentence = |i: usize| {
        let color = |k: usize| colors[(i * i + k) % colors.len()];
        let shape = |k: usize| shapes[(i / 2 + k * i) % shapes.len()];
        format!("a {} {} left of a {} {}\n", color(0), shape(1), color(3), shape(2))
    };
    (0..30).map(sentence).collect()
}

/// The perplexity by its definition, one window after the other.
fn by_definition(device: DeviceChoice, words: &str) -> (f64, usize) {
    let engine = Engine::demo(Options { device, autotune: false, ..Options::default() }).unwrap();
    let ids = engine.tokenizer().unwrap().encode(words, true).unwrap();
    let front = engine.tokenizer().unwrap().encode("", true).unwrap();
    let mut session = engine.session().unwrap();
    let mut nats = Vec::new();
    for window in ids.chunks_exact(WINDOW) {
        session.reset();
        let mut window = window.to_vec();
        if let Some(&first) = front.first() {
            window[0] = first;
        }
        session.push_tokens(&window[..WINDOW / 2 + 1]).unwrap();
        nats.extend(session.log_likelihood(&window[WINDOW / 2 + 1..]).unwrap().into_iter().map(f64::from));
    }
    ((-nats.iter().sum::<f64>() / nats.len() as f64).exp(), nats.len())
}

#[test]
fn the_number_is_that_of_the_definition() {
    let dir = TempDir::new().expect("a directory");
    let file = text(dir.path().join("text.txt"));
    fs::write(&file, sentences()).expect("written");
    let window = WINDOW.to_string();
    for device in if has_adapter() { &["cpu", "gpu"][..] } else { &["cpu"] } {
        let (want, tokens) = by_definition(device.parse().unwrap(), &sentences());
        for sessions in ["1", "3"] {
            let args = ["perplexity", "--file", &file, "-c", &window, "-s", sessions, "--device", device];
            let found: Value = serde_json::from_str(&succeeds(&[&args[..], &["--json"]].concat())).expect("JSON");
            let number = |key: &str| found[key].as_f64().unwrap_or_else(|| panic!("{key}: {found}"));
            assert!((number("perplexity") / want - 1.0).abs() < 1e-3, "{found} for {want}");
            assert_eq!(number("tokens"), tokens as f64, "{found}");
            assert!(number("standard_error") > 0.0 && number("windows") * 23.0 == tokens as f64, "{found}");
            let line = succeeds(&args);
            assert!(line.starts_with(&format!("perplexity {:.2}", number("perplexity"))), "{line}");
        }
    }
}

#[test]
fn what_cannot_be_measured_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let [short, odd] = ["short.txt", "odd.txt"].map(|name| text(dir.path().join(name)));
    fs::write(&short, "a red circle").expect("written");
    fs::write(&odd, [b'a', 0xff]).expect("written");
    for (more, texts) in [
        (&["--file", &short, "-c", "64"][..], &["tokens", "expected 64 or more"][..]),
        (&["--file", &short, "-c", "3"], &["window: is 3", "4 or more"]),
        (&["--file", &short, "-c", "257"], &["is 257", "256 positions"]),
        (&["--file", &short], &["is 512", "256 positions"]),
        (&["--file", &odd], &["not UTF-8 at byte 1"]),
        (&["--file", "nowhere.txt"], &["nowhere.txt"]),
        (&["--file", &short, "-s", "0"], &["sessions"]),
    ] {
        let args = [&["perplexity", "--device", "cpu"][..], more].concat();
        assert_fails(&ternion(&args), &args, texts);
    }
}

#[test]
fn likelihoods_need_a_session_for_each_text() {
    let options = || Options { device: DeviceChoice::Cpu, ..Options::default() };
    let [engine, other] = [(), ()].map(|()| Engine::demo(options()).unwrap());
    let mut session = engine.session().unwrap();
    session.push_tokens(&[5, 6]).unwrap();
    let mut sessions = [session];
    let refused = |result: ternion::Result<_>| assert!(matches!(result, Err(Error::Argument { .. })), "{result:?}");
    refused(engine.log_likelihoods(&mut sessions, &[]).map(drop));
    refused(other.log_likelihoods(&mut sessions, &[&[7]]).map(drop));
    refused(engine.log_likelihoods(&mut sessions, &[&[7, u32::MAX]]).map(drop));
    assert_eq!(engine.log_likelihoods(&mut sessions, &[&[7, 8]]).unwrap()[0].len(), 2);
    assert_eq!(sessions[0].tokens(), [5, 6, 7, 8]);
}
