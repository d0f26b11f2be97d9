//! How fast a device reads its memory.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::device;
use crate::engine::options::DeviceOptions;
use crate::error::{Error, Result};
use crate::ops::{PROBE_CHUNK, split_mix};
use crate::plan::{Backend, Plan, PlanBuilder, ProgramId, Slot, Step};
use crate::tensor::{DType, Spec};

/// Chunks that are read: 256 MiB, more than caches hold.
const CHUNKS: usize = 2048;
/// Times that all are read; the fastest counts.
const ROUNDS: usize = 6;

/// Read bandwidth of a device's memory in bytes per second: 256 MiB by the op `bandwidth_probe`, on all threads of the CPU or in
/// one launch per buffer of a GPU; the fastest of six rounds. Timed by the device's clock if it has one.
///
/// # Errors
/// [`Error::Device`] if there is no such device, [`Error::OutOfMemory`] if it has too little memory.
pub fn bandwidth(options: &DeviceOptions) -> Result<f64> {
    // What is tuned reads no faster here.
    let (mut backend, _) = device::choose(&DeviceOptions { autotune: false, ..options.clone() })?;
    let backend = backend.as_mut();
    let max = (backend.caps().max_binding / (4 * PROBE_CHUNK as u64)).max(1) as usize;
    let (plan, buffers) = record(CHUNKS, max.min(CHUNKS))?;
    let program = backend.prepare(plan.clone(), false)?;
    let words: Vec<u32> = (0..PROBE_CHUNK as u64).map(|i| split_mix(1, i) as u32).collect();
    for slot in buffers {
        let chunks = plan.spec(slot).shape[0];
        (0..chunks).try_for_each(|chunk| backend.write(program, slot, chunk * PROBE_CHUNK, &words))?;
    }
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        best = best.min(round(backend, program, &plan)?);
    }
    Ok((4 * CHUNKS * PROBE_CHUNK) as f64 / best.as_secs_f64().max(1e-9))
}

/// Reads `chunks` chunks in buffers of at most `max`.
fn record(chunks: usize, max: usize) -> Result<(Arc<Plan>, Vec<Slot>)> {
    let p = PlanBuilder::new();
    let mut buffers = Vec::new();
    for first in (0..chunks).step_by(max) {
        let shape = [max.min(chunks - first), 32, PROBE_CHUNK / 32];
        let buffer = p.input(&format!("buffer {first}"), Spec::fixed(&shape, DType::U32));
        p.output(&format!("sums {first}"), p.bandwidth_probe(buffer));
        buffers.push(buffer);
    }
    Ok((Arc::new(p.finish()?), buffers))
}

/// The time to read everything once.
fn round(backend: &mut dyn Backend, program: ProgramId, plan: &Plan) -> Result<Duration> {
    match backend.profile(program, &Step::FULL) {
        Ok(times) => Ok(times.iter().sum()),
        Err(Error::Unsupported { .. }) => {
            let start = Instant::now();
            backend.run(program, &Step::FULL, 0..plan.nodes.len())?;
            let sums: Vec<_> = plan.outputs.values().map(|&slot| (slot, 0..1)).collect();
            backend.read(program, &sums)?;
            Ok(start.elapsed())
        }
        Err(error) => Err(error),
    }
}
