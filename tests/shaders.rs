//! Every shader with every set of defines that an op can ask for: parsed, validated and translated by naga, without a
//! GPU; and its parameters, bindings and workgroup memory against what the ops and the engine promise.

#[allow(dead_code)] // The rows' data is for the parity test.
mod cases;
mod common;
mod shader_rules;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use naga::back::{PipelineConstants, glsl, hlsl, msl, pipeline_constants::process_overrides, spv};
use naga::valid::{Capabilities, ModuleInfo, ValidationFlags, Validator};
use naga::{AddressSpace, Module, ShaderStage, TypeInner};
use ternion::gpu::shader::expand;
use ternion::plan::{Caps, Kernel, Source, Tuning};

/// Shaders that need exactly one of some defines. All other sets are the subsets of what `#ifdef` lines mention.
const ONE_OF: &[(&str, &[&str])] = &[
    ("attention_keys", &["SHUFFLES"]),
    ("attention_lanes", &["SHUFFLES"]),
    ("bit_codes", &["COMBINE", "PLAIN", "SWIGLU"]),
    ("bit_linear", &["COMBINE", "PLAIN", "SWIGLU"]),
    ("bit_rows", &["COMBINE", "PLAIN", "SWIGLU"]),
    ("matmul_lanes", &["SHUFFLES"]),
    ("ternary_lanes", &["SHUFFLES"]),
    ("pool", &["MAX", "MEAN"]),
    ("unary", &["GELU_ERF", "GELU_TANH", "RELU", "SCALE", "TANH"]),
];
/// Shaders that need subgroups whatever their defines are.
const OF_SUBGROUPS: &[&str] = &["bit_codes", "bit_rows"];
/// Workgroup memory that every adapter has.
const WORKGROUP_BYTES: u32 = 16 << 10;
/// Storage buffers that every adapter can bind at once.
const MAX_BUFFERS: usize = 8;

fn shader_root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

/// Stems and texts of the `.wgsl` files of a folder.
fn stems(dir: PathBuf) -> BTreeMap<String, String> {
    let read = |path: PathBuf| {
        let stem = path.file_stem()?.to_str()?.to_owned();
        (path.extension()? == "wgsl").then(|| (stem, std::fs::read_to_string(path).expect("UTF-8")))
    };
    std::fs::read_dir(dir).expect("the shaders").filter_map(|e| read(e.ok()?.path())).collect()
}

/// Text that lives as long as the test, as a [`Source`] wants it.
fn source(name: &str, text: &str) -> Source {
    Source::new(name.to_owned().leak(), text.to_owned().leak())
}

/// Defines that a shader and its imports ask for.
fn mentioned(text: &str, shared: &BTreeMap<String, String>) -> BTreeSet<&'static str> {
    let mut all = BTreeSet::new();
    for line in text.lines() {
        if let Some(define) = line.trim().strip_prefix("#ifdef ") {
            all.insert(&*define.trim().to_owned().leak());
        }
        if let Some(import) = line.trim().strip_prefix("#import ") {
            all.extend(mentioned(&shared[import.trim()], shared));
        }
    }
    all
}

/// Every set of defines of a shader.
fn define_sets(name: &str, text: &str, shared: &BTreeMap<String, String>) -> Vec<Vec<&'static str>> {
    let one_of = ONE_OF.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, d)| d);
    let free: Vec<&str> = mentioned(text, shared).into_iter().filter(|d| !one_of.contains(d)).collect();
    let subset = |bits: usize| (0..free.len()).filter(move |i| bits >> i & 1 == 1).map(|i| free[i]);
    let mut sets = Vec::new();
    for bits in 0..1usize << free.len() {
        if one_of.is_empty() {
            sets.push(subset(bits).collect());
        }
        sets.extend(one_of.iter().map(|&d| subset(bits).chain([d]).collect::<Vec<_>>()));
    }
    sets
}

/// A module that naga has parsed and found valid.
struct Valid {
    module: Module,
    info: ModuleInfo,
}

/// Whether a variant asks for subgroup operations.
fn with_subgroups(source: Source, defines: &[&str]) -> bool {
    OF_SUBGROUPS.contains(&source.name) || defines.iter().any(|d| ["SUBGROUPS", "SHUFFLES", "TABLES"].contains(d))
}

fn validate(source: Source, defines: &[&str]) -> Result<Valid, String> {
    let expanded = expand(source, defines).map_err(|e| e.to_string())?;
    let module = naga::front::wgsl::parse_str(&expanded.wgsl).map_err(|e| e.emit_to_string(&expanded.wgsl))?;
    let subgroups = with_subgroups(source, defines);
    // The least that each define stands for; `F16` is about conversions, not about a native type.
    let needs =
        [(subgroups, Capabilities::SUBGROUP), (defines.contains(&"F16"), Capabilities::SHADER_FLOAT16_IN_FLOAT32)];
    let caps = needs.into_iter().filter(|need| need.0).fold(Capabilities::empty(), |all, need| all | need.1);
    let mut validator = Validator::new(ValidationFlags::all(), caps);
    if subgroups {
        validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
        validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    }
    let info = validator.validate(&module).map_err(|e| e.emit_to_string(&expanded.wgsl))?;
    Ok(Valid { module, info })
}

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
    let shared = stems(shader_root().join("shared"));
    let (mut problems, mut n) = (Vec::new(), 0);
    for (name, text) in stems(shader_root()) {
        for defines in define_sets(&name, &text, &shared) {
            n += 1;
            if let Err(problem) = f(source(&name, &text), &defines) {
                problems.push(format!("{name}.wgsl with {defines:?}: {problem}"));
            }
        }
    }
    assert!(n > 50, "{n} variants");
    assert!(problems.is_empty(), "{} of {n} variants:\n{}", problems.len(), problems.join("\n"));
}

/// One kernel of a recorded op.
struct Recorded {
    label: String,
    kernel: Kernel,
    n_inputs: usize,
    n_outputs: usize,
}

/// The kernels of all parity rows under all capabilities.
fn kernels() -> Vec<Recorded> {
    let most = Caps {
        subgroups: true,
        dot4: true,
        shuffles: true,
        half: true,
        max_binding: 128 << 20,
        tuning: Tuning::HARDWARE,
    };
    let mut all = Vec::new();
    for case in cases::all() {
        for node in &case.plan.nodes {
            let tuned = Tuning::ALL.map(|tuning| Caps { tuning, ..most });
            for caps in most.subsets().into_iter().chain(tuned) {
                let specs =
                    |slots: &[ternion::plan::Slot]| slots.iter().map(|&s| case.plan.spec(s)).collect::<Vec<_>>();
                let (inputs, outputs) = (specs(&node.inputs), specs(&node.outputs));
                let second = node.op.second(&caps, &inputs, &outputs).map(|s| s.kernel);
                let n_outputs = outputs.len() + usize::from(second.is_some());
                for mut kernel in [node.op.kernel(&caps, &inputs, &outputs)].into_iter().chain(second) {
                    let mut defines = caps.defines();
                    defines.append(&mut kernel.defines);
                    kernel.defines = defines;
                    let label = format!("{} ({}, {})", kernel.source.name, case.op, case.name);
                    all.push(Recorded { label, kernel, n_inputs: inputs.len(), n_outputs });
                }
            }
        }
    }
    all
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
        kernels().iter().filter_map(|k| Some(format!("{}: {}", k.label, check_kernel(k).err()?))).collect();
    assert!(problems.is_empty(), "{}", problems.into_iter().collect::<Vec<_>>().join("\n"));
}

#[test]
fn every_shader_is_reachable_from_an_op() {
    let used: BTreeSet<&str> = kernels().iter().map(|k| k.kernel.source.name).collect();
    let shared = stems(shader_root().join("shared"));
    let files = stems(shader_root());
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
    let shared = stems(shader_root().join("shared"));
    let files = stems(shader_root());
    for Recorded { label, kernel, .. } in kernels() {
        let text = &files[kernel.source.name];
        let asked = mentioned(text, &shared);
        let set: BTreeSet<&str> = kernel.defines.iter().copied().filter(|d| asked.contains(d)).collect();
        let sets = define_sets(kernel.source.name, text, &shared);
        assert!(sets.iter().any(|s| s.iter().copied().collect::<BTreeSet<_>>() == set), "{label}: {set:?}");
    }
}

#[test]
fn every_binding_ends_with_its_shape() {
    for (name, text) in stems(shader_root()) {
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
        let software =
            OF_SUBGROUPS.contains(&source.name) || defines.iter().any(|d| ["SHUFFLES", "TABLES"].contains(d));
        shader_rules::check(source.name, &module, &info, &expanded.wgsl, software)
    });
}

#[test]
fn a_refused_form_is_found() {
    let said = |text: &str| {
        let Valid { module, info } = validate(source("form", text), &["SUBGROUPS"]).unwrap();
        shader_rules::check("form", &module, &info, text, false).err().unwrap_or_default()
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
    let lane = "struct Lane { @builtin(subgroup_size) n: u32 } @compute @workgroup_size(8) fn main(lane: Lane) {}";
    assert!(said(lane).contains("inside a struct"));
}
