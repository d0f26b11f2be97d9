//! Every shader with every set of defines that an op can ask for, and the kernels that plans ask for: for the tests of shaders,
//! and for `examples/dump_shaders.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use naga::valid::{Capabilities, ModuleInfo, ValidationError, ValidationFlags, Validator};
use naga::{Module, WithSpan};
use ternion::gpu::shader::expand;
use ternion::unstable::plan::{Caps, Kernel, Plan, Source};

/// Shaders that need exactly one of some defines. All other sets are the subsets of what `#ifdef` lines mention.
const ONE_OF: &[(&str, &[&str])] = &[
    ("attention/attention_decode_lanes", &["SOFTWARE_SUBGROUPS"]),
    ("attention/attention_lanes", &["SOFTWARE_SUBGROUPS"]),
    ("ternary/bit_linear_codes", &["COMBINE", "PLAIN", "SWIGLU"]),
    ("ternary/bit_linear", &["COMBINE", "PLAIN", "SWIGLU"]),
    ("ternary/bit_linear_rows", &["COMBINE", "PLAIN", "SWIGLU"]),
    ("groups/group_matmul_tables", &["PACKED_I16"]),
    ("matmul/matmul_lanes", &["SOFTWARE_SUBGROUPS"]),
    ("ternary/ternary_matmul_lanes", &["SOFTWARE_SUBGROUPS"]),
    ("vision/pool", &["MAX", "MEAN"]),
    ("elements/unary", &["GELU_ERF", "GELU_TANH", "RELU", "SCALE", "TANH"]),
];
/// Shaders that need subgroups whatever their defines are. Only drivers that compute on the CPU get them.
const OF_SUBGROUPS: &[&str] = &[
    "groups/group_matmul_table_rows",
    "groups/group_matmul_tables",
    "ternary/bit_linear_codes",
    "ternary/bit_linear_rows",
];

/// Whether an op can ask a shader for these defines together: the second half of experts has a residual and no norm in
/// front, the first half no residual (`ops/bit_linear.rs`); sums of floats are neither looked up
/// nor dot products of bytes (`ops/group_matmul.rs`), and codes of one launch have none (`ops/group_linear.rs`); a router is in
/// front of the first half of experts, behind a norm (`ops/route_swiglu.rs`); two kernels have large workgroups (`ops/few_rows.rs`); elements behind an
/// activation are read once (`ops/quantise_groups.rs`); heads of a new row are of floats, and no others have a norm or turn (`ops/rope_attention.rs`).
fn asked_for(name: &str, defines: &[&str]) -> bool {
    let has = |define| defines.contains(&define);
    if has("WG256") && !["norm/rms_norm", "quantise/quantise_groups"].contains(&name) {
        return false;
    }
    if (name.starts_with("groups/group_matmul_table") || name == "groups/group_matmul_dots") && has("FLOATS") {
        return false;
    }
    if name == "groups/group_linear" && has("FLOATS") {
        return false;
    }
    if name.starts_with("attention/attention_decode") {
        return if has("ROPE") { !has("INT8") } else { !has("NORM") && !has("INTERLEAVED") };
    }
    if name == "quantise/quantise_groups" && has("GATED") && (has("NORM") || has("WHOLE_ROW")) {
        return false;
    }
    if has("ROUTE") && !(name == "ternary/bit_linear" && has("SWIGLU") && has("PRE_NORM")) {
        return false;
    }
    match (has("COMBINE"), has("SWIGLU")) {
        (true, _) => has("RESIDUAL") && !has("PRE_NORM"),
        (_, true) => !has("RESIDUAL"),
        _ => true,
    }
}

/// The folder of the shaders.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("shaders")
}

/// The folder of what shaders import.
const SHARED: &str = "shared";

/// Stems and texts of the `.wgsl` files of a folder.
fn stems(dir: PathBuf) -> BTreeMap<String, String> {
    let read = |path: PathBuf| {
        let stem = path.file_stem()?.to_str()?.to_owned();
        (path.extension()? == "wgsl").then(|| (stem, std::fs::read_to_string(path).expect("UTF-8")))
    };
    std::fs::read_dir(dir).expect("the shaders").filter_map(|e| read(e.ok()?.path())).collect()
}

/// Names (`norm/rms_norm`) and texts of the ops' shaders.
pub fn shaders() -> BTreeMap<String, String> {
    let folders = std::fs::read_dir(root()).expect("the shaders").map(|e| e.expect("a folder").file_name());
    let folders = folders.map(|folder| folder.into_string().expect("UTF-8")).filter(|folder| folder != SHARED);
    let of = |folder: String| {
        stems(root().join(&folder)).into_iter().map(move |(stem, text)| (format!("{folder}/{stem}"), text))
    };
    folders.flat_map(of).collect()
}

/// Stems and texts of what shaders import.
pub fn shared() -> BTreeMap<String, String> {
    stems(root().join(SHARED))
}

/// Text that lives as long as the program, as a [`Source`] wants it.
pub fn source(name: &str, text: &str) -> Source {
    Source::new(name.to_owned().leak(), text.to_owned().leak())
}

/// Defines that a shader and its imports ask for.
pub fn mentioned(text: &str, shared: &BTreeMap<String, String>) -> BTreeSet<&'static str> {
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

/// Every set of defines of a shader, each sorted.
pub fn define_sets(name: &str, text: &str, shared: &BTreeMap<String, String>) -> Vec<Vec<&'static str>> {
    let one_of = ONE_OF.iter().find(|(n, _)| *n == name).map_or(&[][..], |(_, d)| d);
    let free: Vec<&str> = mentioned(text, shared).into_iter().filter(|d| !one_of.contains(d)).collect();
    let subset = |bits: usize| (0..free.len()).filter(move |i| bits >> i & 1 == 1).map(|i| free[i]);
    let mut sets: Vec<Vec<&str>> = Vec::new();
    for bits in 0..1usize << free.len() {
        if one_of.is_empty() {
            sets.push(subset(bits).collect());
        }
        sets.extend(one_of.iter().map(|&d| subset(bits).chain([d]).collect()));
    }
    sets.iter_mut().for_each(|set| set.sort_unstable());
    sets.retain(|set| asked_for(name, set));
    sets
}

/// All variants: a shader and its defines.
pub fn all() -> Vec<(Source, Vec<&'static str>)> {
    let shared = shared();
    let mut all = Vec::new();
    for (name, text) in shaders() {
        let source = source(&name, &text);
        all.extend(define_sets(&name, &text, &shared).into_iter().map(|defines| (source, defines)));
    }
    all
}

/// A module that naga has parsed and found valid.
pub struct Valid {
    pub module: Module,
    pub info: ModuleInfo,
}

/// Whether a variant asks for subgroup operations.
pub fn with_subgroups(source: Source, defines: &[&str]) -> bool {
    OF_SUBGROUPS.contains(&source.name)
        || defines.iter().any(|d| ["SUBGROUPS", "SOFTWARE_SUBGROUPS", "TABLES"].contains(d))
}

/// Whether only drivers that compute on the CPU get a variant: its lanes pass words on to each other where they like, which
/// WGSL allows in uniform control flow only.
pub fn software(source: Source, defines: &[&str]) -> bool {
    OF_SUBGROUPS.contains(&source.name) || defines.iter().any(|d| ["SOFTWARE_SUBGROUPS", "TABLES"].contains(d))
}

/// Parses and validates a variant.
pub fn validate(source: Source, defines: &[&str]) -> Result<Valid, String> {
    let expanded = expand(source, defines).map_err(|e| e.to_string())?;
    let module = naga::front::wgsl::parse_str(&expanded.wgsl).map_err(|e| e.emit_to_string(&expanded.wgsl))?;
    let info = check(&module, source, defines).map_err(|e| e.emit_to_string(&expanded.wgsl))?;
    Ok(Valid { module, info })
}

/// Validates a variant's module.
pub fn check(module: &Module, source: Source, defines: &[&str]) -> Result<ModuleInfo, Box<WithSpan<ValidationError>>> {
    let subgroups = with_subgroups(source, defines);
    // The minimum that each define stands for; `F16` is about conversions, not about a native type.
    let needs =
        [(subgroups, Capabilities::SUBGROUP), (defines.contains(&"F16"), Capabilities::SHADER_FLOAT16_IN_FLOAT32)];
    let caps = needs.into_iter().filter(|need| need.0).fold(Capabilities::empty(), |all, need| all | need.1);
    let mut validator = Validator::new(ValidationFlags::all(), caps);
    if subgroups {
        validator.subgroup_stages(naga::valid::ShaderStages::COMPUTE);
        validator.subgroup_operations(naga::valid::SubgroupOperationSet::all());
    }
    validator.validate(module).map_err(Box::new)
}

/// One kernel of a recorded op.
pub struct Recorded {
    /// The node's op.
    pub op: &'static str,
    /// With the defines that every kernel gets.
    pub kernel: Kernel,
    pub n_inputs: usize,
    pub n_outputs: usize,
}

/// The kernels of all variants of a plan's nodes under all capabilities.
pub fn kernels(plan: &Plan) -> Vec<Recorded> {
    let full = Caps { subgroups: true, dot4: true, software_subgroups: true, max_binding: 128 << 20, ..Caps::PLAIN };
    let mut all = Vec::new();
    for node in &plan.nodes {
        for caps in full.subsets() {
            for variant in plan.variants(node, &caps).1.all() {
                let n_outputs = node.outputs.len() + usize::from(variant.follow_up.is_some());
                for kernel in variant.kernels() {
                    let mut kernel = kernel.clone();
                    let mut defines = variant.caps.defines();
                    defines.append(&mut kernel.defines);
                    kernel.defines = defines;
                    all.push(Recorded { op: node.op.name(), kernel, n_inputs: node.inputs.len(), n_outputs });
                }
            }
        }
    }
    all
}
