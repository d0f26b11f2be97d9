//! Benchmarks of a BitGen: features of images and texts per second.

use std::fmt;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use crate::apps::bitgen::{BitGen, BitGenOptions, FEATURE_ROWS, IMAGES};
use crate::engine::programs::Program;
use crate::error::Result;
use crate::files::{Image, ModelFiles};
use crate::models::slots;
use crate::plan::Step;
use crate::tools::bench::options::BenchOptions;
use crate::tools::bench::probe::{Cost, Probe};
use crate::tools::bench::row::{Measured, Setup, TestNumbers, Unit};
use crate::tools::bench::run::Run;
use crate::tools::bench::sessions::picture;

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

/// Names of the tests.
pub fn tests() -> Vec<String> {
    TESTS.iter().map(Features::to_string).collect()
}

/// Runs every test.
///
/// # Errors
/// Those of [`BitGen::open`]; [`crate::Error::Unsupported`] for times of ops on an adapter that takes none.
pub fn measure(files: &ModelFiles, options: &BenchOptions, run: &mut Run) -> Result<ControlFlow<()>> {
    let device = options.device.clone();
    let model = BitGen::open(files, BitGenOptions { device, precision: options.model.precision, tokenizer: None })?;
    for test in TESTS {
        let ControlFlow::Continue(times) = run.repeat(&test.to_string(), || once(&model, test))? else {
            return Ok(ControlFlow::Break(()));
        };
        if run.row(measured(&model, test, times, options, run.model)?).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

/// Runs a test once, as a caller of the library would.
fn once(model: &BitGen, test: Features) -> Result<Duration> {
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

fn measured(
    model: &BitGen,
    test: Features,
    times: Vec<f64>,
    options: &BenchOptions,
    name: (&str, u64),
) -> Result<Measured> {
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
    let (n, images) = (count as u64, matches!(test, Features::Images(_)));
    let of = |kind: bool| if kind { n } else { 0 };
    let numbers = TestNumbers { n_images: of(images), n_texts: of(!images), n_sessions: 1, ..TestNumbers::default() };
    Ok(Measured {
        test: test.to_string(),
        numbers,
        times,
        tokens: test.tokens(model),
        counts: if images { Unit::Images } else { Unit::Texts },
        setup: Setup::new(name, model.report(), backend, None),
        device_bytes: backend.memory(),
        paging: (None, None),
        cost,
        profile,
    })
}

/// A step of `n` images or texts: zeros are black images, and rows of the first token.
fn probe(program: &Program, n: usize) -> Result<Probe> {
    let zeros = |name| program.plan.input(name).map(|slot| (name, vec![0; program.plan.spec(slot).words()]));
    let inputs = [slots::PIXELS, slots::ROWS].into_iter().filter_map(zeros).collect();
    Probe::new(program, Step::new(n, n, 1), inputs)
}
