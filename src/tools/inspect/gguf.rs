//! GGUF files of any architecture: what each tensor would become, and what is wrong.

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use half::f16;
use serde_json::Value;

use crate::engine::open::{Progress, proceed};
use crate::engine::options::Precision;
use crate::error::Result;
use crate::files::config::ModelConfig;
use crate::files::{Checkpoint, GgufMetadata, ModelFiles, StorageDType, TensorInfo, Weights};
use crate::models::HiddenAct;
use crate::quant::formats::{CodeFormat, Content, Format, IntegerFormat, magnitude};
use crate::tools::inspect::{Inspection, TensorLine};

/// Elements that are looked at in one piece.
const PIECE: usize = 1 << 20;
/// The forms of the Prism fork, whose matrices of this architecture are stored rotated, and what its keys begin with.
const ROTATED: [&str; 2] = ["PQ2_0", "PTQ1_0"];
const ROTATED_ARCHITECTURE: &str = "qwen35";
const ROTATION_KEYS: &str = "prism.hadamard.";

/// What is wrong with a GGUF file, or unclear in it beside the activation that the caller told; nothing of other files.
pub(super) fn problems(files: &ModelFiles, checkpoint: &Checkpoint, hidden_act: Option<HiddenAct>) -> Vec<String> {
    let Some(keys) = checkpoint.gguf() else { return Vec::new() };
    let mut all = Vec::new();
    match ModelConfig::of(files, checkpoint) {
        Ok(config) if config.keys.get("hidden_act") == Some(&Value::Null) && hidden_act.is_none() => all.push(
            "nothing in the file tells whether its feed-forward part has SiLU or squared ReLU; with the wrong one \
             answers are fluent and wrong (the option `hidden_act` says it)"
                .to_owned(),
        ),
        Ok(_) => {}
        Err(error) => all.push(error.to_string()),
    }
    // One line for each reason but for the sizes: files have the same one for hundreds of tensors.
    let mut unread: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, why) in checkpoint.unreadable() {
        let kind = why.split(',').next().unwrap_or(why);
        unread.entry(kind).or_default().push(name);
    }
    for names in unread.values() {
        if let Some((first, why)) = names.first().and_then(|name| checkpoint.unreadable().get_key_value(*name)) {
            let more = match names.len() - 1 {
                0 => String::new(),
                n => format!(", and {n} more of this type"),
            };
            all.push(format!("tensor {first:?} cannot be read: {why}{more}"));
        }
    }
    all.extend(lost_rotation(keys, checkpoint));
    all
}

/// The complaint about rotated matrices whose rotation is not in the file.
fn lost_rotation(keys: &GgufMetadata, checkpoint: &Checkpoint) -> Option<String> {
    let architecture = keys.text("general.architecture").ok().flatten()?;
    let is_rotated = |t: &TensorInfo| matches!(t.stored, StorageDType::Blocks(f) if ROTATED.contains(&f.name()));
    let rotated = checkpoint.tensors().filter(|t| is_rotated(t)).count();
    let said = keys.keys().any(|key| key.starts_with(ROTATION_KEYS));
    (architecture == ROTATED_ARCHITECTURE && rotated > 0 && !said).then(|| {
        format!(
            "its {rotated} matrices of {} are stored rotated as a rule, and the keys {ROTATION_KEYS}* that say how are \
             not there: a tool that wrote the file anew may have lost them, and the answers would be noise",
            ROTATED.join(" or ")
        )
    })
}

/// Describes a GGUF file that no family runs; `why` is the error that says so.
pub(super) fn describe(
    files: &ModelFiles,
    weights: &Weights,
    (precision, hidden_act): (Precision, Option<HiddenAct>),
    why: String,
    progress: &mut dyn FnMut(Progress) -> ControlFlow<()>,
) -> Result<Inspection> {
    let checkpoint = weights.checkpoint();
    let all: Vec<&TensorInfo> = checkpoint.tensors().collect();
    let mut tensors = Vec::with_capacity(all.len());
    for (done, info) in all.iter().enumerate() {
        proceed(progress(Progress { done, total: all.len(), what: info.name.clone() }))?;
        tensors.push(line(checkpoint, info, precision)?);
        checkpoint.release(&info.name);
    }
    proceed(progress(Progress { done: all.len(), total: all.len(), what: String::new() }))?;
    let architecture = checkpoint.gguf().and_then(|keys| keys.text("general.architecture").ok().flatten());
    let mut problems = problems(files, checkpoint, hidden_act);
    problems.push(why);
    Ok(Inspection {
        file: weights.path().display().to_string(),
        family: format!("no family, architecture {}", architecture.unwrap_or("none")),
        card: None,
        problems,
        unreadable: checkpoint.unreadable().clone(),
        components: Vec::new(),
        parameters: tensors.iter().map(TensorLine::elements).sum(),
        ternary_parameters: tensors.iter().filter(|t| t.shares.is_some()).map(TensorLine::elements).sum(),
        stored_bytes: all.iter().map(|t| t.bytes() as u64).sum(),
        packed_bytes: tensors.iter().map(|t| t.packed_bytes).sum(),
        tensors,
    })
}

fn line(checkpoint: &Checkpoint, info: &TensorInfo, precision: Precision) -> Result<TensorLine> {
    let elements = info.elements() as u64;
    let (packed, packed_bytes, shares) = match info.stored {
        StorageDType::Blocks(format) => blocks(checkpoint, info, format)?,
        // Norms and biases.
        _ if info.shape.len() < 2 => ("f32".to_owned(), 4 * elements, None),
        _ => match precision {
            Precision::F32 => ("f32".to_owned(), 4 * elements, None),
            Precision::F16 => ("f16".to_owned(), 2 * elements, None),
        },
    };
    let (name, shape) = (info.name.clone(), info.shape.clone());
    Ok(TensorLine { name, shape, stored: info.stored.to_string(), packed, packed_bytes, shares, scale: None })
}

/// What blocks become, the bytes of it, and the shares of codes.
fn blocks(checkpoint: &Checkpoint, info: &TensorInfo, format: Format) -> Result<(String, u64, Option<[f64; 3]>)> {
    let elements = info.elements();
    match format.content() {
        Content::Codes(codes) => {
            let counts = code_counts(checkpoint, info, format, codes)?;
            let bits = codes.bits().count();
            let one_scale = format.tail_bytes() > 0;
            let scales = if one_scale { 4 } else { 2 * (elements / format.elements()) };
            let group = if one_scale { String::new() } else { format!(", scales of {}", format.elements()) };
            let twice = if counts[3] > 0 { ", codes of +2" } else { "" };
            let name = format!("{bits} bit{}{group}{twice}", if bits == 1 { "" } else { "s" });
            let shares = [0, 1, 2].map(|i| counts[i] as f64 / elements.max(1) as f64);
            Ok((name, (elements * bits / 8 + scales) as u64, Some(shares)))
        }
        Content::Integers(integers) => {
            let (group, groups) = (integers.group(), elements / integers.group());
            let counts = ternary_counts(checkpoint, info, format, integers)?;
            let shares = counts.map(|n| n.map(|n| n as f64 / elements.max(1) as f64));
            let numbers = if integers.has_offsets() { 2 } else { 1 };
            Ok(match shares {
                Some(_) => (format!("2 bits, scales of {group}"), (elements / 4 + 2 * groups) as u64, shares),
                None => {
                    let offsets = if integers.has_offsets() { " and offsets" } else { "" };
                    (format!("int8, scales{offsets} of {group}"), (elements + 2 * numbers * groups) as u64, None)
                }
            })
        }
    }
}

/// Calls `each` with the blocks of a tensor, some at a time.
fn pieces(checkpoint: &Checkpoint, info: &TensorInfo, format: Format, mut each: impl FnMut(&[u8])) -> Result<()> {
    let (elements, piece) = (info.elements(), PIECE.next_multiple_of(format.elements()));
    for start in (0..elements).step_by(piece) {
        each(&checkpoint.blocks(&info.name, start..elements.min(start + piece))?.bytes);
    }
    Ok(())
}

/// How often each code from −1 to +2 occurs.
fn code_counts(checkpoint: &Checkpoint, info: &TensorInfo, format: Format, codes: &dyn CodeFormat) -> Result<[u64; 4]> {
    let mut bytes = [0u64; 256];
    let (mut packed, mut scales) = (Vec::new(), Vec::new());
    pieces(checkpoint, info, format, |blocks| {
        let n = blocks.len() / format.bytes();
        packed.resize(n * format.elements() * codes.bits().count() / 8, 0);
        scales.resize(n, f16::ZERO);
        codes.unpack(blocks, &mut packed, &mut scales);
        packed.iter().for_each(|&byte| bytes[usize::from(byte)] += 1);
    })?;
    let mut counts = [0; 4];
    for (byte, n) in (0u8..=255).zip(bytes) {
        let mut found = [0i8; 8];
        let found = &mut found[..8 / codes.bits().count()];
        crate::quant::formats::codes(codes.bits(), &[byte], found);
        found.iter().for_each(|code| counts[(code + 1) as usize] += n);
    }
    Ok(counts)
}

/// How many elements are negative, 0 and positive, where each group has one magnitude; none where one has several.
fn ternary_counts(
    checkpoint: &Checkpoint,
    info: &TensorInfo,
    format: Format,
    integers: &dyn IntegerFormat,
) -> Result<Option<[u64; 3]>> {
    // An offset moves the zero.
    let mut counts = (!integers.has_offsets()).then_some([0u64; 3]);
    let (mut q, mut scales, mut offsets) = (Vec::new(), Vec::new(), Vec::new());
    pieces(checkpoint, info, format, |blocks| {
        let Some(all) = &mut counts else { return };
        let n = blocks.len() / format.bytes() * format.elements();
        q.resize(n, 0);
        scales.resize(n / integers.group(), 0.0);
        offsets.resize(n / integers.group(), 0.0);
        integers.unpack(blocks, &mut q, &mut scales, &mut offsets);
        for &q in &q {
            all[(q.signum() + 1) as usize] += 1;
        }
        if !q.chunks(integers.group()).all(|group| magnitude(group).is_some()) {
            counts = None;
        }
    })?;
    Ok(counts)
}
