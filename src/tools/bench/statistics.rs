//! What a few samples say: mean, deviation, median, and by how much two lots of them differ.

/// Mean and standard deviation (of a sample, so 0 for one value).
pub(super) fn mean(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean) * (v - mean)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}

/// The smallest value, the median and the largest; of an even number, the median is the mean of the two in the middle. NaN
/// of none.
pub(super) fn quantiles(values: &[f64]) -> [f64; 3] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = |i: usize| sorted.get(i).copied().unwrap_or(f64::NAN);
    let n = sorted.len();
    [at(0), (at(n.saturating_sub(1) / 2) + at(n / 2)) / 2.0, at(n.saturating_sub(1))]
}

/// How many times as fast one lot of samples is as another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ratio {
    /// The ratio of the geometric means of the rates.
    pub value: f64,
    /// Its 95 % interval, by Welch's t on the logarithms; none where a lot has one sample only.
    pub interval: Option<[f64; 2]>,
}

impl Ratio {
    /// The ratio of the rates of `b` to those of `a`, from times of the same work. All of them are above 0.
    pub fn of_times(a: &[f64], b: &[f64]) -> Self {
        let log = |times: &[f64]| mean(&times.iter().map(|t| t.ln()).collect::<Vec<f64>>());
        let ((a_mean, a_sd), (b_mean, b_sd)) = (log(a), log(b));
        let difference = a_mean - b_mean;
        let interval = (a.len() > 1 && b.len() > 1).then(|| {
            let (n_a, n_b) = (a.len() as f64, b.len() as f64);
            let (v_a, v_b) = (a_sd * a_sd / n_a, b_sd * b_sd / n_b);
            let both = v_a + v_b;
            // Without any spread the number of degrees of freedom does not matter.
            let freedom = if both > 0.0 {
                both * both / (v_a * v_a / (n_a - 1.0) + v_b * v_b / (n_b - 1.0))
            } else {
                n_a + n_b - 2.0
            };
            let half = t_quantile(freedom) * both.sqrt();
            [-half, half].map(|d| (difference + d).exp())
        });
        Ratio { value: difference.exp(), interval }
    }

    /// Whether the interval leaves out 1; none without an interval.
    pub fn differs(&self) -> Option<bool> {
        self.interval.map(|[low, high]| low > 1.0 || high < 1.0)
    }
}

/// The 97.5 % quantile of Student's t with `freedom` degrees of freedom, by Hill's expansion around the exact forms for 1
/// and 2 (Communications of the ACM, algorithm 396); within 0.1 % from 1 on.
fn t_quantile(freedom: f64) -> f64 {
    const P: f64 = 0.05;
    /// The same quantile of the normal distribution.
    const NORMAL: f64 = 1.959_963_984_540_054;
    let n = freedom.max(1.0);
    if (n - 2.0).abs() < 1e-6 {
        return (2.0 / (P * (2.0 - P)) - 2.0).sqrt();
    }
    if n < 1.0 + 1e-6 {
        return 1.0 / (P * std::f64::consts::FRAC_PI_2).tan();
    }
    let a = 1.0 / (n - 0.5);
    let b = 48.0 / (a * a);
    let mut c = ((20_700.0 * a / b - 98.0) * a - 16.0) * a + 96.36;
    let d = ((94.5 / (b + c) - 3.0) / b + 1.0) * (a * std::f64::consts::FRAC_PI_2).sqrt() * n;
    let mut y = (d * P).powf(2.0 / n);
    if y > 0.05 + a {
        let x = -NORMAL;
        y = x * x;
        if n < 5.0 {
            c += 0.3 * (n - 4.5) * (x + 0.6);
        }
        c += (((0.05 * d * x - 5.0) * x - 7.0) * x - 2.0) * x + b;
        y = (((((0.4 * y + 6.3) * y + 36.0) * y + 94.5) / c - y - 3.0) / b + 1.0) * x;
        y = a * y * y;
        y = if y > 0.002 { y.exp_m1() } else { 0.5 * y * y + y };
    } else {
        y = ((1.0 / (((n + 6.0) / (n * y) - 0.089 * d - 0.822) * (n + 2.0) * 3.0) + 0.5 / (n + 4.0)) * y - 1.0)
            * (n + 1.0)
            / (n + 2.0)
            + 1.0 / y;
    }
    (n * y).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_and_deviations_are_those_of_a_sample() {
        assert_eq!(mean(&[2.0, 4.0, 6.0]), (4.0, 2.0));
        assert_eq!(mean(&[3.0]), (3.0, 0.0));
    }

    #[test]
    fn medians_are_in_the_middle() {
        assert_eq!(quantiles(&[5.0, 1.0, 2.0]), [1.0, 2.0, 5.0]);
        assert_eq!(quantiles(&[4.0, 1.0, 2.0, 9.0]), [1.0, 3.0, 9.0]);
        assert_eq!(quantiles(&[7.0]), [7.0; 3]);
    }

    #[test]
    fn quantiles_of_t_are_those_of_tables() {
        let table =
            [(1.0, 12.706), (2.0, 4.3027), (3.0, 3.1824), (4.0, 2.7764), (8.0, 2.3060), (30.0, 2.0423), (1e6, 1.95997)];
        for (freedom, expected) in table {
            let found = t_quantile(freedom);
            assert!((found / expected - 1.0).abs() < 1e-3, "{freedom}: {found}, not {expected}");
        }
        let many: Vec<f64> = (10..400).map(|i| t_quantile(0.1 * f64::from(i))).collect();
        assert!(many.windows(2).all(|w| w[1] < w[0] * 1.002), "falling: {many:?}");
    }

    #[test]
    fn a_ratio_holds_what_was_put_in_and_its_interval_shrinks_with_the_spread() {
        let a = [1.0, 1.1, 0.9, 1.05, 0.95];
        let b = a.map(|t| t / 1.5);
        let ratio = Ratio::of_times(&a, &b);
        assert!((ratio.value - 1.5).abs() < 1e-9);
        let [low, high] = ratio.interval.unwrap();
        assert!(1.2 < low && low < 1.5 && 1.5 < high && high < 1.8, "{ratio:?}");
        assert_eq!(ratio.differs(), Some(true));
        assert_eq!(Ratio::of_times(&a, &a).differs(), Some(false));
        let equal = Ratio::of_times(&[2.0; 3], &[1.0; 3]);
        assert_eq!((equal.value, equal.interval), (2.0, Some([2.0, 2.0])));
        assert_eq!(Ratio::of_times(&[2.0], &a).interval, None);
        // Welch's example in reverse: unequal spreads widen the interval towards the wider lot's.
        let wide = Ratio::of_times(&a, &[0.5, 1.0, 2.0]).interval.unwrap();
        assert!(wide[1] / wide[0] > 10.0, "{wide:?}");
    }
}
