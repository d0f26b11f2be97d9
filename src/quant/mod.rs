//! Packed weights: how the words of a matrix lie on a device. How to add a packing is in
//! [`architecture`](crate::architecture).
//!
//! * [`quantise`] turns floats into codes and a scale, by one of the rules of [`WeightQuant`].
//! * [`Packed`] holds one ternary matrix: 2 bits per code, or 1 bit where no code is 0 ([`Bits`]); lossless.
//! * [`groups`]: matrices of codes with scales by row and group of columns.
//! * [`six_bits`]: how codes of 6 bits lie, the only ones of which a word does not hold whole columns.
//! * [`int8`]: matrices of 8-bit integers with a scale per row, which are multiplied as floats.
//! * [`formats`]: block formats of files; [`reorder`] makes words of their codes.
//! * [`stack`] lays several matrices out as one buffer that a kernel can index by matrix ([`Stack`] reads it).
//!
//! ## Words
//! A matrix `[rows, cols]` is cut into tiles of [`TILE_ROWS`] rows. Word `j` of row `r` lies at
//! `(r / 128 · J + j) · 128 + r % 128`, `J` words per row: 32 neighbouring GPU lanes that load one `vec4<u32>` each
//! read word `j` of 128 consecutive rows. A word holds 32 (1-bit), 16 (2-bit) or 4 (8-bit) columns in groups of 4:
//! column `4k + b` is at bit `8b + k` as 1 for +1 and 0 for −1, at bit `8b + 2k` as code + 1, or in byte `b` as
//! code + 128. So `(word >> k) & 0x01010101`, `(word >> 2k) & 0x03030303`, or the word itself, are four bytes that multiply
//! four int8 activations: `Σ code·x = 2 Σ bit·x − Σ x`, `Σ (code + 1)·x − Σ x`, or `Σ (code + 128)·x − 128 Σ x`. Missing
//! columns and rows are code 0, or −1 at 1 bit: activations are zero there. Only matrices with scales by group have 6 bits
//! ([`six_bits`]) or 8 bits per code, or the code +2.

use std::borrow::Cow;
use std::ops::Range;

pub mod formats;
pub mod groups;
pub mod int8;
mod lay_out;
mod quantise;
mod reorder;
pub mod six_bits;
mod stack;
mod stack_table;

pub use lay_out::LAID_OUT_ROWS;
pub(crate) use lay_out::stored_in_block;
pub use quantise::{WeightQuant, quantise};
pub use reorder::reorder;
pub use stack::{PART_WORDS, Stack, StackPart, stack, stack_words};
pub(crate) use stack::{fill_stack, lay_out_stack, stack_table_words};
pub(crate) use stack_table::StackTable;

/// Rows of a tile: 32 lanes of 4 rows.
pub const TILE_ROWS: usize = 128;

/// Bits that one code takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Bits {
    /// Codes −1 and +1 only.
    One,
    /// Codes −1, 0, +1 and +2.
    Two,
    /// Codes −32 to 31, times an integer for each 16 of them ([`six_bits`]).
    Six,
    /// Codes −128 to 127.
    Eight,
}

impl Bits {
    /// Each of them.
    pub const ALL: [Bits; 4] = [Bits::One, Bits::Two, Bits::Six, Bits::Eight];

    /// 1, 2, 6 or 8.
    pub fn count(self) -> usize {
        match self {
            Bits::One => 1,
            Bits::Two => 2,
            Bits::Six => 6,
            Bits::Eight => 8,
        }
    }

    /// What `times · stored − offset` is the code of.
    pub fn times_and_offset(self) -> [i32; 2] {
        match self {
            Bits::One => [2, 1],
            Bits::Two => [1, 1],
            Bits::Six => [1, i32::from(six_bits::ZERO)],
            Bits::Eight => [1, 128],
        }
    }

    /// The code that is stored as so many.
    fn code(self, stored: u32) -> i8 {
        let [times, offset] = self.times_and_offset();
        (times * stored as i32 - offset) as i8
    }

    fn stored(self, code: i8) -> u8 {
        match self {
            Bits::One => u8::from(code > 0),
            Bits::Two => (code + 1) as u8,
            Bits::Six => (code as u8).wrapping_add(six_bits::ZERO),
            Bits::Eight => code as u8 ^ 0x80,
        }
    }

    /// Columns in a word; codes of 6 bits have parts in several.
    pub fn cols_per_word(self) -> usize {
        32 / self.count()
    }

    /// Words of one row of `cols` columns.
    pub fn row_words(self, cols: usize) -> usize {
        match self {
            Bits::Six => cols.div_ceil(six_bits::COLUMNS) * six_bits::WORDS,
            Bits::One | Bits::Two | Bits::Eight => cols.div_ceil(self.cols_per_word()),
        }
    }

    /// Words of a row that are wholly of its first `cols` columns.
    pub(crate) fn words_within(self, cols: usize) -> usize {
        match self {
            Bits::Six => cols * six_bits::WORDS / six_bits::COLUMNS,
            Bits::One | Bits::Two | Bits::Eight => cols / self.cols_per_word(),
        }
    }

    /// Words of a matrix `[rows, cols]`, its missing rows included.
    pub fn matrix_words(self, rows: usize, cols: usize) -> usize {
        rows.div_ceil(TILE_ROWS) * TILE_ROWS * self.row_words(cols)
    }

    /// From 1, 2, 6 or 8.
    pub fn from_count(n: usize) -> Option<Self> {
        Self::ALL.into_iter().find(|bits| bits.count() == n)
    }

    /// Those of a ternary matrix: from 1 or 2.
    pub fn of_ternary(n: usize) -> Option<Self> {
        Self::from_count(n).filter(|&bits| matches!(bits, Bits::One | Bits::Two))
    }
}

/// One ternary matrix `[rows, cols]` in words: `W[r, c] = scale · code(r, c)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Packed<'a> {
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs).
    pub cols: usize,
    /// Bits per code: 1 or 2.
    pub bits: Bits,
    /// The value of a code of 1.
    pub scale: f32,
    /// `bits.matrix_words(rows, cols)` words.
    pub words: Cow<'a, [u32]>,
}

impl Packed<'_> {
    /// Packs row-major codes, at 1 bit each if none is 0.
    ///
    /// # Panics
    /// If `codes.len() != rows * cols`.
    pub fn new(rows: usize, cols: usize, codes: &[i8], scale: f32) -> Self {
        assert_eq!(codes.len(), rows * cols, "codes of a {rows}x{cols} matrix");
        let bits = if codes.contains(&0) { Bits::Two } else { Bits::One };
        let mut words = vec![0; bits.matrix_words(rows, cols)];
        let j_words = bits.row_words(cols);
        for tile in 0..rows.div_ceil(TILE_ROWS) {
            for in_tile in 0..TILE_ROWS {
                let r = tile * TILE_ROWS + in_tile;
                let row = if r < rows { &codes[r * cols..(r + 1) * cols] } else { &[] };
                for j in 0..j_words {
                    let from = (j * bits.cols_per_word()).min(row.len());
                    let to = ((j + 1) * bits.cols_per_word()).min(row.len());
                    words[(tile * j_words + j) * TILE_ROWS + in_tile] = pack_word(bits, &row[from..to]);
                }
            }
        }
        Packed { rows, cols, bits, scale, words: words.into() }
    }

    /// Rows `rows`, which begin with a tile and end with one or with the matrix; none for others.
    pub fn tiles(self, rows: Range<usize>) -> Option<Self> {
        let ends = rows.end == self.rows || (rows.end < self.rows && rows.end.is_multiple_of(TILE_ROWS));
        if !ends || rows.start >= rows.end || !rows.start.is_multiple_of(TILE_ROWS) {
            return None;
        }
        let words = |to: usize| self.bits.matrix_words(to, self.cols);
        let range = words(rows.start)..words(rows.end);
        let words = match self.words {
            Cow::Borrowed(words) => Cow::Borrowed(words.get(range)?),
            Cow::Owned(mut words) => {
                words.truncate(range.end);
                words.drain(..range.start);
                Cow::Owned(words)
            }
        };
        Some(Packed { rows: rows.len(), words, ..self })
    }

    /// The codes, row-major.
    pub fn codes(&self) -> Vec<i8> {
        let mut codes = Vec::with_capacity(self.rows * self.cols);
        for r in 0..self.rows {
            for c in 0..self.cols {
                codes.push(code_at(&self.words, self.bits, self.cols, r, c));
            }
        }
        codes
    }

    /// How many codes are −1, 0 and +1.
    pub fn counts(&self) -> [u64; 3] {
        let set = |mask: u32| self.words.iter().map(|w| u64::from((w & mask).count_ones())).sum::<u64>();
        let all = (self.rows * self.cols) as u64;
        // Padding is code 0 at 2 bits, and no set bit at 1 bit.
        let padding = ((self.words.len() * self.bits.cols_per_word()) as u64).saturating_sub(all);
        let (plus, zero) = match self.bits {
            Bits::One => (set(u32::MAX), 0),
            _ => (set(0xAAAA_AAAA), set(0x5555_5555).saturating_sub(padding)),
        };
        [all.saturating_sub(plus + zero), zero, plus]
    }
}

/// The word of up to [`Bits::cols_per_word`] codes of one row; missing ones are padding.
fn pack_word(bits: Bits, codes: &[i8]) -> u32 {
    let mut stored = [bits.stored(if bits == Bits::One { -1 } else { 0 }); 32];
    stored.iter_mut().zip(codes).for_each(|(stored, &code)| *stored = bits.stored(code));
    let fours = stored.as_chunks().0.iter().take(bits.cols_per_word() / 4).enumerate();
    fours.fold(0, |word, (k, &four)| word | u32::from_le_bytes(four) << (bits.count() * k))
}

/// The code at `(row, col)` of a packed matrix. Plain and slow: the definition that kernels are checked against.
pub fn code_at(words: &[u32], bits: Bits, cols: usize, row: usize, col: usize) -> i8 {
    let (tile, in_tile) = (row / TILE_ROWS, row % TILE_ROWS);
    let j = col / bits.cols_per_word();
    let c = col % bits.cols_per_word();
    let word = words[(tile * bits.row_words(cols) + j) * TILE_ROWS + in_tile];
    bits.code(word >> (8 * (c % 4) + bits.count() * (c / 4)) & ((1 << bits.count()) - 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tiles_hold_the_codes_of_their_rows(rows in 1usize..400, cols in 1usize..20, seed: u64) {
            let codes: Vec<i8> = (0..rows * cols).map(|i| ((seed >> (i % 61) & 3).min(2)) as i8 - 1).collect();
            let whole = Packed::new(rows, cols, &codes, 1.5);
            for from in (0..rows).step_by(TILE_ROWS) {
                let to = rows.min(from + TILE_ROWS);
                let tile = whole.clone().tiles(from..to).expect("a tile");
                prop_assert_eq!(tile.codes(), &codes[from * cols..to * cols]);
                let borrowed = Packed { words: Cow::Borrowed(&whole.words[..]), ..whole };
                prop_assert_eq!(borrowed.tiles(from..to), Some(tile));
            }
            for wrong in [1..rows, 0..rows + 1, 0..0] {
                prop_assert_eq!(whole.clone().tiles(wrong), None);
            }
        }

        #[test]
        fn packing_loses_nothing(rows in 1usize..140, cols in 1usize..70, binary: bool, seed: u64) {
            let code = |i: usize| {
                let h = (i as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33;
                if binary { (h % 2) as i8 * 2 - 1 } else { (h % 3) as i8 - 1 }
            };
            let codes: Vec<i8> = (0..rows * cols).map(code).collect();
            let packed = Packed::new(rows, cols, &codes, 0.5);
            prop_assert_eq!(packed.bits, if codes.contains(&0) { Bits::Two } else { Bits::One });
            let count = |code| codes.iter().filter(|&&c| c == code).count() as u64;
            prop_assert_eq!(packed.counts(), [-1, 0, 1].map(count));
            prop_assert_eq!(packed.codes(), codes);
        }
    }
}
