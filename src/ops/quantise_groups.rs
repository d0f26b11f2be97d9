//! From floats to 8-bit activation codes for matrices with scales by group: a gated activation or an RMSNorm, if there is one, and
//! absmax quantisation of each 32 columns or of whole rows.

use crate::bounds::{at_least, largest_magnitude};
use crate::error::Result;
use crate::ops::few_rows::with_a_group_per_row;
use crate::ops::swiglu::Act;
use crate::ops::{ActQuant, RmsNorm, expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step, Variants};
use crate::quant::groups::{MAX_COLS, is_group};
use crate::shader;
use crate::tensor::{DType, Spec, code_words};

/// Columns that share a factor of codes by [`CodeScale::Group`], as in llama.cpp's `Q8_0`. Groups of weights are whole ones.
pub(super) const CODE_GROUP: usize = 32;

/// Minimum number of columns of a task where threads share a row: fewer are done before another thread has begun.
const SHARED_FROM: usize = 2048;

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

/// Codes of x, of x under a norm, or of `act(gate) · up`.
///
/// x `[rows, d]` F32, or `[rows, 2·d]` with an activation (gate, then up), d a multiple of 4, and w `[d]` F32 with a norm → codes
/// `[rows, 1, d]`, scale_and_sum `[rows, groups, 2]` F32: what codes are multiplied by ([`CodeScale`]) and their sum, of each group:
/// 32 columns, or with a factor for a row those of a group of the matrices.
/// Error: a code may differ by 1 from `cpu` where rounding is on an edge.
#[derive(Debug)]
pub(super) struct QuantiseGroups {
    /// Only as [`QuantiseGroups::split`] says.
    pub(super) act: Option<Act>,
    pub(super) norm: Option<RmsNorm>,
    pub(super) rule: GroupQuant,
}

params!(QuantiseGroupsParams {
    width: u32,
    group: u32,
    groups: u32,
    gate_bound: f32,
    product_bound: f32,
    relu2: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
});

impl PlanBuilder {
    /// `[codes, scale_and_sum]` of x, or with an activation of `act(gate) · up`, gate and up side by side; behind it a norm with
    /// its weight. See [`PlanBuilder::group_matmul`], which reads them.
    #[track_caller]
    pub fn quantise_groups(
        &self,
        x: Slot,
        act: Option<Act>,
        norm: Option<(RmsNorm, Slot)>,
        rule: GroupQuant,
    ) -> [Slot; 2] {
        let (fused, before) = QuantiseGroups::split(act, norm.map(|n| n.0), rule);
        let x = before.map_or(x, |act| self.swiglu(x, act));
        let inputs: Vec<Slot> = [x].into_iter().chain(norm.map(|n| n.1)).collect();
        self.push_all(fused, &inputs)
    }
}

impl QuantiseGroups {
    /// The op, and the activation that another one applies before: where elements are read more than once, for the sum of their
    /// squares or for the largest of a row, one op for both would apply it as often.
    pub(super) fn split(act: Option<Act>, norm: Option<RmsNorm>, rule: GroupQuant) -> (Self, Option<Act>) {
        let once = norm.is_none() && rule.scale == CodeScale::Group;
        (QuantiseGroups { act: act.filter(|_| once), norm, rule }, act.filter(|_| !once))
    }

    /// Columns of the codes.
    fn width(&self, x: &Spec) -> usize {
        x.width() / if self.act.is_some() { 2 } else { 1 }
    }

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
        let (x, d) = (inputs[0], self.width(inputs[0]));
        let whole = self.act.is_none() || x.width() == 2 * d;
        require(
            "x",
            x,
            x.dtype == DType::F32 && x.shape.len() == 2 && whole,
            "[rows, d] F32, of two halves with gates",
        )?;
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
        let (x, all, width) = (io.f32s(0), io.spec(0).width(), self.width(io.spec(0)));
        let ActQuant { max_code, bound, floor } = self.rule.act;
        let (groups, stride) = (self.groups(width), 4 * code_words(width));
        let w = if self.norm.is_some() { io.f32s(1) } else { &[] };
        for (r, x) in x.chunks_exact(all).enumerate().take(step.rows_in_use(io.spec(0))) {
            let element = |i: usize| self.act.map_or(x[i], |act| act.gated(x[i], x[width + i]));
            let rms = self.norm.map_or(1.0, |norm| norm.rms(x));
            let normed = |i: usize| self.norm.map_or_else(|| element(i), |norm| norm.apply(x[i], rms, w[i]));
            let value = |i: usize| normed(i).clamp(-bound, bound);
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

    /// A task has whole rows, or columns of one where groups know nothing of each other and threads would have nothing to do.
    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (all, width, rows) = (io.spec(0).width(), self.width(io.spec(0)), step.rows_in_use(io.spec(0)));
        let (x, w) = (io.f32s(0), if self.norm.is_some() { io.f32s(1) } else { &[] });
        let (groups, stride, threads) = (self.groups(width), 4 * code_words(width), io.threads);
        let alone = self.norm.is_none() && self.rule.scale == CodeScale::Group;
        let of_a_task = if alone { columns_of_a_task(rows, width, threads.count()) } else { width };
        let parts = width.div_ceil(of_a_task.max(1));
        let [codes, scale_and_sum] = &mut io.outputs[..] else { return };
        let codes = simd::Shared::new(bytemuck::cast_slice_mut::<u32, i8>(codes.1));
        let scale_and_sum = simd::Shared::new(bytemuck::cast_slice_mut::<u32, f32>(scale_and_sum.1));
        let grain = if parts > 1 { 1 } else { simd::rows_a_task(width) };
        threads.chunks(rows * parts, grain, |range| {
            let mut y = vec![0.0; of_a_task];
            for i in range {
                let (r, from) = (i / parts, i % parts * of_a_task);
                let to = width.min(from + of_a_task);
                let first = r * groups + from / self.group();
                let n = (to - from).div_ceil(self.group());
                let end = if to == width { stride } else { to };
                // SAFETY: these columns belong to one task, and so do the groups that they are.
                let (codes, scale_and_sum) =
                    unsafe { (codes.slice(r * stride + from, end - from), scale_and_sum.slice(2 * first, 2 * n)) };
                let (codes, behind) = codes.split_at_mut(to - from);
                behind.fill(0);
                let max = self.values(&x[r * all..][..all], w, from, &mut y[..to - from]);
                self.codes_of(&y[..to - from], max, codes, scale_and_sum);
            }
        });
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Variants {
        let (x, width) = (inputs[0], self.width(inputs[0]));
        let (norm, groups) = (self.norm.unwrap_or(RmsNorm::new(0.0)), self.groups(width));
        let [gate_bound, product_bound] = self.act.map_or([f32::INFINITY; 2], Act::bounds);
        let params = QuantiseGroupsParams {
            width: width as u32,
            group: self.group() as u32,
            groups: groups as u32,
            gate_bound,
            product_bound,
            relu2: self.act.map_or(0, Act::is_relu2),
            eps: norm.eps,
            rms_floor: norm.floor(),
            in_bound: norm.in_bound(),
            out_bound: norm.out_bound(),
            max_code: self.rule.act.max_code,
            act_bound: self.rule.act.bound,
            act_floor: self.rule.act.floor,
        };
        let whole_row = self.rule.scale == CodeScale::Row;
        let flags = [(self.act.is_some(), "GATED"), (self.norm.is_some(), "NORM"), (whole_row, "WHOLE_ROW")];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        let (source, grid) = (shader!("quantise/quantise_groups"), Grid::x(Extent::rows(x, 1, 1)));
        let kernel = Kernel { source, defines, overrides: vec![], params: params.params(), grid };
        with_a_group_per_row(caps, x, kernel)
    }
}

/// Columns of a task: those of a row, or fewer where threads would have nothing to do.
fn columns_of_a_task(rows: usize, width: usize, threads: usize) -> usize {
    if rows >= threads || width < 2 * SHARED_FROM {
        return width;
    }
    width.div_ceil(threads.div_ceil(rows.max(1))).max(SHARED_FROM).next_multiple_of(simd::CODE_COLUMNS)
}

impl QuantiseGroups {
    /// What is quantised of a row, from a column on, with SIMD; returns the largest magnitude, or where it is not needed 0.
    fn values(&self, x: &[f32], w: &[f32], from: usize, y: &mut [f32]) -> f32 {
        let bound = self.rule.act.bound;
        match (self.act, self.norm) {
            (Some(act), _) => {
                let (gate, up) = x.split_at(x.len() / 2);
                act.all_gated(&gate[from..][..y.len()], &up[from..][..y.len()], y);
                y.iter_mut().for_each(|y| *y = y.clamp(-bound, bound));
                0.0
            }
            (None, Some(norm)) => simd::norm(x, w, norm.normed(x, bound), y),
            (None, None) => simd::bounded(&x[from..][..y.len()], bound, y),
        }
    }

    /// The codes of some columns, and of their groups what they are multiplied by and their sum.
    fn codes_of(&self, y: &[f32], max: f32, codes: &mut [i8], scale_and_sum: &mut [f32]) {
        let bounds = [self.rule.act.max_code, self.rule.act.floor];
        match self.rule.scale {
            CodeScale::Row => simd::quantise_by_row(y, self.group(), max, bounds, codes, scale_and_sum),
            CodeScale::Group => simd::quantise_groups(y, bounds, codes, scale_and_sum),
        }
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
