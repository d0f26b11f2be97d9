//! Image encoders: `layers` that they share, `siglip` (EmberNet's), `dinov2` and `cnn` (BitGen's).

pub(crate) mod cnn;
pub(crate) mod dinov2;
pub(crate) mod layers;
pub(crate) mod siglip;
