//! Bounds and maxima that propagate NaN: `max` and `min` of floats drop it, but a number that is not finite must
//! reach the logits, where it is detected. `clamp` keeps NaN.

/// The larger of `v` and `low`; NaN where `v` is NaN.
#[inline(always)]
pub fn at_least<T: PartialOrd>(v: T, low: T) -> T {
    if v < low { low } else { v }
}

/// The largest magnitude, 0 of none; NaN where an element is NaN. Compared as integers, in whose order NaN is above all numbers.
#[inline(always)]
pub fn largest_magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |max, v| max.max(v.abs().to_bits())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nan_comes_through() {
        assert_eq!((at_least(1.0, 2.0), at_least(3.0, 2.0), largest_magnitude(&[1.0, -4.0, 3.0])), (2.0, 3.0, 4.0));
        assert!(at_least(f32::NAN, 2.0).is_nan());
        for nan in [f32::NAN, -f32::NAN] {
            assert!(largest_magnitude(&[1.0, nan, f32::INFINITY]).is_nan());
        }
        assert_eq!(largest_magnitude(&[-f32::INFINITY, 1.0]), f32::INFINITY);
    }
}
