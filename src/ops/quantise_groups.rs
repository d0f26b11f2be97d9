//! From floats to 8-bit activation codes for matrices with scales by group: an RMSNorm, if there is one, and absmax
//! quantisation of each 32 columns or of whole rows.

use crate::bounds::{at_least, largest_magnitude};
use crate::error::Result;
use crate::ops::few_rows::with_a_group_per_row;
use crate::ops::{ActQuant, RmsNorm, expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step, Variants};
use crate::quant::groups::{MAX_COLS, is_group};
use crate::shader;
use crate::tensor::{DType, Spec, code_words};

/// Columns that share a factor of codes by [`CodeScale::Group`], as in llama.cpp's `Q8_0`. Groups of weights are whole ones.
pub(super) const CODE_GROUP: usize = 32;

/// What shares a factor `1/k` of codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CodeScale {
    /// A row: BitNet's rule.
    Row,
    /// 32 columns of a row: for models that were trained with activations of floats. The largest magnitude becomes the largest
    /// code, or one of the two below it, whichever gives the least squared error; what codes are multiplied by is
    /// then the factor of the least squared error, `1/k · Σ yk·code / Σ code²`. Together the error is 7 % smaller than with the
    /// largest code and `1/k` (of normal numbers, rms).
    Group,
}

/// How many codes may be that of the largest magnitude.
pub(super) const LARGEST_CODES: usize = 3;
/// By how much a smaller largest code must lessen the sum of squared errors, in squares of the first one's step. Sums of
/// floats in another order do not choose another one where all codes are exact.
pub(super) const MARGIN: f32 = 0.01;

/// The k that makes a code `below` the largest one of the largest magnitude `top`.
#[inline(always)]
pub(super) fn candidate_k(max_code: f32, below: usize, top: f32) -> f32 {
    (max_code - below as f32) / top
}

/// What k makes of the largest magnitude `top`, by the squared errors `Σ (yk − code)²` of each candidate's number and k.
#[inline(always)]
pub(super) fn best_k(max_code: f32, top: f32, squared_error: impl Fn(usize, f32) -> f32) -> f32 {
    let mut best = candidate_k(max_code, 0, top);
    let mut least = squared_error(0, best);
    for below in 1..LARGEST_CODES {
        let k = candidate_k(max_code, below, top);
        let step = max_code / (max_code - below as f32);
        let error = squared_error(below, k) * step * step;
        if error < least - MARGIN {
            (best, least) = (k, error);
        }
    }
    best
}

/// The factor of the least squared error for codes with these sums, of codes by the values `yk` that they round and of their
/// squares; `1/k` of codes that are all 0.
#[inline(always)]
pub(super) fn fitted(k: f32, by_value: f32, squares: f32) -> f32 {
    if squares > 0.0 { by_value / squares / k } else { 1.0 / k }
}

/// The rule of codes for matrices with scales by group.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupQuant {
    /// Bounds and codes.
    pub act: ActQuant,
    /// Columns of a group of the matrices ([`is_group`]).
    pub group: usize,
    /// What shares a factor.
    pub scale: CodeScale,
}

/// Codes of x, or of x under a norm.
///
/// x `[rows, d]` F32, d a multiple of 4, and w `[d]` F32 with a norm → codes `[rows, 1, d]`, scale_and_sum `[rows, groups, 2]` F32:
/// what codes are multiplied by ([`CodeScale`]) and their sum, of each group: 32 columns, or with a factor for a row those of
/// a group of the matrices.
/// Error: a code may differ by 1 from `cpu` where rounding is on an edge.
#[derive(Debug)]
pub(super) struct QuantiseGroups {
    pub(super) norm: Option<RmsNorm>,
    pub(super) rule: GroupQuant,
}

params!(QuantiseGroupsParams {
    width: u32,
    group: u32,
    groups: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
});

impl PlanBuilder {
    /// `[codes, scale_and_sum]` of x, or of x under a norm with its weight. See [`PlanBuilder::group_matmul`], which reads them.
    #[track_caller]
    pub fn quantise_groups(&self, x: Slot, norm: Option<(RmsNorm, Slot)>, rule: GroupQuant) -> [Slot; 2] {
        let inputs: Vec<Slot> = [x].into_iter().chain(norm.map(|n| n.1)).collect();
        self.push_all(QuantiseGroups { norm: norm.map(|n| n.0), rule }, &inputs)
    }
}

impl QuantiseGroups {
    /// Columns whose codes have a factor and a sum.
    fn group(&self) -> usize {
        match self.rule.scale {
            CodeScale::Row => self.rule.group,
            CodeScale::Group => CODE_GROUP,
        }
    }

    fn groups(&self, width: usize) -> usize {
        width.div_ceil(self.group())
    }
}

impl Op for QuantiseGroups {
    fn name(&self) -> &'static str {
        "quantise_groups"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, d) = (inputs[0], inputs[0].width());
        require("x", x, x.dtype == DType::F32 && x.shape.len() == 2, "[rows, d] F32")?;
        require("x", x, d.is_multiple_of(4) && d <= MAX_COLS, "a multiple of 4 columns, 65536 at most")?;
        require("x", x, is_group(d, self.rule.group), "columns for groups of 32, 64, 128, 256 or all of them")?;
        if self.norm.is_some() {
            expect("norm weight", inputs[1], &[d], &[DType::F32])?;
        }
        let rows = x.shape[0];
        Ok(vec![
            Spec::counted(&[rows, 1, d], DType::Codes, x.counted_by),
            Spec::counted(&[rows, self.groups(d), 2], DType::F32, x.counted_by),
        ])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, width) = (io.f32s(0), io.spec(0).width());
        let ActQuant { max_code, bound, floor } = self.rule.act;
        let (groups, stride) = (self.groups(width), 4 * code_words(width));
        let w = if self.norm.is_some() { io.f32s(1) } else { &[] };
        for (r, x) in x.chunks_exact(width).enumerate().take(step.rows_in_use(io.spec(0))) {
            let rms = self.norm.map_or(1.0, |norm| norm.rms(x));
            let value = |i: usize| self.norm.map_or(x[i], |norm| norm.apply(x[i], rms, w[i])).clamp(-bound, bound);
            let y: Vec<f32> = (0..width).map(value).collect();
            let codes = &mut io.out_codes(0)[r * stride..][..stride];
            codes.fill(0);
            let mut scale_and_sum = vec![0.0; 2 * groups];
            for (g, y_group) in y.chunks(self.group()).enumerate() {
                let top = largest_magnitude(if self.rule.scale == CodeScale::Row { &y } else { y_group });
                let code = |v: f32, k: f32| (v * k).round_ties_even().clamp(-max_code - 1.0, max_code);
                let error = |_, k: f32| y_group.iter().map(|v| (v * k - code(*v, k)).powi(2)).sum::<f32>();
                let k = match self.rule.scale {
                    CodeScale::Row => max_code / at_least(top, floor),
                    CodeScale::Group => best_k(max_code, at_least(top, floor), error),
                };
                let (mut sum, mut by_value, mut squares) = (0.0, 0.0, 0.0);
                for (to, v) in codes[g * self.group()..].iter_mut().zip(y_group) {
                    *to = code(*v, k) as i8;
                    let code = f32::from(*to);
                    (sum, by_value, squares) = (sum + code, by_value + v * k * code, squares + code * code);
                }
                let scale = match self.rule.scale {
                    CodeScale::Row => 1.0 / k,
                    CodeScale::Group => fitted(k, by_value, squares),
                };
                scale_and_sum[2 * g..][..2].copy_from_slice(&[scale, sum]);
            }
            io.out_f32s(1)[2 * r * groups..][..2 * groups].copy_from_slice(&scale_and_sum);
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (x, width, rows) = (io.f32s(0), io.spec(0).width(), step.rows_in_use(io.spec(0)));
        let w = if self.norm.is_some() { io.f32s(1) } else { &[] };
        let (groups, group, ActQuant { max_code, bound, floor }) = (self.groups(width), self.group(), self.rule.act);
        let (stride, threads) = (4 * code_words(width), io.threads);
        let [codes, scale_and_sum] = &mut io.outputs[..] else { return };
        let codes = simd::Shared::new(bytemuck::cast_slice_mut::<u32, i8>(codes.1));
        let scale_and_sum = simd::Shared::new(bytemuck::cast_slice_mut::<u32, f32>(scale_and_sum.1));
        threads.chunks(rows, simd::rows_a_task(width), |range| {
            let mut y = vec![0.0; width];
            for r in range {
                let x = &x[r * width..][..width];
                let max = match self.norm {
                    Some(norm) => simd::norm(x, w, norm.normed(x, bound), &mut y),
                    None => simd::bounded(x, bound, &mut y),
                };
                // SAFETY: each row belongs to one task.
                let (codes, scale_and_sum) =
                    unsafe { (codes.slice(r * stride, stride), scale_and_sum.slice(2 * r * groups, 2 * groups)) };
                let (codes, behind) = codes.split_at_mut(width);
                behind.fill(0);
                match self.rule.scale {
                    CodeScale::Row => simd::quantise_by_row(&y, group, max, [max_code, floor], codes, scale_and_sum),
                    CodeScale::Group => simd::quantise_groups(&y, [max_code, floor], codes, scale_and_sum),
                }
            }
        });
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Variants {
        let x = inputs[0];
        let (norm, groups) = (self.norm.unwrap_or(RmsNorm::new(0.0)), self.groups(x.width()));
        let params = QuantiseGroupsParams {
            width: x.width() as u32,
            group: self.group() as u32,
            groups: groups as u32,
            eps: norm.eps,
            rms_floor: norm.floor(),
            in_bound: norm.in_bound(),
            out_bound: norm.out_bound(),
            max_code: self.rule.act.max_code,
            act_bound: self.rule.act.bound,
            act_floor: self.rule.act.floor,
        };
        let whole_row = self.rule.scale == CodeScale::Row;
        let flags = [(self.norm.is_some(), "NORM"), (whole_row, "WHOLE_ROW")];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        let (source, grid) = (shader!("quantise/quantise_groups"), Grid::x(Extent::rows(x, 1, 1)));
        let kernel = Kernel { source, defines, overrides: vec![], params: params.params(), grid };
        with_a_group_per_row(caps, x, kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_tries_as_many_largest_codes() {
        let number = shader!("shared/group_codes").number("LARGEST_CODES");
        assert_eq!(number, Some(LARGEST_CODES));
    }

    #[test]
    fn another_largest_code_is_taken_where_it_gives_a_smaller_error_alone() {
        let error = |y: [f32; 3]| move |_, k: f32| y.iter().map(|v| (v * k - (v * k).round_ties_even()).powi(2)).sum();
        // Exact with 127, whatever the others give.
        assert_eq!(best_k(127.0, 127.0, error([127.0, 5.0, -64.0])), 1.0);
        // Halves are whole numbers of steps of 126: 63 of 126, where 63.5 of 127 is off by a half.
        assert_eq!(best_k(127.0, 1.0, error([1.0, 0.5, -0.5])), 126.0);
        assert!(best_k(127.0, f32::NAN, error([f32::NAN, 0.5, -0.5])).is_nan());
    }
}
