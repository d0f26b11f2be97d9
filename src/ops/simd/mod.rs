//! SIMD and threads on the CPU, for the few ops where time goes. Checked against the plain definitions.
//!
//! - `maths`: loops over rows of floats, vectorised by the compiler (norms, activations, softmax, argmax)
//! - `ternary`: products of codes with ternary matrices, cut into tiles; kernels in `x86::ternary` and `arm::low_bit`
//! - `groups`: products with low-bit codes that have scales by group; kernels in `x86::groups` and `arm::low_bit`
//! - `group_codes`: codes of activations with a factor for each 32 columns; kernels in `x86::group_codes`
//! - `low_bit`: what these two share: the words of a tile, tables in which sums are looked up
//! - `low_bit_tiles`: the tile kernels of both, for several sets of instructions at once
//! - `dense`: products with f32, f16 or 8-bit weights; `dense_rows` with `x86::dense_rows` and `arm::dense_rows` (few rows),
//!   `x86::dense_tiles` (many rows)
//! - `attention`: attention over blocks of keys; `x86::attention_decode` (few queries), `x86::attention_prefill` (many queries
//!   over the same keys)
//! - `prefetch`: memory into a cache ahead of its use
//!
//! Each takes the best kernel that [`crate::cpu_level`] allows, or one in plain Rust, which may be in `portable`.

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_variables))] // Parts that only kernels of x86-64 use.
mod attention;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_mut))] // Likewise.
mod dense;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod dense_rows;
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut))] // Likewise.
mod group_codes;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_mut))] // Likewise.
mod groups;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Likewise.
mod low_bit;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod low_bit_tiles;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Likewise.
mod maths;
mod portable;
#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))] // Likewise.
mod prefetch;
mod ternary;
mod tiles;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::marker::PhantomData;

use crate::tensor::DType;
use crate::threads::ThreadPool;

pub(super) use attention::{Attention, MakeQuery, Matrix};
pub(super) use dense::{Dense, dense};
pub(super) use group_codes::{CODE_COLUMNS, quantise_groups};
pub(super) use groups::{GroupActs, GroupInput, GroupPlace, group_products};
pub(super) use maths::{
    Normed, argmax, bounded, combine, gelu_erf, gelu_tanh, layer_norm, norm, quantise, quantise_by_row, relu2_gate,
    sum_of_squares, swiglu,
};
pub(super) use ternary::{Codes, MatVecJob, ternary_gated, ternary_products};

/// Lays a resident weight of 1-bit codes out as the best kernel uses it, if that is not how it lies; others stay as they are.
pub(super) fn lay_out(dtype: DType, words: &mut [u32], threads: &ThreadPool) {
    match dtype {
        DType::Ternary => ternary::lay_out(words, threads),
        DType::Groups { .. } => groups::lay_out(words, threads),
        DType::F32 | DType::F16 | DType::U32 | DType::Codes | DType::Int8 => {}
    }
}

/// Rows of `width` elements that make a task of a few microseconds.
pub(super) fn rows_a_task(width: usize) -> usize {
    const ELEMENTS: usize = 1 << 13;
    (ELEMENTS / width.max(1)).max(1)
}

/// A pointer that tasks share to write disjoint parts of one slice.
#[derive(Debug)]
pub(super) struct Shared<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

impl<T> Clone for Shared<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Shared<'_, T> {}

// SAFETY: tasks write disjoint ranges, as `Shared::slice` demands, of a slice that is borrowed for as long.
unsafe impl<T: Send> Send for Shared<'_, T> {}
// SAFETY: as above; nothing is read through it.
unsafe impl<T: Send> Sync for Shared<'_, T> {}

impl<'a, T> Shared<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Shared { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// Elements `from..from + n`.
    ///
    /// # Safety
    /// No two live slices overlap.
    pub(super) unsafe fn slice(&self, from: usize, n: usize) -> &'a mut [T] {
        assert!(from <= self.len && n <= self.len - from, "{from} + {n} of {}", self.len);
        // SAFETY: in bounds by the assertion, disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(from), n) }
    }

    /// Where element `i` is.
    fn at(&self, i: usize) -> *mut T {
        assert!(i <= self.len, "{i} of {}", self.len);
        // SAFETY: in bounds by the assertion.
        unsafe { self.start.add(i) }
    }
}
