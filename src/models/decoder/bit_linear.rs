//! BitLinears: ternary matrices, each with a norm of its own in front, that read 8-bit codes.

use std::ops::Range;

use crate::models::decoder::linear::Norm;
use crate::models::load::{Tensor, TensorScope};
use crate::ops::{ActQuant, BitInput, BitStack, RmsNorm, StackPiece};
use crate::plan::{PlanBuilder, Slot};
use crate::quant::{Bits, PART_WORDS, TILE_ROWS};

/// How a BitLinear reads its input: its own norm, then codes. Source: Ma et al. 2024 (BitNet b1.58).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BitLinearSpec {
    /// The form of the norm.
    pub norm: RmsNorm,
    /// The rule of the codes.
    pub quant: ActQuant,
    /// The norm's tensor, beside `weight`.
    pub norm_name: &'static str,
}

/// BitLinears that read the same input, each with its norm: `[norms [n, d_in], weights [n, Σ d_out, d_in]]`.
#[derive(Debug)]
pub struct BitLinearStack {
    spec: BitLinearSpec,
    norms: Tensor,
    weights: TernaryStack,
}

impl BitLinearStack {
    /// Takes the norm and `NAME.weight` of each name.
    pub fn load(w: &TensorScope, names: &[&str], outs: &[usize], d_in: usize, spec: BitLinearSpec) -> Self {
        let places: Vec<TensorScope> = names.iter().map(|name| w.at(name)).collect();
        Self::load_places(&places, outs, d_in, spec)
    }

    /// The same from several places in the tree, whose matrices have `outs` rows in turn.
    pub fn load_places(places: &[TensorScope], outs: &[usize], d_in: usize, spec: BitLinearSpec) -> Self {
        let all = || places.iter().zip(outs.iter().cycle());
        let norms: Vec<Tensor> = all().map(|(w, _)| w.vector(spec.norm_name, d_in)).collect();
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

    /// Their norms, one behind the other.
    pub fn norms(&self) -> &Tensor {
        &self.norms
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
        let bytes = |words: usize| 4 * experts as u64 * words as u64;
        let sizes = [bytes(PART_WORDS), bytes(Bits::Two.matrix_words(TILE_ROWS, d_in))];
        let pieces = cut(outs, sizes, max_binding).into_iter().map(piece).collect();
        TernaryStack { pieces, outs: outs.to_vec() }
    }

    /// The slots of its pieces.
    pub fn pieces<'a>(&'a self, p: &PlanBuilder) -> Vec<StackPiece<'a>> {
        let piece = |of: &'a Piece| StackPiece { weights: of.weights.slot(p), first: of.first, outs: &of.outs };
        self.pieces.iter().map(piece).collect()
    }
}

/// Which rows of which matrices lie in each piece: neighbours, as many as fit `max_binding` bytes, and at least a tile. A
/// matrix takes `entry` bytes of the table, and each of its tiles takes `tile` bytes.
pub(super) fn cut(outs: &[usize], [entry, tile]: [u64; 2], max_binding: u64) -> Vec<Vec<(usize, Range<usize>)>> {
    let (tile, whole) = (tile.max(1), max_binding.saturating_sub(16));
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
        let (entry, tile) = (2 * 4 * PART_WORDS as u64, 2 * 4 * 512);
        let cut = |outs: &[usize], max_binding| cut(outs, [entry, tile], max_binding);
        assert_eq!(cut(&[300, 7], u64::MAX), [vec![(0, 0..300), (1, 0..7)]]);
        let two = 16 + 2 * (entry + tile);
        assert_eq!(cut(&[300, 7], two), [vec![(0, 0..256)], vec![(0, 256..300), (1, 0..7)]]);
        assert_eq!(cut(&[300, 7], two - 1), [vec![(0, 0..256)], vec![(0, 256..300)], vec![(1, 0..7)]]);
        let smallest = cut(&[129, 128], 1);
        assert_eq!(smallest, [vec![(0, 0..128)], vec![(0, 128..129)], vec![(1, 0..128)]]);
    }
}
