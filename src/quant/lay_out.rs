//! Words of 1-bit codes in the order in which kernels of CPUs look their bytes up.
//!
//! A word of [`LAID_OUT_ROWS`] neighbouring rows is a block of as many words. Laid out, a block has the first bytes of its rows, then
//! the second ones, and so on, so that a vector holds the same four columns of many rows. A CPU lays resident weights out
//! once, in their place; the table in front of a stack says that it has.

/// Rows of a block.
pub const LAID_OUT_ROWS: usize = 32;

/// The stored code of a row of a block that is laid out, and of one of the columns of a word.
pub(crate) fn stored_in_block(block: &[u32], row: usize, col: usize) -> u32 {
    let word = block[LAID_OUT_ROWS / 4 * (col % 4) + place(row) / 4];
    word >> (8 * (place(row) % 4) + col / 4) & 1
}

/// Which byte a row has of those that lie together, as shuffles of vectors of 8 words leave them: rows from 0, 8, 16, 24, 4, 12,
/// 20 and 28 on, four each.
fn place(row: usize) -> usize {
    16 * (row / 4 % 2) + 4 * (row / 8) + row % 4
}
