//! Matrices of low-bit codes with a scale for each row and group of columns:
//! `W[r, c] = factor · scale[r, c / group] · code(r, c)`.
//!
//! Codes lie in words as [`crate::quant`] says, at 1 (−1, +1), 2 (−1, 0, +1, +2), 6 ([`six_bits`]) or 8 bits (signed integers). A
//! group has 32, 64, 128 or 256 columns, or all of them; 64, 128 or 256 at 6 bits; the last one of a row may be short. Scales are f16: the halves of 128 rows
//! lie together, those of group `g` of tile `t` from `(t · groups + g) · 128` on.
//!
//! [`stack`] lays several matrices of one width out as one buffer, from a whole cache line on each:
//! `[n, cols, group, laid out]` (1 where a CPU has laid 1-bit codes out, else 0), then for each matrix
//! `[first word / 4, bits, rows, tiles before it, rows before it, first word of its scales / 4, tiles, factor as bits]`, then each matrix's
//! words and scales.

mod rows;
mod stack;

use std::borrow::Cow;
use std::sync::atomic::{AtomicBool, Ordering};

use half::f16;

use crate::alloc::{CACHE_LINE, zeros};
use crate::error::{Error, Result};
use crate::quant::{Bits, TILE_ROWS, pack_word, six_bits};
use crate::threads;

pub use stack::{GroupPart, GroupStack, stack, stack_rows};
pub(crate) use stack::{lay_out_stack, stack_words};

/// Maximum number of columns, for which a sum of products of two 8-bit codes fits in 32 bits.
pub const MAX_COLS: usize = 1 << 16;
/// Words of the halves of one group of a tile.
pub(crate) const SCALE_WORDS: usize = TILE_ROWS / 2;
/// Largest magnitude of an integer that is made of a float.
const MAX_CODE: f32 = 127.0;

/// Whether a word of two halves has one that is not a finite number.
pub(crate) fn is_infinite(halves: u32) -> bool {
    (halves & 0x7c00 == 0x7c00) | (halves & 0x7c00_0000 == 0x7c00_0000)
}

/// Whether a matrix of `cols` columns may have groups of `group`.
pub fn is_group(cols: usize, group: usize) -> bool {
    matches!(group, 32 | 64 | 128 | 256) || (group.is_multiple_of(32) && group >= cols)
}

/// The group that is a whole row of `cols` columns.
pub fn whole_row(cols: usize) -> usize {
    cols.next_multiple_of(32)
}

/// Rows, columns, bits per code, and columns that share a scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupShape {
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs), at most [`MAX_COLS`].
    pub cols: usize,
    /// Bits per code.
    pub bits: Bits,
    /// Columns of a group ([`is_group`]).
    pub group: usize,
}

impl GroupShape {
    /// Groups of a row.
    pub fn groups(self) -> usize {
        self.cols.div_ceil(self.group)
    }

    /// Words of a row's codes.
    pub fn row_words(self) -> usize {
        self.bits.row_words(self.cols)
    }

    fn tiles(self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }

    /// Words of all codes.
    pub fn words(self) -> usize {
        self.bits.matrix_words(self.rows, self.cols)
    }

    /// Words of all scales.
    pub fn scale_words(self) -> usize {
        self.tiles() * self.groups() * SCALE_WORDS
    }

    /// Checks that there are matrices of this shape.
    ///
    /// # Errors
    /// [`Error::Unsupported`] with what there is.
    pub fn check(self) -> Result<()> {
        let GroupShape { rows, cols, bits, group } = self;
        // Sums of longer groups would not fit in 32 bits.
        let is_group = match bits {
            Bits::Six => matches!(group, 64 | 128 | 256),
            Bits::One | Bits::Two | Bits::Eight => is_group(cols, group),
        };
        if rows > 0 && (1..=MAX_COLS).contains(&cols) && is_group {
            return Ok(());
        }
        Err(Error::Unsupported {
            object: format!("a matrix of {rows} x {cols} codes with a scale for {group} columns"),
            problem: format!(
                "up to {MAX_COLS} columns in groups of 32, 64, 128, 256 or all of them are; at 6 bits of 64, 128 or 256"
            ),
        })
    }
}

/// One matrix of low-bit codes with scales by row and group.
#[derive(Debug, Clone, PartialEq)]
pub struct GroupPacked<'a> {
    /// Its shape.
    pub shape: GroupShape,
    /// `bits.matrix_words(rows, cols)` words of codes.
    pub words: Cow<'a, [u32]>,
    /// The halves, two per word.
    pub scales: Cow<'a, [u32]>,
    /// What the whole matrix is multiplied by: a scale of all of it, which f16 may not hold.
    pub factor: f32,
}

impl GroupPacked<'static> {
    /// From the words of each row's codes ([`crate::quant::reorder`]), in the order of columns, and the scales of its groups: `fill(row, words, scales)`
    /// writes them into zeros, on any thread and in any order of rows. What it writes for columns that are not there, and
    /// for groups without a scale, has no effect.
    ///
    /// # Errors
    /// Those of `fill`; [`Error::Unsupported`] for another shape than [`GroupShape`] says, [`Error::Format`] for a scale
    /// that is not finite, [`Error::OutOfMemory`] if the system has no memory.
    pub fn from_words(
        shape: GroupShape,
        fill: impl Fn(usize, &mut [u32], &mut [f16]) -> Result<()> + Sync,
    ) -> Result<Self> {
        shape.check()?;
        let mut words = zeros("low-bit codes", shape.words())?;
        let mut scales = zeros("scales of low-bit codes", shape.scale_words())?;
        fill_rows(shape, [&mut words, &mut scales], fill)?;
        Ok(GroupPacked { shape, words: words.into(), scales: scales.into(), factor: 1.0 })
    }

    /// From each row's codes and the scales of its groups, as [`GroupPacked::from_words`]. Codes at 2 bits become 1 bit
    /// where none is 0 or +2; the integers that multiply codes of 6 bits are 1.
    ///
    /// # Errors
    /// As [`GroupPacked::from_words`]; [`Error::Format`] for a code that these bits do not have.
    pub fn from_codes(
        shape: GroupShape,
        fill: impl Fn(usize, &mut [i8], &mut [f16]) -> Result<()> + Sync,
    ) -> Result<Self> {
        let (bits, any_even) = (shape.bits, AtomicBool::new(false));
        let all = Self::from_words(shape, |row, words, scales| {
            let mut codes = vec![0i8; shape.cols];
            fill(row, &mut codes, scales)?;
            let wrong = match bits {
                Bits::One => codes.iter().find(|&&c| c != 1 && c != -1),
                Bits::Two => codes.iter().find(|&&c| !(-1..=2).contains(&c)),
                Bits::Six => codes.iter().find(|&&c| !(-32..=31).contains(&c)),
                Bits::Eight => None,
            };
            if let Some(code) = wrong {
                let problem = format!("a code of row {row} is {code}, which {} bits do not hold", bits.count());
                return Err(Error::format("low-bit codes", problem));
            }
            if codes.iter().any(|c| c & 1 == 0) {
                any_even.store(true, Ordering::Relaxed);
            }
            if bits == Bits::Six {
                six_bits::pack(&codes, &vec![1; codes.len().div_ceil(six_bits::GROUP)], words);
                return Ok(());
            }
            let of_words = codes.chunks(bits.cols_per_word());
            words.iter_mut().zip(of_words).for_each(|(word, codes)| *word = pack_word(bits, codes));
            Ok(())
        })?;
        if bits == Bits::Two && !any_even.into_inner() { all.narrow() } else { Ok(all) }
    }

    /// 8-bit integers of rows of floats, which `fill(row, values)` writes: `scale = max |w| / 127` of each group, rounded
    /// to the next f16 that is not less, and `code = round(w / scale)`, ties to even. An element is off by at most half
    /// its scale.
    ///
    /// # Errors
    /// As [`GroupPacked::from_words`]; [`Error::Format`] for an element that is not finite, or above 127 times the largest
    /// f16.
    pub fn from_floats(
        rows: usize,
        cols: usize,
        group: usize,
        fill: impl Fn(usize, &mut [f32]) -> Result<()> + Sync,
    ) -> Result<Self> {
        Self::from_words(GroupShape { rows, cols, bits: Bits::Eight, group }, |row, words, scales| {
            let mut values = vec![0f32; cols];
            fill(row, &mut values)?;
            integers(row, &values, group, words, scales)
        })
    }

    /// The same codes at 1 bit each; all are −1 or +1, and stored at 2 bits as 0 and 2.
    fn narrow(self) -> Result<Self> {
        let shape = GroupShape { bits: Bits::One, ..self.shape };
        let mut words = zeros("low-bit codes", shape.words())?;
        let [from, to] = [self.shape, shape].map(|shape| shape.row_words() * TILE_ROWS);
        threads::shared().map(words.chunks_mut(to).zip(self.words.chunks(from)), |(to, from)| {
            let pairs = to.chunks_mut(TILE_ROWS).zip(from.chunks(2 * TILE_ROWS));
            for (to, from) in pairs {
                for (r, word) in to.iter_mut().enumerate() {
                    let second = from.get(TILE_ROWS + r).map_or(0, |&word| upper_bits(word));
                    *word = upper_bits(from[r]) | second << 4;
                }
            }
        });
        Ok(GroupPacked { shape, words: words.into(), scales: self.scales, factor: self.factor })
    }
}

/// The words and scales of a row of floats, as [`GroupPacked::from_floats`] makes them.
///
/// # Errors
/// As [`GroupPacked::from_floats`].
pub fn integers(row: usize, values: &[f32], group: usize, words: &mut [u32], scales: &mut [f16]) -> Result<()> {
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(words);
    for ((values, bytes), scale) in values.chunks(group).zip(bytes.chunks_mut(group)).zip(scales) {
        let most = values.iter().fold(0f32, |most, v| if v.abs() > most || v.is_nan() { v.abs() } else { most });
        *scale = scale_of(most);
        if !(most.is_finite() && scale.is_finite()) {
            let problem = format!("row {row} has an element of magnitude {most}, which has no scale in 16 bits");
            return Err(Error::format("floats for 8-bit codes", problem));
        }
        let by = if *scale > f16::ZERO { 1.0 / f64::from(*scale) } else { 0.0 };
        for (byte, v) in bytes.iter_mut().zip(values) {
            let code = (f64::from(*v) * by).round_ties_even().clamp(-127.0, 127.0);
            *byte = (code as i32 + 128) as u8;
        }
    }
    Ok(())
}

/// Rows of a tile whose words of one number fill a cache line: as many are made before they are written, whole lines at a time.
const LINE_ROWS: usize = CACHE_LINE / size_of::<u32>();

/// Writes the first `rows` of [`LINE_ROWS`] rows, which lie one behind the other, to the rows of a tile from `first` on.
fn transpose_into<T: Copy>(tile: &mut [T], first: usize, rows_of: &[T], rows: usize) {
    let n = rows_of.len() / LINE_ROWS;
    for (i, to) in tile.chunks_exact_mut(TILE_ROWS).take(n).enumerate() {
        for (r, to) in to[first..][..rows].iter_mut().enumerate() {
            *to = rows_of[r * n + i];
        }
    }
}

/// Writes rows, as [`GroupPacked::from_words`] takes them, into the codes and scales of a matrix, which are zeros.
fn fill_rows(
    shape: GroupShape,
    [words, scales]: [&mut [u32]; 2],
    fill: impl Fn(usize, &mut [u32], &mut [f16]) -> Result<()> + Sync,
) -> Result<()> {
    let (n_words, n_groups) = (shape.row_words(), shape.groups());
    let tiles = words.chunks_mut(n_words * TILE_ROWS).zip(scales.chunks_mut(n_groups * SCALE_WORDS)).enumerate();
    let filled = threads::shared().map(tiles, |(tile, (words, scales))| -> Result<()> {
        let scales: &mut [f16] = bytemuck::cast_slice_mut(scales);
        let (mut of_words, mut of_scales) = (vec![0; LINE_ROWS * n_words], vec![f16::ZERO; LINE_ROWS * n_groups]);
        let rows = shape.rows.min((tile + 1) * TILE_ROWS);
        for first in (tile * TILE_ROWS..rows).step_by(LINE_ROWS) {
            of_words.fill(0);
            of_scales.fill(f16::ZERO);
            let some = first..rows.min(first + LINE_ROWS);
            let each = of_words.chunks_exact_mut(n_words).zip(of_scales.chunks_exact_mut(n_groups));
            for (row, (words, scales)) in some.clone().zip(each) {
                fill(row, words, scales)?;
                if let Some(g) = scales.iter().position(|scale| !scale.is_finite()) {
                    let problem = format!("scale {g} of row {row} is {}, expected a finite number", scales[g]);
                    return Err(Error::format("low-bit codes", problem));
                }
            }
            transpose_into(words, first % TILE_ROWS, &of_words, some.len());
            transpose_into(scales, first % TILE_ROWS, &of_scales, some.len());
        }
        Ok(())
    });
    filled.into_iter().collect()
}

/// The upper bits of a word's 2-bit codes, in the lower half of each byte.
fn upper_bits(word: u32) -> u32 {
    let odd = (word >> 1) & 0x5555_5555;
    let pairs = (odd | odd >> 1) & 0x3333_3333;
    (pairs | pairs >> 2) & 0x0f0f_0f0f
}

/// The least f16 of which 127 times is at least `most`.
fn scale_of(most: f32) -> f16 {
    let near = f16::from_f32(most / MAX_CODE);
    if near.to_f32() * MAX_CODE < most { f16::from_bits(near.to_bits() + 1) } else { near }
}

impl GroupPacked<'_> {
    fn part(&self) -> GroupPart<'_> {
        GroupPart {
            shape: self.shape,
            words: &self.words,
            scales: bytemuck::cast_slice(&self.scales),
            factor: self.factor,
            laid_out: false,
        }
    }

    /// The codes, row-major.
    pub fn codes(&self) -> Vec<i16> {
        let part = self.part();
        (0..self.shape.rows).flat_map(|r| (0..self.shape.cols).map(move |c| part.code(r, c))).collect()
    }

    /// The scale of a row's group.
    pub fn scale(&self, row: usize, group: usize) -> f16 {
        self.part().scale(row, group)
    }

    /// How many codes are −1, 0, +1 and +2; none of integers of 6 and 8 bits.
    pub fn counts(&self) -> Option<[u64; 4]> {
        let GroupShape { rows, cols, bits, .. } = self.shape;
        if matches!(bits, Bits::Six | Bits::Eight) {
            return None;
        }
        let mut counts = [0; 4];
        let whole = cols / bits.cols_per_word();
        for (tile, words) in self.words.chunks(self.shape.row_words() * TILE_ROWS).enumerate() {
            let in_use = TILE_ROWS.min(rows - tile * TILE_ROWS);
            for word in words.chunks(TILE_ROWS).take(whole).flat_map(|words| &words[..in_use]) {
                let n = |bits: u32| u64::from(bits.count_ones());
                let [low, high] = [word & 0x5555_5555, word >> 1 & 0x5555_5555];
                let each = match bits {
                    Bits::One => [n(!word), 0, n(*word), 0],
                    _ => [n(!(low | high) & 0x5555_5555), n(low & !high), n(high & !low), n(low & high)],
                };
                counts.iter_mut().zip(each).for_each(|(sum, n)| *sum += n);
            }
        }
        // The last word of a row may hold fewer.
        let part = self.part();
        for (row, col) in (0..rows).flat_map(|r| (whole * bits.cols_per_word()..cols).map(move |c| (r, c))) {
            counts[(part.code(row, col) + 1) as usize] += 1;
        }
        Some(counts)
    }
}

/// Writes the words and the scales of a row.
pub type FillRow<'a> = dyn Fn(usize, &mut [u32], &mut [f16]) -> Result<()> + Sync + 'a;

/// A matrix whose bits are known before it is made: its rows as [`GroupPacked::from_words`] takes them, and its factor.
pub struct GroupRows<'a> {
    /// Its shape.
    pub shape: GroupShape,
    /// What all of it is multiplied by.
    pub factor: f32,
    /// Writes a row's words and scales.
    pub fill: Box<FillRow<'a>>,
}

impl GroupRows<'_> {
    /// The matrix.
    ///
    /// # Errors
    /// As [`GroupPacked::from_words`].
    pub fn pack(&self) -> Result<GroupPacked<'static>> {
        Ok(GroupPacked { factor: self.factor, ..GroupPacked::from_words(self.shape, &self.fill)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn random(seed: u64, i: usize) -> u32 {
        ((i as u64 + 1).wrapping_mul(seed | 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) as u32
    }

    fn made(shape: GroupShape, codes: &[i8], scales: &[f16]) -> Result<GroupPacked<'static>> {
        GroupPacked::from_codes(shape, |row, to, to_scales| {
            to.copy_from_slice(&codes[row * shape.cols..][..shape.cols]);
            to_scales.copy_from_slice(&scales[row * shape.groups()..][..shape.groups()]);
            Ok(())
        })
    }

    proptest! {
        #[test]
        fn packing_loses_nothing(rows in 1usize..140, cols in 1usize..200, form in 0usize..5, g in 0usize..5, seed: u64) {
            let bits = [Bits::One, Bits::Two, Bits::Two, Bits::Eight, Bits::Six][form];
            let group = if form == 4 { [64, 128, 256][g % 3] } else { [32, 64, 128, 256, whole_row(cols)][g] };
            let shape = GroupShape { rows, cols, bits, group };
            // Form 1 has no 0 and no +2: it becomes 1 bit.
            let code = |i: usize| match form {
                0 | 1 => (random(seed, i) % 2) as i8 * 2 - 1,
                2 => (random(seed, i) % 4) as i8 - 1,
                4 => (random(seed, i) % 64) as i8 - 32,
                _ => random(seed, i) as i8,
            };
            let codes: Vec<i8> = (0..rows * cols).map(code).collect();
            let scales: Vec<f16> =
                (0..rows * shape.groups()).map(|i| f16::from_f32(random(!seed, i) as f32 * 1e-9 - 1.0)).collect();
            let packed = made(shape, &codes, &scales).unwrap();
            let even = codes.iter().any(|c| c % 2 == 0);
            prop_assert_eq!(packed.shape.bits, if form == 1 || (form == 2 && !even) { Bits::One } else { bits });
            prop_assert_eq!(packed.codes(), codes.iter().map(|&code| code.into()).collect::<Vec<i16>>());
            let count = |code: i8| codes.iter().filter(|&&c| c == code).count() as u64;
            let counts = (form < 3).then(|| [-1, 0, 1, 2].map(count));
            prop_assert_eq!(packed.counts(), counts);
            let words = stack(&[packed.clone(), GroupPacked { factor: 0.75, ..packed }]).unwrap();
            let part = GroupStack(&words).part(1);
            for (r, c) in [(0, 0), (rows - 1, cols - 1), (rows / 2, cols / 3)] {
                let want = 0.75 * (scales[r * shape.groups() + c / group].to_f32() * f32::from(codes[r * cols + c]));
                prop_assert_eq!(part.value(r, c), want);
            }
        }

        #[test]
        fn an_element_of_floats_is_off_by_half_a_scale_at_most(cols in 1usize..200, exponent in -30i32..20, seed: u64) {
            let value = |r: usize, c: usize| {
                (f64::from(random(seed, r * cols + c)) / f64::from(1u32 << 30) - 1.0) as f32 * (2f32).powi(exponent)
            };
            let packed = GroupPacked::from_floats(3, cols, 64, |row, values| {
                values.iter_mut().enumerate().for_each(|(c, v)| *v = value(row, c));
                Ok(())
            }).unwrap();
            let words = stack(&[packed]).unwrap();
            let part = GroupStack(&words).part(0);
            for (r, c) in (0..3).flat_map(|r| (0..cols).map(move |c| (r, c))) {
                let scale = part.scale(r, c / 64).to_f32();
                let off = (part.value(r, c) - value(r, c)).abs();
                prop_assert!(off <= 0.500_01 * scale && part.code(r, c) != -128, "{} became {}", value(r, c), part.value(r, c));
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let shape = |cols, bits, group| GroupShape { rows: 2, cols, bits, group };
        let one = [f16::ONE; 2];
        for (shape, codes, scales, said) in [
            (shape(MAX_COLS + 1, Bits::One, 32), vec![1; 2 * MAX_COLS + 2], &one, "65537"),
            (shape(64, Bits::One, 48), vec![1; 128], &one, "48"),
            (shape(64, Bits::Two, 0), vec![1; 128], &one, "0 columns"),
            (shape(4, Bits::One, 32), vec![0; 8], &one, "a code of row 0 is 0"),
            (shape(4, Bits::Two, 32), vec![3; 8], &one, "a code of row 0 is 3"),
            (shape(4, Bits::Six, 64), vec![32; 8], &one, "a code of row 0 is 32"),
            (shape(4, Bits::Six, 32), vec![1; 8], &one, "at 6 bits of 64"),
            (shape(512, Bits::Six, 512), vec![1; 1024], &one, "at 6 bits of 64"),
            (shape(4, Bits::Two, 32), vec![1; 8], &[f16::ONE, f16::NAN], "scale 0 of row 1 is NaN"),
            (shape(4, Bits::Eight, 32), vec![1; 8], &[f16::ONE, f16::INFINITY], "scale 0 of row 1 is inf"),
        ] {
            let error = made(shape, &codes, scales).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        for (value, said) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (1e7, "10000000")] {
            let floats = GroupPacked::from_floats(1, 4, 32, |_, values| {
                values[1] = value;
                Ok(())
            });
            let error = floats.unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
        let made = |group| made(shape(64, Bits::One, group), &[1; 128], &[f16::ONE; 4]).unwrap();
        assert!(stack(&[made(32), made(64)]).unwrap_err().to_string().contains("groups of 64"));
    }
}
