//! Numbers and texts from the bytes of a file, one after the other. A length is checked against what is left of the file
//! before it is used.

use std::fmt::Display;
use std::ops::Range;

use crate::error::{Error, Result};

/// Maximum number of bytes of a header: the largest vocabularies, with merges and templates, take 30 MB.
const MAX_HEADER: usize = 256 << 20;

/// A place in the bytes of a file.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    file: &'a str,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// The first byte of the file `file`.
    pub(crate) fn new(file: &'a str, bytes: &'a [u8]) -> Self {
        Reader { file, bytes, at: 0 }
    }

    /// The file's name.
    pub(crate) fn file(&self) -> &'a str {
        self.file
    }

    /// The number of bytes before this place.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Bytes that were read already.
    pub(crate) fn between(&self, range: Range<usize>) -> &'a [u8] {
        self.bytes.get(range).unwrap_or_default()
    }

    /// An error for the whole file.
    pub(crate) fn broken(&self, problem: impl ToString) -> Error {
        Error::format(self.file, problem)
    }

    /// An error for `object` in the file.
    pub(crate) fn wrong(&self, object: impl ToString, problem: impl ToString) -> Error {
        Error::format(format!("{}: {}", self.file, object.to_string()), problem)
    }

    /// The next `n` bytes, which are `what`.
    pub(crate) fn take(&mut self, n: usize, what: impl Display) -> Result<&'a [u8]> {
        let left = self.bytes.len() - self.at;
        if n > left {
            let problem = format!("{what} needs {n} bytes, the file has {left} more");
            return Err(self.wrong(format!("byte {}", self.at), format!("{problem}; it is cut short, fetch it again")));
        }
        let taken = &self.bytes[self.at..self.at + n];
        self.at += n;
        if self.at > MAX_HEADER {
            return Err(self.broken(format!("has a header of more than {MAX_HEADER} bytes, the most allowed")));
        }
        Ok(taken)
    }

    /// The next `N` bytes.
    pub(crate) fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N, what)?);
        Ok(array)
    }

    /// The next number of 32 bits.
    pub(crate) fn u32(&mut self, what: impl Display) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// The next number of 64 bits.
    pub(crate) fn u64(&mut self, what: impl Display) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// The next number of 64 bits, which counts at most `max` things of at least `size` bytes each in the rest of the
    /// file.
    pub(crate) fn count(&mut self, what: impl Display, max: usize, size: usize) -> Result<usize> {
        let at = self.at;
        let n = self.u64(&what)?;
        let left = self.bytes.len() - self.at;
        let count = usize::try_from(n).ok().filter(|&count| count <= max);
        let Some(count) = count else {
            return Err(self.wrong(format!("byte {at}"), format!("{what} is {n}, at most {max} are allowed")));
        };
        if count.checked_mul(size).is_none_or(|bytes| bytes > left) {
            let problem = format!("{what} is {n}, for which the {left} bytes behind it are too few");
            return Err(self.wrong(format!("byte {at}"), format!("{problem}; it is cut short, fetch it again")));
        }
        Ok(count)
    }

    /// The next text, as its bytes; at most `max` of them.
    pub(crate) fn text(&mut self, what: impl Display + Copy, max: usize) -> Result<&'a [u8]> {
        let n = self.count(format_args!("the length of {what}"), max, 1)?;
        self.take(n, what)
    }

    /// The next text, which is a name: UTF-8, at least one byte and at most `max` of them.
    pub(crate) fn name(&mut self, what: impl Display + Copy, max: usize) -> Result<&'a str> {
        let at = self.at;
        let name = self.text(what, max)?;
        let name = std::str::from_utf8(name).ok().filter(|name| !name.is_empty());
        name.ok_or_else(|| self.wrong(format!("byte {at}"), format!("{what} is empty or no UTF-8")))
    }

    /// The next multiple of `alignment`; where `needed`, it must be within the file, else its end may stand for it.
    pub(crate) fn aligned(&self, alignment: usize, needed: bool) -> Result<usize> {
        let end = self.bytes.len();
        match self.at.checked_next_multiple_of(alignment).filter(|&at| at <= end) {
            Some(at) => Ok(at),
            None if needed => {
                let problem = format!("its tensors begin behind the header's {} bytes, the file has {end}", self.at);
                Err(self.broken(format!("is cut short: {problem}; fetch it again")))
            }
            None => Ok(end),
        }
    }

    /// Checks that a tensor, which begins `offset` bytes behind byte `data`, begins within the file.
    pub(crate) fn starts_within(&self, tensor: &str, data: usize, offset: usize) -> Result<()> {
        if data.checked_add(offset).is_some_and(|at| at < self.bytes.len()) {
            return Ok(());
        }
        let (end, object) = (self.bytes.len(), format!("tensor {tensor:?}"));
        let problem = format!("begins at byte {offset} behind the header's {data}, the file has {end}");
        Err(self.wrong(object, format!("{problem}; it is cut short, fetch it again")))
    }
}
