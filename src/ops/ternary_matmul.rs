//! The product of activation codes with ternary matrices: plain stacks, and experts chosen per row.

use crate::error::Result;
use crate::ops::few_rows::{FewRows, MAX_MATVEC_ROWS, of_many_rows};
use crate::ops::group_rows::{BLOCK, blocks};
use crate::ops::norm_quantise::Experts;
use crate::ops::swiglu::Act;
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{
    Caps, Chosen, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step, Variant, Variants,
};
use crate::quant::{Stack, StackPart, TILE_ROWS};
use crate::shader;
use crate::tensor::{DType, Spec, code_words};
use crate::threads::ThreadPool;

/// `y = scale · (1/k) · Σ code · activation`, summed exactly in integers.
///
/// codes `[rows, sets, d]`, scale_and_sum `[rows, sets, 2]` F32 (from `norm_quantise`), weights Ternary.
/// * Without experts: y `[rows, Σ out]` F32, the stack's matrices side by side; matrix p reads set p, or set 0 if there
///   is one set only. A residual of y's shape may be added.
/// * With experts: the stack holds p matrices per expert (all experts of the same shapes, the shared ones last),
///   expert_ids `[rows, k]` U32; y `[rows, slots, Σ out]` F32, for the chosen experts in order and then the shared ones;
///   set `s · p + i` belongs to matrix i of slot s. Groups `[blocks, 9]` U32 from `group_rows` may be added: the kernel
///   then reads an expert's weights once for 8 places.
/// * With experts and an activation: gate and up of each, of the same shape; y `[rows, slots, out]` F32 is `act(gate) · up`.
///
/// Exact against `cpu` before the scale and the activation: integers below 2^24.
#[derive(Debug, Clone)]
pub(super) struct TernaryMatmul {
    /// Output rows of each matrix of the stack, or of one expert.
    outs: Vec<usize>,
    experts: Option<Experts>,
    residual: bool,
    grouped: bool,
    /// What is made of an expert's two matrices, gate and up.
    act: Option<Act>,
    /// Where the stack is a piece of a larger one.
    position: Position,
}

/// The position of a piece in the whole: its first matrix, of `matrices`, and its first column of y, of `out_width`.
#[derive(Debug, Clone, Copy)]
struct Position {
    first: usize,
    matrices: usize,
    first_out: usize,
    out_width: usize,
}

/// A piece of a stack that is cut for a device's binding limit: matrices `first..` of the whole, or of an expert, with
/// `outs` of their rows, which follow those of the pieces before it.
#[derive(Debug, Clone)]
pub struct StackPiece<'a> {
    /// The stack of the piece.
    pub weights: Slot,
    /// Which matrix of the whole its first one is, or is a part of.
    pub first: usize,
    /// Rows of each of its matrices.
    pub outs: &'a [usize],
}

params!(TernaryMatmulParams {
    counted_by: u32,
    rows: u32,
    sets: u32,
    set_words: u32,
    parts: u32,
    slots: u32,
    k: u32,
    n_experts: u32,
    matrices: u32,
    first_matrix: u32,
    first_out: u32,
    out_width: u32,
    gate_bound: f32,
    product_bound: f32,
    relu2: u32,
});

impl PlanBuilder {
    /// Product of codes with a stack of matrices of `outs` rows each; `[rows, Σ outs]`, plus `residual` if given.
    #[track_caller]
    pub fn ternary_matmul(&self, act: [Slot; 2], weights: Slot, outs: &[usize], residual: Option<Slot>) -> Slot {
        self.ternary_pieces(act, &[StackPiece { weights, first: 0, outs }], residual)
    }

    /// [`PlanBuilder::ternary_matmul`] with a stack that may be cut.
    #[track_caller]
    pub fn ternary_pieces(&self, act: [Slot; 2], pieces: &[StackPiece], residual: Option<Slot>) -> Slot {
        let whole = TernaryMatmul::whole(&[], None, residual.is_some());
        self.push_pieces(whole, act, pieces, residual.as_slice())
    }

    /// Product of codes with the matrices of each row's experts (`outs` rows each); `[rows, slots, Σ outs]`. `groups`
    /// from [`PlanBuilder::group_rows`] pays where several rows use the same expert.
    #[track_caller]
    pub fn expert_matmul(
        &self,
        act: [Slot; 2],
        weights: Slot,
        expert_ids: Slot,
        groups: Option<Slot>,
        outs: &[usize],
        experts: Experts,
    ) -> Slot {
        self.expert_pieces(act, &[StackPiece { weights, first: 0, outs }], expert_ids, groups, experts)
    }

    /// [`PlanBuilder::expert_matmul`] with a stack that may be cut.
    #[track_caller]
    pub fn expert_pieces(
        &self,
        act: [Slot; 2],
        pieces: &[StackPiece],
        expert_ids: Slot,
        groups: Option<Slot>,
        experts: Experts,
    ) -> Slot {
        let whole = TernaryMatmul { grouped: groups.is_some(), ..TernaryMatmul::whole(&[], Some(experts), false) };
        let rest: Vec<Slot> = [expert_ids].into_iter().chain(groups).collect();
        self.push_pieces(whole, act, pieces, &rest)
    }

    /// `act(gate) · up` of each row's experts, gate and up of `d_ff` rows each: `[rows, slots, d_ff]`. `groups` as in
    /// [`PlanBuilder::expert_matmul`].
    #[track_caller]
    pub fn expert_swiglu(
        &self,
        act: [Slot; 2],
        weights: Slot,
        expert_ids: Slot,
        groups: Option<Slot>,
        d_ff: usize,
        (experts, gate_act): (Experts, Act),
    ) -> Slot {
        let op = TernaryMatmul { grouped: groups.is_some(), ..TernaryMatmul::gated(d_ff, experts, gate_act) };
        self.push(op, &[&[act[0], act[1], weights, expert_ids][..], groups.as_slice()].concat())
    }

    /// Pushes `kind` once for each piece; all write into one output.
    #[track_caller]
    fn push_pieces(&self, kind: TernaryMatmul, act: [Slot; 2], pieces: &[StackPiece], rest: &[Slot]) -> Slot {
        let matrices = pieces.last().map_or(0, |last| last.first + last.outs.len());
        let out_width = pieces.iter().flat_map(|piece| piece.outs).sum();
        let (mut y, mut first_out) = (None, 0);
        for piece in pieces {
            let position = Position { first: piece.first, matrices, first_out, out_width };
            let op = TernaryMatmul { outs: piece.outs.to_vec(), position, ..kind.clone() };
            let inputs = [&[act[0], act[1], piece.weights], rest].concat();
            match y {
                None => y = Some(self.push(op, &inputs)),
                Some(y) => self.push_into(op, &inputs, &[y]),
            }
            first_out += piece.outs.iter().sum::<usize>();
        }
        // Without a piece there is no product; the op that reads the result refuses codes.
        y.unwrap_or(act[0])
    }
}

impl TernaryMatmul {
    /// The product with a stack that is not cut.
    pub(super) fn whole(outs: &[usize], experts: Option<Experts>, residual: bool) -> Self {
        let position = Position { first: 0, matrices: outs.len(), first_out: 0, out_width: outs.iter().sum() };
        TernaryMatmul { outs: outs.to_vec(), experts, residual, grouped: false, act: None, position }
    }

    /// `act(gate) · up` of each expert.
    pub(super) fn gated(d_ff: usize, experts: Experts, act: Act) -> Self {
        let whole = TernaryMatmul::whole(&[d_ff; 2], Some(experts), false);
        TernaryMatmul { act: Some(act), position: Position { out_width: d_ff, ..whole.position }, ..whole }
    }

    fn slots(&self) -> usize {
        self.experts.map_or(1, Experts::slots)
    }

    /// Calls `f(matrix, set, first output)` for each product of row `r`.
    fn for_each(&self, r: usize, expert_ids: &[u32], sets: usize, mut f: impl FnMut(usize, usize, usize)) {
        let parts = self.outs.len();
        for slot in 0..self.slots() {
            let expert = self.experts.map_or(0, |e| e.pick(&expert_ids[r * e.k..], slot));
            let mut out = (r * self.slots() + slot) * self.position.out_width + self.position.first_out;
            for p in 0..parts {
                let set = if sets == 1 { 0 } else { slot * self.position.matrices + self.position.first + p };
                f(expert * parts + p, r * sets + set, out);
                out += if self.act.is_some() { 0 } else { self.outs[p] };
            }
        }
    }
}

/// `Σ code · activation` of one row of a matrix.
fn dot(part: &StackPart, row: usize, act: &[i8]) -> i32 {
    (0..part.cols).map(|c| i32::from(part.code(row, c)) * i32::from(act[c])).sum()
}

impl Op for TernaryMatmul {
    fn name(&self) -> &'static str {
        "ternary_matmul"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (codes, d) = (inputs[0], inputs[0].width());
        require("codes", codes, codes.dtype == DType::Codes && codes.shape.len() == 3, "[rows, sets, d] Codes")?;
        let (rows, sets) = (codes.shape[0], codes.shape[1]);
        expect("scale_and_sum", inputs[1], &[rows, sets, 2], &[DType::F32])?;
        let matrices = self.outs.len() * self.experts.map_or(1, Experts::all);
        let outs = self.outs.iter().sum::<usize>();
        let total = outs * self.experts.map_or(1, Experts::all);
        expect("weights", inputs[2], &[matrices, total, d], &[DType::Ternary])?;
        let position = self.position;
        let made = if self.act.is_some() { self.outs[0] } else { outs };
        let fits =
            position.first + self.outs.len() <= position.matrices && position.first_out + made <= position.out_width;
        require("weights", inputs[2], fits, "matrices and rows that fit the output")?;
        let want = self.slots() * position.matrices;
        require("codes", codes, sets == want || (sets == 1 && self.experts.is_none()), "a set for each matrix")?;
        let shape = match self.experts {
            Some(e) => {
                expect("chosen experts", inputs[3], &[rows, e.k], &[DType::U32])?;
                vec![rows, e.slots(), position.out_width]
            }
            None => vec![rows, position.out_width],
        };
        if self.grouped {
            let groups = inputs[4];
            require("groups", groups, groups.dtype == DType::U32 && groups.width() == BLOCK + 1, "[blocks, 9] U32")?;
        }
        if self.residual {
            expect("residual", inputs[3], &shape, &[DType::F32])?;
        }
        Ok(vec![Spec::counted(&shape, DType::F32, codes.counted_by)])
    }

    fn chosen(&self) -> Option<Chosen> {
        self.experts.map(|e| e.chosen(3))
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (codes, scale_and_sum, stack) = (io.codes(0), io.f32s(1), Stack(io.u32s(2)));
        let (sets, stride) = (io.spec(0).shape[1], 4 * code_words(io.spec(0).width()));
        let expert_ids = if self.experts.is_some() { io.u32s(3) } else { &[] };
        let residual = if self.residual { io.f32s(3) } else { &[] };
        let rows = step.rows_in_use(io.spec(0));
        let y = io.out_f32s(0);
        for r in 0..rows {
            self.for_each(r, expert_ids, sets, |matrix, set, out| {
                let part = stack.part(matrix);
                let factor = part.scale * scale_and_sum[2 * set];
                for row in 0..part.rows {
                    let sum = dot(&part, row, &codes[set * stride..]) as f32 * factor;
                    y[out + row] = match self.act {
                        Some(act) if matrix % 2 == 1 => act.gated(y[out + row], sum), // Behind the gate.
                        _ if self.residual => sum + residual[out + row],
                        _ => sum,
                    };
                }
            });
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (codes, scale_and_sum, stack) = (io.u32s(0), io.f32s(1), Stack(io.u32s(2)));
        let (sets, stride) = (io.spec(0).shape[1], code_words(io.spec(0).width()));
        let expert_ids = if self.experts.is_some() { io.u32s(3) } else { &[] };
        let residual = if self.residual { io.f32s(3) } else { &[] };
        let mut jobs = Vec::new();
        for r in 0..step.rows_in_use(io.spec(0)) {
            self.for_each(r, expert_ids, sets, |matrix, set, out| {
                let act = simd::Codes::new(&codes[set * stride..][..stride], scale_and_sum[2 * set + 1] as i32);
                jobs.push(simd::MatVecJob { matrix, acts: [act], inv_k: [scale_and_sum[2 * set]], out });
            });
        }
        let Some(act) = self.act else {
            return simd::ternary_products(stack, jobs, io.threads, residual, io.out_f32s(0));
        };
        let pairs = jobs.chunks_exact(2).map(|of| simd::MatVecJob::pair(of[0], of[1])).collect();
        let gated = |gate: &[f32], up: &[f32], y: &mut [f32]| act.all_gated(gate, up, y);
        simd::ternary_gated(stack, pairs, io.threads, &gated, io.out_f32s(0));
    }

    fn lay_out(&self, weight: &Spec, words: &mut [u32], threads: &ThreadPool) {
        simd::lay_out(weight.dtype, words, threads);
    }

    fn bytes_read(&self, step: &Step, inputs: &[(&Spec, u64)]) -> u64 {
        let used = |i: usize| inputs.get(i).map_or(0, |(spec, bytes)| step.used(spec, *bytes));
        let weights = self.experts.map_or(used(2), |e| e.read(used(2), step.rows_in_use(inputs[0].0)));
        used(0) + used(1) + weights + used(3)
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Variants {
        let (codes, counted_by) = (inputs[0], outputs[0].leading_only());
        if !self.grouped && (self.experts.is_some() || counted_by.shape[0] <= MAX_MATVEC_ROWS) {
            return FewRows::product_variants(caps, |form| {
                Variant::new(form.name, caps, self.matvec(caps, form, codes, &counted_by))
            });
        }
        let [lanes, dots, tiles] = self.many(codes, &counted_by);
        let many = of_many_rows(caps, dots, tiles);
        if !caps.software_subgroups || self.act.is_some() {
            return many;
        }
        let lanes = Variants::usual(Variant::new("lanes", caps, lanes));
        many.all().fold(lanes, |all, variant| all.or(variant.clone()))
    }
}

impl TernaryMatmul {
    fn defines(&self) -> Vec<&'static str> {
        let flags = [
            (self.experts.is_some(), "EXPERTS"),
            (self.grouped, "GROUPS"),
            (self.residual, "RESIDUAL"),
            (self.act.is_some(), "GATED"),
        ];
        flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }

    /// Tiles of a row's outputs; gate and up give the same ones.
    fn tiles(&self) -> usize {
        let matrices = if self.act.is_some() { 1 } else { self.outs.len() };
        self.outs[..matrices].iter().map(|o| o.div_ceil(TILE_ROWS)).sum()
    }

    fn params(&self, codes: &Spec, counted_by: &Spec) -> TernaryMatmulParams {
        let experts = self.experts.unwrap_or_default();
        let [gate_bound, product_bound] = self.act.map_or([f32::INFINITY; 2], Act::bounds);
        TernaryMatmulParams {
            counted_by: counted_by.counted_by as u32,
            rows: counted_by.shape[0] as u32,
            sets: codes.shape[1] as u32,
            set_words: code_words(codes.width()) as u32,
            parts: self.outs.len() as u32,
            slots: self.slots() as u32,
            k: experts.k as u32,
            n_experts: experts.n as u32,
            matrices: self.position.matrices as u32,
            first_matrix: self.position.first as u32,
            first_out: self.position.first_out as u32,
            out_width: self.position.out_width as u32,
            gate_bound,
            product_bound,
            relu2: self.act.map_or(0, Act::is_relu2),
        }
    }

    /// The kernels for many rows, which share the weights that a workgroup reads: for lanes that pass words on, for dot products
    /// of bytes, and for any device.
    fn many(&self, codes: &Spec, counted_by: &Spec) -> [Kernel; 3] {
        let tiles = Extent::Fixed(self.tiles());
        let in_blocks = match self.grouped {
            true => blocks(codes.counted_by, codes.shape[0], self.experts.unwrap_or_default()),
            false => Extent::rows(counted_by, 1, BLOCK),
        };
        let kernel = |source, grid| Kernel {
            source,
            defines: self.defines(),
            overrides: vec![],
            params: self.params(codes, counted_by).params(),
            grid,
        };
        [
            kernel(shader!("ternary/ternary_matmul_lanes"), Grid::xy(in_blocks, tiles)),
            kernel(shader!("ternary/ternary_matmul_dots"), Grid::xy(tiles, in_blocks)),
            kernel(shader!("ternary/ternary_matmul_tiles"), Grid::xy(tiles, in_blocks)),
        ]
    }

    /// The kernel for few rows, and for experts.
    fn matvec(&self, caps: &Caps, form: FewRows, codes: &Spec, counted_by: &Spec) -> Kernel {
        Kernel {
            source: shader!("ternary/ternary_matmul_matvec"),
            defines: [form.defines(caps), self.defines()].concat(),
            overrides: vec![("SPLIT_K", form.split_k as f64)],
            params: self.params(codes, counted_by).params(),
            grid: Grid::xy(Extent::Fixed(self.tiles()), Extent::rows(counted_by, self.slots(), 1)),
        }
    }
}
