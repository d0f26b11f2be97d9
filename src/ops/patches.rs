//! The patches of an image as rows, for a patch embedding by matrix product.

use crate::error::Result;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// x `[channels, s, s]` F32 → `[g², channels · patch²]` F32 with `g = s / patch`: row `(Y, X)`, column `(c, y, x)`, the
/// order of a convolution's weight. With the weight as a matrix this is a convolution of stride = kernel = patch
/// (Dosovitskiy et al. 2020).
#[derive(Debug)]
struct Patches {
    patch: usize,
}

params!(PatchesParams { side: u32, size: u32, grid: u32, width: u32 });

impl PlanBuilder {
    /// The non-overlapping square patches of an image `[channels, s, s]`.
    #[track_caller]
    pub fn patches(&self, x: Slot, patch: usize) -> Slot {
        self.push(Patches { patch }, &[x])
    }
}

impl Op for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        let square = x.dtype == DType::F32 && x.shape.len() == 3 && x.shape[1] == x.shape[2];
        require("image", x, square, "[channels, s, s] F32")?;
        require("image", x, x.width() >= self.patch && self.patch > 0, "at least a patch wide")?;
        let g = x.width() / self.patch;
        Ok(vec![Spec::fixed(&[g * g, x.shape[0] * self.patch * self.patch], DType::F32)])
    }

    fn cpu(&self, _: &Step, io: &mut Io) {
        let (x, side, patch) = (io.f32s(0), io.spec(0).width(), self.patch);
        let (grid, width) = (side / patch, io.out_spec(0).width());
        for (at, out) in io.out_f32s(0).iter_mut().enumerate() {
            let (token, i) = (at / width, at % width);
            let (c, y, x0) = (i / (patch * patch), i / patch % patch, i % patch);
            let row = token / grid * patch + y;
            *out = x[(c * side + row) * side + token % grid * patch + x0];
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let side = inputs[0].width();
        let params = PatchesParams {
            side: side as u32,
            size: self.patch as u32,
            grid: (side / self.patch) as u32,
            width: outputs[0].width() as u32,
        };
        let grid = Grid::x(Extent::rows(outputs[0], 1, 1));
        Kernel { source: shader!("patches"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
