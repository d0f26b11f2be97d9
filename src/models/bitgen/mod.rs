//! What BitGen's two models share, which are in `bitgen_stage1/` and `robot/`.
//!
//! In reading order: `config` (where a configuration is, heads, DINOv2's sizes), `decoder` (BitNetLinears, embeddings, and
//! the text decoder), `unread` (which tensors of a checkpoint are not read, or are not parameters).

pub(crate) mod config;
pub(crate) mod decoder;
pub(crate) mod unread;
