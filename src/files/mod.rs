//! Files from outside, none of them trusted: checkpoints, tokenizers, prompts, images.
//!
//! [`Checkpoint::open`] parses headers only; tensors are converted, a range at a time, when they are read. Files are
//! not trusted: sizes and offsets are checked before use, and a pickle is read as data, never run.

mod bilinear;
mod calls;
pub mod chat;
mod checkpoint;
mod gif;
mod gpt2;
pub mod image;
mod lock;
pub mod made;
mod mapped;
mod model_files;
mod names;
mod pickle;
mod pickled;
mod pieces;
mod safetensors;
mod sharded;
mod stored;
pub mod text;
pub mod tokenizer;
mod torch;
pub mod weights;
pub mod whole;

pub use checkpoint::{CONFIG_ENTRY, Checkpoint, TensorInfo};
pub use image::Image;
pub use lock::Lock;
pub use model_files::ModelFiles;
pub(crate) use model_files::{absolute, read_at_most};
pub use pieces::Piece;
pub(crate) use safetensors::unwritten;
pub use stored::Stored;
pub use tokenizer::{DecodeStream, Tokenizer};
pub use weights::Weights;
