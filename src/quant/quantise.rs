//! From floats to codes and a scale.

use crate::alloc::room;
use crate::error::Result;

/// How a float matrix becomes codes −1, 0, +1 and one scale.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightQuant {
    /// EmberNet: `sign(W − mean W)` (0 where they are equal), scale `max(mean |W|, 1e-8)`.
    SignMean,
    /// BitNet b1.58: `clamp(round(W / s), −1, 1)` with scale `s = max(mean |W|, 1e-5)`, ties to even.
    /// Source: Ma et al. 2024, "The Era of 1-bit LLMs", section 2.
    Absmean,
}

/// Codes and scale of one matrix. Means are summed in f64, so they do not depend on the order of summation.
///
/// # Errors
/// [`crate::Error::OutOfMemory`] if the system has no memory for the codes.
pub fn quantise(w: &[f32], rule: WeightQuant) -> Result<(Vec<i8>, f32)> {
    let mut codes = room("codes of a ternary matrix", w.len())?;
    let n = w.len().max(1) as f64;
    let (sum, sum_abs) = sums(w);
    let mean_abs = (sum_abs / n) as f32;
    let scale = match rule {
        WeightQuant::SignMean => {
            let mean = (sum / n) as f32;
            let code = |&v: &f32| i8::from(v > mean) - i8::from(v < mean);
            codes.extend(w.iter().map(code));
            mean_abs.max(1e-8)
        }
        WeightQuant::Absmean => {
            let scale = mean_abs.max(1e-5);
            let code = |&v: &f32| (v / scale).round_ties_even().clamp(-1.0, 1.0) as i8;
            codes.extend(w.iter().map(code));
            scale
        }
    };
    Ok((codes, scale))
}

/// `(Σ w, Σ |w|)` in f64, in eight lanes so that the compiler vectorises it.
fn sums(w: &[f32]) -> (f64, f64) {
    let (mut sum, mut abs) = ([0.0; 8], [0.0; 8]);
    let chunks = w.chunks_exact(8);
    for (i, &v) in chunks.remainder().iter().enumerate() {
        sum[i] += f64::from(v);
        abs[i] += f64::from(v.abs());
    }
    for chunk in chunks {
        for i in 0..8 {
            sum[i] += f64::from(chunk[i]);
            abs[i] += f64::from(chunk[i].abs());
        }
    }
    (sum.iter().sum(), abs.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sign_mean_gives_zero_only_at_the_mean() {
        assert_eq!(quantise(&[1.0, 2.0, 3.0], WeightQuant::SignMean).unwrap(), (vec![-1, 0, 1], 2.0));
    }

    #[test]
    fn absmean_rounds_ties_to_even() {
        let (codes, scale) = quantise(&[0.5, 1.5, -0.5, -1.5], WeightQuant::Absmean).unwrap();
        assert_eq!((codes, scale), (vec![0, 1, 0, -1], 1.0));
    }
}
