//! A small picture and what can be drawn on it. Edges are hard, bounds are included, and fractions of a pixel are cut
//! off: pixel for pixel what the Python library Pillow draws, on whose pictures the demo model is trained.

use image::{Rgb, RgbImage};

/// Red, green and blue.
pub type Ink = [u8; 3];

/// Width and height of a scene, in pixels.
pub const SIZE: u32 = 128;

/// A point, in pixels from the left and from the top.
pub type Point = (f64, f64);

/// Left, top, right and bottom, all included.
pub type Bounds = [f64; 4];

/// Bounds that reach `rx` and `ry` pixels from their centre.
pub fn around((x, y): Point, rx: f64, ry: f64) -> Bounds {
    [x - rx, y - ry, x + rx, y + ry]
}

/// Bounds with `by` pixels less on each side.
pub fn inset([left, top, right, bottom]: Bounds, by: f64) -> Bounds {
    [left + by, top + by, right - by, bottom - by]
}

/// A picture that is being drawn.
pub struct Canvas(pub RgbImage);

impl Canvas {
    /// A picture of one colour.
    pub fn new(ink: Ink) -> Self {
        Canvas(RgbImage::from_pixel(SIZE, SIZE, Rgb(ink)))
    }

    /// Mixes `ink` into a pixel, with `share` of 255; outside the picture nothing happens.
    pub fn blend(&mut self, x: i32, y: i32, ink: Ink, share: u8) {
        if let (Ok(x), Ok(y)) = (u32::try_from(x), u32::try_from(y))
            && let Some(pixel) = self.0.get_pixel_mut_checked(x, y)
        {
            for (old, new) in pixel.0.iter_mut().zip(ink) {
                let (old_part, new_part) =
                    (u32::from(*old) * u32::from(255 - share), u32::from(new) * u32::from(share));
                *old = ((old_part + new_part + 127) / 255) as u8;
            }
        }
    }

    /// Paints a row of pixels.
    fn row(&mut self, y: i32, left: i32, right: i32, ink: Ink) {
        for x in left..=right {
            self.blend(x, y, ink, 255);
        }
    }

    /// A filled rectangle.
    pub fn rectangle(&mut self, bounds: Bounds, ink: Ink) {
        let [left, top, right, bottom] = bounds.map(|v| v as i32);
        for y in top..=bottom {
            self.row(y, left, right, ink);
        }
    }

    /// The border of a rectangle, `width` pixels wide; the border lies inside the bounds.
    pub fn frame(&mut self, bounds: Bounds, width: f64, ink: Ink) {
        let [left, top, right, bottom] = bounds.map(f64::trunc);
        let w = width - 1.0;
        for side in [
            [left, top, right, top + w],
            [left, bottom - w, right, bottom],
            [left, top, left + w, bottom],
            [right - w, top, right, bottom],
        ] {
            self.rectangle(side, ink);
        }
    }

    /// A filled ellipse.
    pub fn ellipse(&mut self, bounds: Bounds, ink: Ink) {
        self.paint(bounds, ink, |x, y| Oval::new(bounds).has(x, y));
    }

    /// The border of an ellipse, `width` pixels wide; the border lies inside the bounds.
    pub fn ring(&mut self, bounds: Bounds, width: f64, ink: Ink) {
        let (outer, inner) = (Oval::new(bounds), Oval::new(inset(bounds, width - 1.0)));
        self.paint(bounds, ink, |x, y| outer.has(x, y) && !inner.has_within(x, y));
    }

    /// Paints the pixels within the bounds that belong.
    fn paint(&mut self, bounds: Bounds, ink: Ink, belongs: impl Fn(f64, f64) -> bool) {
        let [left, top, right, bottom] = bounds.map(|v| v as i32);
        for (x, y) in (top..=bottom).flat_map(|y| (left..=right).map(move |x| (x, y))) {
            if belongs(f64::from(x), f64::from(y)) {
                self.blend(x, y, ink, 255);
            }
        }
    }

    /// A filled rectangle with round corners.
    pub fn rounded(&mut self, bounds: Bounds, radius: f64, ink: Ink) {
        let [left, top, right, bottom] = bounds;
        let d = 2.0 * radius;
        for (x, y) in [(left, top), (right - d, top), (left, bottom - d), (right - d, bottom - d)] {
            self.ellipse([x, y, x + d, y + d], ink);
        }
        self.rectangle([left + radius, top, right - radius, bottom], ink);
        self.rectangle([left, top + radius, right, bottom - radius], ink);
    }

    /// A filled polygon. A row is filled between its crossings with the edges; the corners and the level edges belong.
    pub fn polygon(&mut self, points: &[Point], ink: Ink) {
        let corners: Vec<(i32, i32)> = points.iter().map(|p| (p.0 as i32, p.1 as i32)).collect();
        let edges: Vec<_> = corners.iter().zip(corners.iter().cycle().skip(1)).collect();
        for &((ax, ay), (bx, by)) in &edges {
            self.row(*ay, *ax, *ax, ink);
            if ay == by {
                self.row(*ay, *ax.min(bx), *ax.max(bx), ink);
            }
        }
        let top = corners.iter().map(|c| c.1).min().unwrap_or(0);
        let bottom = corners.iter().map(|c| c.1).max().unwrap_or(0);
        for y in top..bottom {
            let crossed = edges.iter().filter(|((_, ay), (_, by))| (*ay.min(by)..*ay.max(by)).contains(&y));
            let mut at: Vec<f64> = crossed
                .map(|((ax, ay), (bx, by))| f64::from(*ax) + f64::from((y - ay) * (bx - ax)) / f64::from(by - ay))
                .collect();
            at.sort_by(f64::total_cmp);
            for pair in at.chunks_exact(2) {
                self.row(y, (pair[0] + 0.5).floor() as i32, (pair[1] - 0.5).ceil() as i32, ink);
            }
        }
    }

    /// Straight lines from point to point, `width` pixels wide. Of an even width, the half towards the right and the
    /// bottom is a pixel wider.
    pub fn line(&mut self, points: &[Point], width: f64, ink: Ink) {
        let (near, far) = (((width - 1.0) / 2.0).floor(), ((width - 1.0) / 2.0).ceil());
        for pair in points.windows(2) {
            let [(ax, ay), (bx, by)] = [pair[0], pair[1]].map(|(x, y)| (x.trunc(), y.trunc()));
            let length = ((bx - ax).powi(2) + (by - ay).powi(2)).sqrt();
            if length > 0.0 {
                let (ux, uy) = ((bx - ax) / length, (by - ay) / length);
                let (nx, ny) = ((near * uy).round(), (near * ux).round());
                let (fx, fy) = ((far * uy).round(), (far * ux).round());
                self.polygon(&[(ax - nx, ay + fy), (bx - nx, by + fy), (bx + fx, by - ny), (ax + fx, ay - ny)], ink);
            }
        }
    }

    /// An arrow: a line of `width` pixels that ends in a triangle of `head` pixels, its tip at `to`.
    pub fn arrow(&mut self, from: Point, to: Point, width: f64, head: f64, ink: Ink) {
        let angle = libm::atan2(to.1 - from.1, to.0 - from.0);
        let (cos, sin) = (libm::cos(angle), libm::sin(angle));
        self.line(&[from, (to.0 - 0.8 * head * cos, to.1 - 0.8 * head * sin)], width, ink);
        let (back, side) = ((to.0 - head * cos, to.1 - head * sin), (-sin * head * 0.62, cos * head * 0.62));
        self.polygon(&[to, (back.0 + side.0, back.1 + side.1), (back.0 - side.0, back.1 - side.1)], ink);
    }
}

/// An ellipse, as a set of pixels: those inside the curve, and the rim, of the pixels nearest to the curve.
struct Oval {
    center: Point,
    radii: Point,
}

impl Oval {
    fn new(bounds: Bounds) -> Self {
        let [left, top, right, bottom] = bounds.map(f64::trunc);
        Oval {
            center: ((left + right) / 2.0, (top + bottom) / 2.0),
            radii: ((right - left) / 2.0, (bottom - top) / 2.0),
        }
    }

    /// Below 0 inside the curve, above 0 outside: at a pixel, and one step along each axis from it, outwards (`step` 1)
    /// or inwards (-1).
    fn curve(&self, x: f64, y: f64, step: f64) -> [f64; 3] {
        let (dx, dy) = ((x - self.center.0).abs(), (y - self.center.1).abs());
        [(dx, dy), (dx + step, dy), (dx, dy + step)]
            .map(|(dx, dy)| (dx / self.radii.0).powi(2) + (dy / self.radii.1).powi(2) - 1.0)
    }

    /// A pixel outside is of the rim if the step inwards leads at least as far from the curve, to its other side.
    fn has(&self, x: f64, y: f64) -> bool {
        let [here, across, down] = self.curve(x, y, -1.0);
        here <= 0.0 || here <= -across || here <= -down
    }

    /// Without the rim: a pixel inside is of it if the step outwards leads at least as far from the curve.
    fn has_within(&self, x: f64, y: f64) -> bool {
        let [here, across, down] = self.curve(x, y, 1.0);
        here < 0.0 && -here > across && -here > down
    }
}
