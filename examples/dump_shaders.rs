//! Writes every kernel that ops ask for as the compilers of all drivers get it: WGSL, SPIR-V, HLSL and MSL, with an index.
//!
//! `cargo run --release --example dump_shaders -- DIR`
//!
//! `DIR/wgsl/ID.wgsl`, `DIR/spv13/ID.spv` (SPIR-V 1.3, indices checked), `DIR/spv16/ID.spv` (1.6, with dot products of bytes where
//! the kernel has the define DOT4), `DIR/hlsl51`, `hlsl60`, `hlsl64/ID.hlsl`, `DIR/msl24/ID.metal`. A variant is written for each set
//! of overrides that a plan of an EmberNet of the published sizes gives it, else for the largest set of the tests' rows.
//! `DIR/index.tsv` has a line for each, without a head: the id; whether it uses subgroups; its bindings, such as `0u,1u,2r,3w`
//! (uniform, read, written); `hardware`, or `software` where only drivers that compute on the CPU get it; its defines; its
//! overrides; the names of its entry point in HLSL and MSL.

#[path = "../tests/support"]
mod support {
    pub mod numbers;
    #[allow(dead_code)] // The rows' data is for the parity test.
    pub mod op_cases;
    pub mod recording;
    #[allow(dead_code)] // The tests use the rest.
    pub mod shader_variants;
    pub mod spirv;
}

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::fs;
use std::path::Path;

use naga::back::{hlsl, msl, pipeline_constants::process_overrides};
use naga::valid::ModuleInfo;
use naga::{Module, ShaderStage};
use support::shader_variants::{Valid, mentioned, shared};
use support::spirv::{bindings, bound, to_spirv};
use ternion::files::Weights;
use ternion::gpu::shader::expand;
use ternion::tools::synthetic;
use ternion::unstable::models;
use ternion::unstable::models::{LoadOptions, TextShape};
use ternion::unstable::plan::Plan;
use ternion::unstable::tensor::{DType, Pack};

type Done<T> = Result<T, Box<dyn Error>>;
/// Values of overrides, which are all whole numbers.
type Overrides = Vec<(&'static str, u32)>;
/// A shader and its defines.
type Variant = (&'static str, Vec<&'static str>);

/// Plans of an EmberNet of the published sizes, as an engine records them.
fn plans() -> ternion::Result<Vec<Plan>> {
    let files = synthetic::embernet()?;
    let weights = Weights::open(files.clone())?;
    let mut all = Vec::new();
    for (dense, kv_dtype) in [(Pack::F16, DType::F16), (Pack::F32, DType::F32)] {
        for head in [dense, Pack::Int8] {
            let model = models::open_chat(
                files.clone(),
                &weights,
                LoadOptions { head, max_binding: 128 << 20, ..LoadOptions::anywhere(dense) },
            )?;
            for (max_rows, max_outputs, images) in [(1, 1, false), (2, 2, false), (8, 8, false), (512, 1, true)] {
                let shape = TextShape {
                    max_rows,
                    max_outputs,
                    kv_rows: 2048 * max_outputs,
                    context: 2048,
                    sessions: max_outputs,
                    kv_dtype,
                    images,
                };
                all.push(model.record_text(&shape)?);
            }
            all.push(model.record_image()?);
        }
    }
    Ok(all)
}

/// The sets of overrides that some plans give each variant.
fn overrides_of(plans: &[&Plan]) -> BTreeMap<Variant, BTreeSet<Overrides>> {
    let (shared, mut asked) = (shared(), HashMap::new());
    let mut all: BTreeMap<Variant, BTreeSet<Overrides>> = BTreeMap::new();
    for recorded in plans.iter().flat_map(|plan| support::shader_variants::kernels(plan)) {
        let kernel = recorded.kernel;
        let known = asked.entry(kernel.source.name).or_insert_with(|| mentioned(kernel.source.text, &shared));
        let defines: BTreeSet<&str> = kernel.defines.into_iter().filter(|d| known.contains(d)).collect();
        let overrides = kernel.overrides.iter().map(|&(name, v)| (name, v as u32)).collect();
        all.entry((kernel.source.name, defines.into_iter().collect())).or_default().insert(overrides);
    }
    all
}

/// HLSL as wgpu's DX12 backend asks for it, and the name of its entry point.
fn to_hlsl(module: &Module, info: &ModuleInfo, shader_model: hlsl::ShaderModel) -> Done<(String, String)> {
    let mut binding_map = hlsl::BindingMap::default();
    let mut registers = [0; 3]; // of uniforms, of what is read, of what is written
    for (binding, uniform, written) in bindings(module) {
        let register = &mut registers[if uniform { 0 } else { 1 + usize::from(written) }];
        let target = hlsl::BindTarget { register: *register, ..Default::default() };
        binding_map.insert(naga::ResourceBinding { group: 0, binding }, target);
        *register += 1;
    }
    let options = hlsl::Options {
        shader_model,
        binding_map,
        fake_missing_bindings: false,
        zero_initialize_workgroup_memory: false,
        restrict_indexing: true,
        force_loop_bounding: false,
        ..Default::default()
    };
    let pipeline = hlsl::PipelineOptions { entry_point: Some((ShaderStage::Compute, "main".into())) };
    let mut text = String::new();
    let reflection = hlsl::Writer::new(&mut text, &options, &pipeline).write(module, info, None)?;
    let entry = reflection.entry_point_names.into_iter().next().ok_or("no entry point")??;
    Ok((text, entry))
}

/// Writes one kernel; returns its line of the index.
fn dump(dir: &Path, id: &str, (name, defines): &Variant, text: &str, overrides: &Overrides) -> Done<String> {
    let source = support::shader_variants::source(name, text);
    let Valid { module, info } = support::shader_variants::validate(source, defines)?;
    let values = overrides.iter().map(|&(name, v)| (name.to_owned(), f64::from(v))).collect();
    let (module, info) = process_overrides(&module, &info, Some((ShaderStage::Compute, "main")), &values)?;
    let subgroups = support::shader_variants::with_subgroups(source, defines);
    let put = |folder: &str, end: &str, bytes: &[u8]| fs::write(dir.join(folder).join(format!("{id}.{end}")), bytes);
    put("wgsl", "wgsl", expand(source, defines)?.wgsl.as_bytes())?;
    put("spv13", "spv", &to_spirv(&module, &info, (1, 3), subgroups, false)?)?;
    put("spv16", "spv", &to_spirv(&module, &info, (1, 6), subgroups, defines.contains(&"DOT4"))?)?;
    let (first, of_model) = (usize::from(subgroups), HLSL);
    let mut entries = Vec::new();
    for (folder, shader_model) in &of_model[first..] {
        let (text, entry) = to_hlsl(&module, &info, *shader_model)?;
        put(folder, "hlsl", text.as_bytes())?;
        entries.push(entry);
    }
    let options = msl::Options { lang_version: (2, 4), ..Default::default() };
    let (text, reflection) = msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())?;
    put("msl24", "metal", text.as_bytes())?;
    entries.push(reflection.entry_point_names.into_iter().next().ok_or("no entry point")??);
    entries.dedup();
    let values: Vec<String> = overrides.iter().map(|(name, v)| format!("{name}={v}")).collect();
    let who = if support::shader_variants::software(source, defines) { "software" } else { "hardware" };
    let columns = [bound(&module), who.into(), defines.join(" "), values.join(" "), entries.join(" ")];
    Ok(format!("{id}\t{subgroups}\t{}\n", columns.join("\t")))
}

/// The folders of HLSL, that without subgroups first.
const HLSL: [(&str, hlsl::ShaderModel); 3] =
    [("hlsl51", hlsl::ShaderModel::V5_1), ("hlsl60", hlsl::ShaderModel::V6_0), ("hlsl64", hlsl::ShaderModel::V6_4)];

fn main() -> Done<()> {
    let dir = std::env::args_os().nth(1).ok_or("usage: dump_shaders DIR")?;
    let dir = Path::new(&dir);
    for folder in ["wgsl", "spv13", "spv16", "msl24"].into_iter().chain(HLSL.map(|h| h.0)) {
        fs::create_dir_all(dir.join(folder))?;
    }
    let (plans, rows) = (plans()?, support::op_cases::all());
    let of_models = overrides_of(&plans.iter().collect::<Vec<_>>());
    let of_rows = overrides_of(&rows.iter().map(|row| &*row.plan).collect::<Vec<_>>());
    let (mut index, mut n) = (String::new(), 0);
    for (source, defines) in support::shader_variants::all() {
        let variant = (source.name, defines);
        // The largest of those of rows, or the defaults, which are no plan's, where no row asks for the variant.
        let size = |o: &&Overrides| o.iter().map(|&(_, v)| u64::from(v)).product::<u64>();
        let of_row = || of_rows.get(&variant).and_then(|sets| sets.iter().max_by_key(size)).cloned();
        let of_model = of_models.get(&variant).map(|sets| sets.iter().cloned().collect::<Vec<_>>());
        for (i, overrides) in of_model.unwrap_or_else(|| vec![of_row().unwrap_or_default()]).iter().enumerate() {
            let id = format!("{}__{}__{i}", source.name.replace('/', "-"), variant.1.join("-"));
            index += &dump(dir, &id, &variant, source.text, overrides).map_err(|e| format!("{id}: {e}"))?;
            n += 1;
        }
    }
    fs::write(dir.join("index.tsv"), index)?;
    println!("{n} kernels in {}", dir.display());
    Ok(())
}
