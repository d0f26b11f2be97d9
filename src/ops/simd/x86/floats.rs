//! Vectors of f32 for kernels that are written once for both widths: 8 lanes with AVX2, FMA and F16C, 16 with AVX-512.

/// 8 lanes.
pub mod avx2 {
    use std::arch::x86_64::*;

    use half::f16;

    /// Lanes.
    pub const LANES: usize = 8;
    /// A vector.
    pub type Floats = __m256;

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn zero() -> Floats {
        _mm256_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn splat(v: f32) -> Floats {
        _mm256_set1_ps(v)
    }

    /// # Safety
    /// 8 elements can be read.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn load(at: *const f32) -> Floats {
        // SAFETY: by the contract.
        unsafe { _mm256_loadu_ps(at) }
    }

    /// # Safety
    /// 8 elements can be read.
    #[inline]
    #[target_feature(enable = "avx2,f16c")]
    pub unsafe fn load_f16(at: *const f16) -> Floats {
        // SAFETY: by the contract.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(at.cast()) })
    }

    /// # Safety
    /// 8 elements can be read.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn load_i8(at: *const i8) -> Floats {
        // SAFETY: by the contract.
        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(unsafe { _mm_loadl_epi64(at.cast()) }))
    }

    /// # Safety
    /// 8 elements can be written.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn store(at: *mut f32, v: Floats) {
        // SAFETY: by the contract.
        unsafe { _mm256_storeu_ps(at, v) };
    }

    /// `a · b + sum`.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub fn multiply_add(a: Floats, b: Floats, sum: Floats) -> Floats {
        _mm256_fmadd_ps(a, b, sum)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn multiply(a: Floats, b: Floats) -> Floats {
        _mm256_mul_ps(a, b)
    }

    /// The sum of each of 8 vectors, in one. By reference: an array of vectors is copied through memory.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn sums(v: &[Floats; LANES]) -> Floats {
        let four = |i: usize| _mm256_hadd_ps(_mm256_hadd_ps(v[i], v[i + 1]), _mm256_hadd_ps(v[i + 2], v[i + 3]));
        let (a, b) = (four(0), four(4));
        _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
    }
}

/// 16 lanes.
pub mod avx512 {
    use std::arch::x86_64::*;

    use half::f16;

    /// Lanes.
    pub const LANES: usize = 16;
    /// A vector.
    pub type Floats = __m512;

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn zero() -> Floats {
        _mm512_setzero_ps()
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn splat(v: f32) -> Floats {
        _mm512_set1_ps(v)
    }

    /// # Safety
    /// 16 elements can be read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn load(at: *const f32) -> Floats {
        // SAFETY: by the contract.
        unsafe { _mm512_loadu_ps(at) }
    }

    /// # Safety
    /// 16 elements can be read.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn load_f16(at: *const f16) -> Floats {
        // SAFETY: by the contract.
        _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(at.cast()) })
    }

    /// # Safety
    /// 16 elements can be read.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    pub unsafe fn load_i8(at: *const i8) -> Floats {
        // SAFETY: by the contract.
        _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(unsafe { _mm_loadu_si128(at.cast()) }))
    }

    /// # Safety
    /// 16 elements can be written.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub unsafe fn store(at: *mut f32, v: Floats) {
        // SAFETY: by the contract.
        unsafe { _mm512_storeu_ps(at, v) };
    }

    /// `a · b + sum`.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn multiply_add(a: Floats, b: Floats, sum: Floats) -> Floats {
        _mm512_fmadd_ps(a, b, sum)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn multiply(a: Floats, b: Floats) -> Floats {
        _mm512_mul_ps(a, b)
    }

    /// The sum of each of 16 vectors, in one. By reference: an array of vectors is copied through memory.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn sums(v: &[Floats; LANES]) -> Floats {
        let add = |a, b| _mm512_add_ps(a, b);
        let pair = |i: usize| add(_mm512_unpacklo_ps(v[i], v[i + 1]), _mm512_unpackhi_ps(v[i], v[i + 1]));
        let four = |i: usize| {
            let (a, b) = (_mm512_castps_pd(pair(i)), _mm512_castps_pd(pair(i + 2)));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            add(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        };
        // Quarter i of each is vectors 0..4 of a group of four, a partial sum each.
        let (a, b, c, d) = (four(0), four(4), four(8), four(12));
        let (ab, cd) = (
            add(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)),
            add(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d)),
        );
        add(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
    }
}
