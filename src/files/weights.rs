//! From tensors of a checkpoint to the words of a slot, and Ternion's own packed form.
//!
//! A packed checkpoint is a safetensors file whose matrices of codes are `U32` words in the form of [`crate::quant`];
//! its metadata entry [`PACKED_KEY`] says shape, bits and scale of each. Behind the codes of a matrix with scales by group lie
//! the scales ([`crate::quant::groups`]). Reading it needs no quantisation.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::alloc::{COPY_CHUNK, room, zeros};
use crate::error::{Error, Result};
use crate::files::checkpoint::safetensors::{MAX_TENSORS, Named};
use crate::files::{Checkpoint, ModelFiles, StorageDType, TensorInfo};
use crate::quant::groups::{GroupShape, is_infinite};
use crate::quant::int8;
use crate::quant::{
    Bits, Packed, StackTable, TILE_ROWS, WeightQuant, fill_stack, quantise, stack_table_words, stack_words,
};
use crate::tensor::{Pack, WeightPart, WeightRef};
use crate::threads;

/// The metadata entry of a packed checkpoint: JSON, a [`PackedInfo`] for each packed tensor.
pub const PACKED_KEY: &str = "ternion.packed";

/// What a packed checkpoint says of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PackedInfo {
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs).
    pub cols: usize,
    /// 1 or 2 bits per code; 6 and 8 too with scales by group.
    pub bits: usize,
    /// The bits, as f32, of the scale, or of what all of a matrix with scales by group is multiplied by: decimal digits would
    /// not round-trip everywhere.
    pub scale_bits: u32,
    /// Columns of a group; none for a ternary matrix, which has one scale.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<usize>,
}

impl PackedInfo {
    /// The shape of a matrix with scales by group; none for another one, and for bits that there are not.
    pub(crate) fn groups(&self) -> Option<GroupShape> {
        Some(GroupShape { rows: self.rows, cols: self.cols, bits: Bits::from_count(self.bits)?, group: self.group? })
    }
}

/// The tensors of a checkpoint, packed or not.
#[derive(Debug)]
pub struct Weights {
    checkpoint: Checkpoint,
    packed: BTreeMap<String, PackedInfo>,
}

impl Weights {
    /// Opens a checkpoint (see [`Checkpoint::open`]).
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; a packed table that does not fit its tensors is [`Error::Format`].
    pub fn open(files: impl Into<ModelFiles>) -> Result<Self> {
        let checkpoint = Checkpoint::open(files)?;
        let file = checkpoint.path().display().to_string();
        let table: Named<PackedInfo, MAX_TENSORS> = match checkpoint.metadata().get(PACKED_KEY) {
            Some(json) => serde_json::from_str(json)
                .map_err(|e| Error::format(&file, format!("its metadata {PACKED_KEY} is not a table: {e}")))?,
            None => Named::default(),
        };
        let mut packed = BTreeMap::new();
        for (name, info) in table.pairs {
            check_packed(&file, &name, &info, checkpoint.get(&name))?;
            if packed.insert(name.clone(), info).is_some() {
                return Err(Error::format(format!("{file}: tensor {name:?}"), "is in the packed table twice"));
            }
        }
        Ok(Weights { checkpoint, packed })
    }

    /// The file that was opened (see [`Checkpoint::path`]).
    pub fn path(&self) -> &Path {
        self.checkpoint.path()
    }

    /// The tensors as the file holds them.
    pub fn checkpoint(&self) -> &Checkpoint {
        &self.checkpoint
    }

    /// What the file says of a packed tensor.
    pub fn packed(&self, name: &str) -> Option<&PackedInfo> {
        self.packed.get(name)
    }

    /// The shape that a tensor stands for.
    pub fn shape(&self, name: &str) -> Option<Vec<usize>> {
        match self.packed.get(name) {
            Some(info) => Some(vec![info.rows, info.cols]),
            None => self.checkpoint.get(name).map(|t| t.shape.clone()),
        }
    }

    /// The words of a weight; the tensors' pages leave memory again.
    ///
    /// # Errors
    /// [`Error::Format`] for NaN or infinite values or a broken scale, [`Error::Unsupported`] for a dtype that holds no
    /// floats, each with the tensor's name.
    pub fn load(&self, weight: &WeightRef) -> Result<Vec<u32>> {
        let words = match weight.pack {
            Pack::F32 => match self.as_stored(weight, StorageDType::F32, |w| w & 0x7f80_0000 == 0x7f80_0000)? {
                Some(words) => words,
                None => self.floats(weight)?.into_iter().map(f32::to_bits).collect(),
            },
            Pack::F16 => match self.as_stored(weight, StorageDType::F16, is_infinite)? {
                Some(words) => words,
                None => self.halves(weight)?,
            },
            Pack::Int8 => int8::pack(&self.floats(weight)?, weight.parts.first().map_or(1, |p| p.cols))?,
            Pack::Groups { group, codes } => self.group_stack(&weight.parts, group as usize, codes)?,
            Pack::Ternary(rule) => {
                let parts: Result<Vec<Packed>> =
                    threads::shared().map(&weight.parts, |p| self.ternary(p, rule)).into_iter().collect();
                let parts = parts?;
                let mut words = zeros(name_of(weight), stack_words(&parts))?;
                fill_stack(&parts, &mut words);
                words
            }
        };
        weight.parts.iter().for_each(|part| self.release(part));
        Ok(words)
    }

    /// Whether the file holds all matrices of a weight as they lie in its stack.
    pub(crate) fn holds_packed(&self, weight: &WeightRef) -> bool {
        weight.parts.iter().all(|part| self.packed.contains_key(&part.name))
    }

    /// Words of some matrices of a stack, as [`Weights::load`] lays them behind its table, into as many.
    ///
    /// # Errors
    /// As [`Weights::load`]; [`Error::Format`] where there are more or fewer words, and for a weight that is no stack.
    pub(crate) fn load_parts(&self, weight: &WeightRef, parts: Range<usize>, mut to: &mut [u32]) -> Result<()> {
        let wanted = to.len();
        let mut copy = |words: &[u32]| {
            let at = to.split_off_mut(..words.len()).unwrap_or_default();
            threads::shared().copy(at, words);
            words.len()
        };
        let some = &weight.parts[parts];
        let found = match weight.pack {
            Pack::Ternary(rule) => {
                let each = some.iter().map(|part| Ok(copy(&self.ternary(part, rule)?.words)));
                each.sum::<Result<usize>>()?
            }
            Pack::Groups { group, codes } => {
                let stack = self.group_stack(some, group as usize, codes)?;
                let table = StackTable::of(&stack, weight.pack.dtype());
                table.map_or(0, |table| copy(&stack[table.body(0..table.parts())]))
            }
            Pack::F32 | Pack::F16 | Pack::Int8 => 0,
        };
        some.iter().for_each(|part| self.release(part));
        if found == wanted {
            return Ok(());
        }
        let problem = format!("{found} words of matrices, expected {wanted}: the file has changed since it was opened");
        Err(self.broken(name_of(weight), problem))
    }

    /// Bytes that the words of a weight take, at most: matrices whose codes may turn out to need 1 bit are counted at 2. No element
    /// is read.
    ///
    /// # Errors
    /// Those of finding the tensors.
    pub fn most_bytes(&self, weight: &WeightRef) -> Result<u64> {
        let parts = &weight.parts;
        let elements = || parts.iter().map(|p| p.rows.len() * p.cols).sum::<usize>();
        let words = match weight.pack {
            Pack::F32 => elements(),
            Pack::F16 => elements().div_ceil(2),
            Pack::Int8 => int8::words(parts.iter().map(|p| p.rows.len()).sum(), parts.first().map_or(1, |p| p.cols)),
            Pack::Groups { group, codes } => self.most_group_words(parts, group as usize, codes)?,
            Pack::Ternary(_) => {
                let bits = |p: &WeightPart| self.packed(&p.name).and_then(|info| Bits::from_count(info.bits));
                let words = |p: &WeightPart| bits(p).unwrap_or(Bits::Two).matrix_words(p.rows.len(), p.cols);
                stack_table_words(parts.len()) + parts.iter().map(words).sum::<usize>()
            }
        };
        Ok(4 * words as u64)
    }

    /// Drops a tensor's pages from resident memory (see [`Checkpoint::release`]).
    pub fn release(&self, part: &WeightPart) {
        self.checkpoint.release(&part.name);
    }

    /// The words as they lie in the file, if all parts lie there in this form. None also if one is `broken`: the way
    /// through floats says which.
    fn as_stored(&self, weight: &WeightRef, form: StorageDType, broken: fn(u32) -> bool) -> Result<Option<Vec<u32>>> {
        let size = |p: &WeightPart| p.rows.len() * p.cols * form.size();
        let fits = |p: &WeightPart| {
            self.checkpoint.get(&p.name).is_some_and(|t| t.stored == form) && size(p).is_multiple_of(4)
        };
        if !weight.parts.iter().all(fits) {
            return Ok(None);
        }
        let mut words = zeros(name_of(weight), weight.parts.iter().map(size).sum::<usize>() / 4)?;
        let mut rest = &mut words[..];
        for part in &weight.parts {
            let to = rest.split_off_mut(..size(part) / 4).unwrap_or_default();
            let (first, in_word) = (part.rows.start * part.cols, 4 / form.size());
            let elements = self.checkpoint.get(&part.name).map_or(0, |tensor| tensor.elements());
            // Piece by piece: what no file holds is made when it is read.
            let copied = threads::shared().map(to.chunks_mut(COPY_CHUNK).enumerate(), |(i, to)| -> Result<bool> {
                let start = first + i * COPY_CHUNK * in_word;
                let from = self.checkpoint.bytes_of(&part.name, start..start + to.len() * in_word)?;
                // Zeros left in place would be weights.
                if from.len() != size_of_val(to) {
                    let problem = format!("{} bytes from element {start} on, expected {}", from.len(), size_of_val(to));
                    return Err(self.broken(&part.name, problem));
                }
                to.iter_mut().zip(from.as_chunks().0).for_each(|(to, &from)| *to = u32::from_le_bytes(from));
                self.checkpoint.release_rows(&part.name, start..start + to.len() * in_word, elements);
                Ok(!to.iter().fold(false, |any, &word| any | broken(word)))
            });
            if copied.into_iter().collect::<Result<Vec<_>>>()?.contains(&false) {
                return Ok(None);
            }
        }
        Ok(Some(words))
    }

    fn halves(&self, weight: &WeightRef) -> Result<Vec<u32>> {
        let pair = |v: &[f32]| {
            let bits = |i: usize| u32::from(v.get(i).map_or(0, |&x| f16::from_f32(x).to_bits()));
            bits(0) | bits(1) << 16
        };
        let values = self.floats(weight)?;
        if let Some(v) = values.iter().find(|&&v| f16::from_f32(v).is_infinite()) {
            return Err(self
                .broken(name_of(weight), format!("{v} does not fit in 16 bits; give the option `precision` as f32")));
        }
        let mut words = room(name_of(weight), values.len().div_ceil(2))?;
        words.extend(values.chunks(2).map(pair));
        Ok(words)
    }

    fn floats(&self, weight: &WeightRef) -> Result<Vec<f32>> {
        let mut all = room(name_of(weight), weight.parts.iter().map(|p| p.rows.len() * p.cols).sum())?;
        for part in &weight.parts {
            all.extend(self.part(part)?);
            self.release(part);
        }
        Ok(all)
    }

    /// The finite numbers of a part.
    pub(super) fn part(&self, part: &WeightPart) -> Result<Vec<f32>> {
        let elements = part.rows.start * part.cols..part.rows.end * part.cols;
        let values = self.checkpoint.read_f32(&part.name, elements)?;
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(self.broken(&part.name, format!("element {i} is {}, expected a finite number", values[i]))),
            None => Ok(values),
        }
    }

    /// Codes and scale of the whole tensor of a part, with its rows.
    pub(super) fn quantised(&self, part: &WeightPart, rule: WeightQuant) -> Result<(usize, Vec<i8>, f32)> {
        let rows = self.shape(&part.name).and_then(|shape| shape.first().copied()).unwrap_or(part.rows.end);
        let values = self.part(&WeightPart { rows: 0..rows, ..part.clone() })?;
        self.release(part);
        let (codes, scale) = quantise(&values, rule)?;
        Ok((rows, codes, scale))
    }

    /// One ternary matrix, quantised now or taken as it lies; then its pages stay in memory until they are released. Some
    /// of its rows have the scale of all, and begin at a whole number of tiles ([`Packed::tiles`]).
    ///
    /// # Errors
    /// As [`Weights::load`].
    pub fn ternary(&self, part: &WeightPart, rule: WeightQuant) -> Result<Packed<'_>> {
        let Some(info) = self.packed.get(&part.name) else {
            let (rows, codes, scale) = self.quantised(part, rule)?;
            return self.rows_of(Packed::new(rows, part.cols, &codes, scale), part);
        };
        if let Some(group) = info.group {
            return Err(self.broken(&part.name, format!("a scale for {group} columns, expected one for all")));
        }
        let (Some(bits), scale) = (Bits::of_ternary(info.bits), f32::from_bits(info.scale_bits)) else {
            return Err(self.broken(&part.name, format!("{} bits per code, expected 1 or 2", info.bits)));
        };
        if part.cols != info.cols {
            return Err(self.broken(&part.name, format!("{} columns, expected {}", info.cols, part.cols)));
        }
        let words = self.checkpoint.read_words(&part.name)?;
        let with_3 = |all: &[u32]| all.iter().fold(0, |any, w| any | w & w >> 1) & 0x5555_5555 != 0;
        if bits == Bits::Two && threads::shared().map(words.chunks(COPY_CHUNK), with_3).contains(&true) {
            return Err(self.broken(&part.name, "a code of 3, expected 0, 1 or 2".into()));
        }
        self.rows_of(Packed { rows: info.rows, cols: info.cols, bits, scale, words }, part)
    }

    fn rows_of<'a>(&self, whole: Packed<'a>, part: &WeightPart) -> Result<Packed<'a>> {
        let n = whole.rows;
        let problem = || format!("rows {:?} of {n} were asked for; a piece is whole tiles of {TILE_ROWS}", part.rows);
        whole.tiles(part.rows.clone()).ok_or_else(|| self.broken(&part.name, problem()))
    }

    pub(super) fn broken(&self, tensor: &str, problem: String) -> Error {
        Error::format(format!("{}: tensor {tensor}", self.path().display()), problem)
    }
}

/// The tensor that stands for a weight in messages: the first of its parts.
fn name_of(weight: &WeightRef) -> &str {
    weight.parts.first().map_or("", |p| &p.name)
}

/// Checks one entry of the packed table against the tensor that it describes.
fn check_packed(file: &str, name: &str, info: &PackedInfo, tensor: Option<&TensorInfo>) -> Result<()> {
    let broken = |problem: String| Err(Error::format(format!("{file}: tensor {name}"), problem));
    let Some(tensor) = tensor else { return broken("is in the packed table but not in the file".into()) };
    if info.group.is_some() {
        return check_groups(file, name, info, tensor);
    }
    let Some(bits) = Bits::of_ternary(info.bits) else {
        return broken(format!("{} bits per code, expected 1 or 2", info.bits));
    };
    let scale = f32::from_bits(info.scale_bits);
    if !(scale.is_finite() && scale > 0.0) {
        return broken(format!("its scale is {scale}, expected a positive number"));
    }
    let sane = |n: usize| (1..=1 << 24).contains(&n);
    if !sane(info.rows) || !sane(info.cols) || tensor.elements() != bits.matrix_words(info.rows, info.cols) {
        return broken(format!("{} words do not hold {} x {} codes", tensor.elements(), info.rows, info.cols));
    }
    Ok(())
}

/// The same for a matrix with scales by group.
fn check_groups(file: &str, name: &str, info: &PackedInfo, tensor: &TensorInfo) -> Result<()> {
    let broken = |problem: String| Err(Error::format(format!("{file}: tensor {name}"), problem));
    let factor = f32::from_bits(info.scale_bits);
    if !factor.is_finite() || factor == 0.0 {
        return broken(format!("its factor is {factor}, expected a finite number other than 0"));
    }
    let PackedInfo { rows, cols, bits, .. } = *info;
    let Some(shape) = info.groups().filter(|_| rows <= 1 << 24) else {
        return broken(format!("{rows} rows of {bits} bits per code, expected at most {} of 1, 2, 6 or 8", 1 << 24));
    };
    if let Err(error) = shape.check() {
        return broken(error.to_string());
    }
    if tensor.elements() != shape.words() + shape.scale_words() {
        return broken(format!("{} words do not hold {rows} x {cols} codes and their scales", tensor.elements()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{MatrixForm, NewTensor, write_tensors};
    use crate::quant::groups::{self, GroupPacked, whole_row};
    use crate::tensor::GroupCodes;

    /// A matrix of these bits with codes and scales that differ.
    fn matrix(rows: usize, cols: usize, bits: Bits, group: usize) -> GroupPacked<'static> {
        let shape = GroupShape { rows, cols, bits, group };
        let packed = GroupPacked::from_codes(shape, |row, codes, scales| {
            let code = |c: usize| (row * 31 + c * 17 + row * c) as i8;
            codes.iter_mut().enumerate().for_each(|(c, to)| {
                *to = match bits {
                    Bits::One => 2 * (code(c) & 1) - 1,
                    Bits::Two => (code(c) & 3) - 1,
                    Bits::Six => (code(c) & 63) - 32,
                    Bits::Eight => code(c),
                };
            });
            scales.iter_mut().enumerate().for_each(|(g, to)| *to = f16::from_f32(0.25 + (row + g) as f32));
            Ok(())
        });
        GroupPacked { factor: -0.75, ..packed.unwrap() }
    }

    fn info(packed: &GroupPacked) -> PackedInfo {
        let GroupShape { rows, cols, bits, group } = packed.shape;
        PackedInfo { rows, cols, bits: bits.count(), scale_bits: packed.factor.to_bits(), group: Some(group) }
    }

    /// A file with the matrix `w`.
    fn file(dir: &Path, words: &[u32], info: PackedInfo) -> Result<Weights> {
        let file = dir.join("model.safetensors");
        let tensor = NewTensor { stored: StorageDType::U32, shape: &[words.len()], bytes: bytemuck::cast_slice(words) };
        let table = serde_json::to_string(&BTreeMap::from([("w", info)])).unwrap();
        write_tensors(&file, [("w", tensor)], &[(PACKED_KEY, table)]).unwrap();
        Weights::open(&file)
    }

    #[test]
    fn a_packed_matrix_with_scales_by_group_is_read_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        for (rows, cols, bits, group) in [
            (300, 96, Bits::One, 32),
            (300, 300, Bits::Two, 128),
            (256, 100, Bits::Two, whole_row(100)),
            (5, 70, Bits::Eight, 32),
            (130, 200, Bits::Six, 64),
        ] {
            let packed = matrix(rows, cols, bits, group);
            let weights = file(dir.path(), &[&packed.words[..], &packed.scales].concat(), info(&packed)).unwrap();
            assert_eq!(weights.shape("w").unwrap(), [rows, cols]);
            let form = weights.matrix_form("w", cols, None).unwrap();
            assert_eq!(form, MatrixForm::Codes { group: group as u32, codes: GroupCodes::Stored });
            let part = |rows| WeightPart { name: "w".into(), rows, cols };
            assert_eq!(weights.groups(&part(0..rows), group, GroupCodes::Stored).unwrap(), packed);
            let pack = Pack::Groups { group: group as u32, codes: GroupCodes::Stored };
            let found = weights.load(&WeightRef { parts: vec![part(0..rows)], pack }).unwrap();
            assert_eq!(found, groups::stack(std::slice::from_ref(&packed)).unwrap());
            let some = weights.groups(&part(1..4), group, GroupCodes::Stored).unwrap();
            assert_eq!(some, packed.rows(1..4).unwrap());
            let wrong = weights.groups(&WeightPart { cols: cols + 1, ..part(0..rows) }, group, GroupCodes::Stored);
            assert!(wrong.unwrap_err().to_string().contains(&format!("{cols} columns")));
            assert!(
                weights.ternary(&part(0..rows), WeightQuant::Absmean).unwrap_err().to_string().contains("scale for")
            );
        }
    }

    #[test]
    fn a_table_that_does_not_fit_its_words_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let packed = matrix(40, 64, Bits::Two, 32);
        let words = [&packed.words[..], &packed.scales].concat();
        let good = info(&packed);
        for (info, said) in [
            (PackedInfo { rows: 129, ..good }, "129 x 64"),
            (PackedInfo { rows: 0, ..good }, "0 x 64"),
            (PackedInfo { rows: usize::MAX, ..good }, "rows"),
            (PackedInfo { cols: usize::MAX, ..good }, "columns"),
            (PackedInfo { bits: 3, ..good }, "3 bits"),
            (PackedInfo { bits: 1, ..good }, "40 x 64"),
            (PackedInfo { bits: 6, ..good }, "at 6 bits of 64"),
            (PackedInfo { bits: 6, group: Some(64), ..good }, "40 x 64"),
            (PackedInfo { group: Some(0), ..good }, "0 columns"),
            (PackedInfo { group: Some(64), ..good }, "40 x 64"),
            (PackedInfo { group: None, ..good }, "scale is -0.75"),
            (PackedInfo { scale_bits: 0f32.to_bits(), ..good }, "factor is 0"),
            (PackedInfo { scale_bits: f32::NAN.to_bits(), ..good }, "factor is NaN"),
        ] {
            let error = file(dir.path(), &words, info).unwrap_err().to_string();
            assert!(error.contains("tensor w") && error.contains(said), "{info:?}: {error}");
        }
        let mut broken = words.clone();
        *broken.last_mut().unwrap() = 0x7c00_0000;
        let weights = file(dir.path(), &broken, good).unwrap();
        let part = WeightPart { name: "w".into(), rows: 0..40, cols: 64 };
        let error = weights.groups(&part, 32, GroupCodes::Stored).unwrap_err().to_string();
        assert!(error.contains("scale that is not a finite"), "{error}");
    }
}
