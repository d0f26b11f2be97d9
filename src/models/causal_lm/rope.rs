//! The angles of rotary positions, with the scalings by which contexts are made longer.

use std::f64::consts::PI;

use crate::ops::{Pairing, Rotation};

/// Which angles a head's pairs turn by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RopeSpec {
    /// Base of the frequencies: pair i of n/2 turns by `position · base^(−2i/n)`.
    pub base: f64,
    /// n: elements of a head that turn, from the first on; the others pass as they are.
    pub dims: usize,
    /// How the frequencies are changed for long contexts.
    pub scaling: Scaling,
    /// Which elements turn together.
    pub pairing: Pairing,
}

/// How frequencies are changed for contexts longer than the trained one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Positions are divided by the factor. Source: Chen et al. 2023.
    Linear {
        /// How many times longer the context is.
        factor: f64,
    },
    /// Slow pairs are divided by the factor, fast ones are not, those between go over from one to the other. Source: Peng
    /// et al. 2023 (YaRN), section 3.
    Yarn {
        /// How many times longer the context is.
        factor: f64,
        /// Positions of the trained context.
        original_context: f64,
        /// Turns in the trained context from which on a pair is fast.
        beta_fast: f64,
        /// Turns in the trained context below which a pair is slow.
        beta_slow: f64,
        /// How much of the unscaled angle the fast pairs get, 0 to 1.
        extrapolation: f64,
        /// What cosines and sines are multiplied by; `1 + 0.1 · ln factor` if the model does not say.
        attention: Option<f64>,
    },
    /// Pairs whose wavelength is long are divided by the factor, those between go over. Source: the code of Llama 3.1.
    Llama3 {
        /// How many times longer the context is.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` are long.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` are short.
        high_freq_factor: f64,
        /// Positions of the trained context.
        original_context: f64,
    },
}

impl RopeSpec {
    /// The rotation; each frequency is divided by its number in `divisors`, if there are any.
    pub fn rotation(&self, divisors: Option<&[f32]>) -> Rotation {
        let pairs = self.dims / 2;
        let plain = |i: usize| self.base.powf(-((2 * i) as f64) / self.dims as f64);
        let divisor = |i: usize| divisors.and_then(|all| all.get(i)).map_or(1.0, |&d| f64::from(d));
        let frequencies = (0..pairs).map(|i| (self.scaled(i, plain(i) / divisor(i))) as f32).collect();
        Rotation { frequencies, factor: self.magnitude() as f32, pairing: self.pairing }
    }

    /// The frequency of pair `i` after scaling.
    fn scaled(&self, i: usize, frequency: f64) -> f64 {
        match self.scaling {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Yarn { factor, original_context, beta_fast, beta_slow, extrapolation, .. } => {
                let dims = self.dims as f64;
                let pair = |turns: f64| dims * (original_context / (turns * 2.0 * PI)).ln() / (2.0 * self.base.ln());
                let low = pair(beta_fast).floor().clamp(0.0, dims - 1.0);
                let high = pair(beta_slow).ceil().clamp(0.0, dims - 1.0);
                let slow = ((i as f64 - low) / (high - low).max(1e-3)).clamp(0.0, 1.0);
                let fast = (1.0 - slow) * extrapolation;
                frequency / factor * (1.0 - fast) + frequency * fast
            }
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let wavelength = 2.0 * PI / frequency;
                if wavelength < original_context / high_freq_factor {
                    return frequency;
                }
                if wavelength > original_context / low_freq_factor {
                    return frequency / factor;
                }
                let span = high_freq_factor - low_freq_factor;
                let smooth = (original_context / wavelength - low_freq_factor) / span;
                (1.0 - smooth) * frequency / factor + smooth * frequency
            }
        }
    }

    fn magnitude(&self) -> f64 {
        match self.scaling {
            Scaling::Yarn { factor, attention, .. } => attention.unwrap_or(1.0 + 0.1 * factor.ln()),
            Scaling::None | Scaling::Linear { .. } | Scaling::Llama3 { .. } => 1.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f32, b: f64) -> bool {
        (f64::from(a) - b).abs() <= 1e-6 * b.abs()
    }

    #[test]
    fn frequencies_fall_from_one_to_nearly_one_over_the_base() {
        let spec = RopeSpec { base: 1e4, dims: 8, scaling: Scaling::None, pairing: Pairing::HalfSplit };
        let Rotation { frequencies, factor: magnitude, .. } = spec.rotation(None);
        assert_eq!((frequencies.len(), magnitude), (4, 1.0));
        assert!(
            [1.0, 0.1, 0.01, 0.001].iter().zip(frequencies.iter()).all(|(&want, &f)| near(f, want)),
            "{frequencies:?}"
        );
        let halved = spec.rotation(Some(&[2.0; 4])).frequencies;
        assert!(halved.iter().zip(frequencies.iter()).all(|(h, f)| *h == f / 2.0));
        let linear = RopeSpec { scaling: Scaling::Linear { factor: 2.0 }, ..spec }.rotation(None).frequencies;
        assert_eq!(linear, halved);
    }

    /// Bonsai-8B: 128 elements, base 1e6, four times 16384 positions; pairs up to 20 are fast, those from 37 on slow.
    #[test]
    fn yarn_leaves_fast_pairs_and_divides_slow_ones() {
        let scaling = Scaling::Yarn {
            factor: 4.0,
            original_context: 16384.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            extrapolation: 1.0,
            attention: None,
        };
        let spec = RopeSpec { base: 1e6, dims: 128, scaling, pairing: Pairing::HalfSplit };
        let plain = RopeSpec { scaling: Scaling::None, ..spec }.rotation(None).frequencies;
        let Rotation { frequencies, factor: magnitude, .. } = spec.rotation(None);
        assert!(near(magnitude, 1.1386294361), "{magnitude}");
        let ratio: Vec<f32> = frequencies.iter().zip(plain.iter()).map(|(f, p)| f / p).collect();
        assert!(ratio[..=20].iter().all(|&r| near(r, 1.0)) && ratio[37..].iter().all(|&r| near(r, 0.25)), "{ratio:?}");
        assert!(ratio[20..=37].windows(2).all(|r| r[0] > r[1]), "{ratio:?}");
    }

    #[test]
    fn llama3_leaves_short_waves_and_divides_long_ones() {
        let scaling =
            Scaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192.0 };
        let spec = RopeSpec { base: 5e5, dims: 128, scaling, pairing: Pairing::HalfSplit };
        let plain = RopeSpec { scaling: Scaling::None, ..spec }.rotation(None).frequencies;
        for (f, p) in spec.rotation(None).frequencies.iter().zip(plain.iter()) {
            let wavelength = 2.0 * PI / f64::from(*p);
            match wavelength {
                w if w < 2048.0 => assert!(near(*f, f64::from(*p))),
                w if w > 8192.0 => assert!(near(*f, f64::from(*p) / 8.0)),
                _ => assert!(f < p && *f > p / 8.0),
            }
        }
    }
}
