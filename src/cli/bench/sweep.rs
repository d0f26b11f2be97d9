//! The options of which `ternion bench` takes several values, and the runs that they ask for.

use std::path::PathBuf;
use std::str::FromStr;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use ternion::engine::{
    Activations, DeviceChoice, DeviceOptions, HiddenAct, KvPrecision, LmHead, ModelOptions, Precision,
};
use ternion::files::ModelFiles;
use ternion::tools::synthetic::PublishedModel;
use ternion::unstable::cpu_level::CpuLevel;
use ternion::unstable::threads::size_pool;
use ternion::{Error, Result};

use crate::cli::args::one_of;
use crate::cli::args::tuning_cache;

/// Maximum number of values that a range stands for.
const MAX_IN_RANGE: usize = 1000;

/// What is measured, and where: each option can have several values, separated by commas or each behind its own option.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model and device")]
pub struct SweepArgs {
    /// The model: a directory, a safetensors file or index, or a torch checkpoint; several with an option each.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    model: Vec<PathBuf>,
    /// Instead of a model: the sizes and the form of a published one, with random weights that are made in memory; default:
    /// embernet.
    #[arg(long, value_name = "NAME", conflicts_with = "model", value_delimiter = ',',
        value_parser = one_of::<PublishedModel>())]
    shape: Vec<PublishedModel>,
    /// auto (the best GPU, else the CPU), cpu, gpu (software adapters too), a number from `ternion devices`, or a part
    /// of an adapter's name.
    #[arg(long, value_name = "DEVICE", allow_hyphen_values = true, value_delimiter = ',', default_value = "auto")]
    device: Vec<DeviceChoice>,
    /// Threads of the CPU; default: one for each physical core, of those with most performance where the system tells which
    /// they are.
    #[arg(long, value_name = "N", value_delimiter = ',', value_parser = thread_counts())]
    threads: Vec<usize>,
    /// Vector instructions of the CPU, at most: portable, avx2, avxvnni or avx512, on aarch64 portable, neon, neondot
    /// or neoni8mm; default: what the environment variable TERNION_CPU names, or the best that the processor has.
    #[arg(long, value_name = "LEVEL", value_delimiter = ',')]
    cpu_level: Vec<CpuLevel>,
    /// How full-precision weights are kept, and the KV cache unless --kv says otherwise.
    #[arg(long, default_value = "f16", value_delimiter = ',', value_parser = one_of::<Precision>())]
    precision: Vec<Precision>,
    /// How the matrix that gives the logits is kept: like other full-precision weights, or in 8 bits.
    #[arg(long, default_value = "f16", value_delimiter = ',', value_parser = one_of::<LmHead>())]
    head: Vec<LmHead>,
    /// How keys and values are kept in the cache: like full-precision weights, or in 8 bits.
    #[arg(long, default_value = "f16", value_delimiter = ',', value_parser = one_of::<KvPrecision>())]
    kv: Vec<KvPrecision>,
    /// What low-bit matrices read, in models that were trained with activations of floats.
    #[arg(long, default_value = "int8", value_delimiter = ',', value_parser = one_of::<Activations>())]
    activations: Vec<Activations>,
    /// The activation of feed-forward parts, for a bitnet whose file does not tell which of the two it was trained with.
    #[arg(long, value_parser = one_of::<HiddenAct>())]
    hidden_act: Option<HiddenAct>,
    /// Compute each token on a GPU as if it were one of many, so that its last bits do not depend on what else runs.
    #[arg(long)]
    batch_invariant: bool,
    /// Do not time a GPU's kernel variants when its adapter is used for the first time (the fastest are kept in the user's
    /// folder for caches, or in the one that TERNION_CACHE names), but take those that suit its kind: equal on each
    /// machine of a kind.
    #[arg(long)]
    no_autotune: bool,
}

fn thread_counts() -> RangedU64ValueParser<usize> {
    RangedU64ValueParser::new().range(1..=DeviceOptions::MAX_THREADS as u64)
}

/// What one run measures, and where.
#[derive(Debug, Clone)]
pub struct SweepRun {
    /// The model.
    pub files: ModelFiles,
    /// The device.
    pub device: DeviceOptions,
    /// How the model's numbers are kept and computed.
    pub model: ModelOptions,
}

/// Each value alone; none where there is none.
fn each<T: Clone>(values: &[T]) -> Vec<Option<T>> {
    if values.is_empty() { vec![None] } else { values.iter().cloned().map(Some).collect() }
}

impl SweepArgs {
    /// A run for each combination of values; from here on the process has the threads that the largest one may use.
    ///
    /// # Errors
    /// None that published sizes can cause.
    pub fn runs(&self) -> Result<Vec<SweepRun>> {
        size_pool(self.threads.iter().copied().max());
        let mut runs = Vec::new();
        for files in self.files()? {
            for device in self.devices() {
                for model in self.model_options() {
                    runs.push(SweepRun { files: files.clone(), device: device.clone(), model });
                }
            }
        }
        Ok(runs)
    }

    fn files(&self) -> Result<Vec<ModelFiles>> {
        if !self.model.is_empty() {
            return Ok(self.model.iter().map(|path| ModelFiles::from(path.as_path())).collect());
        }
        let shapes = if self.shape.is_empty() { &[PublishedModel::default()][..] } else { &self.shape };
        shapes.iter().map(|shape| shape.files()).collect()
    }

    fn devices(&self) -> Vec<DeviceOptions> {
        let cache = tuning_cache(self.no_autotune);
        let autotune = cache.is_some();
        let mut all = Vec::new();
        for device in &self.device {
            // A GPU is as fast with any of the CPU's threads and instructions.
            let is_gpu = !matches!(device, DeviceChoice::Cpu | DeviceChoice::Auto);
            let few = if is_gpu { 1 } else { usize::MAX };
            for threads in each(&self.threads).into_iter().take(few) {
                for cpu_level in each(&self.cpu_level).into_iter().take(few) {
                    all.push(DeviceOptions {
                        device: device.clone(),
                        autotune,
                        cache: cache.clone(),
                        threads,
                        cpu_level,
                    });
                }
            }
        }
        all
    }

    fn model_options(&self) -> Vec<ModelOptions> {
        let SweepArgs { hidden_act, batch_invariant, .. } = *self;
        let (mut all, of_all) = (Vec::new(), ModelOptions { hidden_act, batch_invariant, ..ModelOptions::default() });
        for &precision in &self.precision {
            for &head in &self.head {
                for &kv in &self.kv {
                    let with = |&activations| ModelOptions { precision, kv, head, activations, ..of_all };
                    all.extend(self.activations.iter().map(with));
                }
            }
        }
        all
    }
}

/// A number, or a range of them: `16-64` (each), `16-64+16` (every 16th), `16-64*2` (each twice the one before).
#[derive(Debug, Clone, PartialEq)]
pub struct Counts(pub Vec<usize>);

impl FromStr for Counts {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong =
            || Error::argument("number", format!("is {text:?}, expected one or a range: 16-64, 16-64+16, 16-64*2"));
        let number = |text: &str| text.trim().parse::<usize>().map_err(|_| wrong());
        let Some((first, rest)) = text.split_once('-') else { return Ok(Counts(vec![number(text)?])) };
        let (last, step, times) = match rest.split_once(['+', '*']) {
            Some((last, step)) if rest.contains('*') => (last, 0, number(step)?),
            Some((last, step)) => (last, number(step)?, 1),
            None => (rest, 1, 1),
        };
        let (first, last) = (number(first)?, number(last)?);
        let grows = step > 0 || (times > 1 && first > 0);
        if first > last || !grows {
            return Err(wrong());
        }
        let next = |n: &usize| n.checked_mul(times)?.checked_add(step);
        let all: Vec<usize> =
            std::iter::successors(Some(first), next).take_while(|&n| n <= last).take(MAX_IN_RANGE + 1).collect();
        if all.len() > MAX_IN_RANGE {
            return Err(Error::argument("range", format!("{text:?} has more than {MAX_IN_RANGE} numbers")));
        }
        Ok(Counts(all))
    }
}

/// The numbers of several lists and ranges.
pub fn numbers(counts: &[Counts]) -> Vec<usize> {
    counts.iter().flat_map(|counts| counts.0.iter().copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_lists_of_numbers() {
        let parse = |text: &str| text.parse::<Counts>().map(|counts| counts.0);
        for (text, expected) in [
            ("7", vec![7]),
            ("0", vec![0]),
            ("3-5", vec![3, 4, 5]),
            ("16-64+16", vec![16, 32, 48, 64]),
            ("16-70*2", vec![16, 32, 64]),
            ("0-4+2", vec![0, 2, 4]),
        ] {
            assert_eq!(parse(text).unwrap(), expected, "{text}");
        }
        for text in ["", "-", "5-3", "1-9+0", "1-9*1", "0-9*2", "a", "1-b", "1-9*", "1--9", "99999999999999999999"] {
            assert!(parse(text).is_err(), "{text}");
        }
        assert!(parse("1-1000000").unwrap_err().to_string().contains("1000"));
        assert_eq!(numbers(&[Counts(vec![1, 2]), Counts(vec![9])]), [1, 2, 9]);
    }
}
