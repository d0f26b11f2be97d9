//! Loops over rows of floats, written so that the compiler vectorises them, and compiled for several processors.

use crate::bounds::at_least;
use crate::cpu_level::for_each_level;

/// Sums that run side by side: two vectors of the widest processor, which has two units that add.
const LANES: usize = 32;

/// The sum of all lanes, by halves.
#[inline(always)]
pub fn total(mut lanes: [f32; LANES]) -> f32 {
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
    }
    lanes[0]
}

/// `Σ f(x)`.
#[inline(always)]
fn sum(x: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut acc = [0.0; LANES];
    let chunks = x.chunks_exact(LANES);
    let rest: f32 = chunks.remainder().iter().map(|&x| f(x)).sum();
    for x in chunks {
        for i in 0..LANES {
            acc[i] += f(x[i]);
        }
    }
    total(acc) + rest
}

/// `Σ a · b` of slices of one length.
#[inline(always)]
pub fn dot_inline(a: &[f32], b: &[f32]) -> f32 {
    let mut acc = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(x, y)| x * y).sum();
    for (a, b) in a.zip(b) {
        for i in 0..LANES {
            acc[i] += a[i] * b[i];
        }
    }
    total(acc) + rest
}

for_each_level! {
    /// `Σ a · b` of slices of one length.
    pub fn dot(a: &[f32], b: &[f32]) -> f32 {
        dot_inline(a, b)
    }
}

for_each_level! {
    /// `Σ clamp(x, ±bound)²`.
    pub fn sum_of_squares(x: &[f32], bound: f32) -> f32 {
        sum(x, |x| {
            let v = x.clamp(-bound, bound);
            v * v
        })
    }
}

/// Bounds and scale of one row's normalisation.
#[derive(Debug, Clone, Copy)]
pub struct Normed {
    /// What x is divided by.
    pub rms: f32,
    /// Bound on x.
    pub in_bound: f32,
    /// Bound on the quotient.
    pub out_bound: f32,
    /// Bound on the product with the weight.
    pub act_bound: f32,
}

for_each_level! {
    /// `y = clamp(w · clamp(clamp(x) / rms))`; returns `max |y|`, NaN if one is.
    pub fn norm(x: &[f32], w: &[f32], n: Normed, y: &mut [f32]) -> f32 {
        let one = |x: f32, w: f32| {
            let v = (x.clamp(-n.in_bound, n.in_bound) / n.rms).clamp(-n.out_bound, n.out_bound);
            (w * v).clamp(-n.act_bound, n.act_bound)
        };
        let mut lanes_max = [0; LANES]; // bits: in their order NaN is above all
        let (xs, ws, mut ys) = (x.chunks_exact(LANES), w.chunks_exact(LANES), y.chunks_exact_mut(LANES));
        let rest = (xs.remainder(), ws.remainder());
        for ((x, w), y) in xs.zip(ws).zip(&mut ys) {
            for i in 0..LANES {
                y[i] = one(x[i], w[i]);
                lanes_max[i] = lanes_max[i].max(y[i].abs().to_bits());
            }
        }
        let mut max = lanes_max.iter().fold(0, |a, &b| a.max(b));
        for ((x, w), y) in rest.0.iter().zip(rest.1).zip(ys.into_remainder()) {
            *y = one(*x, *w);
            max = max.max(y.abs().to_bits());
        }
        f32::from_bits(max)
    }
}

for_each_level! {
    /// `y = clamp(x, ±bound)`; returns `max |y|`, NaN if one is.
    pub fn bounded(x: &[f32], bound: f32, y: &mut [f32]) -> f32 {
        let mut most = 0;
        for (y, x) in y.iter_mut().zip(x) {
            *y = x.clamp(-bound, bound);
            most = most.max(y.abs().to_bits());
        }
        f32::from_bits(most)
    }
}

for_each_level! {
    /// `code = clamp(round(y · k), −max_code − 1, max_code)`, ties to even; returns the sum of the codes. That of NaN is any.
    pub fn quantise(y: &[f32], k: f32, max_code: f32, codes: &mut [i8]) -> i32 {
        quantise_inline(y, k, max_code, codes)
    }
}

/// [`quantise`].
#[inline(always)]
pub fn quantise_inline(y: &[f32], k: f32, max_code: f32, codes: &mut [i8]) -> i32 {
    let mut sum = 0;
    for (code, v) in codes.iter_mut().zip(y) {
        *code = integer((v * k).clamp(-max_code - 1.0, max_code) + ROUND) as i8;
        sum += i32::from(*code);
    }
    sum
}

for_each_level! {
    /// [`quantise`] of each `group` columns of a row with `k = max_code / max(row_max, floor)` of the whole row; `1/k` and the
    /// sum of the codes of each go to `scale_and_sum`.
    pub fn quantise_by_row(
        y: &[f32],
        group: usize,
        row_max: f32,
        max_code_and_floor: [f32; 2],
        codes: &mut [i8],
        scale_and_sum: &mut [f32],
    ) {
        let [max_code, floor] = max_code_and_floor;
        let k = max_code / at_least(row_max, floor);
        let groups = y.chunks(group).zip(codes.chunks_mut(group)).zip(scale_and_sum.chunks_exact_mut(2));
        for ((y, codes), scale_and_sum) in groups {
            scale_and_sum.copy_from_slice(&[1.0 / k, quantise_inline(y, k, max_code, codes) as f32]);
        }
    }
}

/// Added to a float below 2^22 in size, rounds it to an integer, ties to even, that stands in the lowest bits; unlike a
/// cast, which has to look for NaN, it is one instruction of any vector.
pub const ROUND: f32 = 12_582_912.0;

/// The integer that a float plus [`ROUND`] holds.
#[inline(always)]
fn integer(rounded: f32) -> i32 {
    (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// `a · b + c`, rounded once with `FMA`.
#[inline(always)]
fn multiply_add<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// `e^x`, within 2 units in the last place on −87..88, constant beyond. Source: the coefficients of Cephes' expf.
#[inline(always)]
pub fn exp_inline<const FMA: bool>(x: f32) -> f32 {
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.0, 88.0);
    let rounded = multiply_add::<FMA>(x, std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = multiply_add::<FMA>(n, -LN2_LOW, multiply_add::<FMA>(n, -LN2_HIGH, x));
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = multiply_add::<FMA>(p, r, c);
    }
    let power = f32::from_bits((integer(rounded).wrapping_add(127) << 23) as u32);
    (multiply_add::<FMA>(p * r, r, r) + 1.0) * power
}

/// The error function, within 2e-7: its Maclaurin series up to 1, else `1 − e^(−x²) · p(1/(1 + x/2))` with the coefficients
/// of the Chebyshev fit for erfc (Press et al., Numerical Recipes, section 6.2). Both are computed, so that it vectorises.
#[inline(always)]
fn erf<const FMA: bool>(v: f32) -> f32 {
    // 2/√π · (−1)^n / (n! · (2n + 1)), from n = 10 down.
    const SERIES: [f32; 11] = [
        1.480_719_3e-8,
        -1.636_584_5e-7,
        1.646_211_4e-6,
        -1.492_565_1e-5,
        1.205_533_3e-4,
        -8.548_327e-4,
        5.223_978e-3,
        -2.686_617e-2,
        0.112_837_92,
        -0.376_126_4,
        std::f32::consts::FRAC_2_SQRT_PI,
    ];
    const FIT: [f32; 10] = [
        0.170_872_77,
        -0.822_152_23,
        1.488_515_9,
        -1.135_204,
        0.278_868_07,
        -0.186_288_06,
        0.096_784_18,
        0.374_091_96,
        1.000_023_7,
        -1.265_512_2,
    ];
    let horner = |c: &[f32], x: f32| c.iter().fold(0.0, |p, &c| multiply_add::<FMA>(p, x, c));
    let x = v.abs();
    let near = v * horner(&SERIES, v * v);
    let t = 1.0 / (1.0 + 0.5 * x);
    let far = (1.0 - t * exp_inline::<FMA>(horner(&FIT, t) - x * x)).copysign(v);
    if x < 1.0 { near } else { far }
}

for_each_level! {
    /// `y = x/2 · (1 + erf(x/√2))`.
    pub fn gelu_erf(x: &[f32], y: &mut [f32]) {
        y.iter_mut().zip(x).for_each(|(y, &x)| *y = 0.5 * x * (1.0 + erf::<FMA>(x * std::f32::consts::FRAC_1_SQRT_2)));
    }
}

/// The largest of whole [`LANES`]; none is NaN.
#[inline(always)]
pub fn max_inline(x: &[f32; LANES]) -> f32 {
    let mut lanes = *x;
    for half in [16, 8, 4, 2, 1] {
        for i in 0..half {
            lanes[i] = if lanes[i + half] > lanes[i] { lanes[i + half] } else { lanes[i] };
        }
    }
    lanes[0]
}

/// `x = e^(x − max)`; returns the sum.
#[inline(always)]
pub fn exp_all_inline<const FMA: bool>(x: &mut [f32], max: f32) -> f32 {
    let mut acc = [0.0; LANES];
    let mut chunks = x.chunks_exact_mut(LANES);
    for x in &mut chunks {
        for i in 0..LANES {
            x[i] = exp_inline::<FMA>(x[i] - max);
            acc[i] += x[i];
        }
    }
    let mut sum = total(acc);
    for x in chunks.into_remainder() {
        *x = exp_inline::<FMA>(*x - max);
        sum += *x;
    }
    sum
}

for_each_level! {
    /// `y = clamp(silu(clamp(gate)) · up)`.
    pub fn swiglu(gate: &[f32], up: &[f32], gate_bound: f32, out_bound: f32, y: &mut [f32]) {
        for ((y, g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = g.clamp(-gate_bound, gate_bound);
            *y = (g / (1.0 + exp_inline::<FMA>(-g)) * u).clamp(-out_bound, out_bound);
        }
    }
}

for_each_level! {
    /// `y = relu(gate)² · up`.
    pub fn relu2_gate(gate: &[f32], up: &[f32], y: &mut [f32]) {
        for ((y, &g), u) in y.iter_mut().zip(gate).zip(up) {
            let g = if g < 0.0 { 0.0 } else { g };
            *y = g * g * u;
        }
    }
}

for_each_level! {
    /// `out = x + clamp(Σ_i weights[i] · y[i] + Σ y[i])`; y has more rows than there are weights, which are added as they are.
    pub fn combine(x: &[f32], y: &[f32], weights: &[f32], bound: f32, out: &mut [f32]) {
        let (experts, shared) = y.split_at(weights.len() * x.len());
        out.fill(0.0);
        for (y, weight) in experts.chunks_exact(x.len()).zip(weights) {
            out.iter_mut().zip(y).for_each(|(o, y)| *o += weight * y);
        }
        for y in shared.chunks_exact(x.len()) {
            out.iter_mut().zip(y).for_each(|(o, y)| *o += y);
        }
        out.iter_mut().zip(x).for_each(|(o, x)| *o = x + o.clamp(-bound, bound));
    }
}

for_each_level! {
    /// `y = x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³)))`.
    pub fn gelu_tanh(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            let u = 0.797_884_6 * (x + 0.044715 * x * x * x);
            // (1 + tanh(u)) / 2 = 1 / (1 + e^(−2u))
            *y = x / (1.0 + exp_inline::<FMA>(-2.0 * u));
        }
    }
}

for_each_level! {
    /// `y = (x − mean) / sqrt(var + eps) · w + b`.
    pub fn layer_norm(x: &[f32], w: &[f32], b: &[f32], eps: f32, y: &mut [f32]) {
        let n = x.len() as f32;
        let mean = sum(x, |x| x) / n;
        let inv = 1.0 / (sum(x, |x| (x - mean) * (x - mean)) / n + eps).sqrt();
        for (((y, x), w), b) in y.iter_mut().zip(x).zip(w).zip(b) {
            *y = (x - mean) * inv * w + b;
        }
    }
}

for_each_level! {
    /// `y = sum · factor (+ residual)`.
    pub fn scale_sums(sums: &[i32], factor: f32, residual: Option<&[f32]>, y: &mut [f32]) {
        match residual {
            Some(residual) => {
                for ((y, s), r) in y.iter_mut().zip(sums).zip(residual) {
                    *y = *s as f32 * factor + r;
                }
            }
            None => {
                for (y, s) in y.iter_mut().zip(sums) {
                    *y = *s as f32 * factor;
                }
            }
        }
    }
}

for_each_level! {
    /// The number of the largest element, the lowest of equal ones; none unless all are finite.
    pub fn argmax(x: &[f32]) -> Option<usize> {
        let (mut lanes_max, mut odd) = ([f32::MIN; LANES], [0.0f32; LANES]);
        let chunks = x.chunks_exact(LANES);
        let rest = chunks.remainder();
        for x in chunks {
            for i in 0..LANES {
                lanes_max[i] = if x[i] > lanes_max[i] { x[i] } else { lanes_max[i] };
                // 0, or NaN for what is not finite.
                odd[i] += x[i] * 0.0;
            }
        }
        let max = lanes_max.iter().chain(rest).fold(f32::MIN, |a, &b| if b > a { b } else { a });
        let finite = total(odd) == 0.0 && rest.iter().all(|v| v.is_finite());
        // Many at a time: one behind the other they take longer than all of the above.
        let has_max = |x: &[f32]| x.iter().fold(false, |any, &v| any | (v == max));
        let at = x.chunks(8 * LANES).position(has_max).filter(|_| finite)? * 8 * LANES;
        x[at..].iter().position(|&v| v == max).map(|i| at + i)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        for exp in [exp_inline::<false>, exp_inline::<true>] {
            for i in -8700..8800 {
                let x = i as f32 * 0.01;
                let want = f64::from(x).exp();
                let error = (f64::from(exp(x)) - want).abs() / want;
                assert!(error < 2.4e-7, "e^{x}: {error}");
            }
            assert!(exp(-1e30) < 1e-37 && exp(1e30).is_finite());
        }
    }

    #[test]
    fn argmax_takes_the_first_of_equals_and_refuses_what_is_not_finite() {
        for n in [1, 31, 32, 33, 100] {
            for at in 0..n {
                let mut x: Vec<f32> = (0..n).map(|i| -(i as f32)).collect();
                x[at..].fill(3.0);
                assert_eq!(argmax(&x), Some(at), "{n} elements");
                for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    x[at] = bad;
                    assert_eq!(argmax(&x), None, "{bad} at {at} of {n}");
                }
            }
        }
    }

    #[test]
    fn sums_do_not_depend_on_the_length() {
        for n in [0, 1, 15, 16, 17, 100] {
            let x: Vec<f32> = (0..n).map(|i| (i % 7) as f32 - 3.0).collect();
            let want: f32 = x.iter().map(|v| v * v).sum();
            assert_eq!((dot(&x, &x), sum_of_squares(&x, 9.0)), (want, want), "{n} elements");
        }
    }
}
