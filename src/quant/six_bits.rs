//! Codes of 6 bits, of which each 16 columns of a row have an integer that multiplies them: `code = integer · (stored − 32)`.
//! They are what Q6_K's blocks hold, as they hold it, where a group has the scale of a block.
//!
//! 64 columns are [`WORDS`] words: the four integers, signed bytes, and then for each 16 columns two words of the lower 4 bits,
//! of 8 columns each, and one of the upper 2 bits. In each, groups of 4 columns lie as in [`crate::quant`]: of these 16, column
//! `4k + b` has its lower bits in word `k / 2` from bit `8b + 4(k % 2)` on, and its upper ones in the third from bit `8b + 2k` on.
//! Columns that are not there are code 0, by what is stored or by their integer; what kernels multiply them with is 0 as well.

/// Columns of [`WORDS`] words.
pub const COLUMNS: usize = 64;
/// Words of [`COLUMNS`] columns of a row.
pub const WORDS: usize = 13;
/// Columns that an integer multiplies.
pub const GROUP: usize = 16;
/// Groups of [`GROUP`] columns of [`WORDS`] words.
pub const GROUPS: usize = COLUMNS / GROUP;
/// Words of the lower and upper bits of [`GROUP`] columns.
pub const GROUP_WORDS: usize = 3;
/// What is stored for 0.
pub(crate) const ZERO: u8 = 32;

/// Writes a row: its codes without their integers, −32 to 31, and an integer for each 16 of them.
pub fn pack(codes: &[i8], integers: &[i8], words: &mut [u32]) {
    let units = codes.chunks(COLUMNS).zip(integers.chunks(GROUPS)).zip(words.chunks_exact_mut(WORDS));
    for ((codes, integers), words) in units {
        let [of_integers, words @ ..] = words else { continue };
        let mut bytes = [0; GROUPS];
        bytes.iter_mut().zip(integers).for_each(|(byte, integer)| *byte = *integer as u8);
        *of_integers = u32::from_le_bytes(bytes);
        for (codes, words) in codes.chunks(GROUP).zip(words.as_chunks_mut::<GROUP_WORDS>().0) {
            let mut stored = [ZERO; GROUP];
            stored.iter_mut().zip(codes).for_each(|(stored, code)| *stored = (*code as u8).wrapping_add(ZERO));
            let fours = stored.as_chunks::<4>().0;
            let lower = |k: usize| u32::from_le_bytes(fours[k].map(|s| s & 15));
            let upper = |k: usize| u32::from_le_bytes(fours[k].map(|s| s >> 4)) << (2 * k);
            *words = [lower(0) | lower(1) << 4, lower(2) | lower(3) << 4, upper(0) | upper(1) | upper(2) | upper(3)];
        }
    }
}

/// The code of a column, of these 64, whose words `word(i)` returns. Plain and slow: the definition that kernels are checked
/// against.
pub(super) fn code(word: impl Fn(usize) -> u32, column: usize) -> i16 {
    let (group, k, b) = (column / GROUP, column % GROUP / 4, column % 4);
    let first = 1 + GROUP_WORDS * group;
    let lower = word(first + k / 2) >> (8 * b + 4 * (k % 2)) & 15;
    let upper = word(first + 2) >> (8 * b + 2 * k) & 3;
    let integer = word(0).to_le_bytes()[group] as i8;
    i16::from(integer) * ((lower | upper << 4) as i16 - i16::from(ZERO))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_and_integer_comes_back_from_its_place() {
        let columns = 5 * COLUMNS + 24;
        let codes: Vec<i8> = (0..columns).map(|c| ((c * 37 + c / 7) % 64) as i8 - 32).collect();
        let integers: Vec<i8> = (0..columns.div_ceil(GROUP)).map(|g| (g * 91) as u8 as i8).collect();
        let mut words = vec![0; 6 * WORDS];
        pack(&codes, &integers, &mut words);
        for column in 0..6 * COLUMNS {
            let want = codes.get(column).map_or(0, |&code| i16::from(code) * i16::from(integers[column / GROUP]));
            let found = code(|i| words[column / COLUMNS * WORDS + i], column % COLUMNS);
            assert_eq!(found, want, "column {column}");
        }
    }
}
