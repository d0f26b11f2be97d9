//! The product with matrices of low-bit codes that have scales by row and group of columns.

use crate::error::Result;
use crate::ops::few_rows::{FewRows, MAX_DECODE_ROWS, of_many_rows};
use crate::ops::quantise_groups::CODE_GROUP;
use crate::ops::ternary_matmul::StackPiece;
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step, Variant, Variants};
use crate::quant::TILE_ROWS;
use crate::quant::groups::{GroupPart, GroupStack, MAX_COLS};
use crate::shader;
use crate::tensor::{DType, Spec, code_words};
use crate::threads::ThreadPool;

/// What a product with scales by group reads.
#[derive(Debug, Clone, Copy)]
pub enum GroupFactor {
    /// Codes with their scales and sums, from [`PlanBuilder::quantise_groups`] with the matrices' groups.
    Codes([Slot; 2]),
    /// Numbers `[rows, d]` F32.
    Floats(Slot),
}

/// `y[r, o] = factor · Σ_G scale[o, G] · Σ_{g in G} act_scale[r, g] · Σ_{c in g} code(o, c) · activation(r, c) (+ residual)`, or with x
/// of floats `factor · Σ_G scale[o, G] · Σ_{c in G} code(o, c) · x[r, c]`; the factor is that of the matrix. Groups g of activations
/// have 32 columns, or are the groups G of the matrices.
///
/// codes `[rows, 1, d]` and scale_and_sum `[rows, groups g, 2]` F32, or x `[rows, d]` F32; d a multiple of 4; weights Groups, whose
/// matrices are side by side in y `[rows, Σ out]` F32; a residual of y's shape may be added. Sums inside a group g of codes are
/// exact integers. Error: ≤ 1e-5 of the largest product sum; only the order of the sums of floats differs.
#[derive(Debug, Clone)]
pub(super) struct GroupMatmul {
    /// Rows of each matrix.
    outs: Vec<usize>,
    floats: bool,
    residual: bool,
    /// First column of y, of so many, where the stack is a piece of a larger one.
    first_out: usize,
    out_width: usize,
}

params!(GroupMatmulParams {
    counted_by: u32,
    rows: u32,
    vectors: u32,
    groups: u32,
    act_group: u32,
    act_groups: u32,
    first_out: u32,
    out_width: u32,
});

/// Rows of a workgroup of the kernel for few rows, where there is more than one.
const FEW_BLOCK: usize = 4;
/// Rows of a workgroup of the kernels for many rows (their `ROWS`).
const MANY_BLOCK: usize = 8;

impl PlanBuilder {
    /// Product of codes or floats with a stack of matrices with scales by group, which may be cut by rows; `[rows, Σ outs]`,
    /// plus `residual` if given.
    #[track_caller]
    pub fn group_matmul(&self, factor: GroupFactor, pieces: &[StackPiece], residual: Option<Slot>) -> Slot {
        let out_width = pieces.iter().flat_map(|piece| piece.outs).sum();
        let (first, floats) = match factor {
            GroupFactor::Codes(act) => (act.to_vec(), false),
            GroupFactor::Floats(x) => (vec![x], true),
        };
        let (mut y, mut first_out) = (None, 0);
        for piece in pieces {
            let outs = piece.outs.to_vec();
            let op = GroupMatmul { outs, floats, residual: residual.is_some(), first_out, out_width };
            let inputs = [&first[..], &[piece.weights], residual.as_slice()].concat();
            match y {
                None => y = Some(self.push(op, &inputs)),
                Some(y) => self.push_into(op, &inputs, &[y]),
            }
            first_out += piece.outs.iter().sum::<usize>();
        }
        // Without a piece there is no product.
        y.unwrap_or(first[0])
    }
}

/// Columns of a stack's groups; 0 for what is not one.
fn group_of(weights: &Spec) -> usize {
    if let DType::Groups { group } = weights.dtype { group as usize } else { 0 }
}

/// Columns of a group of activations, by the shape of their scales; `None` for a shape that no such group has. Where both
/// fit, they are the same for all columns that are there.
fn act_group(scale_and_sum: &Spec, d: usize, group: usize) -> Option<usize> {
    let [_, groups, 2] = scale_and_sum.shape[..] else { return None };
    [CODE_GROUP, group].into_iter().find(|&columns| groups == d.div_ceil(columns))
}

impl GroupMatmul {
    /// The product of codes with a whole stack.
    pub(super) fn whole(outs: &[usize], residual: bool) -> Self {
        GroupMatmul { outs: outs.to_vec(), floats: false, residual, first_out: 0, out_width: outs.iter().sum() }
    }

    /// Number of the input that is the weights.
    fn weights(&self) -> usize {
        if self.floats { 1 } else { 2 }
    }

    fn residual<'a>(&self, io: &Io<'a>) -> &'a [f32] {
        if self.residual { io.f32s(self.weights() + 1) } else { &[] }
    }
}

impl Op for GroupMatmul {
    fn name(&self) -> &'static str {
        "group_matmul"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, d) = (inputs[0], inputs[0].width());
        let (rows, weights) = (x.shape[0], inputs[self.weights()]);
        let group = group_of(weights);
        require("weights", weights, group > 0, "a stack of codes with scales by group")?;
        require("x", x, d.is_multiple_of(4) && d <= MAX_COLS, "a multiple of 4 columns, 65536 at most")?;
        if self.floats {
            expect("x", x, &[rows, d], &[DType::F32])?;
        } else {
            expect("codes", x, &[rows, 1, d], &[DType::Codes])?;
            let columns = act_group(inputs[1], d, group).unwrap_or(CODE_GROUP);
            expect("scale_and_sum", inputs[1], &[rows, d.div_ceil(columns), 2], &[DType::F32])?;
        }
        let outs = self.outs.iter().sum::<usize>();
        expect("weights", weights, &[self.outs.len(), outs, d], &[weights.dtype])?;
        require("weights", weights, self.first_out + outs <= self.out_width, "rows that fit the output")?;
        let shape = [rows, self.out_width];
        if self.residual {
            expect("residual", inputs[self.weights() + 1], &shape, &[DType::F32])?;
        }
        Ok(vec![Spec::counted(&shape, DType::F32, x.counted_by)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, stack) = (io.spec(0), GroupStack(io.u32s(self.weights())));
        let residual = self.residual(io);
        for r in 0..step.rows_in_use(x) {
            let mut out = r * self.out_width + self.first_out;
            for part in (0..stack.len()).map(|i| stack.part(i)) {
                for o in 0..part.shape.rows {
                    let sum = |g| part.scale(o, g).to_f32() * self.group_sum(io, &part, [r, o, g]);
                    let product = part.factor * (0..part.shape.groups()).map(sum).sum::<f32>();
                    io.out_f32s(0)[out] = if self.residual { product + residual[out] } else { product };
                    out += 1;
                }
            }
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (d, stack, residual) = (io.spec(0).width(), GroupStack(io.u32s(self.weights())), self.residual(io));
        let (rows, threads) = (step.rows_in_use(io.spec(0)), io.threads);
        let place = simd::GroupPlace { first_out: self.first_out, width: self.out_width };
        if self.floats {
            let x: Vec<&[f32]> = io.f32s(0).chunks_exact(d).take(rows).collect();
            simd::group_products(stack, simd::GroupInput::Floats(&x), place, threads, residual, io.out_f32s(0));
            return;
        }
        let (words, scale_and_sum) = (io.u32s(0).chunks_exact(code_words(d)), io.f32s(1));
        let scale_and_sum = scale_and_sum.chunks_exact(2 * io.spec(1).shape[1]);
        let acts: Vec<_> = words
            .zip(scale_and_sum)
            .take(rows)
            .map(|(words, scale_and_sum)| simd::GroupActs::new(words, scale_and_sum))
            .collect();
        let group = group_of(io.spec(self.weights()));
        let group = act_group(io.spec(1), d, group).unwrap_or(group);
        let input = simd::GroupInput::Codes { acts: &acts, group };
        simd::group_products(stack, input, place, threads, residual, io.out_f32s(0));
    }

    fn lay_out(&self, weight: &Spec, words: &mut [u32], threads: &ThreadPool) {
        // Floats are multiplied with words as they lie.
        if !self.floats {
            simd::lay_out(weight.dtype, words, threads);
        }
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Variants {
        let few = outputs[0].shape[0] <= MAX_DECODE_ROWS;
        let without = caps.without_subgroups();
        if few {
            // Only sums of codes are looked up.
            let caps = if self.floats { &without } else { caps };
            return FewRows::product_variants(caps, |form| {
                Variant::new(form.name, caps, self.few(caps, form, inputs, outputs[0]))
            });
        }
        let tiles = self.many(inputs, outputs[0]);
        if self.floats {
            return Variants::usual(Variant::new("tiles", &Caps { dot4: false, ..without }, tiles));
        }
        let dots = Kernel { source: shader!("groups/group_matmul_dots"), ..tiles.clone() };
        let many = of_many_rows(caps, dots, tiles);
        if !caps.software_subgroups {
            return many;
        }
        let tables = Variants::usual(Variant::new("tables", caps, self.table_rows(inputs, outputs[0])));
        many.all().fold(tables, |all, variant| all.or(variant.clone()))
    }
}

impl GroupMatmul {
    /// The sum over group g of row o of a matrix with row r of the input, without the group's scale.
    fn group_sum(&self, io: &Io, part: &GroupPart, [r, o, g]: [usize; 3]) -> f32 {
        let (d, group) = (part.shape.cols, part.shape.group);
        let columns = g * group..d.min((g + 1) * group);
        if self.floats {
            let x = &io.f32s(0)[r * d..];
            return columns.map(|c| f32::from(part.code(o, c)) * x[c]).sum();
        }
        let (codes, of_acts) =
            (&io.codes(0)[r * 4 * code_words(d)..], act_group(io.spec(1), d, group).unwrap_or(group));
        let inv_k = |c: usize| io.f32s(1)[2 * (r * d.div_ceil(of_acts) + c / of_acts)];
        let of_group = |from: usize| {
            let columns = from..columns.end.min(from + of_acts);
            let exact: i32 = columns.map(|c| i32::from(part.code(o, c)) * i32::from(codes[c])).sum();
            exact as f32 * inv_k(from)
        };
        columns.clone().step_by(of_acts).map(of_group).sum()
    }

    fn params(&self, inputs: &[&Spec], y: &Spec) -> GroupMatmulParams {
        let (x, d, group) = (inputs[0], inputs[0].width(), group_of(inputs[self.weights()]));
        let of_acts = if self.floats { None } else { act_group(inputs[1], d, group) };
        let act_group = of_acts.unwrap_or(group);
        GroupMatmulParams {
            counted_by: x.counted_by as u32,
            rows: y.shape[0] as u32,
            vectors: (if self.floats { d } else { code_words(d) } / 4) as u32,
            groups: d.div_ceil(group) as u32,
            act_group: act_group as u32,
            act_groups: d.div_ceil(act_group) as u32,
            first_out: self.first_out as u32,
            out_width: self.out_width as u32,
        }
    }

    fn tiles(&self) -> Extent {
        Extent::Fixed(self.outs.iter().map(|o| o.div_ceil(TILE_ROWS)).sum())
    }

    fn defines(&self) -> Vec<&'static str> {
        let flags = [(self.floats, "FLOATS"), (self.residual, "RESIDUAL")];
        flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect()
    }

    /// The kernel for few rows, which reads the weights once for [`FEW_BLOCK`] of them, or looks sums up for each row.
    fn few(&self, caps: &Caps, form: FewRows, inputs: &[&Spec], y: &Spec) -> Kernel {
        if form.lookup_tables {
            let mut kernel = self.tables(inputs, y);
            kernel.defines.push("PACKED_I16"); // of codes that are not looked up
            return kernel;
        }
        let several = y.shape[0] > 1;
        let mut defines = [form.defines(caps), self.defines()].concat();
        defines.retain(|define| !(self.floats && *define == "PACKED_I16"));
        defines.extend(several.then_some("ROWS4"));
        Kernel {
            source: shader!("groups/group_matmul_matvec"),
            defines,
            overrides: vec![("SPLIT_K", form.split_k as f64)],
            params: self.params(inputs, y).params(),
            grid: Grid::xy(self.tiles(), Extent::rows(&y.leading_only(), 1, if several { FEW_BLOCK } else { 1 })),
        }
    }

    /// The kernel for few rows that looks sums up, for each row by itself.
    fn tables(&self, inputs: &[&Spec], y: &Spec) -> Kernel {
        let params = self.params(inputs, y);
        let mut defines = self.defines();
        defines.extend((params.act_group == CODE_GROUP as u32).then_some("BY_BLOCK"));
        Kernel {
            source: shader!("groups/group_matmul_tables"),
            defines,
            overrides: vec![],
            params: params.params(),
            grid: Grid::xy(self.tiles(), Extent::rows(&y.leading_only(), 1, 1)),
        }
    }

    /// The kernel for many rows that looks sums up, for [`MANY_BLOCK`] rows at a time.
    fn table_rows(&self, inputs: &[&Spec], y: &Spec) -> Kernel {
        let blocks = Extent::rows(&y.leading_only(), 1, MANY_BLOCK);
        let mut kernel = self.tables(inputs, y);
        (kernel.source, kernel.grid) = (shader!("groups/group_matmul_table_rows"), Grid::xy(blocks, self.tiles()));
        kernel
    }

    /// The kernel for many rows, which share the weights that a workgroup reads.
    fn many(&self, inputs: &[&Spec], y: &Spec) -> Kernel {
        Kernel {
            source: shader!("groups/group_matmul_tiles"),
            defines: self.defines(),
            overrides: vec![],
            params: self.params(inputs, y).params(),
            grid: Grid::xy(self.tiles(), Extent::rows(&y.leading_only(), 1, MANY_BLOCK)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_for_many_rows_have_blocks_of_as_many() {
        let [tiles, dots] = [shader!("groups/group_matmul_tiles"), shader!("groups/group_matmul_dots")];
        for shader in [tiles, dots, shader!("groups/group_matmul_table_rows")] {
            assert_eq!(shader.number("ROWS"), Some(MANY_BLOCK), "{}", shader.name);
        }
    }

    #[test]
    fn every_kind_of_device_has_its_kernel_for_many_rows() {
        let codes = Spec::fixed(&[32, 1, 256], DType::Codes);
        let scale_and_sum = Spec::fixed(&[32, 8, 2], DType::F32);
        let weights = Spec::fixed(&[1, 128, 256], DType::Groups { group: 128 });
        let y = Spec::fixed(&[32, 128], DType::F32);
        let op = GroupMatmul::whole(&[128], false);
        let names = |caps: Caps| {
            let all = op.variants(&caps, &[&codes, &scale_and_sum, &weights], &[&y]);
            all.all().map(|variant| variant.name.clone()).collect::<Vec<_>>()
        };
        let gpu = Caps { subgroups: true, dot4: true, ..Caps::PLAIN };
        assert_eq!(names(gpu), ["dots", "tiles"]);
        assert_eq!(names(Caps { dot4: false, ..gpu }), ["tiles"]);
        assert_eq!(names(Caps { cpu_driver: true, ..gpu }), ["tiles", "dots"]);
        let software = Caps { software_subgroups: true, cpu_driver: true, ..gpu };
        assert_eq!(names(software), ["tables", "tiles", "dots"]);
    }
}
