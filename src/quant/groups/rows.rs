//! Some rows of a matrix with scales by group.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::quant::TILE_ROWS;
use crate::quant::groups::{GroupPacked, GroupShape, SCALE_WORDS};

impl<'a> GroupPacked<'a> {
    /// Some of its rows, borrowed as it is where they are whole tiles.
    ///
    /// # Errors
    /// [`Error::Shape`] for rows that it does not have; [`Error::OutOfMemory`] if the system has no memory.
    pub fn rows(self, rows: Range<usize>) -> Result<GroupPacked<'a>> {
        let (whole, factor) = (self.shape, self.factor);
        if rows.start >= rows.end || rows.end > whole.rows {
            return Err(Error::shape(
                "rows of low-bit codes",
                format!("some of 0..{}", whole.rows),
                format!("{rows:?}"),
            ));
        }
        let shape = GroupShape { rows: rows.len(), ..whole };
        let is_edge = |row: usize| row.is_multiple_of(TILE_ROWS) || row == whole.rows;
        if is_edge(rows.start) && is_edge(rows.end) {
            let tiles = rows.start / TILE_ROWS..rows.end.div_ceil(TILE_ROWS);
            let cut = |all: Cow<'a, [u32]>, of_tile: usize| {
                let words = tiles.start * of_tile..tiles.end * of_tile;
                match all {
                    Cow::Borrowed(all) => Cow::Borrowed(&all[words]),
                    Cow::Owned(all) if words.len() == all.len() => Cow::Owned(all),
                    Cow::Owned(all) => Cow::Owned(all[words].to_vec()),
                }
            };
            let words = cut(self.words, whole.row_words() * TILE_ROWS);
            return Ok(GroupPacked { shape, words, scales: cut(self.scales, whole.groups() * SCALE_WORDS), factor });
        }
        let made = GroupPacked::from_words(shape, |row, words, scales| {
            let (tile, in_tile) = ((rows.start + row) / TILE_ROWS, (rows.start + row) % TILE_ROWS);
            let from = self.words.iter().skip(tile * whole.row_words() * TILE_ROWS + in_tile).step_by(TILE_ROWS);
            words.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
            scales.iter_mut().enumerate().for_each(|(g, scale)| *scale = self.scale(rows.start + row, g));
            Ok(())
        })?;
        Ok(GroupPacked { factor, ..made })
    }
}

#[cfg(test)]
mod tests {
    use half::f16;
    use proptest::prelude::*;

    use super::*;
    use crate::quant::Bits;

    proptest! {
        #[test]
        fn rows_have_the_codes_and_scales_of_the_whole(rows in 1usize..300, cols in 1usize..100, bits in 0..3usize, cut: (usize, usize)) {
            let bits = [Bits::Two, Bits::Six, Bits::Eight][bits];
            let shape = GroupShape { rows, cols, bits, group: 64 };
            let code = |row: usize, c: usize| ((row * 7 + c * 5 + row * c) % 4) as i8 - 1;
            let packed = GroupPacked::from_codes(shape, |row, codes, scales| {
                codes.iter_mut().enumerate().for_each(|(c, to)| *to = code(row, c));
                scales.iter_mut().enumerate().for_each(|(g, to)| *to = f16::from_f32((row * 4 + g) as f32));
                Ok(())
            }).unwrap();
            let whole = GroupPacked { factor: 0.5, ..packed };
            let (one, other) = (cut.0 % rows, cut.1 % rows);
            for part in [one.min(other)..one.max(other) + 1, one / TILE_ROWS * TILE_ROWS..rows, 0..rows] {
                let (words, scales) = (Cow::Borrowed(&whole.words[..]), Cow::Borrowed(&whole.scales[..]));
                let found = GroupPacked { words, scales, ..whole }.rows(part.clone()).unwrap();
                let want: Vec<i16> = part.clone().flat_map(|row| (0..cols).map(move |c| code(row, c).into())).collect();
                prop_assert_eq!(found.codes(), want);
                prop_assert_eq!((found.factor, found.scale(0, 0)), (0.5, f16::from_f32(4.0 * part.start as f32)));
                prop_assert_eq!(found, whole.clone().rows(part).unwrap());
            }
            for wrong in [0..rows + 1, rows..rows, usize::MAX..usize::MAX] {
                prop_assert!(whole.clone().rows(wrong).is_err());
            }
        }
    }
}
