//! Benchmarks of a BitGen: features of images and texts per second.

use std::fmt;
use std::time::{Duration, Instant};

use crate::apps::bitgen::{BitGen, BitGenOptions, FEATURE_ROWS, IMAGES};
use crate::engine::Progress;
use crate::engine::programs::Program;
use crate::error::Result;
use crate::files::{Image, ModelFiles};
use crate::models::slots;
use crate::plan::Step;
use crate::tools::bench::probe::{Cost, Probe};
use crate::tools::bench::sessions::picture;
use crate::tools::bench::{BenchOptions, Measured, peak_host_bytes, repeat};

/// What is measured.
const TESTS: [Features; 3] = [Features::Images(1), Features::Images(8), Features::Texts(64)];

/// Features of `n` images or texts, asked for together.
#[derive(Debug, Clone, Copy)]
enum Features {
    Images(usize),
    Texts(usize),
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Features::Images(1) => write!(f, "image"),
            Features::Images(n) => write!(f, "image × {n}"),
            Features::Texts(n) => write!(f, "text × {n}"),
        }
    }
}

impl Features {
    fn count(self) -> usize {
        match self {
            Features::Images(n) | Features::Texts(n) => n,
        }
    }

    /// Tokens that one repetition counts: an image becomes several, and a text gives its first one.
    fn tokens(self, model: &BitGen) -> usize {
        match self {
            Features::Images(n) => n * model.image_info().tokens,
            Features::Texts(n) => n,
        }
    }
}

/// Runs every test, each `repetitions` times behind one run that does not count.
///
/// # Errors
/// Those of [`BitGen::open`]; [`crate::Error::Unsupported`] for times of ops on an adapter that takes none.
pub fn measure(
    files: &ModelFiles,
    options: &BenchOptions,
    progress: &mut impl FnMut(Progress),
) -> Result<Vec<Measured>> {
    let (mut done, total) = (0, TESTS.len() * (options.repetitions + 1) + 1);
    progress(Progress { done, total, what: "opening the model".into() });
    let device = options.device.clone();
    let model = BitGen::open(files, &BitGenOptions { device, precision: options.model.precision, tokenizer: None })?;
    let mut all = Vec::new();
    for test in TESTS {
        let times = repeat(options.repetitions, || {
            progress(Progress { done, total, what: test.to_string() });
            done += 1;
            run(&model, test)
        })?;
        all.push(measured(&model, test, times, options)?);
    }
    progress(Progress { done, total, what: "bandwidth".into() });
    Ok(all)
}

/// Runs a test once, as a caller of the library would.
fn run(model: &BitGen, test: Features) -> Result<Duration> {
    let vocab = model.sizes().vocab;
    let tokens: Vec<u32> = (0..test.count()).map(|i| ((7919 * i + 5) % vocab) as u32).collect();
    let texts: Vec<&[u32]> = tokens.chunks(1).collect();
    let pictures: Vec<Image> = match test {
        Features::Images(n) => vec![picture(); n],
        Features::Texts(_) => Vec::new(),
    };
    let start = Instant::now();
    match test {
        Features::Images(_) => model.image_features(&pictures)?,
        Features::Texts(_) => model.text_features(&texts)?,
    };
    Ok(start.elapsed())
}

fn measured(model: &BitGen, test: Features, times: Vec<f64>, options: &BenchOptions) -> Result<Measured> {
    let (mut programs, count) = (model.programs(), test.count());
    let (program, max_rows) = match test {
        Features::Images(_) => (programs.image.clone(), IMAGES),
        Features::Texts(_) => (programs.features.clone(), FEATURE_ROWS),
    };
    // All steps but the last one are as large as the first.
    let probes: Result<Vec<Probe>> =
        (0..count).step_by(max_rows).map(|done| probe(&program, (count - done).min(max_rows))).collect();
    let (probes, backend, mut cost) = (probes?, programs.backend.as_mut(), Cost::default());
    for probe in &probes {
        let host = probe.host(backend)?;
        cost.add(Cost { host, ..probe.cost(backend) }, 1.0);
    }
    let profile = match probes.first() {
        Some(first) if options.profile => first.profile(backend)?,
        _ => Vec::new(),
    };
    Ok(Measured {
        test: test.to_string(),
        times,
        tokens: test.tokens(model),
        images: matches!(test, Features::Images(_)).then_some(count),
        texts: matches!(test, Features::Texts(_)).then_some(count),
        report: model.report().clone(),
        device_bytes: model.report().memory_bytes,
        on_cpu: backend.runs_at_once(),
        cost,
        profile,
        peak_host_bytes: peak_host_bytes(),
    })
}

/// A step of `n` images or texts: zeros are black images, and rows of the first token.
fn probe(program: &Program, n: usize) -> Result<Probe> {
    let zeros = |name| program.plan.input(name).map(|slot| (name, vec![0; program.plan.spec(slot).words()]));
    let inputs = [slots::PIXELS, slots::ROWS].into_iter().filter_map(zeros).collect();
    Probe::new(program, Step::new(n, n, 1), inputs)
}
