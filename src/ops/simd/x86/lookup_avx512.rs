//! Sums of products with 1-bit codes for x86-64 with AVX-512 VBMI, by looking up sums of four activations among 64 bytes: a byte
//! shuffle takes the place of four products, and bytes need not be transposed, since their number in a word is a part of what is
//! looked up.

use std::arch::x86_64::*;

use crate::ops::simd::low_bit::{Table, WORD_TABLES};

/// What the upper bits of a sum stand for.
const UPPER: i8 = i8::MIN; // 128, unsigned

/// Makes the tables of a row of codes: of each word those of columns whose bits are the lower half of a byte, then those of the
/// upper half; of each the lower 7 bits of the sums, then the upper ones. Element `16 b + n` is the sum of four activations,
/// minus those for which byte `b`'s bits `n` are 0.
pub(super) fn make_tables(words: &[u32], to: &mut [Table]) {
    // SAFETY: the processor has AVX-512 with VBMI, which implies BW, as every one on which kernels use these tables.
    unsafe { fill_tables(bytemuck::cast_slice(words), to) };
}

/// Where sums come from. Those of two activations are made first, four for each byte and for each two of a half's four words: from a
/// code of the one and of the other word. All pairs of these are the sums of four: of the first two bytes, and of the last two.
const PLACES: [[[u16; 32]; 2]; 3] = {
    let mut places = [[[0; 32]; 2]; 3];
    let mut lane = 0;
    while lane < 32 {
        let (half, n) = (lane / 16, lane % 16);
        let one = 8 * half + n / 4;
        let [low, high] = [4 * half + n % 4, 16 + 4 * half + n / 4];
        [places[0][0][lane], places[0][1][lane]] = [one as u16, one as u16 + 4];
        [places[1][0][lane], places[1][1][lane]] = [low as u16, high as u16];
        [places[2][0][lane], places[2][1][lane]] = [low as u16 + 8, high as u16 + 8];
        lane += 1;
    }
    places
};

#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
fn fill_tables(codes: &[i8], to: &mut [Table]) {
    // Plain loops: a closure that is called by `map` need not be inlined, and would pass vectors through memory.
    let mut places = [[_mm512_setzero_si512(); 2]; 3];
    for (to, at) in places.as_flattened_mut().iter_mut().zip(PLACES.as_flattened()) {
        // SAFETY: `at` has 32 elements.
        *to = unsafe { _mm512_loadu_si512(at.as_ptr().cast()) };
    }
    let [of_two, of_first, of_last] = places;
    // Lanes whose number lacks bit 0 or 1.
    const WITHOUT_BIT: [u32; 2] = [0x5555_5555, 0x3333_3333];
    let even: [u8; 64] = std::array::from_fn(|at| 2 * at as u8);
    let (zero, seven_bits) = (_mm512_setzero_si512(), _mm512_set1_epi16(0x7f));
    for (codes, to) in codes.chunks_exact(16).zip(to.chunks_exact_mut(2)) {
        // SAFETY: `codes` has 16 elements.
        let x = unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(codes.as_ptr().cast())) };
        let x = _mm512_castsi256_si512(x);
        let (first, second) = (_mm512_permutexvar_epi16(of_two[0], x), _mm512_permutexvar_epi16(of_two[1], x));
        let first = _mm512_mask_sub_epi16(first, WITHOUT_BIT[0], zero, first);
        let second = _mm512_mask_sub_epi16(second, WITHOUT_BIT[1], zero, second);
        let twos = _mm512_add_epi16(first, second);
        let (mut lower, mut upper) = ([zero; 2], [zero; 2]);
        for (i, at) in [of_first, of_last].iter().enumerate() {
            let (one, other) = (_mm512_permutexvar_epi16(at[0], twos), _mm512_permutexvar_epi16(at[1], twos));
            let sums = _mm512_add_epi16(one, other);
            (lower[i], upper[i]) = (_mm512_and_si512(sums, seven_bits), _mm512_srai_epi16::<7>(sums));
        }
        for (table, of_sums) in to.iter_mut().zip([lower, upper]) {
            // SAFETY: both have 64 bytes.
            unsafe {
                let even = _mm512_loadu_si512(even.as_ptr().cast());
                let bytes = _mm512_permutex2var_epi8(of_sums[0], even, of_sums[1]);
                _mm512_storeu_si512(table.0.as_mut_ptr().cast(), bytes);
            }
        }
    }
}

/// Adds `Σ code · activation` of word `j` of `B` vectors of 16 rows, with `A` rows of codes by their tables. Always inlined, which
/// a function with target features cannot be: as a call it would pass all sums through memory.
///
/// # Safety
/// The processor has AVX-512 F, BW, VBMI and VNNI.
///
/// # Panics
/// Unless each row of codes has tables for the word, and `words` as many vectors.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Constant bounds unroll, so that the sums stay in registers.
pub(super) unsafe fn add_word<const B: usize, const A: usize>(
    words: &[u32],
    j: usize,
    tables: &[&[Table]; A],
    sums: &mut [[__m512i; B]; A],
) {
    // What is looked up: four bits of a byte, and in front of them which byte of its word it is.
    const OR_OF_AND: i32 = 0xf8;
    let words = &words[..16 * B];
    let of_word = tables.map(|tables| &tables[j * WORD_TABLES..][..WORD_TABLES]);
    // SAFETY: by the contract; a table has 64 bytes, `words` has 16 words for each vector, and unaligned loads are allowed.
    unsafe {
        let (half, byte) = (_mm512_set1_epi8(15), _mm512_set1_epi32(0x3020_1000));
        let (ones, upper) = (_mm512_set1_epi8(1), _mm512_set1_epi8(UPPER));
        for a in 0..A {
            let mut t = [_mm512_setzero_si512(); WORD_TABLES];
            for i in 0..WORD_TABLES {
                t[i] = _mm512_loadu_si512(of_word[a][i].0.as_ptr().cast());
            }
            for b in 0..B {
                let w = _mm512_loadu_si512(words.as_ptr().add(16 * b).cast());
                let first = _mm512_ternarylogic_epi32::<OR_OF_AND>(byte, w, half);
                let second = _mm512_ternarylogic_epi32::<OR_OF_AND>(byte, _mm512_srli_epi32::<4>(w), half);
                // Two of 7 bits fit a byte.
                let low = _mm512_add_epi8(_mm512_permutexvar_epi8(first, t[0]), _mm512_permutexvar_epi8(second, t[2]));
                let high = _mm512_add_epi8(_mm512_permutexvar_epi8(first, t[1]), _mm512_permutexvar_epi8(second, t[3]));
                sums[a][b] = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(sums[a][b], low, ones), upper, high);
            }
        }
    }
}
