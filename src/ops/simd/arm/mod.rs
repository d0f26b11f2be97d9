//! Kernels for aarch64, in intrinsics; the files beside this folder cut the work and choose them.
//!
//! - `low_bit`: tiles of ternary matrices, and of low-bit codes that have scales by group, with dotprod or without
//! - `dense_rows`: dense products of few rows

pub(super) mod dense_rows;
pub(super) mod low_bit;
