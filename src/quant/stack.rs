//! Several packed matrices of one width as one buffer, with a table in front.

use crate::quant::{Bits, LAID_OUT_ROWS, Packed, TILE_ROWS, code_at, stored_in_block};
use crate::threads;

/// Words of the header and of each table entry, so that everything behind them is aligned to `vec4<u32>`.
pub(crate) const HEADER_WORDS: usize = 4;
/// Words of a table entry.
pub const PART_WORDS: usize = 8;
/// Which word of the header says whether matrices of 1-bit codes are laid out: 1 where a CPU has done that, else 0.
pub(super) const LAID_OUT: usize = 3;

/// The buffer of a stack: `[n, cols, 0, laid out]` (see [`StackPart::laid_out`]), then for each matrix
/// `[first word / 4, bits, rows, tiles before it, rows before it, scale as bits, tiles, 0]`, then the matrices' words.
pub fn stack(parts: &[Packed]) -> Vec<u32> {
    let mut out = vec![0; stack_words(parts)];
    fill_stack(parts, &mut out);
    out
}

/// Words of the table in front of a stack of so many matrices.
pub(crate) fn stack_table_words(parts: usize) -> usize {
    HEADER_WORDS + PART_WORDS * parts
}

/// Words of a stack's buffer.
pub fn stack_words(parts: &[Packed]) -> usize {
    stack_table_words(parts.len()) + parts.iter().map(|p| p.words.len()).sum::<usize>()
}

/// Writes a stack into zeros, as many as [`stack_words`] says.
pub(crate) fn fill_stack(parts: &[Packed], out: &mut [u32]) {
    let cols = parts.first().map_or(0, |p| p.cols);
    let table = stack_table_words(parts.len());
    let (head, mut rest) = out.split_at_mut(table);
    head[..2].copy_from_slice(&[parts.len() as u32, cols as u32]);
    let (mut at, mut tiles, mut rows) = (table, 0, 0);
    for (p, entry) in parts.iter().zip(head[HEADER_WORDS..].chunks_exact_mut(PART_WORDS)) {
        let n_tiles = p.rows.div_ceil(TILE_ROWS);
        let values = [at / 4, p.bits.count(), p.rows, tiles, rows, p.scale.to_bits() as usize, n_tiles, 0];
        entry.copy_from_slice(&values.map(|v| v as u32));
        let words = rest.split_off_mut(..p.words.len()).unwrap_or_default();
        threads::shared().copy(words, &p.words);
        at += p.words.len();
        tiles += n_tiles;
        rows += p.rows;
    }
}

/// A stack as read from its words.
#[derive(Debug, Clone, Copy)]
pub struct Stack<'a>(pub &'a [u32]);

/// One matrix of a stack.
#[derive(Debug, Clone, Copy)]
pub struct StackPart<'a> {
    /// Bits per code.
    pub bits: Bits,
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs).
    pub cols: usize,
    /// The value of a code of 1.
    pub scale: f32,
    /// The matrix's words, as in [`Packed`].
    pub words: &'a [u32],
    /// Whether these are laid out ([`crate::quant::LAID_OUT_ROWS`]), all blocks of the same rows behind each other.
    pub laid_out: bool,
}

impl StackPart<'_> {
    /// The code at `(row, col)`. Plain and slow, as [`code_at`].
    pub fn code(&self, row: usize, col: usize) -> i8 {
        if !self.laid_out {
            return code_at(self.words, self.bits, self.cols, row, col);
        }
        let j = col / self.bits.cols_per_word();
        let block = row / LAID_OUT_ROWS * self.bits.row_words(self.cols) + j;
        let words = &self.words[block * LAID_OUT_ROWS..][..LAID_OUT_ROWS];
        self.bits.code(stored_in_block(words, row % LAID_OUT_ROWS, col % self.bits.cols_per_word()))
    }
}

/// Calls `lay_out` with the words of each matrix of 1-bit codes of a stack that is not laid out yet, and the number of those of a
/// tile; it lays them out, as [`StackPart::laid_out`] says.
pub(crate) fn lay_out_stack(stack: &mut [u32], mut lay_out: impl FnMut(&mut [u32], usize)) {
    if stack[LAID_OUT] == 1 {
        return;
    }
    for i in 0..Stack(stack).len() {
        let StackPart { bits, cols, words, .. } = Stack(stack).part(i);
        if bits == Bits::One {
            let (from, len) = (4 * stack[HEADER_WORDS + i * PART_WORDS] as usize, words.len());
            lay_out(&mut stack[from..][..len], bits.row_words(cols) * TILE_ROWS);
        }
    }
    stack[LAID_OUT] = 1;
}

impl<'a> Stack<'a> {
    /// Number of matrices.
    pub fn len(self) -> usize {
        self.0[0] as usize
    }

    /// Whether the stack is empty.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Columns of every matrix.
    pub fn cols(self) -> usize {
        self.0[1] as usize
    }

    /// Matrix `i`.
    pub fn part(self, i: usize) -> StackPart<'a> {
        let entry = &self.0[HEADER_WORDS + i * PART_WORDS..][..PART_WORDS];
        let bits = Bits::of_ternary(entry[1] as usize).expect("a stack is written by `stack`");
        let (rows, cols) = (entry[2] as usize, self.cols());
        let words = &self.0[4 * entry[0] as usize..][..bits.matrix_words(rows, cols)];
        let laid_out = bits == Bits::One && self.0[LAID_OUT] == 1;
        StackPart { bits, rows, cols, scale: f32::from_bits(entry[5]), words, laid_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_gives_back_its_parts() {
        let parts = [Packed::new(3, 5, &[1; 15], 2.0), Packed::new(130, 5, &[0; 650], 3.0)];
        let words = stack(&parts);
        assert_eq!((Stack(&words).len(), Stack(&words).cols()), (2, 5));
        for (i, p) in parts.iter().enumerate() {
            let got = Stack(&words).part(i);
            assert_eq!((got.bits, got.rows, got.scale, got.words), (p.bits, p.rows, p.scale, &p.words[..]));
        }
    }
}
