//! Files from outside, none of them trusted: checkpoints, tokenizers, prompts, images.
//!
//! [`Checkpoint::open`] parses headers only; tensors are converted, a range at a time, when they are read. Files are
//! not trusted: sizes and offsets are checked before use, and a pickle is read as data, never run.

mod checkpoint;
pub mod image;
mod lock;
mod model_files;
mod source;
pub mod text;
pub mod tokenizer;
pub mod weights;
pub mod whole;

pub use checkpoint::storage_dtype::Stored;
pub(crate) use checkpoint::write::{NewTensor, write_tensors, write_tensors_into};
pub use checkpoint::{CONFIG_ENTRY, Checkpoint, TensorInfo};
pub use image::Image;
pub use lock::Lock;
pub use model_files::ModelFiles;
pub(crate) use model_files::{absolute, read_at_most};
pub use source::TensorSource;
pub use tokenizer::pieces::Piece;
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weights::Weights;
