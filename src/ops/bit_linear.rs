//! BitLinear layers for few rows in one launch each: norm, absmax codes, ternary product, and epilogue.

use crate::error::Result;
use crate::ops::combine::Combine;
use crate::ops::few_rows::{FewRows, MAX_DECODE_ROWS};
use crate::ops::norm_quantise::NormQuantise;
use crate::ops::swiglu::{Act, GateClamp};
use crate::ops::ternary_matmul::TernaryMatmul;
use crate::ops::{ActQuant, Composed, Experts, RmsNorm, expect, require, simd};
use crate::params;
use crate::plan::{
    Caps, Chosen, Extent, FollowUp, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Source, Step, Variant,
    Variants,
};
use crate::quant::TILE_ROWS;
use crate::shader;
use crate::tensor::{DType, Spec, code_words};
use crate::threads::ThreadPool;

/// Codes of x under the norms of a stack, their product with it, and an epilogue; the composition of `rms_norm` (with a
/// pre-norm), `norm_quantise`, `ternary_matmul` and, by the kind, `swiglu` or `combine`.
///
/// Every workgroup recomputes the codes that it needs, which is cheaper than a launch if there are few rows. Where it is not,
/// two or more rows take two launches.
#[derive(Debug)]
pub(super) struct BitLinear {
    /// Output rows of each matrix of the stack, or of one expert.
    outs: Vec<usize>,
    /// A norm before the matrices' own, with its weight among the inputs.
    pre_norm: Option<RmsNorm>,
    norm: RmsNorm,
    act: ActQuant,
    residual: bool,
    kind: Kind,
}

/// The kinds of [`BitLinear`].
#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// x `[n, d]` → `[n, Σ outs]`, each matrix under its own norm.
    Plain,
    /// x `[n, d]` → `[n, slots, out]`: the gated activation of each expert's two matrices.
    SwiGlu(Experts, Act),
    /// x `[n, slots, d]` → `[n, out]`: the weighted sum of the experts' products, clamped to ± the bound.
    Combine(Experts, f32),
}

params!(BitLinearParams {
    width: u32,
    slots: u32,
    k: u32,
    experts: u32,
    out_width: u32,
    eps: f32,
    rms_floor: f32,
    in_bound: f32,
    out_bound: f32,
    max_code: f32,
    act_bound: f32,
    act_floor: f32,
    pre_norm_eps: f32,
    pre_norm_floor: f32,
    pre_norm_in_bound: f32,
    pre_norm_out_bound: f32,
    sum_bound: f32,
    counted_by: u32,
    rows: u32,
});

/// Minimum number of rows for which workgroups have the maximum size.
const MANY_ROWS: usize = 4;
/// Maximum number of shares of the columns and tiles of a workgroup, multiplied.
const MAX_SHARES: usize = 8;
/// The cost of computing the codes in a workgroup, in tiles.
const CODES_COST: usize = 2;
/// Maximum number of words of codes that a workgroup keeps.
const MAX_CODE_WORDS: usize = 2560;
/// Maximum number of threads of the launch that makes codes only.
const CODES_THREADS: usize = 64;

/// Whether layers with at most `rows` rows and inputs of width `d` fit into one launch each, with `terms` products per output.
pub(super) fn fits_fused(rows: usize, d: usize, terms: usize) -> bool {
    rows <= MAX_DECODE_ROWS && d.is_multiple_of(4) && terms * code_words(d) <= MAX_CODE_WORDS
}

/// How a stack of ternary matrices reads its input: the norms in front of it and the rule of the codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BitInput {
    /// A norm before the matrices' own, and its weight `[d]`.
    pub pre_norm: Option<(RmsNorm, Slot)>,
    /// The form of the matrices' own norms.
    pub norm: RmsNorm,
    /// The rule of the codes.
    pub act: ActQuant,
}

impl PlanBuilder {
    /// x `[n, d]` under each norm of `norms [parts, d]`, times the stack's matrices of `outs` rows: `[n, Σ outs]`, plus
    /// `residual` if given.
    #[track_caller]
    pub fn bit_linear(
        &self,
        x: Slot,
        input: BitInput,
        [norms, weights]: [Slot; 2],
        outs: &[usize],
        residual: Option<Slot>,
    ) -> Slot {
        let op = BitLinear::new(input, outs, residual.is_some(), Kind::Plain);
        let slots: Vec<Slot> =
            [x, norms, weights].into_iter().chain(input.pre_norm.map(|p| p.1)).chain(residual).collect();
        self.push(op, &slots)
    }

    /// x `[n, d]` through the first half of each row's experts: `[n, slots, d_ff]`, `act(gate) · up`, with a stack of
    /// gate and up of each expert, the shared ones last.
    #[track_caller]
    pub fn bit_swiglu(
        &self,
        x: Slot,
        input: BitInput,
        [norms, weights]: [Slot; 2],
        d_ff: usize,
        expert_ids: Slot,
        (experts, act): (Experts, Act),
    ) -> Slot {
        let op = BitLinear::new(input, &[d_ff, d_ff], false, Kind::SwiGlu(experts, act));
        let slots: Vec<Slot> =
            [x, norms, weights].into_iter().chain(input.pre_norm.map(|p| p.1)).chain([expert_ids]).collect();
        self.push(op, &slots)
    }

    /// h `[n, slots, d]` through the second half of each row's experts: `residual + clamp(Σ weight · y + Σ y shared)`,
    /// `[n, out]`; `choice` is the experts and their weights.
    #[track_caller]
    pub fn bit_combine(
        &self,
        h: Slot,
        input: BitInput,
        [norms, weights]: [Slot; 2],
        choice: [Slot; 2],
        experts: Experts,
        (residual, bound): (Slot, f32),
    ) -> Slot {
        let op = BitLinear::new(input, &[self.spec(residual).width()], true, Kind::Combine(experts, bound));
        self.push(op, &[h, norms, weights, choice[0], choice[1], residual])
    }
}

impl BitLinear {
    fn new(input: BitInput, outs: &[usize], residual: bool, kind: Kind) -> Self {
        let BitInput { pre_norm, norm, act } = input;
        BitLinear { outs: outs.to_vec(), pre_norm: pre_norm.map(|p| p.0), norm, act, residual, kind }
    }

    /// The first half of experts, behind the norm that their router reads too.
    pub(super) fn routed(norm: RmsNorm, input: BitInput, d_ff: usize, (experts, act): (Experts, Act)) -> Self {
        BitLinear { pre_norm: Some(norm), ..BitLinear::new(input, &[d_ff; 2], false, Kind::SwiGlu(experts, act)) }
    }

    fn experts(&self) -> Option<Experts> {
        match self.kind {
            Kind::Plain => None,
            Kind::SwiGlu(experts, _) | Kind::Combine(experts, _) => Some(experts),
        }
    }

    /// Products that an output adds up or multiplies.
    fn terms(&self) -> usize {
        match self.kind {
            Kind::Plain => 1,
            Kind::SwiGlu(..) => 2,
            Kind::Combine(experts, _) => experts.slots(),
        }
    }

    /// Width of the output.
    fn out_width(&self) -> usize {
        if self.kind == Kind::Plain { self.outs.iter().sum() } else { self.outs[0] }
    }

    /// Number of the first input after x, norms, weights and the pre-norm.
    fn rest(&self) -> usize {
        3 + usize::from(self.pre_norm.is_some())
    }

    /// The unfused ops, one after the other.
    fn compose(&self, step: &Step, io: &mut Io, fast: bool) {
        let mut chain = Composed::new(step, fast, io);
        let rest = self.rest();
        let x = match self.pre_norm {
            Some(pre_norm) => chain.apply(&pre_norm, &[0, 3])[0],
            None => 0,
        };
        let experts = self.experts();
        let quantise = NormQuantise { norm: self.norm, act: self.act, experts };
        let expert_ids = experts.map(|_| rest);
        let codes = chain.apply(&quantise, &[&[x, 1][..], expert_ids.as_slice()].concat());
        let residual = self.residual && experts.is_none();
        let product = TernaryMatmul::whole(&self.outs, experts, residual);
        let last = if residual { Some(rest) } else { expert_ids };
        let factors = [&[codes[0], codes[1], 2][..], last.as_slice()].concat();
        let (last, values): (&dyn Op, _) = match self.kind {
            Kind::Plain => return chain.finish(&product, &factors, io),
            Kind::SwiGlu(experts, act) => {
                return chain.finish(&TernaryMatmul::gated(self.outs[0], experts, act), &factors, io);
            }
            Kind::Combine(_, bound) => {
                (&Combine { bound }, vec![rest + 2, chain.apply(&product, &factors)[0], rest + 1])
            }
        };
        chain.finish(last, &values, io);
    }
}

impl Op for BitLinear {
    fn name(&self) -> &'static str {
        "bit_linear"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, d) = (inputs[0], inputs[0].width());
        let n = x.shape[0];
        let (rest, experts) = (&inputs[self.rest()..], self.experts());
        let shape = match self.kind {
            Kind::Combine(e, _) => vec![n, e.slots(), d],
            _ => vec![n, d],
        };
        expect("x", x, &shape, &[DType::F32])?;
        require("x", x, d.is_multiple_of(4), "a multiple of 4 columns")?;
        let fits = self.terms() * code_words(d) <= MAX_CODE_WORDS;
        require("x", x, fits, "columns whose codes fit in workgroup memory")?;
        let matrices = self.outs.len() * experts.map_or(1, Experts::all);
        expect("norm weights", inputs[1], &[matrices, d], &[DType::F32])?;
        let total = matrices / self.outs.len() * self.outs.iter().sum::<usize>();
        expect("weights", inputs[2], &[matrices, total, d], &[DType::Ternary])?;
        if self.pre_norm.is_some() {
            expect("pre-norm weight", inputs[3], &[d], &[DType::F32])?;
        }
        if let Some(e) = experts {
            expect("chosen experts", rest[0], &[n, e.k], &[DType::U32])?;
        }
        if let Kind::Combine(e, _) = self.kind {
            expect("weights of the experts", rest[1], &[n, e.k], &[DType::F32])?;
        }
        let shape = match self.kind {
            Kind::SwiGlu(e, _) => vec![n, e.slots(), self.out_width()],
            _ => vec![n, self.out_width()],
        };
        if self.residual {
            expect("residual", rest[rest.len() - 1], &shape, &[DType::F32])?;
        }
        Ok(vec![Spec::counted(&shape, DType::F32, x.counted_by)])
    }

    fn chosen(&self) -> Option<Chosen> {
        self.experts().map(|e| e.chosen(self.rest()))
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, false);
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, true);
    }

    fn lay_out(&self, weight: &Spec, words: &mut [u32], threads: &ThreadPool) {
        simd::lay_out(weight.dtype, words, threads);
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let used = |i: usize| step.used(inputs[i].0, inputs[i].1);
        let stack = used(1) + used(2);
        let stack = self.experts().map_or(stack, |e| e.read(stack, step.rows_in_use(inputs[0].0)));
        used(0) + stack + (3..inputs.len()).map(used).sum::<u64>()
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Variants {
        let counted_by = outputs[0].leading_only();
        FewRows::variants(caps, |form| {
            // With two rows or more, that form would recompute each row's codes too often.
            if form.lookup_tables && (2..=MAX_DECODE_ROWS).contains(&counted_by.shape[0]) {
                let kernel = self.codes_kernel(inputs, &counted_by);
                return Variant::new("two-launches", caps, kernel).followed_by(self.rows_kernel(inputs, &counted_by));
            }
            Variant::new(form.name, caps, self.fused(caps, form, inputs, &counted_by))
        })
    }
}

/// In one launch.
impl BitLinear {
    pub(super) fn fused(&self, caps: &Caps, form: FewRows, inputs: &[&Spec], counted_by: &Spec) -> Kernel {
        let slots = if let Kind::SwiGlu(e, _) = self.kind { e.slots() } else { 1 };
        // The two matrices of SwiGLU give the same outputs.
        let outs = if self.kind == Kind::Plain { &self.outs[..] } else { &self.outs[..1] };
        let FewRows { split_k, vec4s_per_thread, .. } = form;
        let groups = groups(form, outs, counted_by.shape[0]);
        let tiles = outs.iter().map(|o| o.div_ceil(TILE_ROWS * groups)).sum();
        let (units, shares) = (code_words(inputs[0].width()) / 4, split_k * groups);
        let overrides = [
            ("SPLIT_K", split_k),
            ("GROUPS", groups),
            ("TERMS", self.terms()),
            ("UNITS", units),
            ("CODES", self.terms() * units),
            ("THREADS", TILE_ROWS / 4 / vec4s_per_thread * shares),
            ("SHARES", TILE_ROWS / 4 * shares),
        ];
        Kernel {
            source: shader!("ternary/bit_linear"),
            defines: [form.defines(caps), self.defines()].concat(),
            overrides: self.overrides(&overrides),
            params: self.params(inputs[0].width(), counted_by).params(),
            grid: Grid::xy(Extent::Fixed(tiles), Extent::rows(counted_by, slots, 1)),
        }
    }
}

/// Tiles of a workgroup: the maximum, unless too many tiles of the last workgroups would lie behind a matrix's end. Every
/// workgroup of a row computes its codes, and with enough rows larger workgroups still occupy all cores.
fn groups(form: FewRows, outs: &[usize], rows: usize) -> usize {
    let max = if rows >= MANY_ROWS { MAX_SHARES / form.split_k } else { form.tiles };
    let cost =
        |groups: usize| -> usize { outs.iter().map(|o| o.div_ceil(TILE_ROWS * groups) * (groups + CODES_COST)).sum() };
    (1..=max.max(1)).rev().min_by_key(|&g| cost(g)).unwrap_or(1)
}

/// In two launches: the codes of all rows, then products in which rows of the same matrix share its words.
impl BitLinear {
    /// Sets of codes of a row for one matrix (or one matrix of each expert), and the number of such matrices.
    fn sets(&self) -> [usize; 2] {
        match self.kind {
            Kind::Plain => [1, self.outs.len()],
            Kind::SwiGlu(e, _) => [e.slots(), self.outs.len()],
            Kind::Combine(e, _) => [e.slots(), 1],
        }
    }

    fn shared_kernel(
        &self,
        source: Source,
        inputs: &[&Spec],
        counted_by: &Spec,
        overrides: &[(&'static str, usize)],
    ) -> Kernel {
        Kernel {
            source,
            defines: self.defines(),
            overrides: self.overrides(overrides),
            params: self.params(inputs[0].width(), counted_by).params(),
            grid: Grid::x(Extent::Fixed(1)),
        }
    }

    fn codes_kernel(&self, inputs: &[&Spec], counted_by: &Spec) -> Kernel {
        let ([times, terms], units) = (self.sets(), code_words(inputs[0].width()) / 4);
        // Slots of a row that share its x also share its norm.
        let (groups, terms) = if let Kind::SwiGlu(..) = self.kind { (1, times * terms) } else { (times, terms) };
        let held = units.div_ceil(CODES_THREADS);
        let threads = units.div_ceil(held).next_multiple_of(8);
        let overrides = [
            ("TERMS", terms),
            ("UNITS", units),
            ("HELD", held),
            ("THREADS", threads),
            ("SHARES", 2 * (terms + 1) * CODES_THREADS / 8),
        ];
        let kernel = self.shared_kernel(shader!("ternary/bit_linear_codes"), inputs, counted_by, &overrides);
        Kernel { grid: Grid::x(Extent::rows(counted_by, groups, 1)), ..kernel }
    }

    fn rows_kernel(&self, inputs: &[&Spec], counted_by: &Spec) -> FollowUp {
        let (rows, [times, terms], units) = (counted_by.shape[0], self.sets(), code_words(inputs[0].width()) / 4);
        let first_product = rows * times * terms * (units + 1);
        let tiles = |outs: &[usize]| outs.iter().map(|o| o.div_ceil(TILE_ROWS)).sum::<usize>();
        let (terms, tiles, products) = match self.kind {
            Kind::Plain => (terms, tiles(&self.outs), 0),
            Kind::SwiGlu(..) => (terms, tiles(&self.outs[..1]), 0),
            Kind::Combine(..) => (times, tiles(&self.outs), rows * times * tiles(&self.outs) * TILE_ROWS),
        };
        // Few rows rarely choose the same expert more than twice.
        let four = rows > 2 && self.kind == Kind::Plain;
        let blocks = match self.kind {
            Kind::Plain => Extent::rows(counted_by, 1, if four { 4 } else { 2 }),
            Kind::SwiGlu(e, _) => Extent::Fixed(e.all()),
            Kind::Combine(..) => Extent::Fixed(1),
        };
        let overrides = [("TERMS", terms), ("UNITS", units), ("FIRST_PRODUCT", first_product), ("TILES", tiles)];
        let mut kernel = self.shared_kernel(shader!("ternary/bit_linear_rows"), inputs, counted_by, &overrides);
        kernel.defines.extend(four.then_some("TWO_PAIRS"));
        kernel.grid = Grid::xy(Extent::Fixed(tiles), blocks);
        FollowUp { kernel, words: 4 * first_product + products }
    }

    fn defines(&self) -> Vec<&'static str> {
        let kind = match self.kind {
            Kind::Plain => "PLAIN",
            Kind::SwiGlu(..) => "SWIGLU",
            Kind::Combine(..) => "COMBINE",
        };
        let flags = [
            (self.pre_norm.is_some(), "PRE_NORM"),
            (self.residual, "RESIDUAL"),
            (self.act_clamp().is_some(), "ACT_CLAMP"),
            (matches!(self.kind, Kind::SwiGlu(_, Act::Relu2)), "RELU2"),
            (true, kind),
        ];
        flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }

    /// The bounds of the activation, if there are any.
    fn act_clamp(&self) -> Option<GateClamp> {
        if let Kind::SwiGlu(_, Act::SiLu { clamp }) = self.kind { clamp } else { None }
    }

    /// Sizes, and the bounds of the activation.
    fn overrides(&self, sizes: &[(&'static str, usize)]) -> Vec<(&'static str, f64)> {
        let sizes = sizes.iter().map(|&(name, value)| (name, value as f64));
        let bounds = |clamp: GateClamp| [("GATE_BOUND", clamp.gate), ("PRODUCT_BOUND", clamp.product)];
        let bounds = self.act_clamp().map(bounds).into_iter().flatten();
        sizes.chain(bounds.map(|(name, bound)| (name, f64::from(bound)))).collect()
    }

    fn params(&self, width: usize, counted_by: &Spec) -> BitLinearParams {
        let (norm, pre_norm) = (self.norm, self.pre_norm.unwrap_or(self.norm));
        BitLinearParams {
            width: width as u32,
            slots: self.experts().map_or(1, Experts::slots) as u32,
            k: self.experts().map_or(0, |e| e.k) as u32,
            experts: self.experts().map_or(0, |e| e.n) as u32,
            out_width: self.out_width() as u32,
            eps: norm.eps,
            rms_floor: norm.floor(),
            in_bound: norm.in_bound(),
            out_bound: norm.out_bound(),
            max_code: self.act.max_code,
            act_bound: self.act.bound,
            act_floor: self.act.floor,
            pre_norm_eps: pre_norm.eps,
            pre_norm_floor: pre_norm.floor(),
            pre_norm_in_bound: pre_norm.in_bound(),
            pre_norm_out_bound: pre_norm.out_bound(),
            sum_bound: if let Kind::Combine(_, bound) = self.kind { bound } else { 0.0 },
            counted_by: counted_by.counted_by as u32,
            rows: counted_by.shape[0] as u32,
        }
    }
}
