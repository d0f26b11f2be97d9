//! Codes in the order of their columns, as block formats give them, moved to their places in a word.

use crate::cpu_level::for_each_level;
use crate::quant::Bits;

/// Moves a row's codes to their places. Before, columns follow one another from the lowest bits of the first byte of `words`, as
/// [`crate::quant::formats::CodeFormat::unpack`] writes them.
pub fn reorder(bits: Bits, words: &mut [u32]) {
    match bits {
        Bits::One => reorder_1(words),
        Bits::Two => reorder_2(words),
        // No format of codes has 6 bits: integers are packed where they lie (`six_bits`).
        Bits::Six | Bits::Eight => words.iter_mut().for_each(|word| *word = u32::from_le(*word)),
    }
}

for_each_level! {
    /// Column `4k + b` moves from bit `8k + 2b` to bit `8b + 2k`: the transpose of 4 x 4 fields, by pairs and then by pairs of
    /// pairs.
    fn reorder_2(words: &mut [u32]) {
        for word in words {
            let w = exchanged(u32::from_le(*word), 6, 0x00CC_00CC);
            *word = exchanged(w, 12, 0x0000_F0F0);
        }
    }
}

for_each_level! {
    /// Column `4k + b` moves from bit `4k + b` to bit `8b + k`. The number of a bit has five digits, `kkkbb` before and `bbkkk`
    /// after; an exchange of bits exchanges two digits.
    fn reorder_1(words: &mut [u32]) {
        for word in words {
            // Digits 1 and 0, 2 and 0, 3 and 1, 4 and 2, counted from the lowest.
            let w = exchanged(u32::from_le(*word), 1, 0x2222_2222);
            let w = exchanged(w, 3, 0x0A0A_0A0A);
            let w = exchanged(w, 6, 0x00CC_00CC);
            *word = exchanged(w, 12, 0x0000_F0F0);
        }
    }
}

/// Exchanges the bits of `mask` with those `distance` above them.
#[inline(always)]
fn exchanged(w: u32, distance: u32, mask: u32) -> u32 {
    let different = (w ^ w >> distance) & mask;
    w ^ different ^ different << distance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_column_is_at_its_place() {
        for (bits, at) in
            [(Bits::One, (|c| 8 * (c % 4) + c / 4) as fn(usize) -> usize), (Bits::Two, |c| 8 * (c % 4) + 2 * (c / 4))]
        {
            let n = bits.count();
            for column in 0..bits.cols_per_word() {
                for code in 1..1u32 << n {
                    let mut words = [(code << (n * column)).to_le()];
                    reorder(bits, &mut words);
                    assert_eq!(words[0], code << at(column), "{bits:?}, column {column}");
                }
            }
        }
    }
}
