//! Errors of a node's outputs against the reference, by the kind of output.

use crate::plan::{Node, Plan};
use crate::quant::int8;
use crate::tensor::{DType, Spec};

/// The largest difference in one output of a node.
#[derive(Debug, Clone, PartialEq)]
pub struct Divergence {
    /// Plan and node.
    pub node: String,
    /// Which of the node's outputs, from 0, and its shape.
    pub output: String,
    /// Which element of it.
    pub element: usize,
    /// The reference's value.
    pub expected: f64,
    /// The other's.
    pub found: f64,
    /// By how much it differs: relative to the output's largest magnitude, or the share of elements that differ, or
    /// the difference of two codes.
    pub error: f32,
    /// By how much it may.
    pub tolerance: f32,
}

/// Two neighbouring f16 are this far apart, relative to the larger: no 16-bit result can be held closer.
const F16_STEP: f32 = 1.0 / 1024.0;
/// And two neighbours among 8-bit integers that have a scale.
const INT8_STEP: f32 = 1.0 / 126.0;
/// The share of activation codes that may differ, by 1, where rounding is on an edge.
const FLIPS: f32 = 0.01;

/// Compares each output; `label` names the node. `given` are the words of the node's inputs before it ran; `want` and `found` those of its
/// outputs.
pub(crate) fn judge(
    plan: &Plan,
    node: &Node,
    label: &str,
    given: &[Vec<u32>],
    want: &[Vec<u32>],
    found: &[Vec<u32>],
    tolerance: f32,
) -> Vec<Divergence> {
    let logits = node.inputs.first().zip(given.first()).map(|(&slot, words)| (plan.spec(slot), words.as_slice()));
    let mut faults = Vec::new();
    for (i, &slot) in node.outputs.iter().enumerate() {
        let spec = plan.spec(slot);
        let (Some(want), Some(other)) = (want.get(i), found.get(i)) else { continue };
        let pair = Compared { want: numbers(spec, want), found: numbers(spec, other) };
        let before = i.checked_sub(1).and_then(|b| Some((plan.spec(*node.outputs.get(b)?), found.get(b)?)));
        let (worst, tolerance) = match (spec.dtype, before) {
            (DType::F32, Some((codes, words))) if codes.dtype == DType::Codes && spec.width() == 2 => {
                (pair.scale_and_sum(&numbers(codes, words)), tolerance)
            }
            (DType::F32 | DType::Ternary | DType::Groups { .. }, _) => (pair.floats(), tolerance),
            (DType::F16, _) => (pair.floats(), tolerance.max(F16_STEP)),
            (DType::Int8, _) => (pair.floats(), tolerance.max(INT8_STEP)),
            (DType::Codes, _) => (pair.codes(), FLIPS),
            (DType::U32, _) => (pair.choices(spec, logits, tolerance), 0.0),
        };
        let (error, element) = worst;
        let at = |v: &[f64]| v.get(element).copied().unwrap_or(f64::NAN);
        let (expected, found) = (at(&pair.want), at(&pair.found));
        let node = label.to_owned();
        faults.push(Divergence { node, output: format!("{i}, {spec}"), element, expected, found, error, tolerance });
    }
    faults
}

/// The elements of a slot's words.
fn numbers(spec: &Spec, words: &[u32]) -> Vec<f64> {
    match spec.dtype {
        DType::F32 => words.iter().map(|&w| f64::from(f32::from_bits(w))).collect(),
        DType::F16 => bytemuck::cast_slice::<u32, half::f16>(words).iter().map(|v| v.to_f64()).collect(),
        DType::Codes => bytemuck::cast_slice::<u32, i8>(words).iter().map(|&v| f64::from(v)).collect(),
        DType::Int8 => {
            let (integers, scales) = int8::parts(words, spec.rows(), spec.width());
            let heads = integers.chunks_exact(spec.width().max(1)).zip(scales);
            heads.flat_map(|(head, &scale)| head.iter().map(move |&q| f64::from(q) * f64::from(scale))).collect()
        }
        DType::U32 | DType::Ternary | DType::Groups { .. } => words.iter().map(|&w| f64::from(w)).collect(),
    }
}

/// An output's elements from both sides.
struct Compared {
    want: Vec<f64>,
    found: Vec<f64>,
}

/// An error and the element that it is of.
type Worst = (f32, usize);

/// The largest of errors given element by element.
fn largest(errors: impl Iterator<Item = f64>) -> Worst {
    let mut worst = (0.0, 0);
    for (i, error) in errors.enumerate() {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        if error > worst.0 {
            worst = (error, i);
        }
    }
    (worst.0 as f32, worst.1)
}

impl Compared {
    fn pairs(&self) -> impl Iterator<Item = (f64, f64)> {
        self.want.iter().copied().zip(self.found.iter().copied())
    }

    /// The largest difference, relative to the reference's largest magnitude.
    fn floats(&self) -> Worst {
        let scale = self.want.iter().map(|v| v.abs()).filter(|v| v.is_finite()).fold(0.0, f64::max);
        let scale = if scale > 0.0 { scale } else { 1.0 };
        // Equal infinities are equal, although their difference is NaN.
        largest(self.pairs().map(|(w, f)| if w.to_bits() == f.to_bits() { 0.0 } else { (w - f).abs() / scale }))
    }

    /// The share of codes that differ by 1, or a difference larger than that.
    fn codes(&self) -> Worst {
        let worst = largest(self.pairs().map(|(w, f)| (w - f).abs()));
        let flips = self.pairs().filter(|(w, f)| w != f).count();
        // One flip is always possible, however few codes there are.
        let share = flips.saturating_sub(1) as f32 / self.want.len().max(1) as f32;
        if worst.0 > 1.0 { worst } else { (share, worst.1) }
    }

    /// Scale and sum of codes, `(1/k, sum)` for each row: the sum must be that of the backend's own codes, which may have flipped.
    fn scale_and_sum(&self, codes: &[f64]) -> Worst {
        let width = codes.len() / (self.want.len() / 2).max(1);
        let scales = |v: &[f64]| v.iter().step_by(2).copied().collect::<Vec<f64>>();
        let (error, row) = Compared { want: scales(&self.want), found: scales(&self.found) }.floats();
        let sums = codes.chunks_exact(width.max(1)).map(|row| row.iter().sum::<f64>());
        let wrong = |((w, f), sum): ((f64, f64), f64)| {
            // A row behind those in use is not written by either.
            if f == sum || w.to_bits() == f.to_bits() { 0.0 } else { (f - sum).abs().max(1.0) }
        };
        let (off, at) = largest(self.pairs().skip(1).step_by(2).zip(sums).map(wrong));
        if off > 0.0 { (off, 2 * at + 1) } else { (error, 2 * row) }
    }

    /// The share of chosen numbers that differ without their logits being equal within the tolerance.
    fn choices(&self, spec: &Spec, logits: Option<(&Spec, &[u32])>, tolerance: f32) -> Worst {
        let tie = |i: usize, w: f64, f: f64| {
            let Some((from, words)) = logits.filter(|(s, _)| s.dtype == DType::F32 && s.shape.len() == 2) else {
                return false;
            };
            // A log of choices lies at other rows than the logits; its choices are judged where they are made.
            if from.shape.first() != spec.shape.first() {
                return (f as usize) < from.width();
            }
            let row = words.chunks_exact(from.width().max(1)).nth(i / spec.width().max(1)).unwrap_or_default();
            let value = |id: f64| row.get(id as usize).map(|&w| f32::from_bits(w));
            let scale = row.iter().map(|&w| f32::from_bits(w).abs()).fold(0.0, f32::max);
            value(w).zip(value(f)).is_some_and(|(a, b)| (a - b).abs() <= tolerance * scale)
        };
        let wrong: Vec<usize> =
            self.pairs().enumerate().filter(|&(i, (w, f))| w != f && !tie(i, w, f)).map(|(i, _)| i).collect();
        (wrong.len() as f32 / self.want.len().max(1) as f32, wrong.first().copied().unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(want: &[f64], found: &[f64]) -> Compared {
        Compared { want: want.to_vec(), found: found.to_vec() }
    }

    #[test]
    fn floats_are_judged_against_the_largest_magnitude() {
        assert_eq!(pair(&[1.0, -100.0], &[2.0, -100.0]).floats(), (0.01, 0));
        assert_eq!(pair(&[0.0, 1.0], &[0.0, f64::NAN]).floats(), (f32::INFINITY, 1));
        assert_eq!(pair(&[f64::INFINITY], &[f64::INFINITY]).floats(), (0.0, 0));
    }

    #[test]
    fn codes_may_flip_rarely_and_by_one() {
        let want = vec![0.0; 100];
        let with = |flips: &[(usize, f64)]| {
            let mut found = want.clone();
            flips.iter().for_each(|&(i, v)| found[i] = v);
            pair(&want, &found).codes()
        };
        assert_eq!(with(&[(3, 1.0)]), (0.0, 3));
        assert_eq!(with(&[(3, 1.0), (4, 1.0), (5, -1.0)]).0, 0.02);
        assert_eq!(with(&[(7, 2.0)]), (2.0, 7));
    }

    #[test]
    fn a_sum_must_be_that_of_the_backends_own_codes() {
        let codes = [1.0, 2.0, 3.0, 4.0];
        assert_eq!(pair(&[0.5, 3.0, 0.5, 6.0], &[0.5, 3.0, 0.5, 7.0]).scale_and_sum(&codes), (0.0, 0));
        assert_eq!(pair(&[0.5, 3.0, 0.5, 7.0], &[0.5, 4.0, 0.5, 7.0]).scale_and_sum(&codes), (1.0, 1));
        assert_eq!(pair(&[0.5, 3.0, 0.5, 7.0], &[0.5, 3.0, 1.0, 7.0]).scale_and_sum(&codes), (1.0, 2));
    }

    #[test]
    fn another_choice_is_right_only_on_a_tie() {
        let (logits, ids) = (Spec::fixed(&[1, 3], DType::F32), Spec::fixed(&[1, 1], DType::U32));
        let words: Vec<u32> = [1.0f32, 0.5, 1.0].iter().map(|v| v.to_bits()).collect();
        let choose = |found: f64| pair(&[0.0], &[found]).choices(&ids, Some((&logits, &words)), 1e-4);
        assert_eq!(choose(2.0).0, 0.0);
        assert_eq!(choose(1.0), (1.0, 0));
        assert_eq!(choose(9.0), (1.0, 0));
    }
}
