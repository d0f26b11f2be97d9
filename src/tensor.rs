//! Shapes and dtypes of a plan's slots, and where a weight comes from. Independent of plans and devices.

use std::fmt;
use std::ops::Range;

use crate::quant::WeightQuant;
use crate::quant::int8;

/// How the elements of a slot lie in its `u32` words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32-bit floats, one per word.
    F32,
    /// 16-bit floats, two per word: rows of an odd width begin in the middle of one, every other time.
    F16,
    /// Unsigned integers, one per word.
    U32,
    /// Signed 8-bit activation codes, four per word; each row is padded to [`CODE_ALIGN`] codes with zeros.
    Codes,
    /// Rows of signed 8-bit integers with a scale each, in the form of [`crate::quant::int8`].
    Int8,
    /// A stack of ternary matrices in the form of [`crate::quant::stack`].
    Ternary,
    /// A stack of matrices of low-bit codes with a scale for each row and group of `group` columns, in the form of
    /// [`crate::quant::groups`].
    Groups {
        /// Columns of a group.
        group: u32,
    },
}

/// As it is printed.
impl serde::Serialize for DType {
    fn serialize<S: serde::Serializer>(&self, to: S) -> std::result::Result<S::Ok, S::Error> {
        to.collect_str(&format_args!("{self:?}"))
    }
}

/// Rows of [`DType::Codes`] are padded to a multiple of this many codes (the columns of a 1-bit weight word).
pub const CODE_ALIGN: usize = 32;

/// What counts the leading rows of a slot that are used in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CountedBy {
    /// All of them, always.
    Fixed,
    /// As many as the step has rows.
    Rows,
    /// As many as the step has outputs (rows whose logits are wanted).
    Outputs,
}

/// Shape, dtype and leading count of a slot. `shape[0]` is the maximum number of its rows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Dimensions, row-major.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
    /// What the leading dimension counts.
    pub counted_by: CountedBy,
}

impl Spec {
    /// A slot whose rows are all used in every step.
    pub fn fixed(shape: &[usize], dtype: DType) -> Self {
        Spec { shape: shape.to_vec(), dtype, counted_by: CountedBy::Fixed }
    }

    /// A slot whose leading dimension counts what `counted_by` says.
    pub fn counted(shape: &[usize], dtype: DType, counted_by: CountedBy) -> Self {
        Spec { shape: shape.to_vec(), dtype, counted_by }
    }

    /// This spec with another width (last dimension) and dtype.
    pub fn with_last(&self, width: usize, dtype: DType) -> Self {
        let mut shape = self.shape.clone();
        if let Some(last) = shape.last_mut() {
            *last = width;
        }
        Spec { shape, dtype, counted_by: self.counted_by }
    }

    /// This spec without its other dimensions: one element for each leading row.
    pub fn leading_only(&self) -> Self {
        Spec { shape: vec![self.shape[0], 1], dtype: self.dtype, counted_by: self.counted_by }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The last dimension.
    pub fn width(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }

    /// Rows of the last dimension: the product of all others.
    pub fn rows(&self) -> usize {
        self.len() / self.width().max(1)
    }

    /// Rows of the last dimension that belong to one leading row.
    pub fn vectors_per_row(&self) -> usize {
        self.rows() / self.shape.first().copied().unwrap_or(1).max(1)
    }

    /// Where the words of leading rows lie, which must be whole words: the first word, and the words of a row, of each part.
    /// Behind 8-bit integers come their scales.
    pub fn row_words(&self) -> Vec<(usize, usize)> {
        let rows = self.shape.first().copied().unwrap_or(1).max(1);
        match self.dtype {
            DType::Int8 => vec![(0, self.len() / 4 / rows), (self.len().div_ceil(4), self.vectors_per_row())],
            _ => vec![(0, self.words() / rows)],
        }
    }

    /// `u32` words that the slot occupies. A stack's size is known only when it is packed: 0 here.
    pub fn words(&self) -> usize {
        match self.dtype {
            DType::F32 | DType::U32 => self.len(),
            DType::F16 => self.len().div_ceil(2),
            DType::Codes => self.rows() * code_words(self.width()),
            DType::Int8 => int8::words(self.rows(), self.width()),
            DType::Ternary | DType::Groups { .. } => 0,
        }
    }
}

/// Words of one row of `width` codes.
pub fn code_words(width: usize) -> usize {
    width.next_multiple_of(CODE_ALIGN) / 4
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} {:?}", self.shape, self.dtype)
    }
}

/// A weight as a plan knows it: which tensors of the checkpoint, one after the other, and how they are packed.
/// No bytes move until the engine loads it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightRef {
    /// The tensors, in the order in which they are stacked.
    pub parts: Vec<WeightPart>,
    /// How their elements become words.
    pub pack: Pack,
}

/// Some rows of one tensor of the checkpoint, read as a matrix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightPart {
    /// The tensor's name in the file.
    pub name: String,
    /// Which rows (of its first dimension; row 0 alone for a vector read as one row).
    pub rows: Range<usize>,
    /// Elements of a row: the product of the other dimensions.
    pub cols: usize,
}

/// How a weight's elements become words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Pack {
    /// 32-bit floats.
    F32,
    /// 16-bit floats, rounded to nearest.
    F16,
    /// 8-bit integers with a scale for each row ([`crate::quant::int8`]).
    Int8,
    /// Quantised by a rule and packed losslessly at 1 or 2 bits per weight.
    Ternary(WeightQuant),
    /// Codes of 1, 2, 6 or 8 bits with a scale for each row and group of `group` columns ([`crate::quant::groups`]).
    Groups {
        /// Columns of a group.
        group: u32,
        /// Where the codes come from.
        codes: GroupCodes,
    },
}

/// Where the codes of a matrix with scales by group come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum GroupCodes {
    /// The file holds them with these scales, in blocks or in Ternion's packed form.
    Stored,
    /// The file holds floats of which each group has one magnitude beside 0.
    TernaryFloats,
    /// The file holds integers in blocks, all of which have one magnitude beside 0.
    TernaryIntegers {
        /// That magnitude.
        magnitude: u8,
    },
    /// Bytes of four rows, with one scale for all.
    PackedRows {
        /// Whether products are divided by the scale.
        divides: bool,
    },
    /// Words of codes, with a scale and an offset for each group.
    Affine {
        /// Bits of a code.
        bits: u32,
    },
    /// Quantised when they are loaded ([`WeightQuant::Absmean`]).
    Absmean,
    /// 8-bit integers, made of the file's numbers.
    Int8,
}

impl Pack {
    /// The dtype of a slot packed so.
    pub fn dtype(self) -> DType {
        match self {
            Pack::F32 => DType::F32,
            Pack::F16 => DType::F16,
            Pack::Int8 => DType::Int8,
            Pack::Ternary(_) => DType::Ternary,
            Pack::Groups { group, .. } => DType::Groups { group },
        }
    }

    /// Rows and columns of a matrix for each row and column of the tensor that holds it: bytes of four rows, and words of
    /// codes, hold several.
    pub fn per_stored(self) -> [usize; 2] {
        match self {
            Pack::Groups { codes: GroupCodes::PackedRows { .. }, .. } => [4, 1],
            Pack::Groups { codes: GroupCodes::Affine { bits }, .. } => [1, 32 / bits.clamp(1, 32) as usize],
            Pack::F32 | Pack::F16 | Pack::Int8 | Pack::Ternary(_) | Pack::Groups { .. } => [1, 1],
        }
    }
}

impl fmt::Display for WeightRef {
    /// A text that is equal for equal weights only: all that [`WeightRef::eq`] compares, names in quotes, as they may contain
    /// the separators.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, p) in self.parts.iter().enumerate() {
            let plus = if i > 0 { "+" } else { "" };
            write!(f, "{plus}{:?}[{}..{}, {}]", p.name, p.rows.start, p.rows.end, p.cols)?;
        }
        write!(f, ":{:?}", self.pack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(parts: &[(&str, Range<usize>, usize)]) -> WeightRef {
        let part = |(name, rows, cols): &(&str, Range<usize>, usize)| WeightPart {
            name: name.to_string(),
            rows: rows.clone(),
            cols: *cols,
        };
        WeightRef { parts: parts.iter().map(part).collect(), pack: Pack::F32 }
    }

    #[test]
    fn the_words_of_rows_are_those_of_the_slot() {
        for (dtype, parts) in
            [(DType::F32, vec![(0, 16)]), (DType::F16, vec![(0, 8)]), (DType::Int8, vec![(0, 4), (12, 2)])]
        {
            let spec = Spec::fixed(&[3, 2, 8], dtype);
            assert_eq!(spec.row_words(), parts);
            let words: usize = parts.iter().map(|(_, words)| 3 * words).sum();
            assert_eq!(words.next_multiple_of(4), spec.words().next_multiple_of(4), "{dtype:?}");
        }
    }

    #[test]
    fn a_weights_text_is_equal_for_equal_weights_only() {
        let all = [
            weight(&[("a", 0..2, 3)]),
            weight(&[("a", 0..2, 6)]),
            weight(&[("a", 0..2, 3), ("b", 0..1, 3)]),
            weight(&[("a[0..2, 3]+b", 0..1, 3)]),
            weight(&[("a\"[0..2, 3]+\"b", 0..1, 3)]),
            WeightRef { pack: Pack::F16, ..weight(&[("a", 0..2, 3)]) },
        ];
        for (i, a) in all.iter().enumerate() {
            for (j, b) in all.iter().enumerate() {
                assert_eq!(a.to_string() == b.to_string(), i == j, "{a} {b}");
            }
        }
    }
}
