//! The time of each launch, from the device's own clock.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::gpu::buffer::Readback;
use crate::gpu::device::Device;
use crate::gpu::pipeline::Pipelines;
use crate::gpu::program::Program;
use crate::plan::Step;

/// Maximum number of launches that are timed in one submission: two queries each, and every device has 4096 in a set.
const CHUNK: usize = 1024;

/// Runs a program with a pass for each launch, and returns the time of each node.
///
/// # Errors
/// [`Error::Unsupported`] if the device has no timestamp queries, [`Error::DeviceLost`] if it is lost.
pub fn profile(device: &Device, pipelines: &Pipelines, program: &Program, step: &Step) -> Result<Vec<Duration>> {
    if !device.device.features().contains(wgpu::Features::TIMESTAMP_QUERY) {
        let problem = "it has no timestamp queries, so launches cannot be timed".to_owned();
        return Err(Error::Unsupported { object: device.label.clone(), problem });
    }
    let nodes = program.plan.nodes.len();
    let mut times = Vec::with_capacity(nodes);
    for from in (0..nodes).step_by(CHUNK) {
        times.extend(chunk(device, pipelines, program, step, from..nodes.min(from + CHUNK))?);
    }
    Ok(times)
}

fn chunk(
    device: &Device,
    pipelines: &Pipelines,
    program: &Program,
    step: &Step,
    nodes: std::ops::Range<usize>,
) -> Result<Vec<Duration>> {
    let count = 2 * nodes.len() as u32;
    let bytes = 8 * u64::from(count);
    let desc = wgpu::QuerySetDescriptor { label: Some("profile"), ty: wgpu::QueryType::Timestamp, count };
    let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
    let resolved = wgpu::BufferDescriptor { label: Some("profile"), size: bytes, usage, mapped_at_creation: false };
    let make = || (device.device.create_query_set(&desc), device.device.create_buffer(&resolved));
    let (queries, resolved) = device.guarded("profile", bytes, make)?;
    let mut encoder = device.device.create_command_encoder(&Default::default());
    for node in nodes.clone() {
        let first = 2 * (node - nodes.start) as u32;
        let writes = wgpu::ComputePassTimestampWrites {
            query_set: &queries,
            beginning_of_pass_write_index: Some(first),
            end_of_pass_write_index: Some(first + 1),
        };
        program.encode(&mut encoder, pipelines, step, node..node + 1, 1, Some(writes))?;
    }
    encoder.resolve_query_set(&queries, 0..count, &resolved, 0);
    device.queue.submit([encoder.finish()]);
    let words = Readback::default().read(device, &[(&resolved, 0..2 * count as usize)])?.concat();
    let ticks: Vec<u64> = words.chunks_exact(2).map(|w| u64::from(w[0]) | u64::from(w[1]) << 32).collect();
    let tick = f64::from(device.queue.get_timestamp_period());
    let time = |t: &[u64]| Duration::from_nanos((t[1].saturating_sub(t[0]) as f64 * tick) as u64);
    Ok(ticks.chunks_exact(2).map(time).collect())
}
