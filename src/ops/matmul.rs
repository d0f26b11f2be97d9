//! The dense product with f32, f16 or 8-bit weights.

use std::ops::Range;

use crate::error::Result;
use crate::ops::few_rows::MAX_MATVEC_ROWS;
use crate::ops::{expect, require, simd};
use crate::params;
use crate::plan::{
    Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Source, Step, Variant, Variants,
};
use crate::shader;
use crate::tensor::{DType, Spec};

/// `y[r, col0 + o] = Σ_i x[r, i] · w[o, i] + bias[o] + residual[r, o]`.
///
/// x `[.., d_in]` F32, w `[d_out, d_in]` F32, F16 or Int8, bias `[d_out]` F32, residual like y F32
/// → y `[.., width]` F32, of which columns `col0..col0 + d_out` are written: a weight above the binding limit is cut
/// into several ops. Integers of an Int8 row are added up as they are, and the row's scale multiplies the sum. Error: ≤ 1e-5
/// of the largest product sum; only the order of the sum differs.
#[derive(Debug)]
pub(super) struct MatMul {
    pub(super) bias: bool,
    pub(super) residual: bool,
    pub(super) col0: usize,
    pub(super) width: usize,
}

params!(MatMulParams { counted_by: u32, rows: u32, per_row: u32, d_in: u32, d_out: u32, col0: u32, width: u32 });

/// Outputs of a lane of the matvec kernel (its `OUTS`).
const MATVEC_OUTS: usize = 4;
/// Outputs and rows of a workgroup of the kernel for software subgroups (its `WORKERS` times 4, its `ROWS`).
const LANE_BLOCK: [usize; 2] = [128, 8];
/// Outputs and rows of a workgroup of the kernel with workgroup memory (its `OUTS` and `ROWS`; with `TALL` twice as many rows).
const TILE_BLOCK: [usize; 2] = [64, 32];

/// How the kernel for few rows divides its outputs: among `groups` of `lanes` threads, 32 to 128 threads in all.
#[derive(Debug)]
struct MatvecTile {
    name: &'static str,
    lanes: usize,
    groups: usize,
}

/// The default on GPUs, the default of drivers that compute on the CPU, and others.
const MATVEC_TILES: [MatvecTile; 5] = [
    MatvecTile { name: "32x2", lanes: 32, groups: 2 },
    MatvecTile { name: "4x8", lanes: 4, groups: 8 },
    MatvecTile { name: "16x4", lanes: 16, groups: 4 },
    MatvecTile { name: "8x8", lanes: 8, groups: 8 },
    MatvecTile { name: "64x2", lanes: 64, groups: 2 },
];

impl PlanBuilder {
    /// `x · wᵀ (+ bias) (+ residual)`.
    #[track_caller]
    pub fn matmul(&self, x: Slot, w: Slot, bias: Option<Slot>, residual: Option<Slot>) -> Slot {
        let width = self.spec(w).shape[0];
        let op = MatMul { bias: bias.is_some(), residual: residual.is_some(), col0: 0, width };
        let inputs: Vec<Slot> = [x, w].into_iter().chain(bias).chain(residual).collect();
        self.push(op, &inputs)
    }

    /// `x · wᵀ` for a weight that is cut into several by rows, side by side.
    #[track_caller]
    pub fn matmul_sharded(&self, x: Slot, shards: &[Slot]) -> Slot {
        let d_out = |s: Slot| self.spec(s).shape[0];
        let width = shards.iter().map(|&s| d_out(s)).sum();
        let op = |col0| MatMul { bias: false, residual: false, col0, width };
        let y = self.push(op(0), &[x, shards[0]]);
        let mut col0 = d_out(shards[0]);
        for &shard in &shards[1..] {
            self.push_into(op(col0), &[x, shard], &[y]);
            col0 += d_out(shard);
        }
        y
    }
}

impl Op for MatMul {
    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let (x, w) = (inputs[0], inputs[1]);
        require("x", x, x.dtype == DType::F32, "F32")?;
        let d_out = w.shape[0];
        expect("weight", w, &[d_out, x.width()], &[DType::F32, DType::F16, DType::Int8])?;
        require("weight", w, self.col0 + d_out <= self.width, "rows that fit the output")?;
        let y = x.with_last(self.width, DType::F32);
        let mut rest = inputs[2..].iter();
        if self.bias {
            expect("bias", rest.next().unwrap_or(&x), &[d_out], &[DType::F32])?;
        }
        if self.residual {
            expect("residual", rest.next().unwrap_or(&x), &y.shape, &[DType::F32])?;
        }
        Ok(vec![y])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (d, x, w, ends) = (self.sizes(step, io), io.f32s(0), io.floats(1), self.ends(io));
        for (r, y) in io.out_f32s(0).chunks_exact_mut(d.y_width).enumerate().take(d.rows) {
            let y = &mut y[d.col0..][..d.d_out];
            for (o, y) in y.iter_mut().enumerate() {
                let product = |i| f64::from(x[r * d.d_in + i]) * f64::from(w.get(o * d.d_in + i));
                *y = (0..d.d_in).map(product).sum::<f64>() as f32;
            }
            ends.add(r, 0..d.d_out, y);
        }
    }

    fn cpu_fast(&self, step: &Step, io: &mut Io) {
        let (d, x, w, ends) = (self.sizes(step, io), io.f32s(0), io.floats(1), self.ends(io));
        let threads = io.threads;
        simd::dense(d, threads, x, w, io.out_f32s(0), |r, outs, y| ends.add(r, outs, y));
    }

    fn kernel(&self, caps: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        self.variants(caps, inputs, outputs).take(None).kernel
    }

    fn variants(&self, caps: &Caps, inputs: &[&Spec], _: &[&Spec]) -> Variants {
        self.forms(caps, inputs)
    }
}

/// The kernels.
impl MatMul {
    fn forms(&self, caps: &Caps, inputs: &[&Spec]) -> Variants {
        let x = inputs[0];
        if caps.software_subgroups && x.width().is_multiple_of(8) {
            let usual = Variants::usual(Variant::new("lanes", caps, self.lanes(inputs)));
            return usual.or_lesser("no-subgroups", self.forms(&caps.without_subgroups(), inputs));
        }
        // The kernel for few rows reads four columns at a time.
        if x.rows() > MAX_MATVEC_ROWS || !x.width().is_multiple_of(4) {
            let low = Variant::new("32x64", caps, self.tiled(inputs, false));
            // Threads without outputs of their own wait for taller blocks longer.
            if x.rows() <= TILE_BLOCK[1] || inputs[1].shape[0] < TILE_BLOCK[0] {
                return Variants::usual(low);
            }
            return Variants::usual(Variant::new("64x64", caps, self.tiled(inputs, true))).or(low);
        }
        let variant = |caps: &Caps, tile: &MatvecTile| Variant::new(tile.name, caps, self.matvec(tile, inputs));
        let usual = if caps.cpu_driver { &MATVEC_TILES[1] } else { &MATVEC_TILES[0] };
        let all =
            MATVEC_TILES.iter().fold(Variants::usual(variant(caps, usual)), |all, tile| all.or(variant(caps, tile)));
        let lesser = caps.without_subgroups();
        if caps.subgroups { all.or_lesser("no-subgroups", Variants::usual(variant(&lesser, usual))) } else { all }
    }

    fn described(&self, source: Source, inputs: &[&Spec], grid: Grid) -> Kernel {
        let (x, w) = (inputs[0], inputs[1]);
        let params = MatMulParams {
            counted_by: x.counted_by as u32,
            rows: x.shape[0] as u32,
            per_row: x.vectors_per_row() as u32,
            d_in: x.width() as u32,
            d_out: w.shape[0] as u32,
            col0: self.col0 as u32,
            width: self.width as u32,
        };
        let flags = [
            (self.bias, "BIAS"),
            (self.residual, "RESIDUAL"),
            (w.dtype == DType::F16, "F16"),
            (w.dtype == DType::Int8, "INT8"),
            (!x.width().is_multiple_of(4), "ANY"),
        ];
        let defines = flags.into_iter().filter_map(|(on, name)| on.then_some(name)).collect();
        Kernel { source, defines, overrides: vec![], params: params.params(), grid }
    }

    /// Dot products of few rows.
    fn matvec(&self, tile: &MatvecTile, inputs: &[&Spec]) -> Kernel {
        let (x, w) = (inputs[0], inputs[1]);
        let grid = Grid::x(Extent::Fixed(w.shape[0].div_ceil(tile.groups * MATVEC_OUTS)));
        let mut kernel = self.described(shader!("matmul/matmul_matvec"), inputs, grid);
        kernel.defines.extend((w.dtype != DType::F32 && x.width().is_multiple_of(8)).then_some("WIDE"));
        kernel.overrides = vec![("LANES", tile.lanes as f64), ("GROUPS", tile.groups as f64)];
        kernel
    }

    /// Blocks of rows and outputs, for software subgroups.
    fn lanes(&self, inputs: &[&Spec]) -> Kernel {
        let outs = Extent::Fixed(inputs[1].shape[0].div_ceil(LANE_BLOCK[0]));
        self.described(
            shader!("matmul/matmul_lanes"),
            inputs,
            Grid::xy(Extent::rows(inputs[0], 1, LANE_BLOCK[1]), outs),
        )
    }

    /// Blocks of rows and outputs in workgroup memory, the `tall` ones of twice as many rows.
    fn tiled(&self, inputs: &[&Spec], tall: bool) -> Kernel {
        let outs = Extent::Fixed(inputs[1].shape[0].div_ceil(TILE_BLOCK[0]));
        let rows = Extent::rows(inputs[0], 1, TILE_BLOCK[1] * if tall { 2 } else { 1 });
        let mut kernel = self.described(shader!("matmul/matmul_tiles"), inputs, Grid::xy(outs, rows));
        kernel.defines.extend(tall.then_some("TALL"));
        kernel
    }
}

impl MatMul {
    fn sizes(&self, step: &Step, io: &Io) -> simd::Dense {
        simd::Dense {
            rows: step.rows_of(io.spec(0)),
            d_out: io.spec(1).shape[0],
            d_in: io.spec(0).width(),
            col0: self.col0,
            y_width: self.width,
        }
    }

    fn ends<'a>(&self, io: &Io<'a>) -> Ends<'a> {
        Ends {
            scales: (io.spec(1).dtype == DType::Int8).then(|| io.int8(1).1),
            bias: self.bias.then(|| io.f32s(2)),
            residual: self.residual.then(|| io.f32s(2 + usize::from(self.bias))),
            col0: self.col0,
            width: self.width,
        }
    }
}

/// What follows a sum of products: the scales of 8-bit weights, bias and residual.
struct Ends<'a> {
    scales: Option<&'a [f32]>,
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    col0: usize,
    width: usize,
}

impl Ends<'_> {
    /// Adds them to the outputs `outs` of row `r`.
    fn add(&self, r: usize, outs: Range<usize>, y: &mut [f32]) {
        let add = |y: &mut [f32], more: &[f32]| y.iter_mut().zip(more).for_each(|(y, v)| *y += v);
        if let Some(scales) = self.scales {
            y.iter_mut().zip(&scales[outs.clone()]).for_each(|(y, scale)| *y *= scale);
        }
        if let Some(bias) = self.bias {
            add(y, &bias[outs.clone()]);
        }
        if let Some(residual) = self.residual {
            add(y, &residual[r * self.width + self.col0 + outs.start..][..outs.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shaders_have_the_same_blocks() {
        assert_eq!(shader!("matmul/matmul_matvec").number("OUTS"), Some(MATVEC_OUTS));
        let (lanes, tiles) = (shader!("matmul/matmul_lanes"), shader!("matmul/matmul_tiles"));
        assert_eq!(["WORKERS", "ROWS"].map(|n| lanes.number(n)), [Some(LANE_BLOCK[0] / 4), Some(LANE_BLOCK[1])]);
        assert_eq!(["OUTS", "ROWS"].map(|n| tiles.number(n)), TILE_BLOCK.map(Some));
    }

    #[test]
    fn every_tile_of_few_rows_is_whole() {
        for MatvecTile { name, lanes, groups } in MATVEC_TILES {
            let threads = lanes * groups;
            assert!(lanes.is_power_of_two() && threads % 32 == 0 && (32..=128).contains(&threads), "{name}");
        }
    }
}
