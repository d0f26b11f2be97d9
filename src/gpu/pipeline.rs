//! Compute pipelines, each built once for a shader, its defines and its overrides.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::gpu::device::Device;
use crate::gpu::shader;
use crate::plan::{Caps, Kernel, Source};

/// A pipeline of [`Pipelines`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PipelineId(usize);

/// The key of a pipeline.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Key {
    source: Source,
    defines: Vec<&'static str>,
    overrides: Vec<(&'static str, u64)>,
}

/// All pipelines and binding layouts of a device.
#[derive(Debug, Default)]
pub struct Pipelines {
    list: Vec<wgpu::ComputePipeline>,
    by_key: HashMap<Key, PipelineId>,
    layouts: HashMap<(usize, usize), wgpu::BindGroupLayout>,
}

impl Pipelines {
    /// A pipeline by its number.
    pub fn get(&self, id: PipelineId) -> &wgpu::ComputePipeline {
        &self.list[id.0]
    }

    /// The pipeline of a kernel that uses these capabilities, with this many inputs and outputs.
    ///
    /// # Errors
    /// [`Error::Device`] with the shader's file and the compiler's message.
    pub fn build(
        &mut self,
        device: &Device,
        (caps, kernel): (Caps, &Kernel),
        [inputs, outputs]: [usize; 2],
    ) -> Result<PipelineId> {
        let mut defines = caps.defines();
        defines.extend(&kernel.defines);
        let overrides = kernel.overrides.iter().map(|&(name, v)| (name, v.to_bits())).collect();
        let key = Key { source: kernel.source, defines, overrides };
        if let Some(&id) = self.by_key.get(&key) {
            return Ok(id);
        }
        let expanded = shader::expand(kernel.source, &key.defines)?;
        let name = kernel.source.name;
        let layout = self.layout(device, inputs, outputs).clone();
        let build = || {
            let source = wgpu::ShaderSource::Wgsl(expanded.wgsl.as_str().into());
            let desc = wgpu::ShaderModuleDescriptor { label: Some(name), source };
            let checks =
                wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..wgpu::ShaderRuntimeChecks::checked() };
            let module = if kernel.source.is_own() {
                // SAFETY: the loops of this crate's kernels end: they count up to what the plan or the checked rows of
                // the step give. Counters that prove it once more keep drivers from unrolling. Indices stay checked.
                unsafe { device.device.create_shader_module_trusted(desc, checks) }
            } else {
                device.device.create_shader_module(desc)
            };
            let layout = device.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(name),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: 0,
            });
            device.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(name),
                layout: Some(&layout),
                module: &module,
                entry_point: Some("main"),
                compilation_options: wgpu::PipelineCompilationOptions {
                    constants: &kernel.overrides,
                    zero_initialize_workgroup_memory: false,
                },
                cache: None,
            })
        };
        let what = format!("shader {name} with {:?}", key.defines);
        let pipeline = device.guarded(&what, 0, build).map_err(|e| map_lines(e, &expanded))?;
        let id = PipelineId(self.list.len());
        self.list.push(pipeline);
        self.by_key.insert(key, id);
        Ok(id)
    }

    /// Uniforms at 0 and 1, then read-only inputs, then outputs.
    pub fn layout(&mut self, device: &Device, inputs: usize, outputs: usize) -> &wgpu::BindGroupLayout {
        self.layouts.entry((inputs, outputs)).or_insert_with(|| {
            let entry = |binding: usize| wgpu::BindGroupLayoutEntry {
                binding: binding as u32,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer {
                    ty: match binding {
                        0 | 1 => wgpu::BufferBindingType::Uniform,
                        _ => wgpu::BufferBindingType::Storage { read_only: binding < 2 + inputs },
                    },
                    has_dynamic_offset: false,
                    min_binding_size: None,
                },
                count: None,
            };
            let entries: Vec<_> = (0..2 + inputs + outputs).map(entry).collect();
            let desc = wgpu::BindGroupLayoutDescriptor { label: None, entries: &entries };
            device.device.create_bind_group_layout(&desc)
        })
    }
}

/// Adds the shader file's own line to a compiler message of the form `wgsl:LINE:COLUMN`.
fn map_lines(error: Error, expanded: &shader::Expanded) -> Error {
    let Error::Device { device, problem } = error else { return error };
    let line = problem.split("wgsl:").nth(1).and_then(|s| s.split(':').next()?.parse::<usize>().ok());
    let origin = line.and_then(|l| expanded.origin.get(l.checked_sub(1)?));
    let problem = match origin {
        Some((file, line)) => format!("shaders/{file}:{line}: {problem}"),
        None => problem,
    };
    Error::Device { device, problem }
}
