//! Ternion.
#![allow(missing_docs)]

pub mod cpu;
pub mod error;
pub mod files;
pub mod gpu;
pub mod models;
pub mod ops;
pub mod plan;
pub mod runtime;
pub mod tensor;
pub mod ternary;

pub use error::{Error, Result};
