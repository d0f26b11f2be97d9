//! Kernels for x86-64 with AVX2, or AVX-512 with VNNI, in intrinsics; the files beside this folder cut the work and choose them.
//!
//! - `low_bit_avx2`: sums of products of 2-bit codes, for `ternary` and `groups`
//! - `low_bit_vnni`: tiles of codes of 1, 2 and 8 bits with AVX-VNNI
//! - `lookup_avx2`, `lookup_avx512`: sums of products with 1-bit codes by looking up, for the same two
//! - `ternary`, `groups`: tiles of ternary matrices, and of low-bit codes that have scales by group
//! - `six_bits`: tiles of codes of 6 bits, for `groups`
//! - `group_codes`: codes of activations by groups of 32 columns
//! - `floats`: vectors of f32 of both widths, for the following
//! - `dense_rows`, `dense_tiles`: dense products of few and of many rows
//! - `attention_decode`, `attention_prefill`: few queries, and many queries over the same keys
//!
//! Order: `floats`, `low_bit_avx2`, `lookup_avx2`, `lookup_avx512`, `low_bit_vnni`, `six_bits`, `ternary`, `groups`, `group_codes`,
//! `dense_rows`, `dense_tiles`, `attention_decode`, `attention_prefill`.

pub(super) mod attention_decode;
pub(super) mod attention_prefill;
pub(super) mod dense_rows;
pub(super) mod dense_tiles;
mod floats;
pub(super) mod group_codes;
pub(super) mod groups;
mod lookup_avx2;
mod lookup_avx512;
mod low_bit_avx2;
mod low_bit_vnni;
mod six_bits;
pub(super) mod ternary;
