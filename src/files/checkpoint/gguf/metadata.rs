//! The keys of a GGUF file with their values.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::alloc::room;
use crate::error::{Error, Result};
use crate::files::ModelFiles;
use crate::files::checkpoint::bytes::map_file;
use crate::files::checkpoint::find_file;
use crate::files::checkpoint::gguf::reader::Reader;
use crate::files::checkpoint::gguf::value::{GgufValue, Place};
use crate::files::checkpoint::gguf::{MAGIC, read_header};

/// Maximum number of keys; files have a few dozen.
const MAX_KEYS: usize = 1 << 16;
/// Maximum number of bytes of a key.
const MAX_KEY: usize = 65_535;
/// The fewest bytes of a key with its value: a key of one byte, a value of one.
const MIN_KEY_BYTES: usize = 8 + 1 + 4 + 1;

/// All keys of a GGUF file, with typed access. Cloning it copies nothing.
///
/// A key that is there with a value of another type is an [`Error::Config`] that names file, key, what was found and what
/// was expected; one that is not there is `None`.
#[derive(Debug, Clone)]
pub struct GgufMetadata {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    file: String,
    /// All values, as they lie in the file.
    bytes: Vec<u8>,
    places: BTreeMap<String, Place>,
}

impl GgufMetadata {
    /// The keys of the GGUF file among a model's files; none if the checkpoint is of another form.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be opened, [`Error::Format`] for a broken file.
    pub fn of(files: &ModelFiles) -> Result<Option<Self>> {
        let (path, file) = match files {
            ModelFiles::Disk(path) => {
                let path = find_file(path)?;
                let file = map_file(&path)?;
                (path, file)
            }
            ModelFiles::Memory { .. } | ModelFiles::Owned { .. } => {
                (files.path(ModelFiles::CHECKPOINT), files.in_memory(ModelFiles::CHECKPOINT)?)
            }
            ModelFiles::Source(_) => return Ok(None),
        };
        if !file.bytes().starts_with(MAGIC) {
            return Ok(None);
        }
        read_header(&path, file.bytes()).map(|header| Some(header.metadata))
    }

    /// Reads the number of keys, and the keys.
    pub(crate) fn parse(reader: &mut Reader) -> Result<Self> {
        let n = reader.count("the number of keys", MAX_KEYS, MIN_KEY_BYTES)?;
        let start = reader.at();
        let mut places = BTreeMap::new();
        for _ in 0..n {
            let key = reader.name("a key", MAX_KEY)?;
            let mut place = Place::read(reader, key)?;
            place.start -= start;
            place.end -= start;
            if places.insert(key.to_owned(), place).is_some() {
                return Err(reader.wrong(format!("{key:?}"), "is there twice; keys must be unique"));
            }
        }
        let values = reader.between(start..reader.at());
        let mut bytes = room("the keys of a GGUF file", values.len())?;
        bytes.extend_from_slice(values);
        Ok(GgufMetadata { shared: Arc::new(Shared { file: reader.file().to_owned(), bytes, places }) })
    }

    /// The file, for messages.
    pub fn file(&self) -> &str {
        &self.shared.file
    }

    /// All keys, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.shared.places.keys().map(String::as_str)
    }

    /// The value of a key.
    pub fn get(&self, key: &str) -> Option<GgufValue<'_>> {
        let place = self.shared.places.get(key)?;
        place.value(self.shared.bytes.get(place.start..place.end)?)
    }

    /// A text.
    ///
    /// # Errors
    /// [`Error::Config`] for another value, and for what is not UTF-8.
    pub fn text(&self, key: &str) -> Result<Option<&str>> {
        self.one(key, "a text in UTF-8", GgufValue::as_text)
    }

    /// An integer of any width that is not negative.
    ///
    /// # Errors
    /// [`Error::Config`] for another value.
    pub fn integer(&self, key: &str) -> Result<Option<u64>> {
        self.one(key, "an integer of at least 0", GgufValue::as_integer)
    }

    /// A float or an integer, as a float.
    ///
    /// # Errors
    /// [`Error::Config`] for another value.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.one(key, "a number", GgufValue::as_float)
    }

    /// A truth value.
    ///
    /// # Errors
    /// [`Error::Config`] for another value.
    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.one(key, "a truth value", GgufValue::as_bool)
    }

    /// An array of texts.
    ///
    /// # Errors
    /// [`Error::Config`] for another value, with the element that is not UTF-8; [`Error::OutOfMemory`] if the system has no
    /// memory for the list.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&str>>> {
        self.all(key, "texts in UTF-8", GgufValue::as_text)
    }

    /// An array of integers that are not negative.
    ///
    /// # Errors
    /// As [`GgufMetadata::texts`].
    pub fn integers(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.all(key, "integers of at least 0", GgufValue::as_integer)
    }

    /// An array of numbers, as floats.
    ///
    /// # Errors
    /// As [`GgufMetadata::texts`].
    pub fn floats(&self, key: &str) -> Result<Option<Vec<f64>>> {
        self.all(key, "numbers", GgufValue::as_float)
    }

    /// An array of truth values.
    ///
    /// # Errors
    /// As [`GgufMetadata::texts`].
    pub fn bools(&self, key: &str) -> Result<Option<Vec<bool>>> {
        self.all(key, "truth values", GgufValue::as_bool)
    }

    /// The error for a key that is needed and not there.
    pub fn missing(&self, key: &str) -> Error {
        self.wrong(key, "is missing")
    }

    /// The error for a key whose value does not do.
    pub fn wrong(&self, key: &str, problem: impl ToString) -> Error {
        Error::config(format!("{}: {key:?}", self.file()), problem)
    }

    fn one<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(GgufValue<'a>) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        convert(value).map(Some).ok_or_else(|| self.wrong(key, format!("is {value}, expected {expected}")))
    }

    fn all<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        convert: impl Fn(GgufValue<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>> {
        let array = match self.get(key) {
            None => return Ok(None),
            Some(GgufValue::Array(array)) => array,
            Some(value) => return Err(self.wrong(key, format!("is {value}, expected an array of {expected}"))),
        };
        let mut all = room(key, array.len())?;
        for (i, value) in array.iter().enumerate() {
            let problem = || format!("is {value} at place {i}, expected an array of {expected}");
            all.push(convert(value).ok_or_else(|| self.wrong(key, problem()))?);
        }
        Ok(Some(all))
    }
}
