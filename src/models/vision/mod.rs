//! Image encoders. In reading order: `siglip` (EmberNet's), `dinov2` (of both BitGens), `cnn` (BitGen's small one).

pub(crate) mod cnn;
pub(crate) mod dinov2;
pub(crate) mod siglip;
