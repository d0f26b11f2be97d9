//! The windows of an image as rows, for a convolution by matrix product: a patch embedding, or any other.

use crate::error::Result;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{DType, Spec};

/// Square windows over a square image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Pixels a side.
    pub size: usize,
    /// Pixels from a window to the next.
    pub stride: usize,
    /// Pixels around the image that hold nothing, on each side.
    pub pad: usize,
}

impl Window {
    /// Windows side by side.
    pub const fn tiles(size: usize) -> Self {
        Window { size, stride: size, pad: 0 }
    }

    /// Windows along a side of an image of `side` pixels; none if it is smaller than a window, or no window at all.
    pub fn count(self, side: usize) -> Option<usize> {
        let room = (side + 2 * self.pad).checked_sub(self.size)?;
        (self.size > 0 && self.pad < self.size).then(|| room.checked_div(self.stride)).flatten().map(|n| n + 1)
    }

    /// The pixel of an axis at offset `i` of window `n`, if it is one of the image's `side`.
    pub(super) fn pixel(self, n: usize, i: usize, side: usize) -> Option<usize> {
        (n * self.stride + i).checked_sub(self.pad).filter(|&p| p < side)
    }
}

/// Side and channels of a square image: `[channels, s, s]`, or pixels as rows `[s², channels]`.
pub(super) fn square(x: &Spec) -> Option<[usize; 2]> {
    match x.shape[..] {
        [channels, height, width] if height == width => Some([width, channels]),
        [pixels, channels] if pixels.isqrt().pow(2) == pixels => Some([pixels.isqrt(), channels]),
        _ => None,
    }
}

/// x `[channels, s, s]` or `[s², channels]` F32 → `[front + g², w]` F32, g the windows a side: `front` rows of zeros, then
/// row `(Y, X)`, column `(c, y, x)`, the order of a convolution's weight; zeros outside the image, and in the columns
/// behind `channels · size²` that make w a multiple of 4. With the weight as a matrix this is a convolution, or a vision
/// transformer's patch embedding (Dosovitskiy et al. 2020).
#[derive(Debug)]
struct Patches {
    window: Window,
    front: usize,
}

params!(PatchesParams {
    side: u32,
    channels: u32,
    size: u32,
    stride: u32,
    pad: u32,
    grid: u32,
    front: u32,
    width: u32,
    step_channel: u32,
    step_pixel: u32,
});

impl PlanBuilder {
    /// The windows of an image, behind `front` rows of zeros for tokens that are no patch.
    #[track_caller]
    pub fn patches(&self, x: Slot, window: Window, front: usize) -> Slot {
        self.push(Patches { window, front }, &[x])
    }
}

/// Elements between neighbouring channels, and between neighbouring pixels.
fn steps(x: &Spec, [side, channels]: [usize; 2]) -> [usize; 2] {
    if x.shape.len() == 3 { [side * side, 1] } else { [1, channels] }
}

impl Op for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        let form = square(x).filter(|_| x.dtype == DType::F32);
        require("image", x, form.is_some(), "[channels, s, s] or [s², channels] F32")?;
        let [side, channels] = form.unwrap_or_default();
        let grid = self.window.count(side);
        require("image", x, grid.is_some(), "at least a window wide")?;
        let (grid, columns) = (grid.unwrap_or_default(), channels * self.window.size.pow(2));
        Ok(vec![Spec::fixed(&[self.front + grid * grid, columns.next_multiple_of(4)], DType::F32)])
    }

    fn cpu(&self, _: &Step, io: &mut Io) {
        let (x, spec, window) = (io.f32s(0), io.spec(0), self.window);
        let form @ [side, channels] = square(spec).unwrap_or_default();
        let (grid, width, size) = (window.count(side).unwrap_or_default(), io.out_spec(0).width(), window.size);
        let [step_channel, step_pixel] = steps(spec, form);
        for (at, out) in io.out_f32s(0).iter_mut().enumerate() {
            let (i, token) = (at % width, (at / width).checked_sub(self.front));
            let pixel = token.filter(|_| i < channels * size * size).and_then(|token| {
                let row = window.pixel(token / grid, i / size % size, side)?;
                Some(row * side + window.pixel(token % grid, i % size, side)?)
            });
            *out = pixel.map_or(0.0, |pixel| x[i / (size * size) * step_channel + pixel * step_pixel]);
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let (form, window) = (square(inputs[0]).unwrap_or_default(), self.window);
        let [step_channel, step_pixel] = steps(inputs[0], form);
        let params = PatchesParams {
            side: form[0] as u32,
            channels: form[1] as u32,
            size: window.size as u32,
            stride: window.stride as u32,
            pad: window.pad as u32,
            grid: window.count(form[0]).unwrap_or_default() as u32,
            front: self.front as u32,
            width: outputs[0].width() as u32,
            step_channel: step_channel as u32,
            step_pixel: step_pixel as u32,
        };
        let grid = Grid::x(Extent::rows(outputs[0], 1, 1));
        Kernel { source: shader!("patches"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
