//! Records a model's plans without a device and prints them: each op with the shapes it reads and writes, then how
//! often each op occurs and what memory the plan asks for.
//!
//! `cargo run --release --example inspect_plan -- MODEL [decode|prefill|image]`

use std::collections::BTreeMap;
use std::io::Write;

use ternion::Result;
use ternion::files::Weights;
use ternion::unstable::models;
use ternion::unstable::models::{ChatModel, LoadOptions, TextShape};
use ternion::unstable::plan::{MemoryPlan, Plan, SlotKind};
use ternion::unstable::tensor::{DType, Pack};

/// The sizes of a step: as the engine chooses them for one session.
fn record(model: &dyn ChatModel, which: &str) -> Result<Plan> {
    let text = |max_rows, images| TextShape {
        max_rows,
        max_outputs: 1,
        kv_rows: 2048,
        context: 2048,
        sessions: 1,
        kv_dtype: DType::F16,
        images,
    };
    match which {
        "image" => model.record_image(),
        "prefill" => model.record_text(&text(64, model.info().image.is_some())),
        _ => model.record_text(&text(1, false)),
    }
}

/// Elements of the weights, those of ternary matrices apart.
fn weight_elements(plan: &Plan) -> (usize, usize) {
    plan.weights().fold((0, 0), |(ternary, dense), (weight, _)| {
        let n: usize = weight.parts.iter().map(|p| p.rows.len() * p.cols).sum();
        match weight.pack {
            Pack::Ternary(_) => (ternary + n, dense),
            Pack::F16 | Pack::F32 | Pack::Int8 | Pack::Groups { .. } => (ternary, dense + n),
        }
    })
}

/// Bytes of the slots of a kind.
fn bytes_of(plan: &Plan, kind: impl Fn(&SlotKind) -> bool) -> usize {
    plan.slots.iter().filter(|s| kind(&s.kind)).map(|s| 4 * s.spec.words()).sum()
}

fn main() -> std::result::Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("usage: inspect_plan MODEL [decode|prefill|image]")?;
    let which = args.next().unwrap_or_else(|| "decode".into());
    let weights = Weights::open(&path)?;
    // Full-precision parts as 16-bit floats, and no tensor so large that it must be split.
    let options = LoadOptions::anywhere(Pack::F16);
    let model = models::open_chat(&path, &weights, options)?;
    let plan = record(model.as_ref(), &which)?;
    // Not `print!`, which panics when a reader such as `head` goes away.
    let mut out = std::io::stdout().lock();
    write!(out, "{plan}")?;

    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for node in &plan.nodes {
        *counts.entry(node.op.name()).or_default() += 1;
    }
    writeln!(out, "\n{} of {}: {} nodes", which, model.info().family, plan.nodes.len())?;
    for (name, n) in counts {
        writeln!(out, "{n:6} {name}")?;
    }
    let (ternary, dense) = weight_elements(&plan);
    writeln!(out, "weights:      {ternary} ternary, {dense} of 16 or 32 bits")?;
    writeln!(
        out,
        "states:       {} bytes (KV cache and routing)",
        bytes_of(&plan, |k| matches!(k, SlotKind::State(_)))
    )?;
    writeln!(out, "constants:    {} bytes", bytes_of(&plan, |k| matches!(k, SlotKind::Constant(..))))?;
    let temps = bytes_of(&plan, |k| matches!(k, SlotKind::Temp | SlotKind::Input(_)));
    let memory = MemoryPlan::assign(&plan, false);
    let shared: usize = memory.sizes.iter().map(|words| 4 * words).sum();
    writeln!(
        out,
        "temporaries:  {shared} bytes in {} buffers ({temps} bytes if none were shared)",
        memory.sizes.len()
    )?;
    Ok(())
}
