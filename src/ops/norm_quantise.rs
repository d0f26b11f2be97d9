//! From floats to 8-bit activation codes: RMSNorm and absmax quantisation in one, for several norms at once.

use crate::bounds::{at_least, largest_magnitude};
use crate::error::Result;
use crate::ops::{RmsNorm, expect, require, simd};
use crate::params;
use crate::plan::{Caps, Chosen, Extent, Grid, Ids, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec, code_words};

/// Absmax quantisation of a row: `k = max_code / max(max|clamp(x)|, floor)`, code `clamp(round(clamp(x) · k))`,
/// ties to even. Source: Ma et al. 2024 (BitNet b1.58), section 2.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ActQuant {
    /// Largest code: 127 for 8 bits, 7 for 4. The smallest is `-max_code - 1`.
    pub max_code: f32,
    /// Bound on the magnitude before quantisation; `f32::INFINITY` for none.
    pub bound: f32,
    /// Minimum magnitude that is mapped to the largest code.
    pub floor: f32,
}

/// Which of several experts each row uses: `k` chosen ones, then those that all rows share, numbered from `n` on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Experts {
    /// Chosen per row.
    pub k: usize,
    /// To choose from.
    pub n: usize,
    /// Shared by all rows, behind the others; 0 for none.
    pub shared: usize,
}

impl Experts {
    /// Outputs of a row: those of its chosen experts, then those of the shared ones.
    pub fn slots(self) -> usize {
        self.k + self.shared
    }

    /// All experts, whose weights a stack holds one behind the other.
    pub const fn all(self) -> usize {
        self.n + self.shared
    }

    /// What a step reads of their stack, with the chosen ones in input `ids` of the op.
    pub(super) fn chosen(self, ids: usize) -> Chosen {
        Chosen { ids: Ids::Input(ids), among: self.n, all: self.all() }
    }

    /// Expert of slot `s` of a row whose choices are `expert_ids`.
    pub(super) fn pick(self, expert_ids: &[u32], s: usize) -> usize {
        if s < self.k { expert_ids[s] as usize } else { self.n + s - self.k }
    }

    /// Of the bytes of all experts, those that `rows` rows read: the shared ones and the expected number of different
    /// chosen ones, `n · (1 - (1 - k / n)^rows)`, as if each row chose evenly; for one row that is exact.
    pub(super) fn read(self, bytes: u64, rows: usize) -> u64 {
        let (k, n) = (self.k as f64, self.n as f64);
        let chosen = n * (1.0 - (1.0 - k / n).powf(rows as f64));
        let shared = if rows > 0 { self.shared as f64 } else { 0.0 };
        (bytes as f64 * (chosen + shared) / self.all() as f64) as u64
    }
}

/// Codes of x under each of several norms.
///
/// x `[rows, d]` or `[rows, sets, d]` F32 (one input for all sets, or one each), w `[n, d]` F32, and with experts
/// expert_ids `[rows, k]` U32 → codes `[rows, sets, d]`, scale_and_sum `[rows, sets, 2]` F32: `1/k` and the sum of the codes.
/// Without experts `sets = n`. With experts w holds p norms per expert and `sets = slots · p`: the chosen experts'
/// in order, then the shared ones'. Error: a code may differ by 1 from `cpu` where rounding is on an edge.
#[derive(Debug)]
pub(super) struct NormQuantise {
    pub(super) norm: RmsNorm,
    pub(super) act: ActQuant,
    pub(super) experts: Option<Experts>,
}

params!(NormQuantiseParams {
    width: u32,
    sets: u32,
    norms: u32,
    k: u32,
    n_experts: u32,
    x_per_set: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
});

impl PlanBuilder {
    /// `[codes, scale_and_sum]` of x under each norm of w. See [`PlanBuilder::ternary_matmul`], which reads them.
    #[track_caller]
    pub fn norm_quantise(&self, x: Slot, w: Slot, norm: RmsNorm, act: ActQuant) -> [Slot; 2] {
        self.push_all(NormQuantise { norm, act, experts: None }, &[x, w])
    }

    /// `[codes, scale_and_sum]` of x under the norms of each row's experts.
    #[track_caller]
    pub fn norm_quantise_experts(
        &self,
        x: Slot,
        w: Slot,
        expert_ids: Slot,
        experts: Experts,
        norm: RmsNorm,
        act: ActQuant,
    ) -> [Slot; 2] {
        self.push_all(NormQuantise { norm, act, experts: Some(experts) }, &[x, w, expert_ids])
    }
}

impl NormQuantise {
    /// Norms of one expert.
    fn norms(&self, n: usize) -> usize {
        self.experts.map_or(n, |e| n / e.all())
    }

    fn sets(&self, n: usize) -> usize {
        self.experts.map_or(n, |e| e.slots() * self.norms(n))
    }

    /// For each set of each row, the row of x and the norm.
    fn sources(&self, step: &Step, io: &Io) -> Vec<(usize, usize)> {
        let n = io.spec(1).shape[0];
        let (sets, norms) = (self.sets(n), self.norms(n));
        let per_set = io.spec(0).shape.len() == 3;
        let source = |r: usize, s: usize| {
            let norm = match self.experts {
                Some(e) => e.pick(&io.u32s(2)[r * e.k..], s / norms) * norms + s % norms,
                None => s,
            };
            (if per_set { r * sets + s } else { r }, norm)
        };
        (0..step.rows_in_use(io.spec(0)))
            .flat_map(|r| (0..sets).map(move |s| (r, s)))
            .map(|(r, s)| source(r, s))
            .collect()
    }

    /// Codes of one row into `codes`; returns `1/k` and the sum.
    fn quantise(&self, x: &[f32], w: &[f32], codes: &mut [i8]) -> [f32; 2] {
        let ActQuant { max_code, bound, floor } = self.act;
        let rms = self.norm.rms(x);
        let y: Vec<f32> = (0..x.len()).map(|i| self.norm.apply(x[i], rms, w[i]).clamp(-bound, bound)).collect();
        let k = max_code / at_least(largest_magnitude(&y), floor);
        codes.fill(0);
        let mut sum = 0;
        for (code, v) in codes.iter_mut().zip(y) {
            *code = (v * k).round_ties_even().clamp(-max_code - 1.0, max_code) as i8;
            sum += i32::from(*code);
        }
        [1.0 / k, sum as f32]
    }
}

impl Op for NormQuantise {
    fn name(&self) -> &'static str {
        "norm_quantise"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, w) = (inputs[0], inputs[1]);
        require("x", x, x.dtype == DType::F32 && matches!(x.shape.len(), 2 | 3), "[rows, d] or [rows, sets, d] F32")?;
        let n = w.shape[0];
        expect("norm weights", w, &[n, x.width()], &[DType::F32])?;
        let rows = x.shape[0];
        if let Some(e) = self.experts {
            expect("chosen experts", inputs[2], &[rows, e.k], &[DType::U32])?;
            require("norm weights", w, n.is_multiple_of(e.all()), "a whole number of norms for each expert")?;
        }
        let sets = self.sets(n);
        if x.shape.len() == 3 {
            expect("x", x, &[rows, sets, x.width()], &[DType::F32])?;
        }
        Ok(vec![
            Spec::counted(&[rows, sets, x.width()], DType::Codes, x.counted_by),
            Spec::counted(&[rows, sets, 2], DType::F32, x.counted_by),
        ])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, w, width) = (io.f32s(0), io.f32s(1), io.spec(0).width());
        let stride = 4 * code_words(width);
        for (at, (from, norm)) in self.sources(step, io).into_iter().enumerate() {
            let (x, w) = (&x[from * width..][..width], &w[norm * width..][..width]);
            let scale_and_sum = self.quantise(x, w, &mut io.out_codes(0)[at * stride..][..stride]);
            io.out_f32s(1)[2 * at..][..2].copy_from_slice(&scale_and_sum);
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (x, w, width) = (io.f32s(0), io.f32s(1), io.spec(0).width());
        let sets = self.sets(io.spec(1).shape[0]);
        let sources = self.sources(step, io);
        let stride = 4 * code_words(width);
        let threads = io.threads;
        let [codes, scale_and_sum] = &mut io.outputs[..] else { return };
        let codes = simd::Shared::new(bytemuck::cast_slice_mut::<u32, i8>(codes.1));
        let scale_and_sum = simd::Shared::new(bytemuck::cast_slice_mut::<u32, f32>(scale_and_sum.1));
        threads.chunks(sources.len(), simd::rows_a_task(width).min(sets), |range| {
            let mut y = vec![0.0; width];
            let mut last = None;
            for at in range {
                let (from, norm) = sources[at];
                let x = &x[from * width..][..width];
                let normed = match last {
                    Some((row, normed)) if row == from => normed,
                    _ => self.norm.normed(x, self.act.bound),
                };
                last = Some((from, normed));
                let max = simd::norm(x, &w[norm * width..][..width], normed, &mut y);
                let k = self.act.max_code / at_least(max, self.act.floor);
                // SAFETY: each set of a row belongs to one task.
                let (codes, scale_and_sum) =
                    unsafe { (codes.slice(at * stride, stride), scale_and_sum.slice(2 * at, 2)) };
                codes[width..].fill(0);
                let sum = simd::quantise(&y, k, self.act.max_code, codes);
                scale_and_sum.copy_from_slice(&[1.0 / k, sum as f32]);
            }
        });
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let used = |i: usize| inputs.get(i).map_or(0, |(spec, bytes)| step.used(spec, *bytes));
        let norms = self.experts.map_or(used(1), |e| e.read(used(1), step.rows_in_use(inputs[0].0)));
        used(0) + norms + used(2)
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let n = inputs[1].shape[0];
        let experts = self.experts.unwrap_or_default();
        let params = NormQuantiseParams {
            width: inputs[0].width() as u32,
            sets: self.sets(n) as u32,
            norms: self.norms(n) as u32,
            k: experts.k as u32,
            n_experts: experts.n as u32,
            x_per_set: u32::from(inputs[0].shape.len() == 3),
            eps: self.norm.eps,
            rms_floor: self.norm.floor(),
            in_bound: self.norm.in_bound(),
            out_bound: self.norm.out_bound(),
            max_code: self.act.max_code,
            act_bound: self.act.bound,
            act_floor: self.act.floor,
        };
        let grid = Grid::xy(Extent::Fixed(self.sets(n)), Extent::rows(&outputs[0].leading_only(), 1, 1));
        let defines = if self.experts.is_some() { vec!["EXPERTS"] } else { vec![] };
        Kernel { source: shader!("quantise/norm_quantise"), defines, overrides: vec![], params: params.params(), grid }
    }
}
