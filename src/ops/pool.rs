//! Largest values and means of windows of an image.

use crate::error::Result;
use crate::ops::patches::{Pixels, Square, Window};
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// What a window becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolKind {
    /// Its largest value.
    Max,
    /// The mean of its values.
    Mean,
}

/// Each channel's largest value, or mean, over each window; x `[s², channels]` F32 → `[g², channels]` F32 with g windows per
/// side, or several of each. What lies outside the image is left out of both.
#[derive(Debug)]
struct Pool {
    window: Window,
    kind: PoolKind,
}

params!(PoolParams {
    counted_by: u32,
    images: u32,
    side: u32,
    channels: u32,
    size: u32,
    stride: u32,
    pad: u32,
    grid: u32
});

impl PlanBuilder {
    /// Largest values or means of the windows of an image whose pixels are rows.
    #[track_caller]
    pub fn pool(&self, x: Slot, window: Window, kind: PoolKind) -> Slot {
        self.push(Pool { window, kind }, &[x])
    }
}

impl Op for Pool {
    fn name(&self) -> &'static str {
        "pool"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        let form = Pixels::Rows.square(x).filter(|_| x.dtype == DType::F32);
        require("image", x, form.is_some(), "[s², channels] F32, or several of them")?;
        let form = form.unwrap_or_default();
        let grid = self.window.count(form.side);
        require("image", x, grid.is_some(), "at least a window wide")?;
        Ok(vec![form.matrices(x, grid.unwrap_or_default().pow(2), form.channels)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, window) = (io.f32s(0), self.window);
        let form = Pixels::Rows.square(io.spec(0)).unwrap_or_default();
        let (Square { side, channels, .. }, images) = (form, form.used(io.spec(0), step));
        let grid = window.count(side).unwrap_or_default();
        for (at, y) in io.out_f32s(0).iter_mut().enumerate().take(images * grid * grid * channels) {
            let (c, token) = (at % channels, at / channels % (grid * grid));
            let x = &x[at / (grid * grid * channels) * form.len()..];
            let pixels = |n: usize| (0..window.size).filter_map(move |i| window.pixel(n, i, side));
            let rows = pixels(token / grid);
            let values = rows.flat_map(|row| pixels(token % grid).map(move |col| x[(row * side + col) * channels + c]));
            let (max, sum, n) = values.fold((f32::NEG_INFINITY, 0.0, 0), |(max, sum, n), v| {
                (if v > max || v.is_nan() { v } else { max }, sum + f64::from(v), n + 1)
            });
            *y = match self.kind {
                PoolKind::Max => max,
                PoolKind::Mean => (sum / f64::from(n)) as f32,
            };
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let (form, window) = (Pixels::Rows.square(inputs[0]).unwrap_or_default(), self.window);
        let Square { side, channels, several } = form;
        let params = PoolParams {
            counted_by: outputs[0].counted_by as u32,
            images: if several { inputs[0].shape[0] as u32 } else { 1 },
            side: side as u32,
            channels: channels as u32,
            size: window.size as u32,
            stride: window.stride as u32,
            pad: window.pad as u32,
            grid: window.count(side).unwrap_or_default() as u32,
        };
        let define = match self.kind {
            PoolKind::Max => "MAX",
            PoolKind::Mean => "MEAN",
        };
        let grid = Grid::x(Extent::rows(outputs[0], channels, 64));
        Kernel {
            source: shader!("vision/pool"),
            defines: vec![define],
            overrides: vec![],
            params: params.params(),
            grid,
        }
    }
}
