//! SIMD and threads on the CPU, for the few ops where time goes. Checked against the plain definitions.

mod attention;
#[cfg(target_arch = "x86_64")]
mod attention_whole_x86;
#[cfg(target_arch = "x86_64")]
mod attention_x86;
mod dense;
#[cfg(target_arch = "x86_64")]
mod dense_x86;
mod maths;
mod ternary;
mod ternary_portable;
#[cfg(target_arch = "x86_64")]
mod ternary_x86;
#[cfg(target_arch = "x86_64")]
mod tiles_x86;

pub(super) use attention::{Attention, Matrix};
pub(super) use dense::{Dense, dense};
pub(super) use maths::{
    Normed, argmax, combine, gelu_erf, gelu_tanh, layer_norm, norm, quantise, sum_of_squares, swiglu,
};
pub(super) use ternary::{Codes, Product, ternary_products};

/// Rows of `width` elements that make a task of a few microseconds.
pub(super) fn rows_a_task(width: usize) -> usize {
    const ELEMENTS: usize = 1 << 13;
    (ELEMENTS / width.max(1)).max(1)
}

/// A pointer that tasks share to write disjoint parts of one slice.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shared<T>(*mut T, usize);

// SAFETY: tasks write disjoint ranges, as `Shared::slice` demands, and the slice outlives them.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above; nothing is read through it.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr(), slice.len())
    }

    /// Elements `from..from + n`.
    ///
    /// # Safety
    /// No two live slices overlap, and the slice given to `new` is still borrowed.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice(&self, from: usize, n: usize) -> &mut [T] {
        assert!(from + n <= self.1, "{from} + {n} of {}", self.1);
        // SAFETY: in bounds by the assertion, disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), n) }
    }

    /// Where element `i` is.
    fn at(&self, i: usize) -> *mut T {
        assert!(i <= self.1, "{i} of {}", self.1);
        // SAFETY: in bounds by the assertion.
        unsafe { self.0.add(i) }
    }
}
