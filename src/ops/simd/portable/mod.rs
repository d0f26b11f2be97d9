//! Kernels in plain Rust, for any processor; the files beside this folder cut the work and choose them.
//!
//! - `ternary`, `groups`: tiles of ternary matrices, and of low-bit codes that have scales by group
//! - `group_codes`: codes of activations by groups of 32 columns

pub(super) mod group_codes;
pub(super) mod groups;
pub(super) mod ternary;
