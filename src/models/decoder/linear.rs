//! The matrices of a decoder, and the norms in front of them. Now there is one form, BitLinear; another one (dense, ternary
//! with a scale per group) is a type beside it here, with the same methods.

use std::ops::Range;

use crate::models::load::{Tensor, TensorScope};
use crate::ops::{ActQuant, BitInput, BitStack, RmsNorm, StackPiece};
use crate::plan::{PlanBuilder, Slot};
use crate::quant::{Bits, PART_WORDS, TILE_ROWS};

/// A root-mean-square norm with its weight.
#[derive(Debug)]
pub struct Norm {
    rule: RmsNorm,
    weight: Tensor,
}

impl Norm {
    /// Takes the tensor `name`.
    pub fn load(w: &TensorScope, name: &str, d: usize, rule: RmsNorm) -> Self {
        Norm { rule, weight: w.vector(name, d) }
    }

    /// The norm of x.
    pub fn record(&self, p: &PlanBuilder, x: Slot) -> Slot {
        p.rms_norm(x, self.weight.slot(p), self.rule)
    }

    /// What an op with a norm in front reads.
    pub fn input(&self, p: &PlanBuilder) -> (RmsNorm, Slot) {
        (self.rule, self.weight.slot(p))
    }
}

/// How a BitLinear reads its input: its own norm, then codes. Source: Ma et al. 2024 (BitNet b1.58).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BitLinearSpec {
    /// The form of the norm.
    pub norm: RmsNorm,
    /// The rule of the codes.
    pub quant: ActQuant,
}

/// BitLinears that read the same input, each with its norm: `[norms [n, d_in], weights [n, Σ d_out, d_in]]`.
#[derive(Debug)]
pub struct BitLinearStack {
    spec: BitLinearSpec,
    norms: Tensor,
    weights: TernaryStack,
}

impl BitLinearStack {
    /// Takes `NAME.norm.weight` and `NAME.weight` of each name.
    pub fn load(w: &TensorScope, names: &[&str], outs: &[usize], d_in: usize, spec: BitLinearSpec) -> Self {
        let places: Vec<TensorScope> = names.iter().map(|name| w.at(name)).collect();
        Self::load_places(&places, outs, d_in, spec)
    }

    /// The same from several places in the tree, whose matrices have `outs` rows in turn.
    pub fn load_places(places: &[TensorScope], outs: &[usize], d_in: usize, spec: BitLinearSpec) -> Self {
        let all = || places.iter().zip(outs.iter().cycle());
        let norms: Vec<Tensor> = all().map(|(w, _)| w.vector("norm.weight", d_in)).collect();
        let weights: Vec<Tensor> = all().map(|(w, &out)| w.ternary("weight", [out, d_in])).collect();
        let max_binding = places.first().map_or(u64::MAX, TensorScope::max_binding);
        BitLinearStack {
            spec,
            norms: Tensor::stack(&norms, &[places.len(), d_in]),
            weights: TernaryStack::new(&weights, outs, max_binding),
        }
    }

    /// x `[rows, d_in]` → `[rows, Σ d_out]`, behind a norm and plus a residual if given.
    pub fn record(&self, p: &PlanBuilder, x: Slot, pre_norm: Option<&Norm>, residual: Option<Slot>) -> Slot {
        let pre_norm = pre_norm.map(|norm| norm.input(p));
        let input = BitInput { pre_norm, norm: self.spec.norm, act: self.spec.quant };
        p.bit_linears(x, input, &self.slots(p), residual)
    }

    /// What an op over a stack reads.
    pub fn slots(&self, p: &PlanBuilder) -> BitStack<'_> {
        BitStack { norms: self.norms.slot(p), pieces: self.weights.pieces(p), outs: &self.weights.outs }
    }
}

/// Matrices of some experts, or of one layer, all of one width: each expert's of `outs` rows, expert after expert.
#[derive(Debug)]
pub struct TernaryStack {
    pieces: Vec<Piece>,
    outs: Vec<usize>,
}

/// Some rows of each expert's matrices.
#[derive(Debug)]
struct Piece {
    weights: Tensor,
    first: usize,
    outs: Vec<usize>,
}

impl TernaryStack {
    /// Matrices `[d_out, d_in]` of `outs` rows in turn, in pieces of at most `max_binding` bytes as far as tiles of
    /// [`TILE_ROWS`] rows allow.
    pub fn new(matrices: &[Tensor], outs: &[usize], max_binding: u64) -> Self {
        let d_in = matrices.first().map_or(0, |t| t.shape[1]);
        let experts = matrices.len() / outs.len().max(1);
        let piece = |parts: Vec<(usize, Range<usize>)>| {
            let first = parts.first().map_or(0, |part| part.0);
            let each = matrices
                .chunks(outs.len().max(1))
                .flat_map(|of| parts.iter().map(|(m, rows)| of[*m].rows(rows.clone())));
            let each: Vec<Tensor> = each.collect();
            let outs: Vec<usize> = parts.iter().map(|(_, rows)| rows.len()).collect();
            let shape = [each.len(), experts * outs.iter().sum::<usize>(), d_in];
            Piece { weights: Tensor::stack(&each, &shape), first, outs }
        };
        let pieces = cut(outs, experts, d_in, max_binding).into_iter().map(piece).collect();
        TernaryStack { pieces, outs: outs.to_vec() }
    }

    /// The slots of its pieces.
    pub fn pieces<'a>(&'a self, p: &PlanBuilder) -> Vec<StackPiece<'a>> {
        let piece = |of: &'a Piece| StackPiece { weights: of.weights.slot(p), first: of.first, outs: &of.outs };
        self.pieces.iter().map(piece).collect()
    }
}

/// Which rows of which matrices lie in each piece: neighbours, as many as fit `max_binding` bytes with those of all
/// `experts`, at 2 bits per weight, and at least a tile.
fn cut(outs: &[usize], experts: usize, d_in: usize, max_binding: u64) -> Vec<Vec<(usize, Range<usize>)>> {
    let bytes = |words: usize| 4 * experts as u64 * words as u64;
    let (entry, tile) = (bytes(PART_WORDS), bytes(Bits::Two.matrix_words(TILE_ROWS, d_in)).max(1));
    let whole = max_binding.saturating_sub(16);
    let (mut pieces, mut room) = (vec![Vec::new()], whole);
    for (matrix, &rows) in outs.iter().enumerate() {
        let mut at = 0;
        while at < rows {
            let fit = room.saturating_sub(entry) / tile;
            if fit == 0 && pieces.last().is_some_and(|piece| !piece.is_empty()) {
                pieces.push(Vec::new());
                room = whole;
                continue;
            }
            let tiles = (rows - at).div_ceil(TILE_ROWS).min(fit.max(1) as usize);
            let end = rows.min(at + tiles * TILE_ROWS);
            if let Some(piece) = pieces.last_mut() {
                piece.push((matrix, at..end));
            }
            room = room.saturating_sub(entry + tiles as u64 * tile);
            at = end;
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_neighbours_and_fit() {
        // Two experts; a tile of 64 columns has 512 words.
        let tile = 2 * 4 * 512;
        let entry = 2 * 4 * PART_WORDS as u64;
        assert_eq!(cut(&[300, 7], 2, 64, u64::MAX), [vec![(0, 0..300), (1, 0..7)]]);
        let two = 16 + 2 * (entry + tile);
        assert_eq!(cut(&[300, 7], 2, 64, two), [vec![(0, 0..256)], vec![(0, 256..300), (1, 0..7)]]);
        assert_eq!(cut(&[300, 7], 2, 64, two - 1), [vec![(0, 0..256)], vec![(0, 256..300)], vec![(1, 0..7)]]);
        let smallest = cut(&[129, 128], 2, 64, 1);
        assert_eq!(smallest, [vec![(0, 0..128)], vec![(0, 128..129)], vec![(1, 0..128)]]);
    }
}
