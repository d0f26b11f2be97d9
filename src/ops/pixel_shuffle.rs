//! Token compression: every block of neighbouring tokens becomes one wider token.

use crate::error::Result;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// x `[g², d]` F32, a grid of tokens → `[t², f²·d]` F32 with `t = ceil(g / f)`: token `(Y, X)`, channel
/// `(dy·f + dx)·d + c` is x at `(Y·f + dy, X·f + dx)`, zero outside the grid. Source: Shi et al. 2016, inverted.
#[derive(Debug)]
struct PixelShuffle {
    factor: usize,
    grid: usize,
}

params!(PixelShuffleParams { grid: u32, tokens: u32, factor: u32, width: u32 });

impl PlanBuilder {
    /// Blocks of `factor × factor` tokens of a square grid as single tokens; missing tokens are zeros.
    #[track_caller]
    pub fn pixel_shuffle(&self, x: Slot, factor: usize) -> Slot {
        let grid = self.spec(x).shape[0].isqrt();
        self.push(PixelShuffle { factor, grid }, &[x])
    }
}

impl Op for PixelShuffle {
    fn name(&self) -> &'static str {
        "pixel_shuffle"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        require("tokens", x, x.dtype == DType::F32 && x.shape.len() == 2, "[g², d] F32")?;
        require("tokens", x, x.shape[0] == self.grid * self.grid, "a square number of rows")?;
        let t = self.grid.div_ceil(self.factor);
        Ok(vec![Spec::fixed(&[t * t, self.factor * self.factor * x.width()], DType::F32)])
    }

    fn cpu(&self, _: &Step, io: &mut Io) {
        let (x, width, factor) = (io.f32s(0), io.spec(0).width(), self.factor);
        let (tokens, blocks) = (self.grid.div_ceil(factor), factor * factor);
        for (at, out) in io.out_f32s(0).chunks_exact_mut(width.max(1)).enumerate() {
            let (token, block) = (at / blocks, at % blocks);
            let row = token / tokens * factor + block / factor;
            let column = token % tokens * factor + block % factor;
            match row < self.grid && column < self.grid {
                true => out.copy_from_slice(&x[(row * self.grid + column) * width..][..width]),
                false => out.fill(0.0),
            }
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let params = PixelShuffleParams {
            grid: self.grid as u32,
            tokens: self.grid.div_ceil(self.factor) as u32,
            factor: self.factor as u32,
            width: inputs[0].width() as u32,
        };
        let grid = Grid::x(Extent::rows(outputs[0], 1, 1));
        Kernel {
            source: shader!("vision/pixel_shuffle"),
            defines: vec![],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
