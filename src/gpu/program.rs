//! A plan frozen for a device: buffers, pipelines, bind groups and parameters, ready to be encoded again and again.

use std::ops::Range;
use std::sync::Arc;

use super::device::Device;
use super::pipeline::{PipelineId, Pipelines};
use crate::error::{Error, Result};
use crate::plan::{Grid, Kernel, Plan, Slot, Step};
use crate::tensor::Spec;

/// One launch: everything that does not change from step to step.
#[derive(Debug)]
struct Dispatch {
    pipeline: PipelineId,
    bind_group: wgpu::BindGroup,
    grid: Grid,
}

/// A prepared plan.
#[derive(Debug)]
pub struct Program {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The buffer of each slot, if any node uses it.
    pub buffers: Vec<Option<wgpu::Buffer>>,
    dispatches: Vec<Dispatch>,
    most_groups: usize,
}

impl Program {
    /// Builds pipelines and bind groups for a plan whose slots have buffers.
    ///
    /// # Errors
    /// [`Error::Device`] for a kernel that the device refuses, with the node's label.
    pub fn new(
        device: &Device,
        pipelines: &mut Pipelines,
        step: &wgpu::Buffer,
        plan: Arc<Plan>,
        buffers: Vec<Option<wgpu::Buffer>>,
    ) -> Result<Self> {
        let kernels: Vec<Kernel> = plan
            .nodes
            .iter()
            .map(|node| {
                let specs = |slots: &[Slot]| slots.iter().map(|&s| plan.spec(s)).collect::<Vec<&Spec>>();
                node.op.kernel(&device.caps, &specs(&node.inputs), &specs(&node.outputs))
            })
            .collect();
        let params = ParamsBuffer::new(device, &kernels)?;
        let mut dispatches = Vec::with_capacity(kernels.len());
        for (i, (node, kernel)) in plan.nodes.iter().zip(kernels).enumerate() {
            let (n_in, n_out) = (node.inputs.len(), node.outputs.len());
            let pipeline = pipelines.build(device, &kernel, n_in, n_out).map_err(|e| at_node(e, &node.label))?;
            let mut entries = vec![
                wgpu::BindGroupEntry { binding: 0, resource: step.as_entire_binding() },
                wgpu::BindGroupEntry { binding: 1, resource: params.binding(i) },
            ];
            for (b, slot) in node.inputs.iter().chain(&node.outputs).enumerate() {
                let Some(buffer) = &buffers[slot.0] else {
                    return Err(Error::format(&node.label, format!("slot %{} has no memory", slot.0)));
                };
                entries.push(wgpu::BindGroupEntry { binding: b as u32 + 2, resource: buffer.as_entire_binding() });
            }
            let layout = pipelines.layout(device, n_in, n_out).clone();
            let desc = wgpu::BindGroupDescriptor { label: Some(&node.label), layout: &layout, entries: &entries };
            let bind_group = device.guarded(&node.label, 0, || device.device.create_bind_group(&desc))?;
            dispatches.push(Dispatch { pipeline, bind_group, grid: kernel.grid });
        }
        let most_groups = device.device.limits().max_compute_workgroups_per_dimension as usize;
        Ok(Program { plan, buffers, dispatches, most_groups })
    }

    /// How many of the launches a step leaves in: those whose grid is not empty.
    pub fn launches(&self, step: &Step) -> usize {
        self.dispatches.iter().filter(|d| d.grid.0.iter().all(|e| e.resolve(step) > 0)).count()
    }

    /// Records some nodes' launches, this many times over, into one compute pass, whose times are taken where that is
    /// asked for.
    ///
    /// # Errors
    /// [`Error::Limit`] if a step is larger than the device's largest grid.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        pipelines: &Pipelines,
        step: &Step,
        nodes: Range<usize>,
        times: usize,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites>,
    ) -> Result<()> {
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        let mut last = None;
        for i in (0..times).flat_map(|_| nodes.clone()) {
            let d = &self.dispatches[i];
            let groups = d.grid.0.map(|e| e.resolve(step));
            if groups.contains(&0) {
                continue;
            }
            if groups.iter().any(|&g| g > self.most_groups) {
                let what = self.plan.nodes[i].label.clone();
                let (wanted, available) = (format!("{groups:?} workgroups"), self.most_groups.to_string());
                return Err(Error::Limit { what, wanted, available, advice: "use fewer rows a step".into() });
            }
            if last != Some(d.pipeline) {
                pass.set_pipeline(pipelines.get(d.pipeline));
                last = Some(d.pipeline);
            }
            pass.set_bind_group(0, &d.bind_group, &[]);
            pass.dispatch_workgroups(groups[0] as u32, groups[1] as u32, groups[2] as u32);
        }
        Ok(())
    }
}

/// The parameters of all launches in one uniform buffer, bound by offset.
struct ParamsBuffer {
    buffer: wgpu::Buffer,
    ranges: Vec<Range<u64>>,
}

impl ParamsBuffer {
    fn new(device: &Device, kernels: &[Kernel]) -> Result<Self> {
        let align = device.device.limits().min_uniform_buffer_offset_alignment as usize;
        let (mut bytes, mut ranges) = (Vec::new(), Vec::new());
        for kernel in kernels {
            bytes.resize(usize::next_multiple_of(bytes.len(), align), 0);
            let from = bytes.len();
            bytes.extend_from_slice(&kernel.params.bytes);
            bytes.resize(usize::next_multiple_of(bytes.len(), 16), 0);
            ranges.push(from as u64..bytes.len() as u64);
        }
        bytes.resize(bytes.len().max(16), 0);
        let desc = wgpu::BufferDescriptor {
            label: Some("params"),
            size: bytes.len() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let buffer = device.guarded("params", desc.size, || device.device.create_buffer(&desc))?;
        device.queue.write_buffer(&buffer, 0, &bytes);
        Ok(ParamsBuffer { buffer, ranges })
    }

    fn binding(&self, i: usize) -> wgpu::BindingResource<'_> {
        let range = &self.ranges[i];
        wgpu::BindingResource::Buffer(wgpu::BufferBinding {
            buffer: &self.buffer,
            offset: range.start,
            size: wgpu::BufferSize::new(range.end - range.start),
        })
    }
}

fn at_node(error: Error, label: &str) -> Error {
    match error {
        Error::Device { device, problem } => Error::Device { device, problem: format!("{label}: {problem}") },
        other => other,
    }
}
