//! Pixel values of a picture resized without rounding in between, as PyTorch's `interpolate` does.

use crate::files::Image;

/// Where an element of a resized axis comes from: two neighbours, and the weight of the second.
struct Tap {
    near: usize,
    far: usize,
    weight: f32,
}

/// The taps of an axis of `from` pixels made `to` long: around `(o + 0.5) · from / to − 0.5`, in f32 and by a fused
/// multiply-add, as the original computes it, and never outside the picture.
fn taps(from: usize, to: usize) -> Vec<Tap> {
    let scale = from as f32 / to as f32;
    let tap = |o: usize| {
        let at = scale.mul_add(o as f32 + 0.5, -0.5).max(0.0);
        let near = (at as usize).min(from - 1);
        Tap { near, far: (near + 1).min(from - 1), weight: at - near as f32 }
    };
    (0..to).map(tap).collect()
}

impl Image {
    /// What a vision encoder reads, `[3, size, size]`: the picture in 0..1 made `size` pixels per side, bilinear, the aspect
    /// ratio ignored and shrinking without smoothing (`align_corners=False, antialias=False`), then `(x − mean) / std`
    /// for each channel. A picture that has the size already is not resampled.
    pub fn bilinear_values(&self, size: usize, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
        let (rows, columns) = (taps(self.height, size), taps(self.width, size));
        let mut values = Vec::with_capacity(3 * size * size);
        for (channel, (mean, std)) in mean.into_iter().zip(std).enumerate() {
            let pixel = |y: usize, x: usize| f32::from(self.rgb[(y * self.width + x) * 3 + channel]) / 255.0;
            for row in &rows {
                for column in &columns {
                    let along =
                        |y: usize| (1.0 - column.weight) * pixel(y, column.near) + column.weight * pixel(y, column.far);
                    let value = (1.0 - row.weight) * along(row.near) + row.weight * along(row.far);
                    values.push((value - mean) / std);
                }
            }
        }
        values
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_pixels_become_four_between_them() {
        let image = Image::from_rgb(2, 1, vec![0, 0, 0, 255, 255, 255]).unwrap();
        let values = image.bilinear_values(4, [0.0; 3], [1.0; 3]);
        assert_eq!(values[..4], [0.0, 0.25, 0.75, 1.0]);
        assert_eq!(values.len(), 48);
    }
}
