//! Files from outside, none of them trusted: checkpoints, tokenizers, prompts, images.
//!
//! [`Checkpoint::open`] parses headers only; tensors are converted, a range at a time, when they are read. Files are
//! not trusted: sizes and offsets are checked before use, and a pickle is read as data, never run.

pub mod chat;
mod checkpoint;
pub mod image;
mod mapped;
mod pickle;
mod pickled;
mod safetensors;
mod sharded;
mod stored;
pub mod tokenizer;
mod torch;
pub mod weights;

pub use checkpoint::{Checkpoint, TensorInfo};
pub use image::Image;
pub use stored::Stored;
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weights::Weights;

/// The directory of a model that is given as a directory or as a file: configuration and tokenizer lie there.
pub fn model_dir(path: &std::path::Path) -> &std::path::Path {
    if path.is_dir() { path } else { path.parent().unwrap_or(std::path::Path::new(".")) }
}
