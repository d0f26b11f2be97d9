//! Choosing kernel variants for an adapter by timing a few of them, once: what was chosen is kept on disk.
//!
//! Every variant is correct, so the choice changes how fast a text comes, and the last bits of its logits.

mod cache;
mod trials;

use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gpu::{Device, Gpu};
use crate::plan::{Caps, Tuning};
use crate::quant::TILE_ROWS;
use cache::{Cache, Key};
use trials::{Trial, Trials};

/// No variant is tried after this time: most of it goes into compiling them.
const BUDGET: Duration = Duration::from_millis(2500);
/// A variant must take at most this share of the time of the best one: less is noise.
const GAIN: f64 = 0.95;
/// How often a variant that looks faster is timed again.
const TURNS: usize = 3;

/// Shares of the columns and tiles of a workgroup of a ternary product.
const SPLITS: [[usize; 2]; 6] = [[1, 4], [4, 2], [2, 2], [2, 4], [4, 1], [8, 1]];
/// Fours of outputs of a thread of a ternary product.
const QUADS: [usize; 3] = [1, 2, 4];
/// Lanes that share the outputs of a dense product, and groups of them.
const DENSE: [[usize; 2]; 6] = [[32, 2], [32, 1], [16, 4], [8, 8], [4, 8], [64, 2]];

/// The capabilities of a device with the fastest variants: from the cache, or by trying them. Where nothing can be kept,
/// nothing is tried.
///
/// What goes wrong with the cache or with a variant is logged as a warning, and the choice goes on without it.
pub fn tuned(device: &Device) -> Caps {
    let Some(cache) = Cache::of_user() else { return device.caps };
    let key = Key::new(&device.label, device.caps);
    if let Some(caps) = cache.load(&key) {
        log::info!("{}: {}, as chosen before", device.label, named(&caps));
        return caps;
    }
    let start = Instant::now();
    let found = Gpu::new(device.clone(), device.caps).and_then(|gpu| search(gpu, device.caps, start));
    let caps = match found {
        Ok(caps) => caps,
        Err(error) => {
            log::warn!("{}: variants cannot be timed, so the usual ones are taken: {error}", device.label);
            return device.caps;
        }
    };
    log::info!("{}: {}, chosen in {} ms", device.label, named(&caps), start.elapsed().as_millis());
    cache.store(&key, caps);
    caps
}

/// The variants in words.
fn named(caps: &Caps) -> String {
    format!("{:?}, {:?}", caps.tuning, caps.defines())
}

/// The best variants that are found, one group of numbers after the other.
fn search(gpu: Gpu, usual: Caps, start: Instant) -> Result<Caps> {
    let mut trials = Trials::new(gpu)?;
    let mut best = usual;
    for (plans, candidates) in questions(usual) {
        let asked = best;
        let mut least = trials.time(plans, best)?;
        for caps in candidates(asked).into_iter().filter(|caps| *caps != asked && possible(caps.tuning)) {
            if start.elapsed() > BUDGET {
                log::info!("the time for trying variants is over; what is left stays as usual");
                return Ok(best);
            }
            match beats(&mut trials, plans, caps, (best, &mut least)) {
                Ok(Some(time)) => (best, least) = (caps, time),
                Ok(None) => {}
                Err(error) => log::warn!("a variant does not run here: {}: {error}", named(&caps)),
            }
        }
    }
    Ok(best)
}

/// The time of `caps` if it is less than that of the best, which takes `least`. What looks faster is timed again in turn
/// with the best: a device is not equally fast all the time.
fn beats(
    trials: &mut Trials,
    plans: &[Trial],
    caps: Caps,
    (best, least): (Caps, &mut Duration),
) -> Result<Option<Duration>> {
    let mut time = trials.time(plans, caps)?;
    for turn in 0..=TURNS {
        log::debug!("{plans:?}: {time:.1?} against {least:.1?}: {}", named(&caps));
        if time.as_secs_f64() > GAIN * least.as_secs_f64() {
            return Ok(None);
        }
        if turn < TURNS {
            *least = trials.time(plans, best)?.min(*least);
            time = trials.time(plans, caps)?.min(time);
        }
    }
    Ok(Some(time))
}

/// The plans whose time decides, and what is tried, given the best so far.
type Question = (&'static [Trial], fn(Caps) -> Vec<Caps>);

/// What is asked of an adapter with these capabilities: what has an effect on decoding first.
fn questions(usual: Caps) -> Vec<Question> {
    let splits = |c| SPLITS.map(|[split, groups]| with(c, |t| (t.split, t.groups) = (split, groups))).into();
    let quads = |c| QUADS.map(|quads| with(c, |t| t.quads = quads)).into();
    let dense = |c| DENSE.map(|dense| with(c, |t| t.dense = dense)).into();
    let mut all: Vec<Question> = vec![
        (&[Trial::Attention], |c| vec![with(c, |t| t.spread = !t.spread)]),
        (&[Trial::Layer], |c| vec![with(c, |t| t.pairs = !t.pairs)]),
        (&[Trial::Layer], quads),
        (&[Trial::Layer], splits),
    ];
    // With `shuffles`, dense products go through another kernel.
    if !usual.shuffles {
        all.push((&[Trial::Dense], dense));
    }
    if usual.dot4 {
        all.push((&[Trial::Prompt, Trial::Layer], |c| vec![Caps { dot4: false, ..c }]));
    }
    if usual.subgroups {
        all.push((&[Trial::Prompt, Trial::Dense], |c| vec![Caps { subgroups: false, shuffles: false, ..c }]));
    }
    all
}

fn with(mut caps: Caps, change: impl FnOnce(&mut Tuning)) -> Caps {
    change(&mut caps.tuning);
    caps
}

/// Whether kernels have this form: what they need, and whole workgroups of 32 threads.
fn possible(t: Tuning) -> bool {
    let shares = t.split.saturating_mul(t.groups);
    let lanes = t.dense[0].saturating_mul(t.dense[1]);
    QUADS.contains(&t.quads)
        && (1..=8).contains(&shares)
        && [t.split, t.groups, t.dense[0]].iter().all(|n| n.is_power_of_two())
        && (TILE_ROWS / 4 / t.quads * shares).is_multiple_of(32)
        && (32..=128).contains(&lanes)
        && lanes.is_multiple_of(32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_tunings_are_possible_and_absurd_ones_are_not() {
        assert!(Tuning::ALL.into_iter().all(possible));
        let usual = Tuning::HARDWARE;
        let absurd = [
            Tuning { split: 0, ..usual },
            Tuning { split: 16, ..usual },
            Tuning { split: 3, ..usual },
            Tuning { quads: 3, ..usual },
            Tuning { groups: usize::MAX, ..usual },
            Tuning { split: 1, groups: 1, quads: 4, ..usual },
            Tuning { dense: [1024, 1], ..usual },
            Tuning { dense: [0, 32], ..usual },
        ];
        assert!(absurd.into_iter().all(|t| !possible(t)));
    }

    #[test]
    fn an_adapter_is_asked_only_about_what_it_has() {
        let full = Caps { subgroups: true, dot4: true, ..Caps::PLAIN };
        for caps in [Caps::PLAIN, full, Caps { shuffles: true, ..full }] {
            for (_, candidates) in questions(caps) {
                let found = candidates(caps);
                assert!(found.iter().any(|c| *c != caps && possible(c.tuning)), "{found:?}");
                assert!(found.iter().all(|c| (caps.subgroups || !c.subgroups) && (caps.dot4 || !c.dot4)), "{found:?}");
            }
        }
    }
}
