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

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn divide(a: Floats, b: Floats) -> Floats {
        _mm256_div_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn add(a: Floats, b: Floats) -> Floats {
        _mm256_add_ps(a, b)
    }

    /// The larger of each; `b` where `a` is NaN.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn larger(a: Floats, b: Floats) -> Floats {
        _mm256_max_ps(a, b)
    }

    /// The smaller of each; `b` where `a` is NaN.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn smaller(a: Floats, b: Floats) -> Floats {
        _mm256_min_ps(a, b)
    }

    /// The larger of two magnitudes, without a sign; NaN is above all.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn larger_magnitude(a: Floats, b: Floats) -> Floats {
        let [a, b] = [a, b].map(|v| _mm256_andnot_si256(_mm256_set1_epi32(i32::MIN), _mm256_castps_si256(v)));
        _mm256_castsi256_ps(_mm256_max_epi32(a, b))
    }

    /// The nearest integer of each, ties to even.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn rounded(v: Floats) -> Floats {
        _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }

    /// `v − rounded(v)`.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn residue(v: Floats) -> Floats {
        _mm256_sub_ps(v, rounded(v))
    }

    /// Writes integers of 8 bits.
    ///
    /// # Safety
    /// 8 elements can be written.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub unsafe fn store_i8(at: *mut i8, v: Floats) {
        let v = _mm256_cvtps_epi32(v);
        let v = _mm_packs_epi32(_mm256_castsi256_si128(v), _mm256_extracti128_si256::<1>(v));
        // SAFETY: by the contract.
        unsafe { _mm_storel_epi64(at.cast(), _mm_packs_epi16(v, v)) };
    }

    /// Of each of 8 vectors what `both` makes of all its lanes, in one; `both` may take lanes in any order. By reference: an
    /// array of vectors is copied through memory.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn across(v: &[Floats; LANES], both: impl Fn(Floats, Floats) -> Floats) -> Floats {
        let pair = |i: usize| both(_mm256_unpacklo_ps(v[i], v[i + 1]), _mm256_unpackhi_ps(v[i], v[i + 1]));
        let four = |i: usize| {
            let (a, b) = (_mm256_castps_pd(pair(i)), _mm256_castps_pd(pair(i + 2)));
            let (low, high) = (_mm256_unpacklo_pd(a, b), _mm256_unpackhi_pd(a, b));
            both(_mm256_castpd_ps(low), _mm256_castpd_ps(high))
        };
        let (a, b) = (four(0), four(4));
        both(_mm256_permute2f128_ps::<0x20>(a, b), _mm256_permute2f128_ps::<0x31>(a, b))
    }

    /// The sum of each of 8 vectors, in one.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub fn sums(v: &[Floats; LANES]) -> Floats {
        across(v, |a, b| add(a, b))
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

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn divide(a: Floats, b: Floats) -> Floats {
        _mm512_div_ps(a, b)
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn add(a: Floats, b: Floats) -> Floats {
        _mm512_add_ps(a, b)
    }

    /// The larger of each; `b` where `a` is NaN.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn larger(a: Floats, b: Floats) -> Floats {
        _mm512_max_ps(a, b)
    }

    /// The smaller of each; `b` where `a` is NaN.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn smaller(a: Floats, b: Floats) -> Floats {
        _mm512_min_ps(a, b)
    }

    /// The larger of two magnitudes, without a sign; NaN is above all.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn larger_magnitude(a: Floats, b: Floats) -> Floats {
        let [a, b] = [a, b].map(|v| _mm512_andnot_si512(_mm512_set1_epi32(i32::MIN), _mm512_castps_si512(v)));
        _mm512_castsi512_ps(_mm512_max_epi32(a, b))
    }

    /// The nearest integer of each, ties to even.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn rounded(v: Floats) -> Floats {
        _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }

    /// `v − rounded(v)`.
    #[inline]
    #[target_feature(enable = "avx512dq")]
    pub fn residue(v: Floats) -> Floats {
        _mm512_reduce_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)
    }

    /// Writes integers of 8 bits.
    ///
    /// # Safety
    /// 16 elements can be written.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl")]
    pub unsafe fn store_i8(at: *mut i8, v: Floats) {
        // SAFETY: by the contract.
        unsafe { _mm_storeu_si128(at.cast(), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))) };
    }

    /// Of each of 16 vectors what `both` makes of all its lanes, in one; `both` may take lanes in any order. By reference: an
    /// array of vectors is copied through memory.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn across(v: &[Floats; LANES], both: impl Fn(Floats, Floats) -> Floats) -> Floats {
        let pair = |i: usize| both(_mm512_unpacklo_ps(v[i], v[i + 1]), _mm512_unpackhi_ps(v[i], v[i + 1]));
        let four = |i: usize| {
            let (a, b) = (_mm512_castps_pd(pair(i)), _mm512_castps_pd(pair(i + 2)));
            let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
            both(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
        };
        // Quarter i of each is vectors 0..4 of a group of four, a partial sum each.
        let (a, b, c, d) = (four(0), four(4), four(8), four(12));
        let (ab, cd) = (
            both(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xdd>(a, b)),
            both(_mm512_shuffle_f32x4::<0x88>(c, d), _mm512_shuffle_f32x4::<0xdd>(c, d)),
        );
        both(_mm512_shuffle_f32x4::<0x88>(ab, cd), _mm512_shuffle_f32x4::<0xdd>(ab, cd))
    }

    /// The sum of each of 16 vectors, in one.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub fn sums(v: &[Floats; LANES]) -> Floats {
        across(v, |a, b| add(a, b))
    }
}
