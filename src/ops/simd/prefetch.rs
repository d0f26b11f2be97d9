//! Fetching memory into a cache ahead of its use: a hardware prefetcher alone may reach half of the memory's rate.

#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_variables))] // Others leave it to the hardware.

use crate::alloc::CACHE_LINE;

/// Brings the cache line of an address, which may be any, into the first cache.
#[inline(always)]
pub fn into_first<T>(at: *const T) {
    // SAFETY: a prefetch of any address has no effect that a program sees.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(at.cast());
    }
    // SAFETY: likewise.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl1keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
    }
}

/// Brings `n` elements from element `at` on, which may be behind the end, into the second cache.
#[inline(always)]
pub fn run<T>(from: &[T], at: usize, n: usize) {
    for i in (0..n).step_by((CACHE_LINE / size_of::<T>()).max(1)) {
        into_second(from.as_ptr().wrapping_add(at + i));
    }
}

/// Brings the cache line of an address, which may be any, into the second cache.
#[inline(always)]
pub fn into_second<T>(at: *const T) {
    // SAFETY: as above.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("prfm pldl2keep, [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
    }
}
