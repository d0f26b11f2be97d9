//! Pickle, second part: the values that a pickle holds.

use std::collections::HashMap;

use serde_json::{Map, Number, Value};

use crate::files::checkpoint::storage_dtype::StorageDType;

/// Maximum number of settings that are read of one object, and of bytes of a text among them.
const MAX_SETTINGS: usize = 4096;
const MAX_SETTING: usize = 4096;

/// The index of a value in its [`Pickle`].
pub(crate) type Id = u32;

/// A class or function by name; what it is elsewhere is of no concern here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Global<'a> {
    pub(crate) module: &'a str,
    pub(crate) name: &'a str,
}

impl std::fmt::Display for Global<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.module, self.name)
    }
}

/// A tensor as the pickle gives it, not yet checked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawTensor {
    /// A [`Node::Storage`].
    pub(crate) storage: Id,
    /// In elements.
    pub(crate) offset: i64,
    /// Should be a tuple of ints; kept as an index, as one tuple may serve many tensors.
    pub(crate) shape: Id,
    /// Likewise, in elements.
    pub(crate) strides: Id,
    /// Overrides the storage's format.
    pub(crate) stored: Option<StorageDType>,
    /// What the elements are besides: a dict, such as of a view with the other sign.
    pub(crate) metadata: Option<Id>,
}

/// A value of a pickle.
#[derive(Debug)]
pub(crate) enum Node<'a> {
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(&'a str),
    Tuple(Vec<Id>),
    List(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A name that was mentioned, not called.
    Global(Global<'a>),
    /// What calling an unknown global would have made.
    Object(Global<'a>),
    /// `stored` is `None` and `elements` are bytes for an untyped storage.
    Storage {
        stored: Option<StorageDType>,
        key: &'a str,
        elements: i64,
    },
    Tensor(RawTensor),
    /// A value whose kind alone matters.
    Other(&'static str),
}

impl std::fmt::Display for Node<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Node::Int(value) => write!(f, "the int {value}"),
            Node::Float(_) => f.write_str("a float"),
            Node::Bool(_) => f.write_str("a bool"),
            Node::Str(_) => f.write_str("a string"),
            Node::Tuple(_) => f.write_str("a tuple"),
            Node::List(_) => f.write_str("a list"),
            Node::Dict(_) => f.write_str("a dict"),
            Node::Global(global) => write!(f, "the global {global}"),
            Node::Object(global) => write!(f, "an object of {global}"),
            Node::Storage { .. } => f.write_str("a storage"),
            Node::Tensor(_) => f.write_str("a tensor"),
            Node::Other(kind) => f.write_str(kind),
        }
    }
}

/// A pickle's values; `root` is what was pickled.
#[derive(Debug)]
pub(crate) struct Pickle<'a> {
    pub(crate) nodes: Vec<Node<'a>>,
    pub(crate) root: Id,
    /// What objects were filled with.
    pub(crate) states: HashMap<Id, Id>,
}

impl<'a> Pickle<'a> {
    pub(crate) fn root(&self) -> &Node<'a> {
        self.node(self.root)
    }

    pub(crate) fn node(&self, id: Id) -> &Node<'a> {
        self.nodes.get(id as usize).unwrap_or(&Node::Other("nothing"))
    }

    /// The numbers, texts and truth values under their names in the dict `id`, or in the dict that the object `id` was
    /// filled with; none for another value. What is too long is left out.
    pub(crate) fn settings(&self, id: Id) -> Option<Map<String, Value>> {
        let state = self.states.get(&id).copied().unwrap_or(id);
        let Node::Dict(pairs) = self.node(state) else { return None };
        let text = |id: Id| match self.node(id) {
            Node::Str(text) if text.len() <= MAX_SETTING => Some((*text).to_owned()),
            _ => None,
        };
        let value = |id: Id| match self.node(id) {
            Node::Int(value) => Some(Value::from(*value)),
            Node::Float(value) => Number::from_f64(*value).map(Value::Number),
            Node::Bool(value) => Some(Value::Bool(*value)),
            _ => text(id).map(Value::String),
        };
        Some(pairs.iter().take(MAX_SETTINGS).filter_map(|&(key, v)| Some((text(key)?, value(v)?))).collect())
    }

    /// The value of a key of a dict.
    pub(crate) fn value_of(&self, pairs: &[(Id, Id)], wanted: &str) -> Option<Id> {
        let found = pairs.iter().find(|pair| matches!(self.node(pair.0), Node::Str(key) if *key == wanted));
        found.map(|pair| pair.1)
    }
}
