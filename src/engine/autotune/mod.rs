//! Chooses kernel variants by timing them, once for each adapter and shape, and keeps the choice on disk.
//!
//! Every variant is correct: the choice changes the speed, and the last bits of logits.
//!
//! - `mod.rs`: the search for the fastest variants, within a budget of time
//! - `probe`: what is timed, one node of the model's own plans for each op and bucket of shapes
//! - `cache`: the choices on disk, a file for each adapter, driver and version of this crate

mod cache;
mod probe;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::plan::{Backend, Plan};
pub use cache::user_cache;
use cache::{Cache, Key};
use probe::{Probe, probes};

/// No further variant is tried after this time, most of which goes into compiling.
const BUDGET: Duration = Duration::from_millis(2500);
/// A variant must take at most this share of the time of the best one: less is noise.
const GAIN: f64 = 0.95;
/// How often a variant that looks faster is timed again.
const TURNS: usize = 3;

/// Chooses the variants of the programs that will be prepared of these plans: those in the cache, or the fastest. The
/// plans' weights are resident. Without a folder nothing is kept.
///
/// What goes wrong with the cache or with a variant is logged as a warning, and the choice goes on without it.
///
/// # Errors
/// Those of `before`, which is told how many kernels have been tried, and of how many, before each.
pub fn tune(
    cache: Option<PathBuf>,
    backend: &mut dyn Backend,
    plans: &[Arc<Plan>],
    before: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    if backend.runs_at_once() {
        return Ok(());
    }
    tune_with(cache.map(Cache::in_folder).as_ref(), backend, plans, before)
}

fn tune_with(
    cache: Option<&Cache>,
    backend: &mut dyn Backend,
    plans: &[Arc<Plan>],
    mut before: impl FnMut(usize, usize) -> Result<()>,
) -> Result<()> {
    let label = backend.describe();
    let key = Key::new(&label, backend.caps());
    let mut choices = cache.and_then(|cache| cache.load(&key)).unwrap_or_default();
    let mut open = probes(backend, plans);
    open.retain(|probe| {
        let known = choices.get(probe.op, &probe.bucket);
        !known.is_some_and(|known| probe.variants.iter().any(|name| name == known))
    });
    if open.is_empty() {
        log::info!("{label}: variants of kernels as chosen before");
    } else {
        let start = Instant::now();
        for (done, probe) in open.iter().enumerate() {
            before(done, open.len())?;
            let best = fastest(backend, probe, start);
            log::debug!("{}, {}: {best}", probe.op, probe.bucket);
            choices.set(probe.op, &probe.bucket, best);
        }
        log::info!("{label}: variants of kernels chosen in {} ms", start.elapsed().as_millis());
        if let Some(cache) = cache {
            cache.store(&key, &choices);
        }
    }
    backend.choose(choices);
    Ok(())
}

/// The name of the fastest of the variants that are tried within the budget; the usual one's if none is.
fn fastest<'a>(backend: &mut dyn Backend, probe: &'a Probe, start: Instant) -> &'a str {
    let mut best = probe.variants[0].as_str();
    if start.elapsed() > BUDGET {
        return best;
    }
    let mut best_time = match probe.time(backend, best) {
        Ok(time) => time,
        Err(error) => {
            log::warn!("{}, {}: variants cannot be timed: {error}", probe.op, probe.bucket);
            return best;
        }
    };
    for name in &probe.variants[1..] {
        if start.elapsed() > BUDGET {
            log::info!("the time for trying variants is over; what is left stays as usual");
            break;
        }
        match beats(backend, probe, name, (best, &mut best_time)) {
            Ok(Some(time)) => (best, best_time) = (name, time),
            Ok(None) => {}
            Err(error) => log::warn!("{}, {}: {name} does not run here: {error}", probe.op, probe.bucket),
        }
    }
    best
}

/// The time of a variant if it beats the best one, the time of which is updated. A variant that looks faster is timed again, in
/// turn with the best: a device is not equally fast all the time.
fn beats(
    backend: &mut dyn Backend,
    probe: &Probe,
    name: &str,
    (best, best_time): (&str, &mut Duration),
) -> Result<Option<Duration>> {
    let mut time = probe.time(backend, name)?;
    for turn in 0..=TURNS {
        log::debug!("{}, {}: {name} {time:.1?}, {best} {best_time:.1?}", probe.op, probe.bucket);
        if time.as_secs_f64() > GAIN * best_time.as_secs_f64() {
            return Ok(None);
        }
        if turn < TURNS {
            *best_time = probe.time(backend, best)?.min(*best_time);
            time = probe.time(backend, name)?.min(time);
        }
    }
    Ok(Some(time))
}
