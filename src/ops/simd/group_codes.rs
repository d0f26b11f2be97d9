//! 8-bit codes of activations whose factors are of 32 columns each, several groups at a time: a group alone would wait for its
//! sums, one behind the other.

use crate::ops::quantise_groups::{CODE_GROUP, LARGEST_CODES, best_k, fitted};
use crate::ops::simd::portable;

/// Groups of a block.
pub(super) const GROUPS: usize = 16;
/// Columns that are quantised together: pieces of rows are best cut between them.
pub const CODE_COLUMNS: usize = GROUPS * CODE_GROUP;

/// Some groups of a row.
pub(super) type Block<T> = [[T; CODE_GROUP]; GROUPS];

/// Quantises a block: `(y, [largest code, floor], codes, factor and sum of the codes of each group)`.
pub(super) type Kernel = fn(&Block<f32>, [f32; 2], &mut Block<i8>, &mut [[f32; 2]; GROUPS]);

/// The best kernel for this processor.
fn kernel() -> Kernel {
    #[cfg(target_arch = "x86_64")]
    if let Some(kernel) = super::x86::group_codes::kernels().pop() {
        return kernel;
    }
    portable::group_codes::quantise
}

/// Codes of each [`CODE_GROUP`] columns of a row with their own [`best_k`], ties to even, and that of NaN any; the factor of the
/// least squared error and the sum of the codes of each go to `scale_and_sum`.
pub fn quantise_groups(y: &[f32], max_code_and_floor: [f32; 2], codes: &mut [i8], scale_and_sum: &mut [f32]) {
    let kernel = kernel();
    let (blocks, behind) = (y.chunks_exact(CODE_COLUMNS), y.len() / CODE_COLUMNS * CODE_COLUMNS);
    let mut to = scale_and_sum.chunks_mut(2 * GROUPS);
    for ((y, codes), to) in blocks.zip(codes.chunks_exact_mut(CODE_COLUMNS)).zip(&mut to) {
        let y: &[Block<f32>] = bytemuck::cast_slice(y);
        let codes: &mut [Block<i8>] = bytemuck::cast_slice_mut(codes);
        let to: &mut [[[f32; 2]; GROUPS]] = bytemuck::cast_slice_mut(to);
        kernel(&y[0], max_code_and_floor, &mut codes[0], &mut to[0]);
    }
    if let Some(to) = to.next() {
        // What is behind a row is 0: its codes are, and it adds nothing to a sum.
        let (mut block, mut block_codes) = ([[0.0; CODE_GROUP]; GROUPS], [[0; CODE_GROUP]; GROUPS]);
        let (y, codes, mut block_to) = (&y[behind..], &mut codes[behind..], [[0.0; 2]; GROUPS]);
        block.as_flattened_mut()[..y.len()].copy_from_slice(y);
        kernel(&block, max_code_and_floor, &mut block_codes, &mut block_to);
        codes.copy_from_slice(&block_codes.as_flattened()[..y.len()]);
        to.copy_from_slice(&block_to.as_flattened()[..to.len()]);
    }
}

/// [`best_k`] of each group, by the errors of each candidate.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Loops over all groups become vectors.
pub(super) fn chosen<const N: usize>(max_code: f32, top: &[f32; N], errors: &[[f32; N]; LARGEST_CODES]) -> [f32; N] {
    let mut k = [0.0; N];
    for g in 0..N {
        k[g] = best_k(max_code, top[g], |below, _| errors[below][g]);
    }
    k
}

/// What codes are multiplied by and their sum, of each group, by `Σ yk · code` and `Σ code²`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // Likewise.
pub(super) fn factors<const N: usize>(
    k: &[f32; N],
    [by_value, squares]: [&[f32; N]; 2],
    sums: &[f32; N],
    to: &mut [[f32; 2]; N],
) {
    let mut factors = [0.0; N];
    for g in 0..N {
        factors[g] = fitted(k[g], by_value[g], squares[g]);
    }
    for (to, (factor, sum)) in to.iter_mut().zip(factors.iter().zip(sums)) {
        *to = [*factor, *sum];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bounds::{at_least, largest_magnitude};

    /// Every kernel that this processor can run.
    fn kernels() -> Vec<Kernel> {
        let mut all: Vec<Kernel> = vec![portable::group_codes::quantise];
        #[cfg(target_arch = "x86_64")]
        all.extend(super::super::x86::group_codes::kernels());
        all
    }

    /// Groups of very different sizes: exact ones, one of zeros, one below the floor, and one with a number that is no number.
    fn block() -> Block<f32> {
        std::array::from_fn(|g| {
            std::array::from_fn(|c| {
                let code = ((g * 31 + c * 37) % 255) as f32 - 127.0;
                match g {
                    0 => code,
                    1 => 0.0,
                    2 => code * 1e-12,
                    3 if c == 17 => f32::NAN,
                    4 if c == 30 => f32::NEG_INFINITY,
                    _ => (code + (c as f32).sin()) * 3.0f32.powi(g as i32 - 8),
                }
            })
        })
    }

    #[test]
    fn every_kernel_has_the_codes_and_factors_of_the_definition() {
        let y = block();
        for (i, kernel) in kernels().into_iter().enumerate() {
            for (max_code, floor) in [(127.0, 1e-5), (7.0, 1e-5)] {
                let (mut codes, mut to) = ([[99; CODE_GROUP]; GROUPS], [[0.0; 2]; GROUPS]);
                kernel(&y, [max_code, floor], &mut codes, &mut to);
                for (g, ((y, codes), [factor, sum])) in y.iter().zip(codes).zip(to).enumerate() {
                    if let 3 | 4 = g {
                        assert!(!factor.is_finite(), "kernel {i}, group {g}: {factor}");
                        continue;
                    }
                    let top = at_least(largest_magnitude(y), floor);
                    let error = |_: usize, k: f32| y.iter().map(|v| (v * k - (v * k).round_ties_even()).powi(2)).sum();
                    let k = best_k(max_code, top, error);
                    for (code, v) in codes.iter().zip(y) {
                        let exact = v * k;
                        assert!(
                            (f32::from(*code) - exact).abs() <= 0.5 + 1e-4,
                            "kernel {i}, group {g}: {code} of {exact}"
                        );
                    }
                    let code_sum: f32 = codes.iter().map(|&c| f32::from(c)).sum();
                    assert_eq!(sum, code_sum, "kernel {i}, group {g}");
                    let by_value = codes.iter().zip(y).map(|(&c, v)| v * k * f32::from(c)).sum();
                    let wanted = fitted(k, by_value, codes.iter().map(|&c| f32::from(c).powi(2)).sum());
                    assert!((factor - wanted).abs() <= 1e-5 * wanted, "kernel {i}, group {g}: {factor} of {wanted}");
                }
                assert_eq!((codes[1], to[1]), ([0; CODE_GROUP], [floor / max_code, 0.0]), "kernel {i}");
            }
            let (mut codes, mut to) = ([[99; CODE_GROUP]; GROUPS], [[0.0; 2]; GROUPS]);
            kernel(&y, [127.0, 1e-5], &mut codes, &mut to);
            assert_eq!(codes[0].map(f32::from), y[0], "kernel {i}: whole numbers up to 127 are their codes");
        }
    }

    #[test]
    fn a_row_of_any_length_has_the_codes_of_its_groups() {
        let y: Vec<f32> =
            (0..2 * CODE_COLUMNS).map(|i| ((i * 37 % 101) as f32 - 50.0) * (1.0 + i as f32 * 0.01)).collect();
        let run = |y: &[f32]| {
            let (mut codes, mut to) = (vec![99; y.len()], vec![0.0; 2 * y.len().div_ceil(CODE_GROUP)]);
            quantise_groups(y, [127.0, 1e-5], &mut codes, &mut to);
            (codes, to)
        };
        let whole = run(&y);
        for n in
            [0, 4, 32, 36, CODE_COLUMNS - 32, CODE_COLUMNS, CODE_COLUMNS + 32, CODE_COLUMNS + 320, 2 * CODE_COLUMNS]
        {
            let (codes, to) = run(&y[..n]);
            let groups = n / CODE_GROUP;
            assert_eq!(codes[..groups * CODE_GROUP], whole.0[..groups * CODE_GROUP], "{n} columns");
            assert_eq!(to[..2 * groups], whole.1[..2 * groups], "{n} columns");
            if n > groups * CODE_GROUP {
                let mut padded = y[groups * CODE_GROUP..n].to_vec();
                padded.resize(CODE_GROUP, 0.0);
                let last = run(&padded);
                assert_eq!(codes[groups * CODE_GROUP..], last.0[..n - groups * CODE_GROUP], "{n} columns");
                assert_eq!(to[2 * groups..], last.1[..], "{n} columns");
            }
        }
    }
}
