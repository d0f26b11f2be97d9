//! SIMD and threads on the CPU, for the few ops where time goes. Checked against the plain definitions.

mod dense;
mod ternary;
mod ternary_portable;
#[cfg(target_arch = "x86_64")]
mod ternary_x86;

pub(super) use dense::{Dense, dense, dot_f32};
pub(super) use ternary::{Codes, Product, ternary_products};

/// Multiply-adds below which threads cost more than they save.
const THREADS_FROM: usize = 1 << 16;

/// A pointer that tasks share to write disjoint parts of one slice.
#[derive(Clone, Copy)]
struct Shared<T>(*mut T, usize);

// SAFETY: tasks write disjoint ranges, as `Shared::slice` demands, and the slice outlives them.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above; nothing is read through it.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    fn new(slice: &mut [T]) -> Self {
        Shared(slice.as_mut_ptr(), slice.len())
    }

    /// Elements `from..from + n`.
    ///
    /// # Safety
    /// No two live slices overlap, and the slice given to `new` is still borrowed.
    #[allow(clippy::mut_from_ref)]
    unsafe fn slice(&self, from: usize, n: usize) -> &mut [T] {
        assert!(from + n <= self.1, "{from} + {n} of {}", self.1);
        // SAFETY: in bounds by the assertion, disjoint by the contract.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(from), n) }
    }
}
