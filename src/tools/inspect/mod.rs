//! What a model file holds: its tensors, how they are packed, and how many parameters each component has; `gguf`: what is
//! wrong with a GGUF file, and what its tensors would become; `card`: what a model that chats is.

mod card;
mod gguf;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use serde::Serialize;

use crate::engine::open::{Progress, proceed};
use crate::engine::options::Precision;
use crate::error::{Error, Result};
use crate::files::{ModelFiles, TensorInfo, Weights, not_fetched};
use crate::models;
use crate::models::{HiddenAct, LoadOptions, Model};
use crate::quant::groups::GroupShape;
use crate::tensor::Pack;
use crate::tools::convert::whole;

pub use card::Card;

/// How a model is looked at. A [`Precision`] is one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct InspectOptions {
    /// How full-precision weights would be kept.
    pub precision: Precision,
    /// The activation of feed-forward parts; none: the one that the model's files tell.
    pub hidden_act: Option<HiddenAct>,
}

impl From<Precision> for InspectOptions {
    fn from(precision: Precision) -> Self {
        InspectOptions { precision, hidden_act: None }
    }
}

/// A description of a model file.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// The checkpoint.
    pub file: String,
    /// The model's family.
    pub family: String,
    /// Its sizes and how one talks with it, of a model that chats and that runs.
    pub card: Option<Card>,
    /// What is wrong with the file, or unclear in it; empty where nothing is.
    pub problems: Vec<String>,
    /// All tensors of the checkpoint, by name.
    pub tensors: Vec<TensorLine>,
    /// Entries that cannot be read and that the model does not need, by name, with the reason.
    pub unreadable: BTreeMap<String, String>,
    /// Parameters of each component, in the model's order.
    pub components: Vec<ComponentLine>,
    /// Total number of parameters, without buffers and tied tensors.
    pub parameters: u64,
    /// Number of parameters in ternary matrices.
    pub ternary_parameters: u64,
    /// Bytes of the tensors in the file.
    pub stored_bytes: u64,
    /// Bytes of the tensors that the model reads, as stored on a device.
    pub packed_bytes: u64,
}

/// One tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorLine {
    /// Its name.
    pub name: String,
    /// The shape that it stands for.
    pub shape: Vec<usize>,
    /// Number format in the file.
    pub stored: String,
    /// "1 bit", "2 bits", "f16", "f32", "int8", or "not read", with what shares a scale.
    pub packed: String,
    /// Bytes as stored on a device; 0 if the model does not read it.
    pub packed_bytes: u64,
    /// Shares of the codes −1, 0 and +1, for a ternary matrix.
    pub shares: Option<[f64; 3]>,
    /// The scale of a ternary matrix.
    pub scale: Option<f32>,
}

/// A part of the model and its size.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ComponentLine {
    /// Its name.
    pub name: String,
    /// Its parameters.
    pub parameters: u64,
}

/// The component of tensors that no other component claims.
const OTHER: &str = "other";

/// Describes a model, quantising its ternary matrices to tell their codes. A GGUF file is described even if no family runs
/// it.
///
/// # Errors
/// As [`crate::engine::Engine::open`].
pub fn inspect(
    files: impl Into<ModelFiles>,
    options: impl Into<InspectOptions>,
    mut progress: impl FnMut(Progress) -> ControlFlow<()>,
) -> Result<Inspection> {
    let (files, InspectOptions { precision, hidden_act }) = (files.into(), options.into());
    let weights = Weights::open(&files)?;
    if let ModelFiles::Disk(_) = files {
        not_fetched(weights.path()).iter().for_each(|problem| log::warn!("{problem}"));
    }
    let is_gguf = weights.checkpoint().gguf().is_some();
    let load = LoadOptions { hidden_act, ..LoadOptions::anywhere(precision.pack()) };
    let model = match models::open(&files, &weights, load) {
        Err(error @ (Error::Unsupported { .. } | Error::Config { .. })) if is_gguf => {
            return gguf::describe(&files, &weights, (precision, hidden_act), error.to_string(), &mut progress);
        }
        opened => opened?,
    };
    let problems = gguf::problems(&files, weights.checkpoint(), hidden_act);
    let all: Vec<&TensorInfo> = weights.checkpoint().tensors().collect();
    let mut tensors = Vec::with_capacity(all.len());
    for (done, info) in all.iter().enumerate() {
        proceed(progress(Progress { done, total: all.len(), what: info.name.clone() }))?;
        tensors.push(line(&weights, info, model.reads().get(&info.name).copied())?);
    }
    proceed(progress(Progress { done: all.len(), total: all.len(), what: String::new() }))?;
    let counted = || tensors.iter().filter(|t| model.counts(&t.name));
    let ternary = counted().filter(|t| t.shares.is_some());
    let [parameters, ternary_parameters] =
        [counted().map(TensorLine::elements).sum(), ternary.map(TensorLine::elements).sum()];
    let (family, components) = (model.family().name.to_owned(), components(model.as_ref(), counted())?);
    let options = InspectOptions { precision, hidden_act };
    Ok(Inspection {
        file: weights.path().display().to_string(),
        family,
        card: model.into_chat().map(|model| Card::of(model.as_ref(), &files, &weights, options)),
        problems,
        unreadable: weights.checkpoint().unreadable().clone(),
        components,
        parameters,
        ternary_parameters,
        stored_bytes: all.iter().map(|t| t.bytes() as u64).sum(),
        packed_bytes: tensors.iter().map(|t| t.packed_bytes).sum(),
        tensors,
    })
}

impl TensorLine {
    fn elements(&self) -> u64 {
        self.shape.iter().map(|&n| n as u64).product()
    }
}

fn line(weights: &Weights, info: &TensorInfo, pack: Option<Pack>) -> Result<TensorLine> {
    let (part, shape) = whole(weights, &info.name, pack)?;
    let elements = shape.iter().product::<usize>() as u64;
    let mut line = TensorLine {
        name: info.name.clone(),
        shape,
        stored: info.stored.to_string(),
        packed: "not read".into(),
        packed_bytes: 0,
        shares: None,
        scale: None,
    };
    match pack {
        None => {}
        Some(Pack::F32) => (line.packed, line.packed_bytes) = ("f32".into(), 4 * elements),
        Some(Pack::F16) => (line.packed, line.packed_bytes) = ("f16".into(), 2 * elements),
        Some(Pack::Int8) => (line.packed, line.packed_bytes) = ("int8".into(), elements + 4 * part.rows.len() as u64),
        Some(Pack::Groups { group, codes }) => {
            let matrix = weights.groups(&part, group as usize, codes)?;
            let (shape, counts) = (matrix.shape, matrix.counts());
            line.packed = group_text(shape, counts);
            line.packed_bytes = 4 * (shape.words() + shape.scale_words()) as u64;
            line.shares = counts.map(|n| [n[0], n[1], n[2]].map(|n| n as f64 / elements.max(1) as f64));
            weights.release(&part);
        }
        Some(Pack::Ternary(rule)) => {
            let matrix = weights.ternary(&part, rule)?;
            let bits = matrix.bits.count();
            line.packed = format!("{bits} bit{}", if bits == 1 { "" } else { "s" });
            line.packed_bytes = 4 * matrix.words.len() as u64;
            line.shares = Some(matrix.counts().map(|n| n as f64 / elements.max(1) as f64));
            line.scale = Some(matrix.scale);
            weights.release(&part);
        }
    }
    Ok(line)
}

/// "2 bits, scales of 128, codes of +2".
fn group_text(shape: GroupShape, counts: Option<[u64; 4]>) -> String {
    let bits = shape.bits.count();
    let scales = if shape.groups() == 1 { "a scale a row".into() } else { format!("scales of {}", shape.group) };
    let twice = if counts.is_some_and(|n| n[3] > 0) { ", codes of +2" } else { "" };
    format!("{bits} bit{}, {scales}{twice}", if bits == 1 { "" } else { "s" })
}

/// Parameters of each component: a tensor belongs to the one with the longest prefix of its name.
fn components<'a>(model: &dyn Model, tensors: impl Iterator<Item = &'a TensorLine>) -> Result<Vec<ComponentLine>> {
    let components = model.components();
    let mut sums: BTreeMap<&str, u64> = BTreeMap::new();
    for tensor in tensors {
        let claims = components.iter().filter(|(_, prefix)| tensor.name.starts_with(prefix));
        let name = claims.max_by_key(|(_, prefix)| prefix.len()).map_or(OTHER, |(name, _)| name);
        let sum = sums.entry(name).or_default();
        let too_many = || Error::format(&tensor.name, "the parameters cannot be counted in 64 bits");
        *sum = sum.checked_add(tensor.elements()).ok_or_else(too_many)?;
    }
    let mut names: Vec<&str> = components.iter().map(|(name, _)| *name).chain([OTHER]).collect();
    // Prefixes of one component stand behind one another.
    names.dedup();
    let line = |name: &str| sums.get(name).map(|&parameters| ComponentLine { name: name.to_owned(), parameters });
    Ok(names.into_iter().filter_map(line).collect())
}
