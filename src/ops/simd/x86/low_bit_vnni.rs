//! Tiles of low-bit codes for x86-64 with VNNI on vectors of 256 bits, in either of its two encodings.

use crate::ops::simd::low_bit_tiles::{low_bit_tiles, low_bit_words};

/// AVX-VNNI.
pub(in crate::unstable::ops::simd) mod vex {
    use super::{v256, vex_sums};
    super::low_bit_tiles!("avx2,fma,f16c,avxvnni", v256, vex_sums);
    super::low_bit_words!("avx2,fma,f16c,avxvnni", v256, vex_sums);
}

/// AVX-512 VL and VNNI: processors that have it and not AVX-VNNI take this one for the same level.
pub(in crate::unstable::ops::simd) mod evex {
    use super::{evex_sums, v256};
    super::low_bit_tiles!("avx2,fma,f16c,avx512vl,avx512vnni", v256, evex_sums);
    super::low_bit_words!("avx2,fma,f16c,avx512vl,avx512vnni", v256, evex_sums);
}

/// Defines sums of products of unsigned and signed bytes: what one instruction does.
macro_rules! sums {
    ($name:ident, $features:literal, $dot:ident) => {
        mod $name {
            use std::arch::x86_64::*;

            /// Of 16 registers, sums take 8.
            pub const BLOCKS: [usize; 4] = [4, 4, 2, 2];
            pub const HALVES: usize = 2;

            #[inline]
            #[target_feature(enable = "avx2")]
            pub fn open(sum: __m256i) -> __m256i {
                sum
            }

            #[inline]
            #[target_feature(enable = $features)]
            pub fn dot(sum: __m256i, codes: __m256i, x: __m256i) -> __m256i {
                $dot(sum, codes, x)
            }

            #[inline]
            #[target_feature(enable = "avx2")]
            pub fn close<const G: usize>(_: __m256i, sum: __m256i) -> __m256i {
                sum
            }
        }
    };
}

sums!(vex_sums, "avx2,avxvnni", _mm256_dpbusd_avx_epi32);
sums!(evex_sums, "avx2,avx512vl,avx512vnni", _mm256_dpbusd_epi32);

/// Vectors of 256 bits.
mod v256 {
    use std::arch::x86_64::*;

    use half::f16;

    pub const LANES: usize = 8;
    /// Codes are unsigned, as they are stored.
    pub const SIGNED: bool = false;
    pub type Ints = __m256i;

    /// # Safety
    /// 8 words can be read.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn load(at: *const u32) -> Ints {
        // SAFETY: by the contract.
        unsafe { _mm256_loadu_si256(at.cast()) }
    }

    /// # Safety
    /// 8 integers can be written.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn store(at: *mut i32, v: Ints) {
        // SAFETY: by the contract.
        unsafe { _mm256_storeu_si256(at.cast(), v) };
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn splat(v: i32) -> Ints {
        _mm256_set1_epi32(v)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn add(a: Ints, b: Ints) -> Ints {
        _mm256_add_epi32(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn and(a: Ints, b: Ints) -> Ints {
        _mm256_and_si256(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn xor(a: Ints, b: Ints) -> Ints {
        _mm256_xor_si256(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn left_1(v: Ints) -> Ints {
        _mm256_slli_epi32::<1>(v)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn right_1(v: Ints) -> Ints {
        _mm256_srli_epi32::<1>(v)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn right_2(v: Ints) -> Ints {
        _mm256_srli_epi32::<2>(v)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn no_floats() -> __m256 {
        _mm256_setzero_ps()
    }

    /// `sum + exact · factor`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn add_scaled(sum: __m256, exact: Ints, factor: f32) -> __m256 {
        _mm256_fmadd_ps(_mm256_cvtepi32_ps(exact), _mm256_set1_ps(factor), sum)
    }

    /// `out += sum · scale`.
    ///
    /// # Safety
    /// Both pointers are to 8 elements.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub unsafe fn settle(out: *mut f32, sum: __m256, scales: *const f16) {
        // SAFETY: by the contract; unaligned loads and stores are allowed.
        unsafe {
            let scale = _mm256_cvtph_ps(_mm_loadu_si128(scales.cast()));
            _mm256_storeu_ps(out, _mm256_fmadd_ps(sum, scale, _mm256_loadu_ps(out)));
        }
    }
}
