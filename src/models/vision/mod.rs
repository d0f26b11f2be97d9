//! Image encoders.

pub(crate) mod cnn;
pub(crate) mod dinov2;
pub(crate) mod siglip;
