//! A plan frozen for a device: buffers, pipelines, bind groups and parameters, ready to be encoded again and again.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::gpu::buffer::{self, Region};
use crate::gpu::device::Device;
use crate::gpu::pipeline::{PipelineId, Pipelines};
use crate::plan::{Caps, Choices, Grid, Kernel, PagedInput, Plan, Step, Variant};

/// One launch: everything that does not change from step to step.
#[derive(Debug)]
struct Dispatch {
    pipeline: PipelineId,
    bind_group: wgpu::BindGroup,
    grid: Grid,
}

/// A prepared plan: the launches of each node, usually one. A released program is empty.
#[derive(Debug, Default)]
pub struct Program {
    /// The plan.
    pub plan: Arc<Plan>,
    /// The memory of each slot, if any node uses it.
    pub regions: Vec<Option<Region>>,
    /// The paged weights that each node reads, if there are any.
    pub paged: Vec<Vec<PagedInput>>,
    /// Bytes of the buffers that are this program's alone.
    pub pooled: u64,
    dispatches: Vec<Vec<Dispatch>>,
    max_groups: usize,
}

impl Program {
    /// Builds pipelines and bind groups for a plan whose slots have memory, with the chosen variant of each node.
    ///
    /// # Errors
    /// [`Error::Device`] for a kernel that the device refuses, with the node's label.
    pub fn new(
        (device, choices): (&Device, &Choices),
        pipelines: &mut Pipelines,
        step: &wgpu::Buffer,
        plan: Arc<Plan>,
        regions: Vec<Option<Region>>,
    ) -> Result<Self> {
        let variants: Vec<Variant> = plan
            .nodes
            .iter()
            .map(|node| {
                let (bucket, variants) = plan.variants(node, &device.caps);
                variants.take(choices.get(node.op.name(), &bucket))
            })
            .collect();
        let words = variants.iter().filter_map(|v| Some(v.follow_up.as_ref()?.words)).max().unwrap_or(0);
        let params = ParamsBuffer::new(device, variants.iter().flat_map(Variant::kernels))?;
        // Nodes run one after the other, so one buffer serves all nodes with two launches.
        let between = if words > 0 { Some(buffer::storage(device, "between two launches", words)?) } else { None };
        let between = between.map(Region::whole);
        let mut binder = Binder { device, pipelines, step, params, bound: 0 };
        let mut dispatches = Vec::with_capacity(variants.len());
        for (node, variant) in plan.nodes.iter().zip(&variants) {
            let mut slots = Vec::with_capacity(node.inputs.len() + node.outputs.len() + 1);
            for slot in node.inputs.iter().chain(&node.outputs) {
                let Some(region) = &regions[slot.0] else {
                    return Err(Error::format(&node.label, format!("slot %{} has no memory", slot.0)));
                };
                slots.push(region);
            }
            slots.extend(between.as_ref().filter(|_| variant.follow_up.is_some()));
            let bind = |kernel| binder.bind((variant.caps, kernel), &node.label, node.inputs.len(), &slots);
            dispatches.push(variant.kernels().map(bind).collect::<Result<Vec<Dispatch>>>()?);
        }
        let max_groups = device.device.limits().max_compute_workgroups_per_dimension as usize;
        Ok(Program { plan, regions, paged: Vec::new(), pooled: 0, dispatches, max_groups })
    }

    /// Whether it reads paged weights.
    pub fn is_paged(&self) -> bool {
        self.paged.iter().any(|inputs| !inputs.is_empty())
    }

    /// Number of launches of a step: those whose grid is not empty.
    pub fn launches(&self, step: &Step) -> usize {
        self.dispatches.iter().flatten().filter(|d| d.grid.0.iter().all(|e| e.resolve(step) > 0)).count()
    }

    /// Records the launches of some nodes, `times` times, into one compute pass, with timestamps if asked for.
    ///
    /// # Errors
    /// [`Error::Limit`] if a step is larger than the device's largest grid, [`Error::Argument`] for nodes that do not exist.
    pub fn encode(
        &self,
        encoder: &mut wgpu::CommandEncoder,
        pipelines: &Pipelines,
        step: &Step,
        nodes: Range<usize>,
        times: usize,
        timestamp_writes: Option<wgpu::ComputePassTimestampWrites>,
    ) -> Result<()> {
        if nodes.start > nodes.end || nodes.end > self.dispatches.len() {
            return Err(Error::argument("nodes", format!("are {nodes:?}; the program has {}", self.dispatches.len())));
        }
        let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor { label: None, timestamp_writes });
        let mut last = None;
        let nodes = || nodes.clone().flat_map(|i| self.dispatches[i].iter().map(move |d| (i, d)));
        for (i, d) in (0..times).flat_map(|_| nodes()) {
            let groups = d.grid.0.map(|e| e.resolve(step));
            if groups.contains(&0) {
                continue;
            }
            if groups.iter().any(|&g| g > self.max_groups) {
                let what = self.plan.nodes[i].label.clone();
                let (wanted, available) = (format!("{groups:?} workgroups"), self.max_groups.to_string());
                return Err(Error::Limit { what, wanted, available, advice: "use fewer rows per step".into() });
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

/// What all launches of a program are bound with.
struct Binder<'a> {
    device: &'a Device,
    pipelines: &'a mut Pipelines,
    step: &'a wgpu::Buffer,
    params: ParamsBuffer,
    bound: usize,
}

impl Binder<'_> {
    /// The next launch in the order of the parameters, on `slots` of which the first `inputs` are only read.
    fn bind(
        &mut self,
        (caps, kernel): (Caps, &Kernel),
        label: &str,
        inputs: usize,
        slots: &[&Region],
    ) -> Result<Dispatch> {
        let outputs = slots.len() - inputs;
        let built = self.pipelines.build(self.device, (caps, kernel), [inputs, outputs]);
        let pipeline = built.map_err(|e| at_node(e, label))?;
        let mut entries = vec![
            wgpu::BindGroupEntry { binding: 0, resource: self.step.as_entire_binding() },
            wgpu::BindGroupEntry { binding: 1, resource: self.params.binding(self.bound) },
        ];
        self.bound += 1;
        for (b, region) in slots.iter().enumerate() {
            entries.push(wgpu::BindGroupEntry { binding: b as u32 + 2, resource: region.binding() });
        }
        let layout = self.pipelines.layout(self.device, inputs, outputs).clone();
        let desc = wgpu::BindGroupDescriptor { label: Some(label), layout: &layout, entries: &entries };
        let bind_group = self.device.guarded(label, 0, || self.device.device.create_bind_group(&desc))?;
        Ok(Dispatch { pipeline, bind_group, grid: kernel.grid })
    }
}

/// The parameters of all launches in one uniform buffer, bound by offset.
struct ParamsBuffer {
    buffer: wgpu::Buffer,
    ranges: Vec<Range<u64>>,
}

impl ParamsBuffer {
    fn new<'a>(device: &Device, kernels: impl Iterator<Item = &'a Kernel>) -> Result<Self> {
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
