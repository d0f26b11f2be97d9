//! A place in the tree of tensor names, from which a model takes tensors of the shapes that it needs.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::Weights;
use crate::plan::{PlanBuilder, Slot};
use crate::quant::WeightQuant;
use crate::tensor::{CountedBy, DType, Pack, Spec, WeightPart, WeightRef};

/// How weights are packed and cut.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LoadOptions {
    /// Full-precision matrices: [`Pack::F16`] or [`Pack::F32`]. Norms, biases and routers are always f32.
    pub dense: Pack,
    /// The matrix that gives the logits: as `dense`, or [`Pack::Int8`]. Where it is the embedding table, embeddings keep
    /// `dense`.
    pub head: Pack,
    /// Largest weight in bytes before it is cut by rows, a stack of ternary matrices by rows of each.
    pub max_binding: u64,
}

impl LoadOptions {
    /// For tools, which run nothing: all full-precision matrices as `pack`, and no weight is cut.
    pub const fn anywhere(pack: Pack) -> Self {
        LoadOptions { dense: pack, head: pack, max_binding: u64::MAX }
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
        self.cut(name, shape, self.options.dense)
    }

    /// The matrix that gives the logits, cut into pieces that fit a binding each.
    pub fn head(&self, name: &str, shape: [usize; 2]) -> Vec<Tensor> {
        self.cut(name, shape, self.options.head)
    }

    fn cut(&self, name: &str, shape: [usize; 2], pack: Pack) -> Vec<Tensor> {
        let whole = self.tensor(name, &shape, pack);
        // Four rows have as many words as one has bytes; what is bound is a whole number of four words.
        let row = Spec::fixed(&[4, shape[1]], pack.dtype()).words() as u64;
        let rows = (self.options.max_binding / 16 * 16 / row.max(1)).clamp(1, shape[0].max(1) as u64) as usize;
        (0..shape[0]).step_by(rows).map(|from| whole.rows(from..(from + rows).min(shape[0]))).collect()
    }

    fn tensor(&self, name: &str, shape: &[usize], pack: Pack) -> Tensor {
        let name = format!("{}{name}", self.prefix);
        let mut errors = self.errors.borrow_mut();
        let read = errors.reads.entry(name.clone()).or_insert(pack);
        if *read != pack {
            *read = Pack::F32;
        }
        match self.weights.shape(&name) {
            None => {
                let wanted = TensorRequest { name: name.clone(), shape: shape.to_vec(), pack };
                errors.missing.push(wanted);
            }
            // A model has no use for a tensor without elements, whatever it asks for.
            Some(found) if found != shape || found.contains(&0) => {
                let fault =
                    Misshapen { name: name.clone(), expected: format!("{shape:?}"), found: format!("{found:?}") };
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
