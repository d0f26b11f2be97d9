//! Measuring a BitGen: how many images and texts a second become features.

use std::fmt;
use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use crate::apps::bitgen::{BitGen, BitGenOptions, Core, FEATURE_ROWS, IMAGES};
use crate::engine::open::Progress;
use crate::engine::programs::{Program, step};
use crate::error::Result;
use crate::files::{Image, ModelFiles};
use crate::plan::Step;
use crate::tools::bench::probe::{Cost, HOST_RUNS, OpTime, PROFILE_RUNS, by_op};
use crate::tools::bench::runner::picture;
use crate::tools::bench::{BenchOptions, Row, mean, parameters, peak_host_bytes};

/// What is measured.
const TESTS: [Features; 3] = [Features::Images(1), Features::Images(8), Features::Texts(64)];

/// Features of so many images or texts, asked for together.
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
pub fn rows(files: &ModelFiles, options: &BenchOptions, mut progress: impl FnMut(Progress)) -> Result<Vec<Row>> {
    let (mut done, total) = (0, TESTS.len() * (options.repetitions + 1) + 1);
    progress(Progress { done, total, what: "opening the model".into() });
    let place = options.place.clone();
    let model = BitGen::open(files.clone(), &BitGenOptions { place, precision: options.precision, tokenizer: None })?;
    let parameters = parameters(files)?;
    let mut rows = Vec::new();
    for test in TESTS {
        let mut times = Vec::new();
        for _ in 0..=options.repetitions {
            progress(Progress { done, total, what: test.to_string() });
            done += 1;
            times.push(run(&model, test)?.as_secs_f64().max(1e-9));
        }
        rows.push(row(&model, files, test, parameters, &times[1..], options)?);
    }
    progress(Progress { done, total, what: "bandwidth".into() });
    Ok(rows)
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

fn row(
    model: &BitGen,
    files: &ModelFiles,
    test: Features,
    parameters: u64,
    times: &[f64],
    options: &BenchOptions,
) -> Result<Row> {
    let tokens = test.tokens(model) as f64;
    let rates: Vec<f64> = times.iter().map(|t| tokens / t).collect();
    let ((rate, stddev), seconds, report) = (mean(&rates), mean(times).0, model.report());
    let mut probe = Probe { core: model.core(), test };
    let (cost, on_cpu) = (probe.cost()?, probe.core.backend.runs_at_once());
    let per_s = test.count() as f64 / seconds;
    Ok(Row {
        model: files.to_string(),
        weight_bytes: report.weight_bytes,
        head: format!("{:?}", report.head).to_lowercase(),
        parameters,
        backend: if on_cpu { "cpu" } else { "gpu" },
        device: report.device.clone(),
        test: test.to_string(),
        repetitions: options.repetitions,
        tokens_per_s: rate,
        stddev,
        images_per_s: matches!(test, Features::Images(_)).then_some(per_s),
        texts_per_s: matches!(test, Features::Texts(_)).then_some(per_s),
        ms: 1e3 * seconds,
        bytes_per_token: cost.bytes / tokens,
        bandwidth: 0.0,
        bandwidth_share: 0.0,
        dispatches_per_token: cost.launches / tokens,
        host_us_per_token: 1e6 * cost.host / tokens,
        peak_host_bytes: peak_host_bytes(),
        device_bytes: report.memory_bytes,
        profile: if options.profile { probe.profile()? } else { Vec::new() },
    })
}

/// The steps of a test, on the model's own programs.
struct Probe<'a> {
    core: MutexGuard<'a, Core>,
    test: Features,
}

impl Probe<'_> {
    fn program(&self) -> (Program, usize) {
        match self.test {
            Features::Images(_) => (self.core.image.clone(), IMAGES),
            Features::Texts(_) => (self.core.features.clone(), FEATURE_ROWS),
        }
    }

    /// The steps of one repetition; all but the last one are as large as the first.
    fn steps(&self) -> Vec<Step> {
        let (n, most) = (self.test.count(), self.program().1);
        (0..n).step_by(most).map(|done| (n - done).min(most)).map(|n| step(n, n, 1)).collect()
    }

    /// Bytes that each node of a step reads.
    fn bytes(&self, step: &Step) -> Vec<u64> {
        let bytes = |name: String| self.core.backend.weight_bytes(&name).unwrap_or(0);
        self.program().0.plan.bytes_read(step, |w| bytes(w.to_string()))
    }

    /// What one repetition costs.
    fn cost(&mut self) -> Result<Cost> {
        let (mut cost, program) = (Cost::default(), self.program().0);
        for step in self.steps() {
            cost.bytes += self.bytes(&step).iter().sum::<u64>() as f64;
            cost.launches += self.core.backend.launches(program.id, &step) as f64;
            cost.host += self.host(&program, &step)?.as_secs_f64();
        }
        Ok(cost)
    }

    /// Time to write the inputs, encode and submit, the median; none where the host computes itself.
    fn host(&mut self, program: &Program, step: &Step) -> Result<Duration> {
        if self.core.backend.runs_at_once() {
            return Ok(Duration::ZERO);
        }
        let output = program.plan.outputs.values().next().copied();
        let mut times = Vec::new();
        for _ in 0..HOST_RUNS {
            let start = Instant::now();
            self.write(program)?;
            self.core.run(program, step)?;
            times.push(start.elapsed());
            output.map_or(Ok(()), |slot| self.core.backend.read(program.id, &[(slot, 0..1)]).map(|_| ()))?;
        }
        times.sort();
        Ok(times[HOST_RUNS / 2])
    }

    /// Zeros are an image, and rows of the first token.
    fn write(&mut self, program: &Program) -> Result<()> {
        for name in [crate::models::slots::PIXELS, crate::models::slots::ROWS] {
            if let Some(slot) = program.plan.input(name) {
                let zeros = vec![0; program.plan.spec(slot).words()];
                self.core.backend.write(program.id, slot, 0, &zeros)?;
            }
        }
        Ok(())
    }

    /// Times by op of the first step, the largest first; the mean of a few.
    fn profile(&mut self) -> Result<Vec<OpTime>> {
        let program = self.program().0;
        let Some(&step) = self.steps().first() else { return Ok(Vec::new()) };
        let mut times = vec![Duration::ZERO; program.plan.nodes.len()];
        for _ in 0..PROFILE_RUNS {
            self.write(&program)?;
            let found = self.core.backend.profile(program.id, &step)?;
            times.iter_mut().zip(found).for_each(|(sum, time)| *sum += time / PROFILE_RUNS);
        }
        Ok(by_op(&program.plan, &times, &self.bytes(&step)))
    }
}
