//! Where the tensors of a GGUF file lie, by their types and checked against the offsets and the length of the file.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::files::checkpoint::gguf::{GgufHeader, GgufTensor};
use crate::files::checkpoint::storage_dtype::StorageDType;
use crate::quant::formats::{Format, other_type};

/// Types whose elements are numbers of their own, by their number.
const NUMBERS: [(u32, StorageDType); 3] = [(0, StorageDType::F32), (1, StorageDType::F16), (30, StorageDType::BF16)];

/// What is known of one tensor's bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Placed {
    /// They lie in this range of the file, in this form.
    At(Range<usize>, StorageDType),
    /// Nothing here reads them, for this reason.
    Unreadable(String),
}

/// The forms that a type number may stand for.
fn forms(type_id: u32) -> Vec<StorageDType> {
    let number = NUMBERS.iter().find(|(id, _)| *id == type_id).map(|(_, stored)| *stored);
    number.into_iter().chain(Format::with_type(type_id).map(StorageDType::Blocks)).collect()
}

/// The bytes of a tensor in this form; none if its rows are no whole blocks.
fn bytes(tensor: &GgufTensor, stored: StorageDType) -> Option<usize> {
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let elements = tensor.shape.iter().product();
    stored.bytes(elements).filter(|_| cols.is_multiple_of(stored.block_elements()))
}

/// The tensors of a header in the order of the file, which has `len` bytes.
///
/// A tensor begins where the one before it ends, at the next multiple of the alignment. Where a type number stands for two
/// forms (groups of 64 or of 128), that is what tells them apart: all tensors of the type have the same one.
///
/// # Errors
/// [`Error::Format`] with the tensor for what is cut short, overlaps, leaves a gap, or fits two forms.
pub(crate) fn place(file: &str, header: &GgufHeader, len: usize) -> Result<Vec<Placed>> {
    let room = len - header.data;
    // What is cut short says only that: sizes of what is there no longer fit either.
    for tensor in &header.tensors {
        let least = forms(tensor.type_id).into_iter().filter_map(|form| bytes(tensor, form)).min();
        if let Some(end) = least.map(|least| tensor.offset.saturating_add(least)).filter(|&end| end > room) {
            let end = end.saturating_add(header.data);
            let problem = format!("ends at byte {end}, the file has {len}; it is cut short, fetch it again");
            return Err(wrong(file, tensor, problem));
        }
    }
    let spans = Spans { file, header, room };
    let mut chosen: Vec<(u32, StorageDType)> = Vec::new();
    let mut placed = Vec::with_capacity(header.tensors.len());
    for (i, tensor) in header.tensors.iter().enumerate() {
        let span = spans.of(i)?;
        let form = match chosen.iter().find(|(id, _)| *id == tensor.type_id) {
            Some((_, form)) => Some(*form),
            None => spans.form(tensor.type_id)?,
        };
        let Some(form) = form else {
            let (name, why) = other_type(tensor.type_id);
            let colon = if why.is_empty() { "" } else { ": " };
            let kind = format!("it is of type {} ({name}), {} bytes", tensor.type_id, span.len());
            placed.push(Placed::Unreadable(format!("{kind}, which is not read{colon}{why}")));
            continue;
        };
        chosen.push((tensor.type_id, form));
        let bytes = spans.check(i, form)?;
        placed.push(Placed::At(header.data + span.start..header.data + span.start + bytes, form));
    }
    Ok(placed)
}

/// The offsets of a header.
struct Spans<'a> {
    file: &'a str,
    header: &'a GgufHeader,
    /// Bytes behind the header.
    room: usize,
}

impl Spans<'_> {
    /// From the offset of tensor `i` to the next one's, or to the end.
    fn of(&self, i: usize) -> Result<Range<usize>> {
        let tensors = &self.header.tensors;
        let start = tensors[i].offset;
        let end = tensors.get(i + 1).map_or(self.room, |next| next.offset);
        if (i == 0 && start != 0) || end <= start {
            let problem = format!("begins at byte {start} of the data, where no tensor begins or another one does");
            return Err(wrong(self.file, &tensors[i], problem));
        }
        Ok(start..end)
    }

    /// Whether tensor `i` in this form ends where the next one begins.
    fn fits(&self, i: usize, form: StorageDType) -> bool {
        let span = self.of(i).unwrap_or_default();
        let padded = bytes(&self.header.tensors[i], form).map(|n| n.checked_next_multiple_of(self.header.alignment));
        let last = i + 1 == self.header.tensors.len();
        match padded {
            // What follows the last tensor is fill, or not there.
            Some(Some(padded)) if last => padded == span.len().next_multiple_of(self.header.alignment),
            Some(Some(padded)) => padded == span.len(),
            _ => false,
        }
    }

    /// The one form of a type that fits all tensors of it; none for a type that is not read.
    fn form(&self, type_id: u32) -> Result<Option<StorageDType>> {
        let all = forms(type_id);
        if all.len() < 2 {
            return Ok(all.first().copied());
        }
        let of_type = || (0..self.header.tensors.len()).filter(|&i| self.header.tensors[i].type_id == type_id);
        let fitting: Vec<&StorageDType> = all.iter().filter(|form| of_type().all(|i| self.fits(i, **form))).collect();
        if let [form] = fitting[..] {
            return Ok(Some(*form));
        }
        let names: Vec<String> = all.iter().map(|f| format!("{f} with groups of {}", f.block_elements())).collect();
        let names = names.join(" or ");
        let n = of_type().count();
        let problem = match fitting.is_empty() {
            true => format!("are neither {names}: the offsets fit none of them; the file is broken or cut short"),
            false => format!("may be {names}, and the file's sizes fit both; convert the model again"),
        };
        Err(Error::format(self.file, format!("its {n} tensors of type {type_id} {problem}")))
    }

    /// The bytes of tensor `i` in this form, if it ends where the next one begins.
    fn check(&self, i: usize, form: StorageDType) -> Result<usize> {
        let (tensor, span) = (&self.header.tensors[i], self.of(i)?);
        let Some(n) = bytes(tensor, form) else {
            let problem = format!("its shape {:?} has no rows of whole blocks of {form}", tensor.shape);
            return Err(wrong(self.file, tensor, format!("{problem}, which have {} elements", form.block_elements())));
        };
        if self.fits(i, form) {
            return Ok(n);
        }
        let problem = format!("its shape {:?} of {form} needs {n} bytes", tensor.shape);
        Err(wrong(self.file, tensor, format!("{problem}, up to what follows it there are {}", span.len())))
    }
}

fn wrong(file: &str, tensor: &GgufTensor, problem: String) -> Error {
    Error::format(format!("{file}: tensor {:?}", tensor.name), problem)
}
