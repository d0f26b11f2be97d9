//! Products with matrices that have scales by group, as a model names them: an activation and a norm, codes, and the product; in
//! one launch where there is one row.

use crate::error::Result;
use crate::ops::few_rows::FewRows;
use crate::ops::group_matmul::GroupMatmul;
use crate::ops::quantise_groups::{CODE_GROUP, QuantiseGroups};
use crate::ops::swiglu::{Act, SwiGlu};
use crate::ops::ternary_matmul::StackPiece;
use crate::ops::{CodeScale, Composed, GroupFactor, GroupQuant, RmsNorm, expect, require};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step, Variant, Variants};
use crate::quant::TILE_ROWS;
use crate::quant::groups::is_group;
use crate::shader;
use crate::tensor::{DType, Spec};

/// How matrices with scales by group read their input.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct GroupInput {
    /// The activation in front, of gate and up side by side.
    pub act: Option<Act>,
    /// A norm behind it, and its weight `[d]`.
    pub norm: Option<(RmsNorm, Slot)>,
    /// The rule of the codes.
    pub quant: GroupQuant,
}

/// The composition of `swiglu` (with an activation), `quantise_groups` and `group_matmul` for one row; every workgroup makes the
/// row's codes again.
///
/// x `[1, d]` F32, or `[1, 2·d]` with an activation, w `[d]` F32 with a norm, weights Groups, and a residual of y's shape if there
/// is one → y `[1, Σ out]` F32; d a multiple of 4, at most [`MAX_WIDTH`].
#[derive(Debug)]
struct GroupLinear {
    /// Rows of each matrix.
    outs: Vec<usize>,
    act: Option<Act>,
    norm: Option<RmsNorm>,
    quant: GroupQuant,
    residual: bool,
}

params!(GroupLinearParams {
    width: u32,
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

/// Maximum number of columns whose codes and their scales every device's workgroup memory takes.
const MAX_WIDTH: usize = 12288;

impl PlanBuilder {
    /// x `[rows, d]`, or with an activation `[rows, 2·d]`, through a stack, which may be cut by rows: `[rows, Σ outs]`, plus
    /// `residual` if given.
    #[track_caller]
    pub fn group_linear(&self, x: Slot, input: GroupInput, pieces: &[StackPiece], residual: Option<Slot>) -> Slot {
        let GroupInput { act, norm, quant } = input;
        let spec = self.spec(x);
        let d = spec.width() / if act.is_some() { 2 } else { 1 };
        if self.makes_inputs_again()
            && spec.shape[0] == 1
            && d <= MAX_WIDTH
            && let [piece] = pieces
        {
            let (outs, residual_too) = (piece.outs.to_vec(), residual.is_some());
            let op = GroupLinear { outs, act, norm: norm.map(|n| n.0), quant, residual: residual_too };
            let slots = [x].into_iter().chain(norm.map(|n| n.1)).chain([piece.weights]).chain(residual);
            return self.push(op, &slots.collect::<Vec<_>>());
        }
        self.group_matmul(GroupFactor::Codes(self.quantise_groups(x, act, norm, quant)), pieces, residual)
    }
}

impl GroupLinear {
    /// Number of the input that is the weights.
    fn weights(&self) -> usize {
        1 + usize::from(self.norm.is_some())
    }

    /// Columns of the matrices.
    fn width(&self, x: &Spec) -> usize {
        x.width() / if self.act.is_some() { 2 } else { 1 }
    }

    fn compose(&self, step: &Step, io: &mut Io, fast: bool) {
        let mut chain = Composed::new(step, fast, io);
        let (quantise, before) = QuantiseGroups::split(self.act, self.norm, self.quant);
        let x = before.map_or(0, |act| chain.apply(&SwiGlu { act }, &[0])[0]);
        let of_norm = self.norm.map(|_| 1);
        let codes = chain.apply(&quantise, &[&[x], of_norm.as_slice()].concat());
        let product = GroupMatmul::whole(&self.outs, self.residual);
        let rest: Vec<usize> = (self.weights()..io.inputs.len()).collect();
        chain.finish(&product, &[codes, rest].concat(), io);
    }
}

impl Op for GroupLinear {
    fn name(&self) -> &'static str {
        "group_linear"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, d, weights) = (inputs[0], self.width(inputs[0]), inputs[self.weights()]);
        let width = if self.act.is_some() { 2 * d } else { d };
        expect("x", x, &[1, width], &[DType::F32])?;
        require("x", x, d.is_multiple_of(4) && d <= MAX_WIDTH, "a multiple of 4 columns, 12288 at most")?;
        require("x", x, is_group(d, self.quant.group), "columns for groups of 32, 64, 128, 256 or all of them")?;
        if self.norm.is_some() {
            expect("norm weight", inputs[1], &[d], &[DType::F32])?;
        }
        let (outs, dtype) = (self.outs.iter().sum(), DType::Groups { group: self.quant.group as u32 });
        expect("weights", weights, &[self.outs.len(), outs, d], &[dtype])?;
        if self.residual {
            expect("residual", inputs[self.weights() + 1], &[1, outs], &[DType::F32])?;
        }
        Ok(vec![x.with_last(outs, DType::F32)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, false);
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        self.compose(step, io, true);
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Variants {
        // Where sums are looked up, a CPU computes, and a launch costs less than making the codes again.
        let caps = caps.without_subgroups();
        FewRows::product_variants(&caps, |form| {
            Variant::new(form.name, &caps, self.fused(&caps, form, inputs[0], outputs[0]))
        })
    }
}

impl GroupLinear {
    fn fused(&self, caps: &Caps, form: FewRows, x: &Spec, y: &Spec) -> Kernel {
        let columns = self.width(x).div_ceil(CODE_GROUP);
        let lanes = TILE_ROWS / 4;
        let overrides = [
            ("SPLIT_K", form.split_k),
            ("THREADS", lanes / form.vec4s_per_thread * form.split_k),
            ("COLUMNS", columns),
            ("CODES", (2 * columns).max(lanes * form.split_k)),
        ];
        let flags = [
            (self.act.is_some(), "GATED"),
            (self.norm.is_some(), "NORM"),
            (self.quant.scale == CodeScale::Row, "WHOLE_ROW"),
            (self.residual, "RESIDUAL"),
        ];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        let tiles = self.outs.iter().map(|o| o.div_ceil(TILE_ROWS)).sum();
        Kernel {
            source: shader!("groups/group_linear"),
            defines: [form.defines(caps), defines].concat(),
            overrides: overrides.map(|(name, value)| (name, value as f64)).to_vec(),
            params: self.params(x).params(),
            grid: Grid::xy(Extent::Fixed(tiles), Extent::rows(&y.leading_only(), 1, 1)),
        }
    }

    fn params(&self, x: &Spec) -> GroupLinearParams {
        let (width, norm, act) = (self.width(x), self.norm.unwrap_or(RmsNorm::new(0.0)), self.quant.act);
        let [gate_bound, product_bound] = self.act.map_or([f32::INFINITY; 2], Act::bounds);
        GroupLinearParams {
            width: width as u32,
            groups: width.div_ceil(self.quant.group) as u32,
            gate_bound,
            product_bound,
            relu2: self.act.map_or(0, Act::is_relu2),
            eps: norm.eps,
            rms_floor: norm.floor(),
            in_bound: norm.in_bound(),
            out_bound: norm.out_bound(),
            max_code: act.max_code,
            act_bound: act.bound,
            act_floor: act.floor,
        }
    }
}
