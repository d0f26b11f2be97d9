//! Tools around a model file.

pub mod bench;
pub mod check;
pub mod convert;
pub mod eval;
pub mod inspect;
mod tolerance;
