//! Pickle, third part: what the calls in a pickle mean.
//!
//! One table lists the functions and classes that `torch.save` writes for dense tensors and parameters. Nothing is called;
//! a call that is not in the table makes an opaque object.

use crate::files::checkpoint::pickle_objects::{Global, Id, Node, Pickle, RawTensor};
use crate::files::checkpoint::storage_dtype::StorageDType;

/// What a name in a pickle stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// (storage, offset, shape, strides, …): a dense tensor. What may follow is told apart by [`Rest`].
    Tensor(Rest),
    /// (tensor, …): the tensor; what follows is about gradients, or Python attributes.
    Same,
    /// (function, class, arguments, state): what the function makes of the arguments, as an object of the class.
    OfType,
    /// A dict, empty at first.
    Dict,
    /// A class that is a tensor and nothing more.
    TensorClass,
    /// A storage; without a format, its elements are bytes.
    Storage(Option<StorageDType>),
    /// A number format.
    Format(StorageDType),
}

/// The arguments behind a tensor's strides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rest {
    /// None.
    Nothing,
    /// (requires_grad, hooks, [metadata]).
    Metadata,
    /// (requires_grad, hooks, format, [metadata]).
    FormatAndMetadata,
}

/// The table.
const MEANINGS: [(&str, &str, Meaning); 16] = [
    ("torch._utils", "_rebuild_tensor", Meaning::Tensor(Rest::Nothing)),
    ("torch._utils", "_rebuild_tensor_v2", Meaning::Tensor(Rest::Metadata)),
    ("torch._utils", "_rebuild_tensor_v3", Meaning::Tensor(Rest::FormatAndMetadata)),
    ("torch._utils", "_rebuild_parameter", Meaning::Same),
    ("torch._utils", "_rebuild_parameter_with_state", Meaning::Same),
    ("torch._tensor", "_rebuild_from_type", Meaning::OfType),
    ("torch._tensor", "_rebuild_from_type_v2", Meaning::OfType),
    ("torch", "Size", Meaning::Same),
    ("torch", "Tensor", Meaning::TensorClass),
    ("torch._tensor", "Tensor", Meaning::TensorClass),
    ("torch.nn.parameter", "Parameter", Meaning::TensorClass),
    ("torch.nn.parameter", "Buffer", Meaning::TensorClass),
    ("collections", "OrderedDict", Meaning::Dict),
    ("torch", "UntypedStorage", Meaning::Storage(None)),
    ("torch.storage", "UntypedStorage", Meaning::Storage(None)),
    ("torch.storage", "_UntypedStorage", Meaning::Storage(None)),
];

fn meaning(global: Global) -> Option<Meaning> {
    let listed = MEANINGS.iter().find(|(module, name, _)| (*module, *name) == (global.module, global.name));
    if let Some(&(_, _, meaning)) = listed {
        return Some(meaning);
    }
    match (global.module, global.name) {
        ("torch" | "torch.cuda", name) if name.ends_with("Storage") => {
            storage_class(name).map(|stored| Meaning::Storage(Some(stored)))
        }
        ("torch", name) => format(name).map(Meaning::Format),
        _ => None,
    }
}

fn storage_class(name: &str) -> Option<StorageDType> {
    Some(match name {
        "DoubleStorage" => StorageDType::F64,
        "FloatStorage" => StorageDType::F32,
        "HalfStorage" => StorageDType::F16,
        "BFloat16Storage" => StorageDType::BF16,
        "LongStorage" => StorageDType::I64,
        "IntStorage" => StorageDType::I32,
        "ShortStorage" => StorageDType::I16,
        "CharStorage" => StorageDType::I8,
        "ByteStorage" => StorageDType::U8,
        "BoolStorage" => StorageDType::Bool,
        _ => return None,
    })
}

fn format(name: &str) -> Option<StorageDType> {
    Some(match name {
        "float64" | "double" => StorageDType::F64,
        "float32" | "float" => StorageDType::F32,
        "float16" | "half" => StorageDType::F16,
        "bfloat16" => StorageDType::BF16,
        "float8_e4m3fn" => StorageDType::F8E4M3,
        "float8_e5m2" => StorageDType::F8E5M2,
        "int64" | "long" => StorageDType::I64,
        "int32" | "int" => StorageDType::I32,
        "int16" | "short" => StorageDType::I16,
        "int8" => StorageDType::I8,
        "uint64" => StorageDType::U64,
        "uint32" => StorageDType::U32,
        "uint16" => StorageDType::U16,
        "uint8" => StorageDType::U8,
        "bool" => StorageDType::Bool,
        _ => return None,
    })
}

/// What a call makes.
pub(crate) enum Made<'a> {
    /// A new value.
    New(Node<'a>),
    /// One of the arguments.
    Argument(Id),
}

/// What calling `global` with `args` makes.
///
/// # Errors
/// What is wrong with the arguments of a known function.
pub(crate) fn call<'a>(pickle: &Pickle<'a>, global: Global<'a>, args: &[Id]) -> Result<Made<'a>, String> {
    let opaque = Ok(Made::New(Node::Object(global)));
    match (meaning(global), args) {
        (Some(Meaning::Same), &[same, ..]) => Ok(Made::Argument(same)),
        (Some(Meaning::Dict), []) => Ok(Made::New(Node::Dict(Vec::new()))),
        (Some(Meaning::Tensor(rest)), args) => tensor(pickle, global, rest, args),
        (Some(Meaning::OfType), &[function, class, inner, ..]) => {
            let (&Node::Global(function), &Node::Global(class), Node::Tuple(inner)) =
                (pickle.node(function), pickle.node(class), pickle.node(inner))
            else {
                return opaque;
            };
            match (meaning(class), meaning(function)) {
                // Another class may mean something else by its numbers.
                (Some(Meaning::TensorClass), Some(Meaning::Tensor(rest))) => tensor(pickle, function, rest, inner),
                (Some(Meaning::TensorClass), _) => Ok(Made::New(Node::Object(function))),
                _ => Ok(Made::New(Node::Object(class))),
            }
        }
        _ => opaque,
    }
}

fn tensor<'a>(pickle: &Pickle<'a>, global: Global<'a>, rest: Rest, args: &[Id]) -> Result<Made<'a>, String> {
    let &[storage, offset, shape, strides, ref behind @ ..] = args else {
        return Ok(Made::New(Node::Object(global)));
    };
    let (format, metadata) = match (rest, behind) {
        (Rest::Nothing, _) => (None, None),
        (Rest::Metadata, behind) => (None, behind.get(2).copied()),
        (Rest::FormatAndMetadata, &[_, _, format, ref metadata @ ..]) => (Some(format), metadata.first().copied()),
        (Rest::FormatAndMetadata, _) => return Ok(Made::New(Node::Object(global))),
    };
    let node = |id| pickle.node(id);
    match *node(storage) {
        Node::Storage { .. } => {}
        Node::Object(global) | Node::Global(global) => return Ok(Made::New(Node::Object(global))),
        _ => return Err(format!("a tensor of {}, expected a storage", node(storage))),
    }
    let &Node::Int(offset) = node(offset) else {
        return Err(format!("a tensor's offset is {}", node(offset)));
    };
    let stored = match format.map(node) {
        None => None,
        Some(&Node::Global(global)) => match meaning(global) {
            Some(Meaning::Format(stored)) => Some(stored),
            _ => return Ok(Made::New(Node::Object(global))),
        },
        Some(other) => return Err(format!("a tensor's dtype is {other}")),
    };
    Ok(Made::New(Node::Tensor(RawTensor { storage, offset, shape, strides, stored, metadata })))
}

/// The one persistent id of torch files: ('storage', class, key, device, elements).
///
/// # Errors
/// What another one is.
pub(crate) fn storage<'a>(pickle: &Pickle<'a>, id: Id) -> Result<Node<'a>, String> {
    let node = |id| pickle.node(id);
    let Node::Tuple(parts) = node(id) else {
        return Err(format!("a persistent id is {}", node(id)));
    };
    let &[tag, class, key, _device, elements] = parts.as_slice() else {
        return Err(format!("a persistent id has {} parts, expected 5", parts.len()));
    };
    match (node(tag), node(class), node(key), node(elements)) {
        (Node::Str("storage"), &Node::Global(class), &Node::Str(key), &Node::Int(elements)) => {
            Ok(match meaning(class) {
                Some(Meaning::Storage(stored)) => Node::Storage { stored, key, elements },
                _ => Node::Object(class),
            })
        }
        _ => Err("a persistent id is not ('storage', class, key, device, size)".to_string()),
    }
}
