//! From tensors of a checkpoint to the words of a slot, and Ternion's own packed form.
//!
//! A packed checkpoint is a safetensors file whose ternary tensors are `U32` words in the form of [`crate::quant`];
//! its metadata entry [`PACKED_KEY`] says shape, bits and scale of each. Reading it needs no quantisation.

use std::collections::BTreeMap;
use std::path::Path;

use half::f16;
use serde::{Deserialize, Serialize};

use crate::alloc::{COPY_CHUNK, room, zeros};
use crate::error::{Error, Result};
use crate::files::{Checkpoint, ModelFiles, StorageDType, TensorInfo};
use crate::quant::groups::{self, GroupPacked};
use crate::quant::int8;
use crate::quant::{Bits, Packed, TILE_ROWS, WeightQuant, fill_stack, quantise, stack_words};
use crate::tensor::{Pack, WeightPart, WeightRef};
use crate::threads;

/// The metadata entry of a packed checkpoint: JSON, a [`PackedInfo`] for each ternary tensor.
pub const PACKED_KEY: &str = "ternion.packed";

/// What a packed checkpoint says of one ternary tensor.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PackedInfo {
    /// Rows (outputs).
    pub rows: usize,
    /// Columns (inputs).
    pub cols: usize,
    /// 1 or 2 bits per code.
    pub bits: usize,
    /// The scale's bits as f32: decimal digits would not round-trip everywhere.
    pub scale_bits: u32,
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
        let packed: BTreeMap<String, PackedInfo> = match checkpoint.metadata().get(PACKED_KEY) {
            Some(json) => serde_json::from_str(json)
                .map_err(|e| Error::format(&file, format!("its metadata {PACKED_KEY} is not a table: {e}")))?,
            None => BTreeMap::new(),
        };
        for (name, info) in &packed {
            check_packed(&file, name, info, checkpoint.get(name))?;
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
            Pack::F16 => {
                let broken = |w: u32| w & 0x7c00 == 0x7c00 || w & 0x7c00_0000 == 0x7c00_0000;
                match self.as_stored(weight, StorageDType::F16, broken)? {
                    Some(words) => words,
                    None => self.halves(weight)?,
                }
            }
            Pack::Int8 => int8::pack(&self.floats(weight)?, weight.parts.first().map_or(1, |p| p.cols))?,
            Pack::Groups { group, codes } => {
                let parts: Result<Vec<GroupPacked>> =
                    weight.parts.iter().map(|part| self.groups(part, group as usize, codes)).collect();
                groups::stack(&parts?)?
            }
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
            let bytes = self.checkpoint.bytes_of(&part.name, part.rows.start * part.cols..part.rows.end * part.cols)?;
            // `fits` holds, so both are as long as the part; zeros left in place would be weights.
            let short = || self.broken(&part.name, format!("{} bytes, expected {}", bytes.len(), size(part)));
            let to = rest.split_off_mut(..size(part) / 4).filter(|_| bytes.len() == size(part)).ok_or_else(short)?;
            let pieces = to.chunks_mut(COPY_CHUNK).zip(bytes.chunks(4 * COPY_CHUNK));
            let copied = threads::shared().map(pieces, |(to, from)| {
                to.iter_mut().zip(from.as_chunks().0).for_each(|(to, &from)| *to = u32::from_le_bytes(from));
                !to.iter().fold(false, |any, &word| any | broken(word))
            });
            if copied.contains(&false) {
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
            return Err(self.broken(name_of(weight), format!("{v} does not fit in 16 bits; use --precision f32")));
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
