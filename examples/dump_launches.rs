//! Writes what published models launch on a real GPU, step by step, and the kernels as drivers get them, for
//! `benches/kernels.py`, which joins them with what a compiler says of the kernels.
//!
//! `cargo run --release --example dump_launches -- DIR`
//!
//! `DIR/launches.tsv` has a line for each kernel with its grid, by model and step: how many launches of it there are, whether
//! it is the usual variant, threads of a workgroup, workgroups, bytes that its node reads, products and sums, parameters and
//! overrides.
//! `DIR/spv16/ID.spv` is the kernel as SPIR-V 1.6, `DIR/spv16/ID__rest.spv` the same with its main loop never run, and where codes
//! are made again `DIR/spv16/ID__coded.spv` with that loop never run: the differences are what the loops cost. The bits of the
//! model's weights and the columns of their groups are constants, so that no branch for others is counted.
//! `DIR/index.tsv` has a line for each file: its name, whether it uses subgroups, its bindings (`0u,1u,2r,3w`).

#[path = "../tests/support"]
mod support {
    #[allow(dead_code)] // The tests use the rest.
    pub mod shader_variants;
    pub mod spirv;
}

use std::collections::{BTreeMap, HashMap};
use std::error::Error;
use std::fs;
use std::path::Path;

use naga::back::pipeline_constants::process_overrides;
use naga::{Block, Expression, Function, Literal, Module, ShaderStage, Span, Statement};
use support::shader_variants::{check, mentioned, shared, with_subgroups};
use support::spirv::{bound, to_spirv};
use ternion::files::Weights;
use ternion::gpu::shader::expand;
use ternion::tools::synthetic::PublishedModel;
use ternion::unstable::models::{self, LoadOptions, TextShape};
use ternion::unstable::plan::{Caps, Kernel, Node, Plan, Step, Variant};
use ternion::unstable::tensor::{DType, Pack, WeightRef};

type Done<T> = Result<T, Box<dyn Error>>;

/// The models by the names of `ternion bench --shape`, and the bits of their codes.
const MODELS: [(&str, u32); 3] = [("embernet", 1), ("bitnet-2b-4t", 2), ("bonsai-8b", 1)];
/// Tokens in the cache of the step, its own among them.
const CONTEXT: usize = 512;
/// The steps, by the number of their rows; each has one output.
const STEPS: [(&str, usize); 3] = [("decode", 1), ("prefill-64", 64), ("prefill-512", 512)];
/// A discrete or integrated GPU of the last years.
const GPU: Caps = Caps { subgroups: true, dot4: true, max_binding: 2 << 30, ..Caps::PLAIN };
/// Functions whose loops are the main one, where it is not the entry point's largest loop.
const MAIN_LOOPS: [(&str, &str); 7] = [
    ("groups/group_linear", "add_share"),
    ("groups/group_matmul_matvec", "add_share"),
    ("ternary/bit_linear", "tile_sums"),
    ("ternary/ternary_matmul_dots", "add_share"),
    ("ternary/ternary_matmul_matvec", "tile_sums"),
    ("ternary/ternary_matmul_tiles", "add_share"),
    ("sample/sample", "largest_as_it_is"),
];

/// Functions that make codes again, whose largest loop has many times the instructions of their others.
const CODES: [(&str, &str); 1] = [("groups/group_linear", "make_codes")];

/// Bytes of a weight on the device, without the headers of stacks.
fn bytes_of(weight: &WeightRef, bits: u32) -> u64 {
    let n: usize = weight.parts.iter().map(|part| part.rows.len() * part.cols).sum();
    let n = n as u64;
    match weight.pack {
        Pack::F32 => 4 * n,
        Pack::F16 => 2 * n,
        Pack::Int8 => n,
        Pack::Ternary(_) => n * u64::from(bits) / 8,
        Pack::Groups { group, .. } => n * u64::from(bits) / 8 + 2 * n / u64::from(group),
    }
}

/// Products and sums of a node's products of matrices; 0 for other nodes.
fn operations(plan: &Plan, node: &Node, kernel: &Kernel, step: &Step) -> u64 {
    let [x, y] = [node.inputs[0], node.outputs[0]].map(|slot| plan.spec(slot));
    // Gate and up lie side by side in front of an activation, or are two products for each output behind which there is one.
    let (gated, behind) = (kernel.defines.contains(&"GATED"), node.op.name() == "ternary_matmul");
    let width = x.width() / if gated && !behind { 2 } else { 1 };
    let rows = step.rows_of(y) * if gated && behind { 2 } else { 1 };
    let terms = kernel.overrides.iter().find(|(name, _)| *name == "TERMS").map_or(1, |&(_, n)| n as usize);
    let products = match node.op.name() {
        "bit_linear" | "route_swiglu" | "ternary_matmul" | "group_matmul" | "group_linear" => {
            rows * y.width() * width * terms
        }
        "matmul" => rows * plan.spec(node.inputs[1]).shape[0] * width,
        // As if each query attended to the whole context.
        "attention" | "rope_attention" => 2 * rows * y.width() * step.context as usize,
        _ => 0,
    };
    2 * products as u64
}

/// The kernels that were written, by name, with the threads of their workgroups.
struct Kernels<'a> {
    dir: &'a Path,
    shared: BTreeMap<String, String>,
    threads: HashMap<String, u32>,
    index: String,
}

impl Kernels<'_> {
    /// Writes a kernel unless it exists; returns its name and the threads of a workgroup.
    fn add(&mut self, caps: Caps, kernel: &Kernel, (bits, group): (u32, Option<u32>)) -> Done<(String, u32)> {
        let known = mentioned(kernel.source.text, &self.shared);
        let mut defines: Vec<&str> = caps.defines().into_iter().chain(kernel.defines.iter().copied()).collect();
        defines.retain(|define| known.contains(define));
        let wgsl = expand(kernel.source, &defines)?.wgsl;
        let mut of_bits = wgsl.replace("return Part(a.x, a.y,", &format!("return Part(a.x, {bits}u,"));
        let mut id = [&[kernel.source.name.replace('/', "-").as_str()][..], &defines].concat().join("__");
        id.extend((wgsl != of_bits).then(|| format!("__{bits}bit")));
        if let Some(group) = group.filter(|_| of_bits.contains("return weights[0].z;")) {
            of_bits = of_bits.replace("return weights[0].z;", &format!("return {group}u;"));
            id += &format!("__{group}group");
        }
        id.extend(kernel.overrides.iter().map(|(name, v)| format!("__{name}{v}")));
        if let Some(&threads) = self.threads.get(&id) {
            return Ok((id, threads));
        }
        let module = naga::front::wgsl::parse_str(&of_bits).map_err(|e| e.emit_to_string(&of_bits))?;
        let info = check(&module, kernel.source, &defines)?;
        let values = kernel.overrides.iter().map(|&(name, v)| (name.to_owned(), v)).collect();
        let (whole, info) = process_overrides(&module, &info, Some((ShaderStage::Compute, "main")), &values)?;
        let subgroups = with_subgroups(kernel.source, &defines);
        let threads = whole.entry_points[0].workgroup_size.iter().product();
        let mut modules = vec![(id.clone(), whole.into_owned(), info.into_owned())];
        let whole = &modules[0].1;
        let rest = without_main_loop(whole, kernel.source.name);
        let coded = function_of(&CODES, kernel.source.name).map(|f| without_loops(whole, f, false));
        for (part, module) in [("rest", Some(rest)), ("coded", coded)] {
            if let Some(module) = module {
                let info = check(&module, kernel.source, &defines)?;
                modules.push((format!("{id}__{part}"), module, info));
            }
        }
        for (name, module, info) in &modules {
            let path = self.dir.join("spv16").join(format!("{name}.spv"));
            fs::write(path, to_spirv(module, info, (1, 6), subgroups, GPU.dot4)?)?;
            self.index += &format!("{name}\t{subgroups}\t{}\n", bound(module));
        }
        self.threads.insert(id.clone(), threads);
        Ok((id, threads))
    }
}

/// Statements of a block, those of the functions that it calls among them.
fn size(module: &Module, block: &Block) -> usize {
    let of = |statement: &Statement| match statement {
        Statement::Block(block) => size(module, block),
        Statement::If { accept, reject, .. } => size(module, accept) + size(module, reject),
        Statement::Switch { cases, .. } => cases.iter().map(|case| size(module, &case.body)).sum(),
        Statement::Loop { body, continuing, .. } => size(module, body) + size(module, continuing),
        Statement::Call { function, .. } => size(module, &module.functions[*function].body),
        _ => 0,
    };
    block.iter().map(|statement| 1 + of(statement)).sum()
}

/// Calls `f` for the outermost loops of a block, with their sizes.
fn for_loops(module: &Module, block: &mut Block, f: &mut impl FnMut(&mut Statement, usize)) {
    for statement in block.iter_mut() {
        match statement {
            Statement::Block(block) => for_loops(module, block, f),
            Statement::If { accept, reject, .. } => {
                for_loops(module, accept, f);
                for_loops(module, reject, f);
            }
            Statement::Loop { body, continuing, .. } => {
                let size = size(module, body) + size(module, continuing);
                f(statement, size);
            }
            _ => {}
        }
    }
}

/// The function of a kernel in a list of them.
fn function_of(list: &[(&'static str, &'static str)], source: &str) -> Option<&'static str> {
    list.iter().find(|(name, _)| *name == source).map(|&(_, function)| function)
}

/// The module without the main loop: the loops of the function of `MAIN_LOOPS`, or the largest one of `run` or the entry point.
fn without_main_loop(module: &Module, source: &str) -> Module {
    let named = function_of(&MAIN_LOOPS, source);
    without_loops(module, named.unwrap_or("run"), named.is_some())
}

/// The module with a function's loops, or the largest of them, behind a condition that is false; the entry point's if there is
/// no such function.
fn without_loops(module: &Module, name: &str, all: bool) -> Module {
    let mut rest = module.clone();
    let named_function = rest.functions.iter_mut().find(|(_, f)| f.name.as_deref() == Some(name));
    let function: &mut Function = match named_function {
        Some((_, function)) => function,
        None => &mut rest.entry_points[0].function,
    };
    // Behind a condition that is false: results of calls must be somewhere.
    let condition = function.expressions.append(Expression::Literal(Literal::Bool(false)), Span::UNDEFINED);
    let mut largest = 0;
    for_loops(module, &mut function.body, &mut |_, size| largest = largest.max(size));
    for_loops(module, &mut function.body, &mut |statement, size| {
        if all || size == largest {
            let accept = Block::from_vec(vec![statement.clone()]);
            *statement = Statement::If { condition, accept, reject: Block::new() };
        }
    });
    rest
}

/// A plan of a step, and the step.
fn steps(name: &str, rows: usize) -> Done<(Plan, Step)> {
    let files = name.parse::<PublishedModel>()?.files()?;
    let weights = Weights::open(files.clone())?;
    let options = LoadOptions { max_binding: GPU.max_binding, ..LoadOptions::anywhere(Pack::F16) };
    let model = models::open_chat(files, &weights, options)?;
    let shape = TextShape {
        max_rows: rows,
        max_outputs: 1,
        kv_rows: 2048,
        context: 2048,
        sessions: 1,
        kv_dtype: DType::F16,
        images: rows > 1 && model.info().image.is_some(),
    };
    Ok((model.record_text(&shape)?, Step::new(rows, 1, CONTEXT)))
}

/// The lines of a node's launches, without how many there are.
fn lines(kernels: &mut Kernels, bits: u32, (plan, step): (&Plan, &Step), node: &Node, bytes: u64) -> Done<Vec<String>> {
    let variants = plan.variants(node, &GPU).1;
    let usual = variants.all().next().map(|v| v.name.clone());
    let group = node.inputs.iter().find_map(|&slot| match plan.spec(slot).dtype {
        DType::Groups { group } => Some(group),
        _ => None,
    });
    let mut all = Vec::new();
    for variant in variants.all() {
        let Variant { name, caps, .. } = variant;
        for (nth, kernel) in variant.kernels().enumerate() {
            let (id, threads) = kernels.add(*caps, kernel, (bits, group))?;
            let grid = kernel.grid.0.map(|extent| extent.resolve(step));
            if grid.contains(&0) {
                continue;
            }
            // What a second launch reads was written by the first.
            let (bytes, operations) = if nth == 0 { (bytes, operations(plan, node, kernel, step)) } else { (0, 0) };
            let words = kernel.params.bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]));
            let params = kernel.params.fields.iter().zip(words).map(|(f, word)| format!("{f}={word}"));
            let overrides = kernel.overrides.iter().map(|(name, v)| format!("{name}={v}"));
            let params: Vec<_> = params.chain(overrides).collect();
            let [x, y, z] = grid;
            let (op, params, usual) = (node.op.name(), params.join(" "), Some(name) == usual.as_ref());
            all.push(format!("{op}\t{name}\t{usual}\t{id}\t{threads}\t{x}\t{y}\t{z}\t{bytes}\t{operations}\t{params}"));
        }
    }
    Ok(all)
}

fn main() -> Done<()> {
    let dir = std::env::args_os().nth(1).ok_or("usage: dump_launches DIR")?;
    let dir = Path::new(&dir);
    fs::create_dir_all(dir.join("spv16"))?;
    let mut kernels = Kernels { dir, shared: shared(), threads: HashMap::new(), index: String::new() };
    let mut table =
        "model\tstep\top\tvariant\tusual\tkernel\tthreads\tx\ty\tz\tbytes\toperations\tparams\ttimes\n".to_owned();
    for (model, bits) in MODELS {
        for (name, rows) in STEPS {
            let (plan, step) = steps(model, rows)?;
            let bytes = plan.bytes_read(&step, |weight| bytes_of(weight, bits));
            let mut times: Vec<(String, usize)> = Vec::new();
            for (node, bytes) in plan.nodes.iter().zip(bytes) {
                for line in lines(&mut kernels, bits, (&plan, &step), node, bytes)? {
                    match times.iter_mut().find(|(known, _)| *known == line) {
                        Some((_, n)) => *n += 1,
                        None => times.push((line, 1)),
                    }
                }
            }
            table.extend(times.into_iter().map(|(line, n)| format!("{model}\t{name}\t{line}\t{n}\n")));
        }
    }
    fs::write(dir.join("index.tsv"), &kernels.index)?;
    fs::write(dir.join("launches.tsv"), table)?;
    println!("{} kernels in {}", kernels.threads.len(), dir.display());
    Ok(())
}
