//! Choosing variants of kernels by timing them, once for an adapter and a shape: what was chosen is kept on disk.
//!
//! Every variant is correct, so the choice changes how fast a text comes, and the last bits of its logits.

mod cache;
mod probe;

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::plan::{Backend, Plan};
use cache::{Cache, Key};
use probe::{Probe, probes};

/// No variant is tried after this time: most of it goes into compiling them.
const BUDGET: Duration = Duration::from_millis(2500);
/// A variant must take at most this share of the time of the best one: less is noise.
const GAIN: f64 = 0.95;
/// How often a variant that looks faster is timed again.
const TURNS: usize = 3;

/// Chooses the variants of the programs that will be prepared of these plans: those in the cache, or the fastest. The
/// plans' weights are resident. Where nothing can be kept, nothing is tried.
///
/// What goes wrong with the cache or with a variant is logged as a warning, and the choice goes on without it.
pub fn tune(backend: &mut dyn Backend, plans: &[Arc<Plan>]) {
    match Cache::of_user() {
        Some(cache) if !backend.runs_at_once() => tune_with(&cache, backend, plans),
        _ => {}
    }
}

fn tune_with(cache: &Cache, backend: &mut dyn Backend, plans: &[Arc<Plan>]) {
    let label = backend.describe();
    let key = Key::new(&label, backend.caps());
    let mut choices = cache.load(&key).unwrap_or_default();
    let mut open = probes(backend, plans);
    open.retain(|probe| {
        let known = choices.get(probe.op, &probe.bucket);
        !known.is_some_and(|known| probe.variants.iter().any(|name| name == known))
    });
    if open.is_empty() {
        log::info!("{label}: variants of kernels as chosen before");
    } else {
        let start = Instant::now();
        for probe in &open {
            let best = fastest(backend, probe, start);
            log::debug!("{}, {}: {best}", probe.op, probe.bucket);
            choices.set(probe.op, &probe.bucket, best);
        }
        log::info!("{label}: variants of kernels chosen in {} ms", start.elapsed().as_millis());
        cache.store(&key, &choices);
    }
    backend.choose(choices);
}

/// The name of the fastest variant, as far as they are tried before the time is over; else that of the usual one.
fn fastest<'a>(backend: &mut dyn Backend, probe: &'a Probe, start: Instant) -> &'a str {
    let mut best = probe.variants[0].as_str();
    if start.elapsed() > BUDGET {
        return best;
    }
    let mut least = match probe.time(backend, best) {
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
        match beats(backend, probe, name, (best, &mut least)) {
            Ok(Some(time)) => (best, least) = (name, time),
            Ok(None) => {}
            Err(error) => log::warn!("{}, {}: {name} does not run here: {error}", probe.op, probe.bucket),
        }
    }
    best
}

/// The time of a variant if it is less than that of the best, which takes `least`. What looks faster is timed again in turn
/// with the best: a device is not equally fast all the time.
fn beats(
    backend: &mut dyn Backend,
    probe: &Probe,
    name: &str,
    (best, least): (&str, &mut Duration),
) -> Result<Option<Duration>> {
    let mut time = probe.time(backend, name)?;
    for turn in 0..=TURNS {
        log::debug!("{}, {}: {name} {time:.1?}, {best} {least:.1?}", probe.op, probe.bucket);
        if time.as_secs_f64() > GAIN * least.as_secs_f64() {
            return Ok(None);
        }
        if turn < TURNS {
            *least = probe.time(backend, best)?.min(*least);
            time = probe.time(backend, name)?.min(time);
        }
    }
    Ok(Some(time))
}
