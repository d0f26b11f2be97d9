//! A place in the tree of tensor names, from which a model takes tensors of the shapes that it needs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::{MatrixForm, Quantisation, Weights};
use crate::plan::{PlanBuilder, Slot};
use crate::quant::WeightQuant;
use crate::tensor::{CountedBy, DType, GroupCodes, Pack, Spec, WeightPart, WeightRef};

/// How weights are packed and cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Full-precision matrices: [`Pack::F16`] or [`Pack::F32`]. Norms, biases and routers are always f32.
    pub dense: Pack,
    /// The matrix that gives the logits: as `dense`, or [`Pack::Int8`]. Where it is the embedding table, embeddings keep
    /// `dense`.
    pub head: Pack,
    /// Largest weight in bytes before it is cut by rows, a stack of matrices by rows of each.
    pub max_binding: u64,
    /// What low-bit matrices read that were trained with activations of floats.
    pub activations: Activations,
    /// The activation of feed-forward parts; none: the one that the model's files tell.
    pub hidden_act: Option<HiddenAct>,
}

/// What low-bit matrices read, in models whose definition does not say it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Activations {
    /// 8-bit integers with a scale for 32 columns.
    #[default]
    Int8,
    /// Floats: the reference for the error of the integers.
    Floats,
}

/// The activation of a gated feed-forward part ([`crate::ops::Act`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum HiddenAct {
    /// `x / (1 + e^−x)`.
    SiLu,
    /// `max(x, 0)²`.
    Relu2,
}

impl LoadOptions {
    /// For tools, which run nothing: all full-precision matrices as `pack`, and no weight is cut.
    pub const fn anywhere(pack: Pack) -> Self {
        LoadOptions { dense: pack, head: pack, max_binding: u64::MAX, activations: Activations::Int8, hidden_act: None }
    }
}

impl LoadOptions {
    /// Refuses choices that a family's definition does not leave open.
    ///
    /// # Errors
    /// [`Error::Argument`] with the option.
    pub(crate) fn check_fixed(&self, family: &str) -> Result<()> {
        let refused = |option, what| Err(Error::argument(option, format!("{family}'s definition says {what}")));
        match (self.activations, self.hidden_act) {
            (Activations::Floats, _) => refused("activations", "what its low-bit matrices read"),
            (_, Some(_)) => refused("hidden-act", "which activations it has"),
            (Activations::Int8, None) => Ok(()),
        }
    }
}

/// A weight with the shape that it has in a plan.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Where its bytes come from.
    pub weight: WeightRef,
    /// Its shape.
    pub shape: Vec<usize>,
}

impl Tensor {
    /// The slot of this weight in a plan.
    pub fn slot(&self, p: &PlanBuilder) -> Slot {
        p.weight(&self.weight, &self.shape)
    }

    /// Several weights of one kind behind one another, under a new shape.
    pub fn stack(parts: &[Tensor], shape: &[usize]) -> Tensor {
        let weight = WeightRef {
            parts: parts.iter().flat_map(|t| t.weight.parts.clone()).collect(),
            pack: parts.first().map_or(Pack::F32, |t| t.weight.pack),
        };
        Tensor { weight, shape: shape.to_vec() }
    }

    /// A matrix of floats, or of rows of integers, of one tensor, cut by rows into pieces of at most `max_binding` bytes.
    pub fn shards(&self, max_binding: u64) -> Vec<Tensor> {
        let [rows, cols] = [0, 1].map(|i| self.shape.get(i).copied().unwrap_or(1));
        // Four rows have as many words as one has bytes; what is bound is a whole number of four words.
        let row = Spec::fixed(&[4, cols], self.weight.pack.dtype()).words() as u64;
        let each = (max_binding / 16 * 16 / row.max(1)).clamp(1, rows.max(1) as u64) as usize;
        (0..rows).step_by(each).map(|from| self.rows(from..(from + each).min(rows))).collect()
    }

    /// Rows of a matrix of one tensor.
    pub fn rows(&self, rows: Range<usize>) -> Tensor {
        let mut weight = self.weight.clone();
        for part in &mut weight.parts {
            part.rows = part.rows.start + rows.start..part.rows.start + rows.end;
        }
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        Tensor { weight, shape }
    }
}

/// A weight that was computed at loading: a folded norm, interpolated positions.
#[derive(Debug)]
pub struct ComputedTensor {
    name: String,
    shape: Vec<usize>,
    words: Arc<Vec<u32>>,
}

impl ComputedTensor {
    /// `values` under a name of their own.
    pub fn new(name: impl Into<String>, shape: &[usize], values: Vec<f32>) -> Self {
        let words = values.into_iter().map(f32::to_bits).collect();
        ComputedTensor { name: name.into(), shape: shape.to_vec(), words: Arc::new(words) }
    }

    /// The slot of this table in a plan.
    pub fn slot(&self, p: &PlanBuilder) -> Slot {
        let words = self.words.clone();
        p.constant(&self.name, Spec::fixed(&self.shape, DType::F32), move || words.to_vec())
    }

    /// The table `n` times over, once for each leading row of a step.
    pub fn for_rows(&self, p: &PlanBuilder, n: usize) -> Slot {
        let spec = Spec::counted(&[&[n], &self.shape[..]].concat(), DType::F32, CountedBy::Rows);
        let words = self.words.clone();
        p.constant(&format!("{} of {n}", self.name), spec, move || words.repeat(n))
    }
}

/// Looks tensors up under a prefix. What is missing or misshapen is collected, so that one error names all of it.
#[derive(Debug)]
pub struct TensorScope<'a> {
    weights: &'a Weights,
    prefix: String,
    options: LoadOptions,
    quant: WeightQuant,
    errors: &'a RefCell<LoadErrors>,
}

/// A tensor that a model reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorRequest {
    /// Its name in the checkpoint.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// How it is packed.
    pub pack: Pack,
}

/// The tensors that a model reads, and how each is packed; one that is read in two ways is f32.
pub type Reads = BTreeMap<String, Pack>;

/// Takes a model's tensors with `take`: the model as far as names and shapes, and the tensors that it reads.
///
/// # Errors
/// [`Error::MissingTensors`] with every name, or what [`crate::files::Checkpoint::absent`] says instead; else
/// [`Error::Shape`] with the tensors that do not fit; else what could not be read.
pub fn load_model<T>(
    weights: &Weights,
    options: LoadOptions,
    quant: WeightQuant,
    take: impl FnOnce(&TensorScope) -> T,
) -> Result<(T, Reads)> {
    let errors = RefCell::new(LoadErrors::default());
    let model = take(&TensorScope::new(weights, options, quant, &errors));
    Ok((model, errors.take().into_result(weights)?))
}

/// The tensors that `take` asks an empty checkpoint for; some are listed twice.
pub fn requests<T>(nothing: &Weights, quant: WeightQuant, take: impl FnOnce(&TensorScope) -> T) -> Vec<TensorRequest> {
    let errors = RefCell::new(LoadErrors::default());
    take(&TensorScope::new(nothing, LoadOptions::anywhere(Pack::F16), quant, &errors));
    errors.take().missing
}

/// What a model's `load` asked for so far, and what it found wrong.
#[derive(Debug, Default)]
struct LoadErrors {
    reads: Reads,
    missing: Vec<TensorRequest>,
    misshapen: Vec<Misshapen>,
    /// The first of anything else.
    error: Option<Error>,
}

/// A tensor that is there in another shape.
#[derive(Debug, PartialEq, Eq)]
struct Misshapen {
    name: String,
    expected: String,
    found: String,
}

/// Maximum number of tensors of another shape that a message lists.
const MAX_LISTED: usize = 8;

impl LoadErrors {
    /// All that was asked for, or the error if anything was wrong.
    fn into_result(self, weights: &Weights) -> Result<Reads> {
        if !self.missing.is_empty() {
            let mut names: Vec<String> = Vec::with_capacity(self.missing.len());
            let mut seen = BTreeSet::new();
            names.extend(self.missing.into_iter().map(|w| w.name).filter(|name| seen.insert(name.clone())));
            return Err(weights.checkpoint().absent(names));
        }
        if let Some(error) = misshapen(&weights.path().display().to_string(), self.misshapen) {
            return Err(error);
        }
        self.error.map_or(Ok(self.reads), Err)
    }
}

/// One error for all tensors of another shape.
fn misshapen(file: &str, mut all: Vec<Misshapen>) -> Option<Error> {
    let more = all.len().saturating_sub(MAX_LISTED);
    all.truncate(MAX_LISTED);
    let (names, expected) = (all.iter().map(|m| m.name.as_str()), all.iter().map(|m| m.expected.as_str()));
    let found = all.iter().map(|m| m.found.as_str());
    let list = |texts: Vec<&str>| texts.join(", ");
    let (kind, and) = match (all.len(), more) {
        (0, _) => return None,
        (1, _) => ("tensor", String::new()),
        (_, 0) => ("tensors", String::new()),
        (_, more) => ("tensors", format!(" and {more} more")),
    };
    let object = format!("{file}: {kind} {}{and}", list(names.collect()));
    Some(Error::shape(object, list(expected.collect()), list(found.collect())))
}

/// The largest dimension of a tensor from whose shape sizes are read: the largest vocabularies have 2^18 tokens.
pub(crate) const MAX_DIM: usize = 1 << 20;

/// The dimensions of a tensor from which sizes are read: `rank` of them, each of 1 to [`MAX_DIM`].
///
/// # Errors
/// [`Error::Shape`] for others, and what [`crate::files::Checkpoint::absent`] says of one that is not there.
pub(crate) fn dims(weights: &Weights, name: &str, rank: usize) -> Result<Vec<usize>> {
    let found = weights.shape(name).ok_or_else(|| weights.checkpoint().absent(vec![name.to_owned()]))?;
    if found.len() == rank && found.iter().all(|n| (1..=MAX_DIM).contains(n)) {
        return Ok(found);
    }
    let object = format!("{}: tensor {name}", weights.path().display());
    Err(Error::shape(object, format!("{rank} dimensions of 1 to {MAX_DIM}"), format!("{found:?}")))
}

impl<'a> TensorScope<'a> {
    /// The root of the tree.
    fn new(weights: &'a Weights, options: LoadOptions, quant: WeightQuant, errors: &'a RefCell<LoadErrors>) -> Self {
        TensorScope { weights, prefix: String::new(), options, quant, errors }
    }

    /// A place below this one.
    pub fn at(&self, name: impl std::fmt::Display) -> TensorScope<'a> {
        TensorScope { prefix: format!("{}{name}.", self.prefix), ..*self }
    }

    /// A matrix in full precision: the tensor's first dimension by the product of the others.
    pub fn dense(&self, name: &str, shape: &[usize]) -> Tensor {
        self.tensor(name, shape, self.options.dense)
    }

    /// A matrix in f32, whatever the options say.
    pub fn exact(&self, name: &str, shape: &[usize]) -> Tensor {
        self.tensor(name, shape, Pack::F32)
    }

    /// A vector: a norm or a bias, always f32.
    pub fn vector(&self, name: &str, d: usize) -> Tensor {
        Tensor { shape: vec![d], ..self.tensor(name, &[d], Pack::F32) }
    }

    /// The numbers of a tensor, for a weight that is computed from it at loading. Zeros where it is missing or broken, which
    /// the error at the end of loading says.
    pub fn values(&self, name: &str, shape: &[usize]) -> Vec<f32> {
        let tensor = self.exact(name, shape);
        let whole = self.weights.shape(&format!("{}{name}", self.prefix)).is_some_and(|found| found == shape);
        let loaded = if whole { self.weights.load(&tensor.weight) } else { Ok(vec![0; shape.iter().product()]) };
        let words = loaded.unwrap_or_else(|error| {
            self.errors.borrow_mut().error.get_or_insert(error);
            vec![0; shape.iter().product()]
        });
        words.into_iter().map(f32::from_bits).collect()
    }

    /// A ternary matrix.
    pub fn ternary(&self, name: &str, shape: [usize; 2]) -> Tensor {
        self.tensor(name, &shape, Pack::Ternary(self.quant))
    }

    /// Largest weight in bytes before it is cut.
    pub fn max_binding(&self) -> u64 {
        self.options.max_binding
    }

    /// A matrix in full precision, cut into pieces that fit a binding each.
    pub fn sharded(&self, name: &str, shape: [usize; 2]) -> Vec<Tensor> {
        self.tensor(name, &shape, self.options.dense).shards(self.options.max_binding)
    }

    /// The matrix that gives the logits, packed as the options say.
    pub fn head(&self, name: &str, shape: &[usize; 2]) -> Tensor {
        self.tensor(name, shape, self.options.head)
    }

    /// A matrix as the file holds it ([`Weights::matrix_form`]): codes with scales by group, or floats, packed as the
    /// options say. Integers of which only a rounded form would be kept are floats where these are f32.
    pub fn stored(&self, name: &str, shape: [usize; 2], quantisation: Option<Quantisation>) -> Tensor {
        self.tensor(name, &shape, self.stored_pack(name, shape[1], quantisation, self.options.dense))
    }

    /// The matrix that gives the logits, as the file holds it; whole.
    pub fn stored_head(&self, name: &str, shape: [usize; 2], quantisation: Option<Quantisation>) -> Tensor {
        self.tensor(name, &shape, self.stored_pack(name, shape[1], quantisation, self.options.head))
    }

    fn stored_pack(&self, name: &str, cols: usize, quantisation: Option<Quantisation>, dense: Pack) -> Pack {
        let form = self.weights.matrix_form(&format!("{}{name}", self.prefix), cols, quantisation);
        let form = form.unwrap_or_else(|error| {
            self.errors.borrow_mut().error.get_or_insert(error);
            MatrixForm::Dense
        });
        match form {
            MatrixForm::Codes { codes: GroupCodes::Int8, .. } if dense == Pack::F32 => Pack::F32,
            MatrixForm::Codes { group, codes } => Pack::Groups { group, codes },
            MatrixForm::Dense => dense,
        }
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.weights.shape(&format!("{}{name}", self.prefix)).is_some()
    }

    fn tensor(&self, name: &str, shape: &[usize], pack: Pack) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        let mut errors = self.errors.borrow_mut();
        let read = errors.reads.entry(name.clone()).or_insert(pack);
        if *read != pack {
            *read = Pack::F32;
        }
        let stored = stored_shape(shape, pack);
        match self.weights.shape(&name) {
            None => {
                let wanted = TensorRequest { name: name.clone(), shape: shape.to_vec(), pack };
                errors.missing.push(wanted);
            }
            // A model has no use for a tensor without elements, whatever it asks for.
            Some(found) if found != stored || found.contains(&0) => {
                let fault =
                    Misshapen { name: name.clone(), expected: format!("{stored:?}"), found: format!("{found:?}") };
                if !errors.misshapen.contains(&fault) {
                    errors.misshapen.push(fault);
                }
            }
            Some(_) => {}
        }
        // A scalar is one row of one column.
        let (rows, cols) = (shape.first().copied().unwrap_or(1), shape.iter().skip(1).product());
        let part = WeightPart { name, rows: 0..rows, cols };
        Tensor { weight: WeightRef { parts: vec![part], pack }, shape: vec![rows, cols] }
    }
}

/// The shape of the tensor that holds a matrix.
fn stored_shape(shape: &[usize], pack: Pack) -> Vec<usize> {
    let per = pack.per_stored().into_iter().chain(std::iter::repeat(1));
    shape.iter().zip(per).map(|(n, per)| n.div_ceil(per)).collect()
}
