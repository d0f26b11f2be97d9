//! Matrices as a file holds them: low-bit codes with scales by group, 8-bit integers, or floats.

use crate::files::Quantisation;
use crate::models::decoder::bit_linear::cut;
use crate::models::decoder::linear::Norm;
use crate::models::load::{Tensor, TensorScope};
use crate::ops::{Act, ActQuant, CodeScale, GroupFactor, GroupInput, GroupQuant, StackPiece};
use crate::plan::{PlanBuilder, Slot};
use crate::quant::groups::GroupShape;
use crate::quant::{Bits, PART_WORDS, TILE_ROWS};
use crate::tensor::{DType, GroupCodes, Pack, Spec};

/// How matrices are stored, and what those of codes read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StoredSpec {
    /// How the file's matrices are quantised, as far as its configuration says it.
    pub quantisation: Option<Quantisation>,
    /// The rule of activation codes in front of matrices of codes; none: they read floats.
    pub act: Option<(ActQuant, CodeScale)>,
}

/// Matrices that read the same input, with their biases if they have any, their outputs side by side.
#[derive(Debug)]
pub struct StoredStack {
    quant: Option<(ActQuant, CodeScale)>,
    runs: Vec<Run>,
    bias: Option<Tensor>,
}

/// Neighbours of one form.
#[derive(Debug)]
enum Run {
    /// Codes with scales for `group` columns.
    Codes { group: usize, pieces: Vec<Piece> },
    /// Floats, cut by rows.
    Dense(Vec<Tensor>),
}

/// A stack `[matrices, Σ outs, d_in]` of codes.
#[derive(Debug)]
struct Piece {
    weights: Tensor,
    outs: Vec<usize>,
}

impl Piece {
    fn stack(&self, p: &PlanBuilder) -> StackPiece<'_> {
        StackPiece { weights: self.weights.slot(p), first: 0, outs: &self.outs }
    }
}

impl StoredStack {
    /// Takes `NAME.weight` of each name, `[d_out, d_in]` with the `outs` in turn, and `NAME.bias` where the first has one.
    pub fn load(w: &TensorScope, names: &[&str], outs: &[usize], d_in: usize, spec: StoredSpec) -> Self {
        let all = || names.iter().map(|name| w.at(name)).zip(outs);
        let matrices: Vec<Tensor> = all().map(|(w, &out)| w.stored("weight", [out, d_in], spec.quantisation)).collect();
        let biases = all().next().is_some_and(|(w, _)| w.has("bias"));
        let biases: Option<Vec<Tensor>> = biases.then(|| all().map(|(w, &out)| w.vector("bias", out)).collect());
        let bias = biases.map(|all| Tensor::stack(&all, &[outs.iter().sum()]));
        StoredStack { bias, ..StoredStack::new(&matrices, w.max_binding(), spec.act) }
    }

    /// Matrices `[d_out, d_in]` that were taken, cut into pieces of at most `max_binding` bytes.
    pub fn new(matrices: &[Tensor], max_binding: u64, quant: Option<(ActQuant, CodeScale)>) -> Self {
        // Codes of one group read the same activations, whatever form of a file they come from.
        let same = |a: &Tensor, b: &Tensor| a.weight.pack.dtype() == b.weight.pack.dtype();
        let run = |of: &[Tensor]| match of[0].weight.pack.dtype() {
            DType::Groups { group } => Run::Codes { group: group as usize, pieces: pieces(of, max_binding) },
            _ => Run::Dense(dense(of, max_binding)),
        };
        StoredStack { quant, runs: matrices.chunk_by(same).map(run).collect(), bias: None }
    }

    /// Its pieces in order.
    pub fn into_pieces(self) -> Vec<Tensor> {
        let pieces = |run| match run {
            Run::Codes { pieces, .. } => pieces.into_iter().map(|piece| piece.weights).collect(),
            Run::Dense(shards) => shards,
        };
        self.runs.into_iter().flat_map(pieces).collect()
    }

    /// x `[rows, d_in]` → `[rows, Σ d_out]`, behind an activation of gate and up side by side and a norm, and plus a residual, if
    /// given.
    pub fn record(
        &self,
        p: &PlanBuilder,
        x: Slot,
        act: Option<Act>,
        norm: Option<&Norm>,
        residual: Option<Slot>,
    ) -> Slot {
        let bias = self.bias.as_ref().map(|bias| bias.slot(p));
        if let [run] = &self.runs[..] {
            return self.run(p, run, x, (act, norm), [bias, residual]);
        }
        let x = act.map_or(x, |act| p.swiglu(x, act));
        let mut y: Option<Slot> = None;
        for run in &self.runs {
            let part = self.run(p, run, x, (None, norm), [None; 2]);
            y = Some(y.map_or(part, |before| p.concat(before, part)));
        }
        plus(p, y.unwrap_or(x), bias, residual)
    }

    fn run(
        &self,
        p: &PlanBuilder,
        run: &Run,
        x: Slot,
        (act, norm): (Option<Act>, Option<&Norm>),
        [bias, residual]: [Option<Slot>; 2],
    ) -> Slot {
        let normed = || {
            let x = act.map_or(x, |act| p.swiglu(x, act));
            norm.map_or(x, |norm| norm.record(p, x))
        };
        match run {
            Run::Codes { group, pieces } => {
                let piece = |of| Piece::stack(of, p);
                let stack: Vec<StackPiece> = pieces.iter().map(piece).collect();
                let y = match self.quant {
                    Some((quant, scale)) => {
                        let quant = GroupQuant { act: quant, group: *group, scale };
                        let input = GroupInput { act, norm: norm.map(|norm| norm.input(p)), quant };
                        p.group_linear(x, input, &stack, residual)
                    }
                    None => p.group_matmul(GroupFactor::Floats(normed()), &stack, residual),
                };
                plus(p, y, bias, None)
            }
            Run::Dense(shards) => match &shards[..] {
                [whole] => p.matmul(normed(), whole.slot(p), bias, residual),
                shards => {
                    let shards: Vec<Slot> = shards.iter().map(|shard| shard.slot(p)).collect();
                    plus(p, p.matmul_sharded(normed(), &shards), bias, residual)
                }
            },
        }
    }
}

/// y plus what is given.
fn plus(p: &PlanBuilder, y: Slot, bias: Option<Slot>, residual: Option<Slot>) -> Slot {
    if bias.is_none() && residual.is_none() { y } else { p.affine(y, None, bias, residual) }
}

/// Stacks of codes with one group. Those of a stack also come from the same form of a file.
fn pieces(matrices: &[Tensor], max_binding: u64) -> Vec<Piece> {
    let mut all = Vec::new();
    for of in matrices.chunk_by(|a, b| a.weight.pack == b.weight.pack) {
        let (outs, d_in): (Vec<usize>, usize) = (of.iter().map(|m| m.shape[0]).collect(), of[0].shape[1]);
        let sizes = [4 * PART_WORDS as u64, tile_bytes(of[0].weight.pack, d_in)];
        all.extend(cut(&outs, sizes, max_binding).into_iter().map(|parts| {
            let each: Vec<Tensor> = parts.iter().map(|(m, rows)| of[*m].rows(rows.clone())).collect();
            let outs: Vec<usize> = parts.iter().map(|(_, rows)| rows.len()).collect();
            let shape = [each.len(), outs.iter().sum(), d_in];
            Piece { weights: Tensor::stack(&each, &shape), outs }
        }));
    }
    all
}

/// Upper bound on the bytes of a tile of a matrix of codes, with its scales: how many bits codes of a file have is known
/// when they are loaded.
fn tile_bytes(pack: Pack, cols: usize) -> u64 {
    let (group, bits) = match pack {
        Pack::Groups { group, codes: GroupCodes::Stored | GroupCodes::Int8 } => (group, Bits::Eight),
        Pack::Groups { group, .. } => (group, Bits::Two),
        Pack::F32 | Pack::F16 | Pack::Int8 | Pack::Ternary(_) => (0, Bits::Eight),
    };
    let shape = GroupShape { rows: TILE_ROWS, cols, bits, group: (group as usize).max(1) };
    4 * (shape.words() + shape.scale_words()) as u64
}

/// Matrices of floats as one, or cut where that is too large for a binding.
fn dense(matrices: &[Tensor], max_binding: u64) -> Vec<Tensor> {
    let (rows, first) = (matrices.iter().map(|m| m.shape[0]).sum(), &matrices[0]);
    let whole = Spec::fixed(&[rows, first.shape[1]], first.weight.pack.dtype());
    match 4 * whole.words() as u64 <= max_binding {
        true => vec![Tensor::stack(matrices, &whole.shape)],
        false => matrices.iter().flat_map(|m| m.shards(max_binding)).collect(),
    }
}
