//! Every shader with every set of defines that an op can ask for: parsed, validated and translated by naga, without a
//! GPU; and its parameters, bindings and workgroup memory against what the ops and the engine promise.

mod support {
    pub mod numbers;
    #[allow(dead_code)] // The rows' data is for the parity test.
    pub mod op_cases;
    pub mod recording;
    pub mod shader_rules;
    pub mod shader_variants;
}

use std::collections::BTreeSet;

use naga::back::{PipelineConstants, glsl, hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::ModuleInfo;
use naga::{AddressSpace, Module, ShaderStage, TypeInner};
use support::shader_variants::{
    Recorded, Valid, define_sets, mentioned, shaders, shared, software, source, validate, with_subgroups,
};
use ternion::gpu::shader::expand;
use ternion::unstable::plan::Source;

/// Workgroup memory that every adapter has.
const WORKGROUP_BYTES: u32 = 16 << 10;
/// Storage buffers that every adapter can bind at once.
const MAX_BUFFERS: usize = 8;

/// Translates to every language that wgpu speaks.
fn translate(valid: &Valid, subgroups: bool) -> Result<(), String> {
    let constants = PipelineConstants::default();
    let entry = Some((ShaderStage::Compute, "main"));
    let (module, info) =
        process_overrides(&valid.module, &valid.info, entry, &constants).map_err(|e| format!("overrides: {e}"))?;
    let options = spv::Options { lang_version: (1, 3), ..Default::default() };
    spv::write_vec(&module, &info, &options, None).map_err(|e| format!("SPIR-V: {e}"))?;
    for lang_version in [(2, 1), (2, 4), (3, 0)] {
        let options = msl::Options { lang_version, ..Default::default() };
        let pipeline = msl::PipelineOptions::default();
        msl::write_string(&module, &info, &options, &pipeline).map_err(|e| format!("MSL {lang_version:?}: {e}"))?;
    }
    let models: &[_] = if subgroups { &[] } else { &[hlsl::ShaderModel::V5_1] };
    for shader_model in models.iter().copied().chain([hlsl::ShaderModel::V6_0, hlsl::ShaderModel::V6_4]) {
        let options = hlsl::Options { shader_model, ..Default::default() };
        let pipeline = hlsl::PipelineOptions::default();
        let mut text = String::new();
        let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
        writer.write(&module, &info, None).map_err(|e| format!("HLSL {shader_model:?}: {e}"))?;
    }
    if !subgroups {
        to_glsl(&module, &info)?;
    }
    Ok(())
}

fn to_glsl(module: &Module, info: &ModuleInfo) -> Result<(), String> {
    let entry_point = "main".to_owned();
    for version in [glsl::Version::new_gles(310), glsl::Version::Desktop(430)] {
        let options = glsl::Options { version, ..Default::default() };
        let pipeline = glsl::PipelineOptions {
            shader_stage: ShaderStage::Compute,
            entry_point: entry_point.clone(),
            multiview: None,
        };
        let mut text = String::new();
        let policies = naga::proc::BoundsCheckPolicies::default();
        let written =
            glsl::Writer::new(&mut text, module, info, &options, &pipeline, policies).and_then(|mut w| w.write());
        written.map_err(|e| format!("GLSL {version}: {e}"))?;
    }
    Ok(())
}

/// Calls `f` for every shader and define set; fails with all that it returns.
fn for_all(f: impl Fn(Source, &[&'static str]) -> Result<(), String>) {
    let variants = support::shader_variants::all();
    let problem = |(source, defines): &(Source, Vec<&'static str>)| {
        Some(format!("{}.wgsl with {defines:?}: {}", source.name, f(*source, defines).err()?))
    };
    let (problems, n): (Vec<String>, usize) = (variants.iter().filter_map(problem).collect(), variants.len());
    assert!(n > 50, "{n} variants");
    assert!(problems.is_empty(), "{} of {n} variants:\n{}", problems.len(), problems.join("\n"));
}

/// The kernels of all parity rows, each with what it is for.
fn kernels() -> Vec<(String, Recorded)> {
    let of_row = |case: &support::op_cases::Case| {
        let label = |r: &Recorded| format!("{} ({}, {})", r.kernel.source.name, r.op, case.name);
        support::shader_variants::kernels(&case.plan).into_iter().map(|r| (label(&r), r)).collect::<Vec<_>>()
    };
    support::op_cases::all().iter().flat_map(of_row).collect()
}

/// Names and byte offsets of the `Params` struct's members, and its size.
fn params_of(module: &Module) -> Option<(Vec<(String, u32)>, u32)> {
    module.types.iter().find_map(|(_, ty)| match &ty.inner {
        TypeInner::Struct { members, span } if ty.name.as_deref() == Some("Params") => {
            let names = members.iter().map(|m| (m.name.clone().unwrap_or_default(), m.offset)).collect();
            Some((names, *span))
        }
        _ => None,
    })
}

/// Checks what an op says of its kernel against the shader.
fn check_kernel(recorded: &Recorded) -> Result<(), String> {
    let kernel = &recorded.kernel;
    let Valid { module, .. } = validate(kernel.source, &kernel.defines)?;
    let (members, span) = params_of(&module).ok_or("no struct Params")?;
    let fields: Vec<(String, u32)> =
        kernel.params.fields.iter().enumerate().map(|(i, f)| ((*f).to_owned(), 4 * i as u32)).collect();
    if members != fields || span as usize != kernel.params.bytes.len() {
        return Err(format!("Params is {members:?} of {span} bytes, the op has {fields:?}"));
    }
    for (name, _) in &kernel.overrides {
        if !module.overrides.iter().any(|(_, o)| o.name.as_deref() == Some(name)) {
            return Err(format!("there is no override {name}"));
        }
    }
    let written = |access: naga::StorageAccess| access.contains(naga::StorageAccess::STORE);
    let bound = |write: bool| {
        let storage =
            |space: &AddressSpace| matches!(space, AddressSpace::Storage { access } if written(*access) == write);
        module.global_variables.iter().filter(|(_, v)| storage(&v.space)).count()
    };
    let (reads, writes) = (bound(false), bound(true));
    if (reads, writes) != (recorded.n_inputs, recorded.n_outputs) {
        let op = (recorded.n_inputs, recorded.n_outputs);
        return Err(format!("binds {reads} inputs and {writes} outputs, the op has {op:?}"));
    }
    if reads + writes > MAX_BUFFERS {
        return Err(format!("binds {} storage buffers", reads + writes));
    }
    Ok(())
}

#[test]
fn every_variant_is_valid_and_translates_to_every_language() {
    for_all(|source, defines| translate(&validate(source, defines)?, with_subgroups(source, defines)));
}

#[test]
fn every_variant_fits_the_least_workgroup_memory() {
    for_all(|source, defines| {
        let Valid { module, info } = validate(source, defines)?;
        let (module, _) = process_overrides(&module, &info, None, &PipelineConstants::default())
            .map_err(|e| format!("overrides: {e}"))?;
        let mut layouter = naga::proc::Layouter::default();
        layouter.update(module.to_ctx()).map_err(|e| e.to_string())?;
        let shared = module.global_variables.iter().filter(|(_, v)| v.space == AddressSpace::WorkGroup);
        let bytes: u32 = shared.map(|(_, v)| layouter[v.ty].size).sum();
        let threads: u32 = module.entry_points.iter().map(|e| e.workgroup_size.iter().product()).max().unwrap_or(0);
        if bytes > WORKGROUP_BYTES || !(1..=256).contains(&threads) {
            return Err(format!("{bytes} bytes of workgroup memory, {threads} threads"));
        }
        Ok(())
    });
}

#[test]
fn every_kernel_agrees_with_its_shader() {
    let problems: BTreeSet<String> =
        kernels().iter().filter_map(|(label, k)| Some(format!("{label}: {}", check_kernel(k).err()?))).collect();
    assert!(problems.is_empty(), "{}", problems.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn every_shader_is_reachable_from_an_op() {
    let used: BTreeSet<&str> = kernels().iter().map(|(_, k)| k.kernel.source.name).collect();
    let shared = shared();
    let files = shaders();
    assert_eq!(files.keys().map(String::as_str).collect::<BTreeSet<_>>(), used);
    let imports: BTreeSet<&str> = files
        .values()
        .chain(shared.values())
        .flat_map(|t| t.lines())
        .filter_map(|l| l.strip_prefix("#import "))
        .collect();
    assert_eq!(shared.keys().map(String::as_str).collect::<BTreeSet<_>>(), imports);
}

#[test]
fn every_define_of_a_kernel_is_a_variant() {
    let shared = shared();
    let files = shaders();
    for (label, Recorded { kernel, .. }) in kernels() {
        let text = &files[kernel.source.name];
        let asked = mentioned(text, &shared);
        let set: BTreeSet<&str> = kernel.defines.iter().copied().filter(|d| asked.contains(d)).collect();
        let sets = define_sets(kernel.source.name, text, &shared);
        assert!(sets.iter().any(|s| s.iter().copied().collect::<BTreeSet<_>>() == set), "{label}: {set:?}");
    }
}

#[test]
fn every_binding_ends_with_its_shape() {
    for (name, text) in shaders() {
        for line in text.lines().filter(|l| l.starts_with("#bind")) {
            let comment = line.split_once("; // ").map(|(_, c)| c);
            let shape = comment.is_some_and(|c| c.starts_with('[') || c.contains("stack"));
            assert!(shape, "{name}.wgsl: no shape at the end of: {line}");
        }
    }
}

#[test]
fn a_broken_shader_is_found() {
    let broken = |text: &'static str| validate(Source::new("broken", text), &[]).is_err();
    let main = "@compute @workgroup_size(1)\nfn main(@builtin(local_invocation_index) id: u32) {";
    let barrier = format!("{main} if id == 0u {{ workgroupBarrier(); }} }}").leak();
    assert!(!broken(format!("{main} }}").leak()));
    assert!(broken("fn main( {"));
    assert!(broken(format!("{main} let set = 1u; }}").leak()));
    assert!(validate(Source::new("barrier", barrier), &[]).is_ok(), "naga checks barriers now: drop this");
}

#[test]
fn no_variant_has_a_form_that_some_compiler_refuses() {
    for_all(|source, defines| {
        let Valid { module, info } = validate(source, defines)?;
        let expanded = expand(source, defines).map_err(|e| e.to_string())?;
        support::shader_rules::check(source.name, &module, &info, &expanded.wgsl, software(source, defines))
    });
}

#[test]
fn a_refused_form_is_found() {
    let said = |text: &str| {
        let Valid { module, info } = validate(source("form", text), &["SUBGROUPS"]).unwrap();
        support::shader_rules::check("form", &module, &info, text, false).err().unwrap_or_default()
    };
    let in_main = |body: &str| {
        said(&format!("@compute @workgroup_size(8) fn main(@builtin(local_invocation_index) i: u32) {{ {body} }}"))
    };
    assert_eq!(in_main("var v = vec4<f32>(); v.x = 3.40282346638528859812e38;"), "");
    assert_eq!(in_main("var v = array<u32, 4>(); v[i] = ((i >> 1u) & 1u) << select(1u, 2u, i > 3u);"), "");
    assert!(in_main("var v = vec4<f32>(); v[i] = 1.0;").contains("computed place"));
    assert!(in_main("let v = vec4<f32>(); let x = v[i];").contains("reads a component"));
    assert!(in_main("var v = array<vec4<f32>, 2>(); let x = v[1][i];").contains("reads a component"));
    assert!(in_main("let m = select(0x03030303u, 0x01010101u, i == 1u);").contains("masks"));
    assert!(in_main("let v = 3.40282347e38;").contains("largest f32"));
    assert!(in_main("let v = i >> 2u & 1u;").contains("brackets"));
    assert!(in_main("let v = (i\n| i << 2u);").contains("brackets"));
    assert_eq!(in_main("let v = max(i, 3u);"), "");
    assert!(in_main("let v = max(f32(i), 3.0);").contains("drop NaN"));
    assert!(in_main("let v = clamp(vec2<f32>(f32(i)), vec2<f32>(), vec2<f32>(1.0));").contains("drop NaN"));
    assert!(in_main("let v = subgroupMax(f32(i));").contains("drop NaN"));
    let bound =
        "fn end(i: u32) -> u32 { if i > 3u { return 2u; } return i; } fn twice(i: u32) -> u32 { return 2u * end(i); }";
    let main = "@compute @workgroup_size(8) fn main(@builtin(workgroup_id) g: vec3<u32>,
        @builtin(local_invocation_index) i: u32) {";
    let of = |body: &str| said(&format!("{bound} {main} {body} }}"));
    assert_eq!(of("let n = end(g.x);"), "");
    assert!(of("for (var j = 0u; j < end(g.x); j++) {}").contains("2 returns"));
    assert!(of("var n = 1u; n = twice(g.x); for (var j = 0u; j < n; j++) {}").contains("2 returns"));
    let together =
        "fn sum(v: f32, n: u32) -> f32 { var s = v; for (var j = 0u; j < n; j++) { s = subgroupAdd(s); } return s; }";
    let of = |body: &str| said(&format!("var<private> own: u32; {together} {main} {body} }}"));
    assert_eq!(of("if g.x > 1u { let s = sum(f32(i), g.y); }"), "");
    assert_eq!(of("if i > 1u { own = 1u; } let s = sum(f32(i), 4u);"), "");
    assert!(of("if i > 1u { let s = sum(1.0, 4u); }").contains("the lane"));
    assert!(of("let s = sum(1.0, i);").contains("the lane"));
    assert!(of("if i > 1u { return; } let s = subgroupMax(i);").contains("the lane"));
    assert!(of("own = i; let s = sum(1.0, own);").contains("the lane"));
    assert!(of("for (var j = i; j < 8u; j++) { let s = subgroupAdd(1u); }").contains("the lane"));
    let lane = "struct Lane { @builtin(subgroup_size) n: u32 } @compute @workgroup_size(8) fn main(lane: Lane) {}";
    assert!(said(lane).contains("inside a struct"));
}
