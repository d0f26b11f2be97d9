//! Matrices of low-bit codes with scales by group, from each of the forms in which files hold them; `form` tells which it is.

mod form;

use std::borrow::Cow;

use half::f16;

use crate::alloc::COPY_CHUNK;
use crate::error::{Error, Result};
use crate::files::weights::PackedInfo;
use crate::files::{Blocks, Weights};
use crate::quant::formats::{Content, IntegerFormat};
use crate::quant::groups::{self, GroupPacked, GroupRows, GroupShape, integers, is_infinite};
use crate::quant::{Bits, WeightQuant, reorder, six_bits};
use crate::tensor::{GroupCodes, Pack, WeightPart};
use crate::threads;

pub use form::{MatrixForm, Quantisation};

/// Rows that are made before their pages leave memory.
const RELEASED_ROWS: usize = 4096;

impl Weights {
    /// One matrix of codes with scales by group.
    ///
    /// # Errors
    /// As [`Weights::load`]; [`Error::Unsupported`] for a tensor that holds no such codes.
    pub fn groups(&self, part: &WeightPart, group: usize, codes: GroupCodes) -> Result<GroupPacked<'_>> {
        if let Some(info) = self.packed(&part.name) {
            return self.packed_groups(part, info, group);
        }
        let packed = match codes {
            GroupCodes::Stored | GroupCodes::Affine { .. } | GroupCodes::Int8 => {
                self.group_rows(part, group, codes)?.map_or_else(|| Err(no_codes(part)), |rows| rows.pack())
            }
            GroupCodes::TernaryIntegers { magnitude } => self.ternary_integers(part, group, magnitude),
            GroupCodes::TernaryFloats => self.ternary_floats(part, group),
            GroupCodes::PackedRows { divides } => self.packed_rows(part, group, divides),
            GroupCodes::Absmean => self.absmean(part, group),
        }
        .map_err(|error| self.named(&part.name, error))?;
        let factor = packed.factor * self.factor_beside(part)?;
        Ok(GroupPacked { factor, ..packed })
    }

    /// What Ternion's packed form holds, as it is.
    fn packed_groups(&self, part: &WeightPart, info: &PackedInfo, group: usize) -> Result<GroupPacked<'_>> {
        let found = || format!("{} columns with a scale for {:?}", info.cols, info.group.unwrap_or(info.cols));
        let fits = |shape: &GroupShape| shape.cols == part.cols && shape.group == group;
        let shape = info.groups().filter(fits).ok_or_else(|| {
            self.broken(&part.name, format!("{}, expected {} with a scale for {group}", found(), part.cols))
        })?;
        let (words, scales) = match self.checkpoint().read_words(&part.name)? {
            Cow::Borrowed(all) => {
                let (words, scales) = all.split_at_checked(shape.words()).unwrap_or_default();
                (Cow::Borrowed(words), Cow::Borrowed(scales))
            }
            Cow::Owned(mut all) => {
                let scales = all.split_off(shape.words().min(all.len()));
                (Cow::Owned(all), Cow::Owned(scales))
            }
        };
        let infinite = |scales: &[u32]| scales.iter().fold(false, |any, &word| any | is_infinite(word));
        if threads::shared().map(scales.chunks(COPY_CHUNK), infinite).contains(&true) {
            return Err(self.broken(&part.name, "a scale that is not a finite number".into()));
        }
        GroupPacked { shape, words, scales, factor: f32::from_bits(info.scale_bits) }.rows(part.rows.clone())
    }

    /// The rows and columns of a matrix of codes, where its tensor's shape counts words or bytes.
    pub(crate) fn matrix_shape(&self, name: &str, codes: GroupCodes) -> Option<Vec<usize>> {
        let mut shape = self.shape(name)?;
        if let (None, [rows, cols]) = (self.packed(name), shape.as_mut_slice()) {
            let [rows_per, cols_per] = Pack::Groups { group: 0, codes }.per_stored();
            (*rows, *cols) = (rows_per * *rows, cols_per * *cols);
        }
        Some(shape)
    }

    /// The words of a stack of such matrices, made in their places where their bits are known before.
    ///
    /// # Errors
    /// As [`Weights::groups`] and [`groups::stack`].
    pub fn group_stack(&self, parts: &[WeightPart], group: usize, codes: GroupCodes) -> Result<Vec<u32>> {
        let rows: Result<Option<Vec<GroupRows>>> = parts
            .iter()
            .map(|part| {
                let Some(rows) = self.group_rows(part, group, codes)? else { return Ok(None) };
                let factor = rows.factor * self.factor_beside(part)?;
                Ok(Some(self.releasing(part, GroupRows { factor, ..rows })))
            })
            .collect();
        match rows? {
            Some(rows) => groups::stack_rows(&rows, |i, error| self.named(&parts[i].name, error)),
            None => {
                let all: Result<Vec<_>> = parts.iter().map(|part| self.groups(part, group, codes)).collect();
                groups::stack(&all?)
            }
        }
    }

    /// The same rows, whose pages leave memory piece by piece while they are made: of a table of many rows, what lies in the
    /// file would stand beside what is made of it.
    fn releasing<'a>(&'a self, part: &WeightPart, rows: GroupRows<'a>) -> GroupRows<'a> {
        let (part, fill) = (part.clone(), rows.fill);
        let all =
            self.matrix_shape(&part.name, GroupCodes::Stored).and_then(|shape| shape.first().copied()).unwrap_or(0);
        let fill = move |row: usize, words: &mut [u32], scales: &mut [f16]| {
            fill(row, words, scales)?;
            let end = part.rows.start + row + 1;
            if end.is_multiple_of(RELEASED_ROWS) {
                self.checkpoint().release_rows(&part.name, end - RELEASED_ROWS..end, all);
            }
            Ok(())
        };
        GroupRows { fill: Box::new(fill), ..rows }
    }

    /// Words of [`Weights::group_stack`], at most.
    pub(super) fn most_group_words(&self, parts: &[WeightPart], group: usize, codes: GroupCodes) -> Result<usize> {
        let shape = |part: &WeightPart| -> Result<GroupShape> {
            let packed = self.packed(&part.name).and_then(PackedInfo::groups).map(|shape| shape.bits);
            let told = match packed {
                Some(bits) => Some(bits),
                None => self.group_rows(part, group, codes)?.map(|rows| rows.shape.bits),
            };
            Ok(GroupShape { rows: part.rows.len(), cols: part.cols, bits: told.unwrap_or(Bits::Two), group })
        };
        let shapes: Result<Vec<GroupShape>> = parts.iter().map(shape).collect();
        Ok(groups::stack_words(&shapes?))
    }

    /// What a file multiplies a matrix's products by, beside its codes and scales.
    fn factor_beside(&self, part: &WeightPart) -> Result<f32> {
        Ok(self.beside(&part.name, "scale")?.unwrap_or(1.0))
    }

    /// The rows of codes whose bits the file tells; none of codes that are looked at first.
    fn group_rows(&self, part: &WeightPart, group: usize, codes: GroupCodes) -> Result<Option<GroupRows<'_>>> {
        match codes {
            _ if self.packed(&part.name).is_some() => Ok(None),
            GroupCodes::Stored => self.stored(part, group).map(Some),
            GroupCodes::Affine { bits } => self.affine(part, group, bits as usize).map(Some),
            GroupCodes::Int8 => {
                let shape = GroupShape { rows: part.rows.len(), cols: part.cols, bits: Bits::Eight, group };
                let part = part.clone();
                let fill = move |row: usize, words: &mut [u32], scales: &mut [f16]| {
                    integers(row, &self.row(&part, row)?, group, words, scales)
                };
                Ok(Some(GroupRows { shape, factor: 1.0, fill: Box::new(fill) }))
            }
            GroupCodes::TernaryIntegers { .. }
            | GroupCodes::TernaryFloats
            | GroupCodes::PackedRows { .. }
            | GroupCodes::Absmean => Ok(None),
        }
    }

    /// An error of packing, which does not know the file, with the tensor's name.
    fn named(&self, tensor: &str, error: Error) -> Error {
        match &error {
            Error::Format { object, .. } if !object.starts_with(&self.path().display().to_string()) => {
                self.broken(tensor, error.to_string())
            }
            _ => error,
        }
    }

    /// The finite numbers of a row of a part.
    fn row(&self, part: &WeightPart, row: usize) -> Result<Vec<f32>> {
        let row = part.rows.start + row;
        self.part(&WeightPart { rows: row..row + 1, ..part.clone() })
    }

    fn short(&self, part: &WeightPart, row: usize) -> Error {
        self.broken(&part.name, format!("row {row} is not there"))
    }

    fn code_of_3(&self, part: &WeightPart, row: usize) -> Error {
        let row = part.rows.start + row;
        self.broken(&part.name, format!("row {row} has a code of 3, expected 0, 1 or 2"))
    }

    /// The number in the tensor that has `end` in place of `weight` in its name, if there is one.
    fn beside(&self, name: &str, end: &str) -> Result<Option<f32>> {
        let name = other(name, end);
        if self.checkpoint().get(&name).is_none_or(|tensor| tensor.elements() != 1) {
            return Ok(None);
        }
        let value = self.checkpoint().read_f32(&name, 0..1)?.first().copied().filter(|v| v.is_finite() && *v != 0.0);
        value.map(Some).ok_or_else(|| self.broken(&name, "it is not a finite number other than 0".into()))
    }

    /// The blocks of a part, whose rows are whole blocks.
    fn blocks_of(&self, part: &WeightPart) -> Result<Blocks<'_>> {
        self.checkpoint().blocks(&part.name, part.rows.start * part.cols..part.rows.end * part.cols)
    }

    /// The blocks of a row of the part that `blocks` are of.
    fn row_of<'a>(&self, blocks: &'a Blocks, part: &WeightPart, row: usize) -> Result<&'a [u8]> {
        let n = blocks.bytes.len() / part.rows.len().max(1);
        blocks.bytes.get(row * n..(row + 1) * n).ok_or_else(|| self.short(part, row))
    }

    /// What blocks hold.
    fn stored(&self, part: &WeightPart, group: usize) -> Result<GroupRows<'_>> {
        let (blocks, part) = (self.blocks_of(part)?, part.clone());
        let (bits, factor) = match blocks.format.content() {
            Content::Codes(codes) => (codes.bits(), codes.tensor_scale(&blocks.tail)),
            Content::Integers(integers) if integers.six_bits().is_some() => (Bits::Six, None),
            Content::Integers(_) => (Bits::Eight, None),
        };
        let shape = GroupShape { rows: part.rows.len(), cols: part.cols, bits, group };
        let fill = move |row: usize, words: &mut [u32], scales: &mut [f16]| {
            let bytes = self.row_of(&blocks, &part, row)?;
            match blocks.format.content() {
                Content::Codes(codes) => {
                    let fields = &mut bytemuck::cast_slice_mut(words)[..part.cols * bits.count() / 8];
                    codes.unpack(bytes, fields, scales);
                    if codes.is_ternary() && fields.iter().any(|&byte| byte & byte >> 1 & 0x55 != 0) {
                        return Err(self.code_of_3(&part, row));
                    }
                    reorder(bits, words);
                    if factor.is_some() {
                        scales.fill(f16::ONE);
                    }
                }
                Content::Integers(format) => {
                    let mut codes = vec![0i8; part.cols];
                    if let Some(unpack) = format.six_bits() {
                        let mut integers = vec![0i8; part.cols.div_ceil(six_bits::GROUP)];
                        unpack(bytes, &mut codes, &mut integers, scales);
                        six_bits::pack(&codes, &integers, words);
                        return Ok(());
                    }
                    integer_row(format, bytes, &mut codes, scales);
                    let to: &mut [u8] = bytemuck::cast_slice_mut(words);
                    to.iter_mut().zip(&codes).for_each(|(to, code)| *to = (i32::from(*code) + 128) as u8);
                }
            }
            Ok(())
        };
        Ok(GroupRows { shape, factor: factor.unwrap_or(1.0), fill: Box::new(fill) })
    }

    /// The signs of integers that blocks hold, times their magnitude.
    fn ternary_integers(&self, part: &WeightPart, group: usize, magnitude: u8) -> Result<GroupPacked<'static>> {
        let blocks = self.blocks_of(part)?;
        let Content::Integers(format) = blocks.format.content() else { return Err(no_codes(part)) };
        let shape = GroupShape { rows: part.rows.len(), cols: part.cols, bits: Bits::Two, group };
        let packed = GroupPacked::from_codes(shape, |row, codes, scales| {
            integer_row(format, self.row_of(&blocks, part, row)?, codes, scales);
            codes.iter_mut().for_each(|code| *code = code.signum());
            Ok(())
        })?;
        Ok(GroupPacked { factor: f32::from(magnitude), ..packed })
    }

    /// Codes of floats of which each group has one magnitude beside 0.
    fn ternary_floats(&self, part: &WeightPart, group: usize) -> Result<GroupPacked<'static>> {
        let shape = GroupShape { rows: part.rows.len(), cols: part.cols, bits: Bits::Two, group };
        GroupPacked::from_codes(shape, |row, codes, scales| {
            let values = self.row(part, row)?;
            for ((values, codes), scale) in values.chunks(group).zip(codes.chunks_mut(group)).zip(scales) {
                *scale = f16::from_f32(largest(values));
                codes.iter_mut().zip(values).for_each(|(code, v)| *code = sign(*v));
            }
            Ok(())
        })
    }

    /// Rows `r`, `r + n`, `r + 2n` and `r + 3n` of a matrix of 4n rows share the bytes of row `r`, the first in the lowest
    /// bits. Source: the packing of transformers.
    fn packed_rows(&self, part: &WeightPart, group: usize, divides: bool) -> Result<GroupPacked<'static>> {
        let bytes = self.checkpoint().bytes(&part.name)?;
        let n = bytes.len() / part.cols.max(1);
        let shape = GroupShape { rows: part.rows.len(), cols: part.cols, bits: Bits::Two, group };
        let packed = GroupPacked::from_codes(shape, |row, codes, scales| {
            let row = part.rows.start + row;
            let (at, shift) = (row % n.max(1), 2 * (row / n.max(1)));
            let bytes = bytes.get(at * part.cols..(at + 1) * part.cols).filter(|_| shift < 8);
            let bytes = bytes.ok_or_else(|| self.short(part, row))?;
            codes.iter_mut().zip(bytes).for_each(|(code, byte)| *code = (byte >> shift & 3) as i8 - 1);
            if codes.contains(&2) {
                return Err(self.code_of_3(part, row - part.rows.start));
            }
            scales.fill(f16::ONE);
            Ok(())
        })?;
        let scale = self
            .beside(&part.name, "weight_scale")?
            .ok_or_else(|| self.broken(&part.name, "its packed rows have no weight_scale beside them".into()))?;
        Ok(GroupPacked { factor: if divides { 1.0 / scale } else { scale }, ..packed })
    }

    /// `w = scale · code + bias`, where the bias is −scale at 2 bits and −scale / 2 at 1 bit.
    fn affine(&self, part: &WeightPart, group: usize, bits: usize) -> Result<GroupRows<'_>> {
        let bits = Bits::of_ternary(bits).ok_or_else(|| {
            let problem = format!("codes of {bits} bits; 1 and 2 are read");
            Error::Unsupported { object: format!("{}: tensor {}", self.path().display(), part.name), problem }
        })?;
        let (words, part) = (self.checkpoint().read_words(&part.name)?, part.clone());
        let per_row = part.cols.div_ceil(bits.cols_per_word());
        let groups = part.cols.div_ceil(group.max(1));
        let [scales, biases] = ["scales", "biases"].map(|end| other(&part.name, end));
        let row_of = move |name: &str, row: usize| self.checkpoint().read_f32(name, row * groups..(row + 1) * groups);
        let shape = GroupShape { rows: part.rows.len(), cols: part.cols, bits, group };
        let fill = move |row: usize, to: &mut [u32], to_scales: &mut [f16]| {
            let row = part.rows.start + row;
            let from = words.get(row * per_row..(row + 1) * per_row).ok_or_else(|| self.short(&part, row))?;
            to[..per_row].iter_mut().zip(from).for_each(|(to, from)| *to = from.to_le());
            reorder(bits, to);
            let of_one = if bits == Bits::One { 0.5 } else { 1.0 };
            for ((to, scale), bias) in to_scales.iter_mut().zip(row_of(&scales, row)?).zip(row_of(&biases, row)?) {
                if bias != -scale * of_one {
                    let problem = format!("{bias} in row {row} beside a scale of {scale}: codes around 0 are read");
                    return Err(self.broken(&biases, problem));
                }
                *to = f16::from_f32(scale * of_one);
            }
            Ok(())
        };
        Ok(GroupRows { shape, factor: 1.0, fill: Box::new(fill) })
    }

    /// Floats, quantised now.
    fn absmean(&self, part: &WeightPart, group: usize) -> Result<GroupPacked<'static>> {
        let (_, codes, scale) = self.quantised(part, WeightQuant::Absmean)?;
        let shape = GroupShape { rows: part.rows.len(), cols: part.cols, bits: Bits::Two, group };
        let packed = GroupPacked::from_codes(shape, |row, to, scales| {
            let row = part.rows.start + row;
            let from = codes.get(row * part.cols..(row + 1) * part.cols).ok_or_else(|| self.short(part, row))?;
            to.copy_from_slice(from);
            scales.fill(f16::ONE);
            Ok(())
        })?;
        Ok(GroupPacked { factor: scale, ..packed })
    }
}

/// The name of the tensor beside `name` that ends in `end` instead of `weight`.
fn other(name: &str, end: &str) -> String {
    format!("{}{end}", name.strip_suffix("weight").unwrap_or(name))
}

/// −1, 0 or +1; −0 is 0.
fn sign(v: f32) -> i8 {
    i8::from(v > 0.0) - i8::from(v < 0.0)
}

/// The largest magnitude.
fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0f32, |max, v| max.max(v.abs()))
}

/// The error of a tensor of another form than was found before.
fn no_codes(part: &WeightPart) -> Error {
    Error::format(format!("tensor {}", part.name), "its form is not the one that it had before")
}

/// A row of 8-bit integers, and its scales.
fn integer_row(format: &dyn IntegerFormat, bytes: &[u8], codes: &mut [i8], scales: &mut [f16]) {
    let n = codes.len().div_ceil(format.group());
    let [mut all, mut offsets] = [(); 2].map(|()| vec![0f32; n]);
    format.unpack(bytes, codes, &mut all, &mut offsets);
    scales.iter_mut().zip(&all).for_each(|(to, from)| *to = f16::from_f32(*from));
}
