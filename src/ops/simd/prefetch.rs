//! Fetching memory into a cache ahead of its use: a hardware prefetcher alone may reach half of the memory's rate.

#![cfg_attr(not(any(target_arch = "x86_64", target_arch = "aarch64")), allow(unused_variables))] // Others leave it to the hardware.

use std::sync::OnceLock;

use crate::alloc::CACHE_LINE;

/// How words that are read once, in their order, are fetched on this processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// By how many bytes.
    pub bytes: usize,
    /// Into the first cache, or only the second.
    pub first: bool,
}

impl Ahead {
    /// Into the second cache: where the first one waits for few lines at a time, these bound the rate (Zen 4: 24 GB/s of 34).
    pub const SECOND: Ahead = Ahead { bytes: 6144, first: false };
    /// Into the first one: 1.15 times as fast on Zen 5, which waits for enough of them.
    const FIRST: Ahead = Ahead { bytes: 8192, first: true };

    /// What is faster.
    pub fn of_this_processor() -> Self {
        static FOUND: OnceLock<Ahead> = OnceLock::new();
        *FOUND.get_or_init(|| if is_zen_5_or_later() { Self::FIRST } else { Self::SECOND })
    }

    /// The same for what is read in pieces of short runs, out of `bytes` that are read together: the second cache's own fetching
    /// finds no order in them, so that they have to be on their way for longer.
    pub fn of_short_runs(self, bytes: usize) -> Self {
        const MOST: usize = 24576;
        if self.first { self } else { Ahead { bytes: (bytes / 2).clamp(self.bytes, MOST), ..self } }
    }

    /// Brings the line of an address, which may be any, where it belongs.
    #[inline(always)]
    pub fn fetch<T>(self, at: *const T) {
        if self.first { into_first(at) } else { into_second(at) }
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn is_zen_5_or_later() -> bool {
    false
}

/// By the processor's maker and family.
#[cfg(target_arch = "x86_64")]
fn is_zen_5_or_later() -> bool {
    use std::arch::x86_64::__cpuid;
    #[allow(unused_unsafe)] // Newer compilers know that it is safe.
    // SAFETY: every x86-64 processor has both leaves.
    let (maker, version) = unsafe { (__cpuid(0), __cpuid(1)) };
    let bytes = [maker.ebx, maker.edx, maker.ecx].map(u32::to_le_bytes);
    is_family(bytes.as_flattened(), version.eax)
}

/// AMD's families from 26 on. The version word has a family of up to 15, to which one of 8 bits is added where it is 15.
#[cfg(target_arch = "x86_64")]
fn is_family(maker: &[u8], version: u32) -> bool {
    maker == b"AuthenticAMD" && version >> 8 & 15 == 15 && 15 + (version >> 20 & 255) >= 26
}

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

/// Brings `n` elements from element `at` on, which may be behind the end, where `ahead` says.
#[inline(always)]
pub fn run<T>(ahead: Ahead, from: &[T], at: usize, n: usize) {
    for i in (0..n).step_by((CACHE_LINE / size_of::<T>()).max(1)) {
        ahead.fetch(from.as_ptr().wrapping_add(at + i));
    }
}

/// Brings the cache line of an address, which may be any, into the second cache.
#[inline(always)]
fn into_second<T>(at: *const T) {
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

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;

    #[test]
    fn families_are_told_apart() {
        // Zen 5, Zen 4, Zen 3, and a later one; Intel's have family 6.
        let found = [0x00b1_0f10, 0x00a1_0f11, 0x00a0_0f11, 0x00c2_0f00].map(|v| is_family(b"AuthenticAMD", v));
        assert_eq!(found, [true, false, false, true]);
        assert!(!is_family(b"GenuineIntel", 0x000c_06f2) && !is_family(b"GenuineIntel", 0x00b1_0f10));
    }
}
