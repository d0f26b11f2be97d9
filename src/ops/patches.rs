//! The windows of an image as rows, for a convolution by matrix product: a patch embedding, or any other.

use crate::error::Result;
use crate::ops::require;
use crate::params;
use crate::plan::{Caps, Extent, Grid, Io, Kernel, Op, ParamStruct, PlanBuilder, Slot, Step};
use crate::shader;
use crate::tensor::{CountedBy, DType, Spec};

/// Square windows over a square image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Pixels per side.
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

    /// Windows along a side of an image of `side` pixels; none if it is smaller than a window, or if the window is empty.
    pub fn count(self, side: usize) -> Option<usize> {
        let room = (side + 2 * self.pad).checked_sub(self.size)?;
        (self.size > 0 && self.pad < self.size).then(|| room.checked_div(self.stride)).flatten().map(|n| n + 1)
    }

    /// The pixel of an axis at offset `i` of window `n`, if it is one of the image's `side`.
    pub(super) fn pixel(self, n: usize, i: usize, side: usize) -> Option<usize> {
        (n * self.stride + i).checked_sub(self.pad).filter(|&p| p < side)
    }
}

/// How the elements of a square image lie; several images have one more dimension in front.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pixels {
    /// A plane for each channel, `[channels, s, s]`.
    Planes,
    /// A row for each pixel, `[s², channels]`.
    Rows,
}

/// Square images.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Square {
    /// Pixels per side.
    pub side: usize,
    /// Channels.
    pub channels: usize,
    /// Whether there are several images, or may be.
    pub several: bool,
}

impl Pixels {
    /// The images that a slot holds, if it has their form.
    pub(super) fn square(self, x: &Spec) -> Option<Square> {
        let (side, channels, rank) = match (self, &x.shape[..]) {
            (Pixels::Planes, [.., channels, height, width]) => (height == width).then_some((*width, *channels, 3)),
            (Pixels::Rows, [.., pixels, channels]) => {
                (pixels.isqrt().pow(2) == *pixels).then_some((pixels.isqrt(), *channels, 2))
            }
            _ => None,
        }?;
        (x.shape.len() - rank <= 1).then_some(Square { side, channels, several: x.shape.len() > rank })
    }

    /// Elements between neighbouring channels, and between neighbouring pixels.
    fn steps(self, Square { side, channels, .. }: Square) -> [usize; 2] {
        match self {
            Pixels::Planes => [side * side, 1],
            Pixels::Rows => [1, channels],
        }
    }
}

impl Square {
    /// Elements of an image.
    pub(super) fn len(self) -> usize {
        self.side * self.side * self.channels
    }

    /// The images of a slot x as matrices `[rows, width]`.
    pub(super) fn matrices(self, x: &Spec, rows: usize, width: usize) -> Spec {
        let shape = if self.several { vec![x.shape[0], rows, width] } else { vec![rows, width] };
        Spec { shape, dtype: DType::F32, counted_by: if self.several { x.counted_by } else { CountedBy::Fixed } }
    }

    /// How many of a slot's images a step uses.
    pub(super) fn used(self, x: &Spec, step: &Step) -> usize {
        if self.several { step.rows_in_use(x) } else { 1 }
    }
}

/// x, an image or several ([`Pixels`]) F32 → `[front + g², w]` F32 of each, g the windows per side: `front` rows of zeros, then
/// row `(Y, X)`, column `(c, y, x)`, the order of a convolution's weight; zeros outside the image, and in columns
/// behind `channels · size²`, for a weight whose rows are padded so. With the weight as a matrix this is a convolution, or a vision
/// transformer's patch embedding (Dosovitskiy et al. 2020).
#[derive(Debug)]
struct Patches {
    pixels: Pixels,
    window: Window,
    front: usize,
    width: usize,
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
    /// The windows of each image as rows of `width` columns, behind `front` rows of zeros for tokens that are not patches.
    #[track_caller]
    pub fn patches(&self, x: Slot, pixels: Pixels, window: Window, front: usize, width: usize) -> Slot {
        self.push(Patches { pixels, window, front, width }, &[x])
    }
}

impl Op for Patches {
    fn name(&self) -> &'static str {
        "patches"
    }

    fn infer(&self, inputs: &[&Spec]) -> Result<Vec<Spec>> {
        let x = inputs[0];
        let form = self.pixels.square(x).filter(|_| x.dtype == DType::F32);
        let expected = match self.pixels {
            Pixels::Planes => "[channels, s, s] F32, or several of them",
            Pixels::Rows => "[s², channels] F32, or several of them",
        };
        require("image", x, form.is_some(), expected)?;
        let form = form.unwrap_or_default();
        let grid = self.window.count(form.side);
        require("image", x, grid.is_some(), "at least a window wide")?;
        let (grid, columns) = (grid.unwrap_or_default(), form.channels * self.window.size.pow(2));
        require("image", x, self.width >= columns, "windows of no more elements than the rows have columns")?;
        Ok(vec![form.matrices(x, self.front + grid * grid, self.width)])
    }

    fn cpu(&self, step: &Step, io: &mut Io) {
        let (x, spec, window) = (io.f32s(0), io.spec(0), self.window);
        let form = self.pixels.square(spec).unwrap_or_default();
        let Square { side, channels, .. } = form;
        let (grid, width, size) = (window.count(side).unwrap_or_default(), io.out_spec(0).width(), window.size);
        let [step_channel, step_pixel] = self.pixels.steps(form);
        let rows = self.front + grid * grid;
        for (at, out) in io.out_f32s(0).iter_mut().enumerate().take(form.used(spec, step) * rows * width) {
            let (i, row) = (at % width, at / width);
            let (image, token) = (row / rows * form.len(), (row % rows).checked_sub(self.front));
            let pixel = token.filter(|_| i < channels * size * size).and_then(|token| {
                let row = window.pixel(token / grid, i / size % size, side)?;
                Some(row * side + window.pixel(token % grid, i % size, side)?)
            });
            *out = pixel.map_or(0.0, |pixel| x[image + i / (size * size) * step_channel + pixel * step_pixel]);
        }
    }

    fn kernel(&self, _: &Caps, inputs: &[&Spec], outputs: &[&Spec]) -> Kernel {
        let (form, window) = (self.pixels.square(inputs[0]).unwrap_or_default(), self.window);
        let [step_channel, step_pixel] = self.pixels.steps(form);
        let params = PatchesParams {
            side: form.side as u32,
            channels: form.channels as u32,
            size: window.size as u32,
            stride: window.stride as u32,
            pad: window.pad as u32,
            grid: window.count(form.side).unwrap_or_default() as u32,
            front: self.front as u32,
            width: outputs[0].width() as u32,
            step_channel: step_channel as u32,
            step_pixel: step_pixel as u32,
        };
        let grid = Grid::x(Extent::rows(outputs[0], 1, 1));
        Kernel { source: shader!("vision/patches"), defines: vec![], overrides: vec![], params: params.params(), grid }
    }
}
