//! Several matrices of one width and group as one buffer.

use half::f16;

use crate::alloc::{CACHE_LINE, zeros};
use crate::error::{Error, Result};
use crate::quant::groups::{GroupPacked, GroupRows, GroupShape, fill_rows};
use crate::quant::stack::{HEADER_WORDS, LAID_OUT};
use crate::quant::{Bits, LAID_OUT_ROWS, PART_WORDS, TILE_ROWS, code_at, six_bits, stored_in_block};
use crate::threads;

/// Calls `lay_out` with the words of each matrix of 1-bit codes of a stack that is not laid out yet, and the number of those of
/// a tile; it lays them out, as [`GroupPart::laid_out`] says.
pub(crate) fn lay_out_stack(stack: &mut [u32], mut lay_out: impl FnMut(&mut [u32], usize)) {
    if stack[LAID_OUT] == 1 {
        return;
    }
    for i in 0..GroupStack(stack).len() {
        let GroupPart { shape, words, .. } = GroupStack(stack).part(i);
        if shape.bits == Bits::One {
            let (from, len) = (4 * stack[HEADER_WORDS + i * PART_WORDS] as usize, words.len());
            lay_out(&mut stack[from..][..len], shape.row_words() * TILE_ROWS);
        }
    }
    stack[LAID_OUT] = 1;
}

/// Words of a stack's buffer.
pub(crate) fn stack_words(shapes: &[GroupShape]) -> usize {
    table_words(shapes.len()) + shapes.iter().map(|shape| shape.words() + shape.scale_words()).sum::<usize>()
}

fn table_words(parts: usize) -> usize {
    (HEADER_WORDS + PART_WORDS * parts).next_multiple_of(CACHE_LINE / size_of::<u32>())
}

/// The buffer of a stack of matrices that have the columns and groups of the first.
///
/// # Errors
/// [`Error::Shape`] for one with others, [`Error::OutOfMemory`] if the system has no memory.
pub fn stack(parts: &[GroupPacked]) -> Result<Vec<u32>> {
    let shapes: Vec<GroupShape> = parts.iter().map(|p| p.shape).collect();
    laid_out(&shapes, |i, to| {
        for (to, from) in to.into_iter().zip([&parts[i].words, &parts[i].scales]) {
            threads::shared().copy(to, from);
        }
        Ok(parts[i].factor)
    })
}

/// [`stack`] of matrices that are made in their places: no more memory is used than the stack has. `named` is told which
/// matrix an error is of.
///
/// # Errors
/// As [`stack`] and [`GroupPacked::from_words`].
pub fn stack_rows(parts: &[GroupRows], named: impl Fn(usize, Error) -> Error) -> Result<Vec<u32>> {
    let shapes: Vec<GroupShape> = parts.iter().map(|p| p.shape).collect();
    shapes.iter().enumerate().try_for_each(|(i, shape)| shape.check().map_err(|error| named(i, error)))?;
    laid_out(&shapes, |i, to| {
        fill_rows(shapes[i], to, &parts[i].fill).map_err(|error| named(i, error))?;
        Ok(parts[i].factor)
    })
}

/// A stack whose matrices `fill` writes, each into its words and scales, which are zeros; it returns their factors.
fn laid_out(shapes: &[GroupShape], mut fill: impl FnMut(usize, [&mut [u32]; 2]) -> Result<f32>) -> Result<Vec<u32>> {
    let of = |shape: &GroupShape| [shape.cols, shape.group];
    let first = shapes.first().map_or([0; 2], of);
    if let Some(other) = shapes.iter().map(of).find(|&other| other != first) {
        let said = |[cols, group]: [usize; 2]| format!("{cols} columns in groups of {group}");
        return Err(Error::shape("a matrix of a stack", said(first), said(other)));
    }
    let mut out = zeros("a stack of low-bit codes", stack_words(shapes))?;
    let table = table_words(shapes.len());
    let (head, mut rest) = out.split_at_mut(table);
    head[..3].copy_from_slice(&[shapes.len() as u32, first[0] as u32, first[1] as u32]);
    let (mut at, mut tiles, mut rows) = (table, 0, 0);
    for ((i, shape), entry) in shapes.iter().enumerate().zip(head[HEADER_WORDS..].chunks_exact_mut(PART_WORDS)) {
        let sizes = [shape.words(), shape.scale_words()];
        let to = sizes.map(|n| rest.split_off_mut(..n).unwrap_or_default());
        let factor = fill(i, to)?.to_bits() as usize;
        let (scales, n_tiles) = (at + sizes[0], shape.tiles());
        let values = [at / 4, shape.bits.count(), shape.rows, tiles, rows, scales / 4, n_tiles, factor];
        entry.copy_from_slice(&values.map(|v| v as u32));
        at = scales + sizes[1];
        tiles += n_tiles;
        rows += shape.rows;
    }
    Ok(out)
}

/// A stack as read from its words.
#[derive(Debug, Clone, Copy)]
pub struct GroupStack<'a>(pub &'a [u32]);

/// One matrix of a stack.
#[derive(Debug, Clone, Copy)]
pub struct GroupPart<'a> {
    /// Its shape.
    pub shape: GroupShape,
    /// The words of its codes.
    pub words: &'a [u32],
    /// Its scales, by tile, group and row of the tile.
    pub scales: &'a [f16],
    /// What all of it is multiplied by.
    pub factor: f32,
    /// Whether the blocks of its codes' words are laid out ([`crate::quant::LAID_OUT_ROWS`]), each in its place.
    pub laid_out: bool,
}

impl<'a> GroupStack<'a> {
    /// Number of matrices.
    pub fn len(self) -> usize {
        self.0[0] as usize
    }

    /// Whether there is no matrix.
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// Matrix `i`.
    pub fn part(self, i: usize) -> GroupPart<'a> {
        let entry = &self.0[HEADER_WORDS + i * PART_WORDS..][..PART_WORDS];
        let bits = Bits::from_count(entry[1] as usize).expect("a stack is written by `stack`");
        let [cols, group, rows] = [self.0[1], self.0[2], entry[2]].map(|v| v as usize);
        let shape = GroupShape { rows, cols, bits, group };
        let words = &self.0[4 * entry[0] as usize..][..shape.words()];
        let scales = &self.0[4 * entry[5] as usize..][..shape.scale_words()];
        let laid_out = bits == Bits::One && self.0[LAID_OUT] == 1;
        GroupPart { shape, words, scales: bytemuck::cast_slice(scales), factor: f32::from_bits(entry[7]), laid_out }
    }
}

impl GroupPart<'_> {
    /// The code at `(row, col)`. Plain and slow, as all of this: the definition that kernels are checked against.
    pub fn code(&self, row: usize, col: usize) -> i16 {
        let bits = self.shape.bits;
        let (tile, in_tile, in_block) = (row / TILE_ROWS, row % TILE_ROWS, row % LAID_OUT_ROWS);
        if bits == Bits::Six {
            let unit = tile * self.shape.row_words() + col / six_bits::COLUMNS * six_bits::WORDS;
            return six_bits::code(|i| self.words[(unit + i) * TILE_ROWS + in_tile], col % six_bits::COLUMNS);
        }
        if !self.laid_out {
            return i16::from(code_at(self.words, bits, self.shape.cols, row, col));
        }
        let j = tile * self.shape.row_words() + col / bits.cols_per_word();
        let words = &self.words[j * TILE_ROWS + in_tile - in_block..][..LAID_OUT_ROWS];
        i16::from(bits.code(stored_in_block(words, in_block, col % bits.cols_per_word())))
    }

    /// The scale of a row's group.
    pub fn scale(&self, row: usize, group: usize) -> f16 {
        self.scales[(row / TILE_ROWS * self.shape.groups() + group) * TILE_ROWS + row % TILE_ROWS]
    }

    /// The element at `(row, col)`.
    pub fn value(&self, row: usize, col: usize) -> f32 {
        self.factor * (self.scale(row, col / self.shape.group).to_f32() * f32::from(self.code(row, col)))
    }
}
