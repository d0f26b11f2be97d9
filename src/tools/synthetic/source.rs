//! A model whose tensors are made when they are read.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::error::{Error, Result};
use crate::files::{StorageDType, TensorInfo, TensorSource};
use crate::tools::synthetic::fill::Fill;

/// A model of random weights, the same ones each time.
#[derive(Debug)]
pub(super) struct Synthetic {
    name: String,
    /// `config.json`.
    config: String,
    tensors: BTreeMap<String, Made>,
    metadata: BTreeMap<String, String>,
}

/// A tensor that is made.
#[derive(Debug, Clone)]
pub(super) struct Made {
    pub stored: StorageDType,
    pub shape: Vec<usize>,
    pub fill: Fill,
    pub seed: u64,
}

impl Synthetic {
    /// A model of these tensors.
    pub fn new(name: impl Into<String>, config: &serde_json::Value, tensors: BTreeMap<String, Made>) -> Self {
        Synthetic { name: name.into(), config: config.to_string(), tensors, metadata: BTreeMap::new() }
    }

    /// The same with an entry of the metadata.
    pub fn with(mut self, key: &str, value: String) -> Self {
        self.metadata.insert(key.to_owned(), value);
        self
    }
}

impl TensorSource for Synthetic {
    fn name(&self) -> &str {
        &self.name
    }

    fn file(&self, name: &str) -> Option<Cow<'_, [u8]>> {
        (name == "config.json").then_some(Cow::Borrowed(self.config.as_bytes()))
    }

    fn tensors(&self) -> Vec<TensorInfo> {
        let info = |(name, made): (&String, &Made)| TensorInfo {
            name: name.clone(),
            stored: made.stored,
            shape: made.shape.clone(),
        };
        self.tensors.iter().map(info).collect()
    }

    fn metadata(&self) -> BTreeMap<String, String> {
        self.metadata.clone()
    }

    fn read(&self, tensor: &str, elements: Range<usize>) -> Result<Vec<u8>> {
        match self.tensors.get(tensor) {
            Some(made) => made.fill.bytes(tensor, made.seed, made.stored.size(), elements),
            None => Err(Error::MissingTensors { file: self.name.clone(), names: vec![tensor.to_owned()] }),
        }
    }
}
