//! Model files and pictures. No file is trusted: sizes and offsets are checked before use, and a pickle is read as data,
//! never executed.
//!
//! In reading order:
//! * [`ModelFiles`]: where the files of a model are, on disk or in memory.
//! * [`Checkpoint`] (`checkpoint/`): a checkpoint of any format as a set of named tensors. Opening reads headers only; a
//!   tensor is converted when it is read.
//! * [`GgufMetadata`]: the keys of a GGUF file.
//! * [`config`]: a model's configuration, from whichever of its files holds it.
//! * [`weights`]: from the tensors of a checkpoint to packed words, and Ternion's own packed format.
//! * `low_bit`: matrices of low-bit codes with scales by group, from each form of a file ([`MatrixForm`]).
//! * [`TensorSource`]: tensors that are asked for when they are read, instead of a file.
//! * [`tokenizer`]: from text to tokens and back.
//! * [`chat_template`]: from a conversation to text.
//! * [`SamplingDefaults`]: how a model's publisher recommends to sample.
//! * [`text`]: UTF-8 and JSON as other tools write them.
//! * [`image`]: decoding and resizing pictures.
//! * `contained`: panics of other libraries as errors.
//! * `hash`: hashes by which files and weights are recognised.
//! * [`atomic`]: replacing a file atomically; [`Lock`]: one program at a time.

pub mod atomic;
pub mod chat_template;
mod checkpoint;
pub mod config;
mod contained;
pub(crate) mod hash;
pub mod image;
mod lock;
mod low_bit;
mod model_files;
mod sampling_defaults;
mod source;
pub mod text;
pub mod tokenizer;
pub mod weights;

pub use checkpoint::gguf::metadata::GgufMetadata;
pub use checkpoint::gguf::value::{GgufArray, GgufValue};
pub(crate) use checkpoint::not_fetched;
pub use checkpoint::storage_dtype::StorageDType;
pub(crate) use checkpoint::write::{NewTensor, write_tensors, write_tensors_into};
pub use checkpoint::{Blocks, CONFIG_ENTRY, Checkpoint, TensorInfo};
pub(crate) use contained::contained;
pub use contained::panic_is_contained;
pub use image::Image;
pub use lock::Lock;
pub use low_bit::{MatrixForm, Quantisation};
pub use model_files::ModelFiles;
pub(crate) use model_files::{absolute, read_at_most, read_regular};
pub use sampling_defaults::SamplingDefaults;
pub use source::TensorSource;
pub use tokenizer::pieces::Piece;
pub use tokenizer::{DecodeStream, SpecialTokens, Tokenizer};
pub use weights::Weights;
