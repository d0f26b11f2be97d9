//! Benchmarks: how fast a model reads prompts and images and generates text, and which share of the memory's bandwidth
//! that takes.
//!
//! * `options`, `test`: which tests run, and what a test does, by its numbers.
//! * `row`: what a test gives; `machine`: the program and the machine, of which each row tells; `statistics`.
//! * `run`: the callback that sees each row as it comes and can stop the run.
//! * `sessions`: running a test through sessions, as a caller of the library would.
//! * `probe`: single steps of a program, looked at: bytes, launches, the host's time, times by op.
//! * `chat`, `bitgen`: the tests of chat models, and of BitGens.
//! * `bandwidth`: how fast the device reads its memory.
//! * `compare`: rows of two runs, side by side.

mod bandwidth;
mod bitgen;
mod chat;
mod compare;
mod machine;
mod options;
mod probe;
mod row;
mod run;
mod sessions;
mod statistics;
mod test;

use std::ops::ControlFlow;

use crate::engine::options::Precision;
use crate::error::{Error, Result};
use crate::files::{ModelFiles, Weights};
use crate::models::{self, BITGEN, Family, LoadOptions, Model};
use crate::tools::convert::whole;
use run::Run;

pub use bandwidth::bandwidth;
pub use compare::{Comparison, KEYS, Pair, compare};
pub use machine::Machine;
pub use options::BenchOptions;
pub use probe::OpTime;
pub use row::{BenchRow, PageUse, SCHEMA, Setup, TestNumbers, Unit};
pub use run::{BenchEvent, BenchRun};
pub use statistics::Ratio;
pub use test::Test;

/// Measures a model, which is opened once for each number of sessions; before and behind it the bandwidth of the device.
///
/// Prompts are random tokens, decoding is greedy, and an end-of-text token does not end a generation. Every test has a
/// warm-up run. A BitGen is measured by the features of one image, of 8 images and of 64 texts; the prompts and generations
/// of `options` are ignored.
///
/// `watch` sees each row as soon as its test has ended. If it breaks, the run ends before the next repetition, with the
/// rows that there are.
///
/// # Errors
/// [`Error::Argument`] for options out of range or beyond the model's positions, before anything is
/// loaded; [`Error::Unsupported`] for images without vision, or for times of ops on an adapter
/// that takes none; those of [`Engine::open`](crate::Engine::open).
pub fn bench(
    files: impl Into<ModelFiles>,
    options: &BenchOptions,
    mut watch: impl FnMut(BenchEvent) -> ControlFlow<()>,
) -> Result<BenchRun> {
    options.validate()?;
    let files = files.into();
    let (weights, load) = (Weights::open(&files)?, LoadOptions::anywhere(Precision::F16.pack()));
    let load = LoadOptions { hidden_act: options.model.hidden_act, ..load };
    let name = files.to_string();
    if Family::recognise(&files, &weights)? == &BITGEN {
        let refused = [
            ("max-memory", options.max_memory.is_some(), "a BitGen stays in memory as a whole"),
            ("batch-invariant", options.model.batch_invariant, "a BitGen has no sessions"),
        ];
        if let Some((option, _, why)) = refused.iter().find(|(_, given, _)| *given) {
            return Err(Error::argument(*option, format!("is for a model that chats; {why}")));
        }
        let parameters = parameters(models::open(&files, &weights, load)?.as_ref(), &weights)?;
        let tests = bitgen::tests();
        let mut run = Run::new((&name, parameters), options, &tests, &mut watch);
        run.tests(&[]);
        run.measure(|run| bitgen::measure(&files, options, run))
    } else {
        let model = models::open_chat(&files, &weights, load)?;
        let parameters = parameters(model.as_ref(), &weights)?;
        let (tests, left_out) = options.checked_tests(model.info())?;
        let names: Vec<String> = tests.iter().map(ToString::to_string).collect();
        let mut run = Run::new((&name, parameters), options, &names, &mut watch);
        run.tests(&left_out);
        run.measure(|run| chat::measure(&files, &tests, model.info(), options, run))
    }
}

/// Parameters of a model of any family.
fn parameters<M: Model + ?Sized>(model: &M, weights: &Weights) -> Result<u64> {
    let counted = weights.checkpoint().tensors().filter(|t| model.counts(&t.name));
    let shape = |name: &str| Ok(whole(weights, name, model.reads().get(name).copied())?.1);
    counted.map(|t| Ok(shape(&t.name)?.iter().map(|&n| n as u64).product::<u64>())).sum()
}
