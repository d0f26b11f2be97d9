//! Kernels in plain Rust, for any processor; the files beside this folder cut the work and choose them.
//!
//! - `ternary`, `groups`: tiles of ternary matrices, and of low-bit codes that have scales by group
//! - `six_bits`: tiles of codes of 6 bits, for `groups`
//! - `group_codes`: codes of activations by groups of 32 columns

pub(super) mod group_codes;
pub(super) mod groups;
pub(super) mod six_bits;
pub(super) mod ternary;
