//! How a matrix is run, by the form in which a file holds it.

use crate::error::Result;
use crate::files::low_bit::{largest, other};
use crate::files::weights::PackedInfo;
use crate::files::{StorageDType, Weights};
use crate::quant::formats::{Content, magnitude};
use crate::quant::groups::whole_row;
use crate::tensor::GroupCodes;

/// Columns of a group of integers that no file divides.
const INT8_GROUP: u32 = 32;
/// Columns of a group in which ternary values are looked for among floats: those of the models that are published so.
const FOUND_GROUP: u32 = 128;

/// How the matrices of a Hugging Face checkpoint are quantised, as its configuration says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Quantisation {
    /// `bitnet`, packed: four rows a byte, with one scale a matrix, which divides or multiplies.
    PackedRows {
        /// Whether products are divided by the scale.
        divides: bool,
    },
    /// `bitnet`, as floats: quantised when they are loaded ([`WeightQuant::Absmean`](crate::quant::WeightQuant::Absmean)).
    Online,
    /// MLX: words of codes of 1 or 2 bits, with a scale and an offset a group.
    Affine {
        /// Bits of a code.
        bits: usize,
        /// Columns of a group.
        group: usize,
    },
}

/// How a matrix is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MatrixForm {
    /// As floats.
    Dense,
    /// As codes with scales.
    Codes {
        /// Columns of a group.
        group: u32,
        /// Where the codes come from.
        codes: GroupCodes,
    },
}

impl MatrixForm {
    const fn codes(group: u32, codes: GroupCodes) -> Self {
        MatrixForm::Codes { group, codes }
    }
}

impl Weights {
    /// How the matrix `name`, of `cols` columns, is run: as the file holds it if that is codes, Q6_K's among them; as codes if
    /// floats or integers turn out to be ternary by group; as 8-bit integers if the file has 8 bits an element or fewer; else as
    /// floats.
    ///
    /// Integers of 8 bits and fewer, and floats of 16 bits, are read to find out whether they are ternary.
    ///
    /// # Errors
    /// Those of reading the tensor; [`Error::Format`](crate::error::Error::Format) for a form that does not fit the configuration.
    pub fn matrix_form(&self, name: &str, cols: usize, quantisation: Option<Quantisation>) -> Result<MatrixForm> {
        if let Some(shape) = self.packed(name).and_then(PackedInfo::groups) {
            return Ok(MatrixForm::codes(shape.group as u32, GroupCodes::Stored));
        }
        let Some(tensor) = self.checkpoint().get(name) else { return Ok(MatrixForm::Dense) };
        let row = whole_row(cols) as u32;
        match (tensor.stored, quantisation) {
            (StorageDType::Blocks(format), _) => match format.content() {
                Content::Codes(_) if format.tail_bytes() > 0 => Ok(MatrixForm::codes(row, GroupCodes::Stored)),
                Content::Codes(_) => Ok(MatrixForm::codes(format.elements() as u32, GroupCodes::Stored)),
                Content::Integers(integers) if integers.six_bits().is_some() => {
                    Ok(MatrixForm::codes(format.elements() as u32, GroupCodes::Stored))
                }
                Content::Integers(integers) if !integers.has_offsets() && integers.group() == INT8_GROUP as usize => {
                    let ternary = |magnitude| GroupCodes::TernaryIntegers { magnitude };
                    let codes = self.integer_magnitude(name)?.map_or(GroupCodes::Stored, ternary);
                    Ok(MatrixForm::codes(INT8_GROUP, codes))
                }
                Content::Integers(_) => Ok(MatrixForm::codes(INT8_GROUP, GroupCodes::Int8)),
            },
            (StorageDType::U8, Some(Quantisation::PackedRows { divides })) => {
                self.check_direction(name, divides)?;
                Ok(MatrixForm::codes(row, GroupCodes::PackedRows { divides }))
            }
            (StorageDType::U32, Some(Quantisation::Affine { bits, group })) => {
                Ok(MatrixForm::codes(group as u32, GroupCodes::Affine { bits: bits as u32 }))
            }
            (StorageDType::F16 | StorageDType::BF16 | StorageDType::F32, Some(Quantisation::Online)) => {
                Ok(MatrixForm::codes(row, GroupCodes::Absmean))
            }
            (StorageDType::F16, None)
                if cols.is_multiple_of(FOUND_GROUP as usize) && self.is_ternary(name, cols)? =>
            {
                Ok(MatrixForm::codes(FOUND_GROUP, GroupCodes::TernaryFloats))
            }
            _ => Ok(MatrixForm::Dense),
        }
    }

    /// The magnitude of all integers that are not 0 of a tensor of blocks of integers; none if there are several.
    fn integer_magnitude(&self, name: &str) -> Result<Option<u8>> {
        let Some(tensor) = self.checkpoint().get(name) else { return Ok(None) };
        let blocks = self.checkpoint().blocks(name, 0..tensor.elements())?;
        let Content::Integers(format) = blocks.format.content() else { return Ok(None) };
        let (n, group) = (blocks.format.elements(), format.group());
        let mut integers = vec![0i8; n];
        let [mut scales, mut offsets] = [(); 2].map(|()| vec![0f32; n.div_ceil(group)]);
        let mut found = 0;
        for block in blocks.bytes.chunks_exact(blocks.format.bytes()) {
            format.unpack(block, &mut integers, &mut scales, &mut offsets);
            match magnitude(&integers) {
                Some(0) => {}
                Some(size) if found == 0 || found == size => found = size,
                _ => return Ok(None),
            }
        }
        Ok(Some(found).filter(|&size| size > 0))
    }

    /// Whether each group of a matrix of floats has one magnitude beside 0.
    fn is_ternary(&self, name: &str, cols: usize) -> Result<bool> {
        let elements = self.checkpoint().get(name).map_or(0, |tensor| tensor.elements());
        for row in 0..elements / cols.max(1) {
            let values = self.checkpoint().read_f32(name, row * cols..(row + 1) * cols)?;
            if !values.chunks(FOUND_GROUP as usize).all(one_magnitude) {
                return Ok(false);
            }
        }
        Ok(elements > 0)
    }

    /// Checks that a scale is used the right way: weights of trained models are far below 1.
    fn check_direction(&self, name: &str, divides: bool) -> Result<()> {
        let Some(scale) = self.beside(name, "weight_scale")? else { return Ok(()) };
        if (scale > 1.0) == divides || scale == 1.0 {
            return Ok(());
        }
        let (is, says) = if divides { ("multiply", "divides by") } else { ("divide", "multiplies with") };
        let problem = format!("is {scale}, which can only {is}, but the configuration {says} it (linear_class)");
        Err(self.broken(&other(name, "weight_scale"), problem))
    }
}

fn one_magnitude(values: &[f32]) -> bool {
    let size = largest(values);
    values.iter().all(|v| *v == 0.0 || v.abs() == size) && size.is_finite()
}
