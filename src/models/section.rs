//! Objects of a JSON configuration, read with bounds: what is out of them is an error that names file and key.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Largest token number that a configuration may name, exclusive.
const MAX_TOKEN: u32 = 1 << 30;

/// A configuration object with the file that it is in, and its place there.
#[derive(Debug, Clone, Copy)]
pub struct Section<'a> {
    /// The file, for messages.
    pub file: &'a str,
    /// The place of the object in the file; empty at its root.
    pub name: &'a str,
    /// The object.
    pub map: &'a Map<String, Value>,
}

impl<'a> Section<'a> {
    /// The key with its file, for messages.
    pub fn key(&self, key: &str) -> String {
        let dot = if self.name.is_empty() { "" } else { "." };
        format!("{}: {}{dot}{key}", self.file, self.name)
    }

    /// The value of a key; none where it is missing or null.
    pub fn value(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// The object `key` in this one, if there is one; `name` is its whole place in the file.
    pub fn inner(&self, key: &str, name: &'a str) -> Option<Section<'a>> {
        let map = self.map.get(key).and_then(Value::as_object)?;
        Some(Section { file: self.file, name, map })
    }

    /// An integer in 1..=max.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn size(&self, key: &str, max: usize) -> Result<usize> {
        self.required(key, 1..=max)
    }

    /// An integer within bounds, which must be there.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn required(&self, key: &str, within: RangeInclusive<usize>) -> Result<usize> {
        let value = self.map.get(key).ok_or_else(|| Error::config(self.key(key), "is missing"))?;
        self.integer(key, value, within)
    }

    /// [`Section::size`], or a default where the key is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn size_or(&self, key: &str, max: usize, default: usize) -> Result<usize> {
        self.value(key).map_or(Ok(default), |value| self.integer(key, value, 1..=max))
    }

    /// The integer `value` of a key, within bounds.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn integer(&self, key: &str, value: &Value, within: RangeInclusive<usize>) -> Result<usize> {
        let n = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| within.contains(n));
        n.ok_or_else(|| Error::config(self.key(key), format!("is {value}, expected an integer in {within:?}")))
    }

    /// A number within bounds; none where the key is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn number(&self, key: &str, within: RangeInclusive<f64>) -> Result<Option<f64>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let problem = || format!("is {value}, expected a number from {:e} to {:e}", within.start(), within.end());
        let number = value.as_f64().filter(|n| within.contains(n));
        number.map(Some).ok_or_else(|| Error::config(self.key(key), problem()))
    }

    /// True or false; none where the key is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn truth(&self, key: &str) -> Result<Option<bool>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let problem = || Error::config(self.key(key), format!("is {value}, expected true or false"));
        value.as_bool().map(Some).ok_or_else(problem)
    }

    /// A text; none where the key is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn text(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let problem = || Error::config(self.key(key), format!("is {value}, expected a text"));
        value.as_str().map(Some).ok_or_else(problem)
    }

    /// A token number, or the default of the model's code.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn token(&self, key: &str, default: u32) -> Result<u32> {
        self.value(key).map_or(Ok(default), |value| self.token_number(key, value))
    }

    /// Token numbers: one, or a list of them; none where the key is missing or null.
    ///
    /// # Errors
    /// [`Error::Config`].
    pub fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(values)) => values.iter().map(|value| self.token_number(key, value)).collect(),
            Some(value) => Ok(vec![self.token_number(key, value)?]),
        }
    }

    fn token_number(&self, key: &str, value: &Value) -> Result<u32> {
        let problem = || Error::config(self.key(key), format!("is {value}, expected a token number"));
        value.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|&n| n < MAX_TOKEN).ok_or_else(problem)
    }
}
