//! Which family a model's files are of, before it is opened.

use crate::error::Result;
use crate::files::{ModelFiles, Weights};
use crate::models::BitGenSizes;

/// A family of models, by the type that opens it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Chat about pictures: [`super::Engine`].
    Chat,
    /// Pictures and texts in one space, captions, memory: [`super::BitGen`].
    BitGen,
}

/// The family of a model, by its tensors' names; what is no BitGen is left to [`super::Engine::open`] to refuse.
///
/// # Errors
/// As [`Weights::open`].
pub fn family(files: impl Into<ModelFiles>) -> Result<Family> {
    let weights = Weights::open(files)?;
    Ok(if BitGenSizes::recognises(&weights) { Family::BitGen } else { Family::Chat })
}
