//! Kernels as wgpu's Vulkan backend gives them to drivers, for the examples that write them to files.

use naga::back::spv;
use naga::proc::{BoundsCheckPolicies, BoundsCheckPolicy};
use naga::valid::ModuleInfo;
use naga::{AddressSpace, Module, ShaderStage, StorageAccess};

/// What is bound where: number, whether it is a uniform, whether it is written.
pub fn bindings(module: &Module) -> Vec<(u32, bool, bool)> {
    let one = |v: &naga::GlobalVariable| {
        let (uniform, written) = match v.space {
            AddressSpace::Uniform => (true, false),
            AddressSpace::Storage { access } => (false, access.contains(StorageAccess::STORE)),
            _ => return None,
        };
        Some((v.binding?.binding, uniform, written))
    };
    let mut all: Vec<_> = module.global_variables.iter().filter_map(|(_, v)| one(v)).collect();
    all.sort_unstable();
    all
}

/// SPIR-V as wgpu's Vulkan backend asks for it.
pub fn to_spirv(
    module: &Module,
    info: &ModuleInfo,
    version: (u8, u8),
    subgroups: bool,
    dot4: bool,
) -> Result<Vec<u8>, spv::Error> {
    use spv::Capability::*;
    let mut capabilities = vec![Shader, Matrix, Sampled1D, Image1D, ImageQuery, DerivativeControl];
    if subgroups {
        capabilities.extend([GroupNonUniform, GroupNonUniformVote, GroupNonUniformArithmetic, GroupNonUniformBallot]);
        capabilities.extend([GroupNonUniformShuffle, GroupNonUniformShuffleRelative, GroupNonUniformQuad]);
    }
    if dot4 {
        capabilities.extend([DotProduct, DotProductInputAll, DotProductInput4x8Bit]);
        capabilities.extend([DotProductInput4x8BitPacked, Int8]);
    }
    let options = spv::Options {
        lang_version: version,
        flags: spv::WriterFlags::LABEL_VARYINGS | spv::WriterFlags::FORCE_POINT_SIZE,
        capabilities: Some(capabilities.into_iter().collect()),
        bounds_check_policies: BoundsCheckPolicies {
            index: BoundsCheckPolicy::Restrict,
            buffer: BoundsCheckPolicy::Restrict,
            image_load: BoundsCheckPolicy::Unchecked,
            binding_array: BoundsCheckPolicy::Unchecked,
        },
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        force_loop_bounding: false,
        ..Default::default()
    };
    let pipeline = spv::PipelineOptions { entry_point: "main".into(), shader_stage: ShaderStage::Compute };
    Ok(spv::write_vec(module, info, &options, Some(&pipeline))?.into_iter().flat_map(u32::to_le_bytes).collect())
}

/// [`bindings`] as the column of an index: `0u,1u,2r,3w` (uniform, read, written).
pub fn bound(module: &Module) -> String {
    let one = |(binding, uniform, written)| {
        format!("{binding}{}", ["r", "w", "u"][if uniform { 2 } else { usize::from(written) }])
    };
    bindings(module).into_iter().map(one).collect::<Vec<_>>().join(",")
}
