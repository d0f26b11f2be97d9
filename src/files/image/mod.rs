//! Pictures: decoding under limits, the bicubic resize of Pillow, and the pixel values a vision encoder reads.
//!
//! In reading order: this file ([`Image`]), `gif` (the first frame of an animation), `bilinear` (the resize of PyTorch that
//! BitGens read).

pub(crate) mod bilinear;
pub(crate) mod gif;

use std::io::Cursor;
use std::path::Path;

use fast_image_resize::images::{TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};
use image::metadata::Orientation;
use image::{ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use crate::error::{Error, Result};
use crate::files::read_at_most;

/// The largest width and the largest height of a picture that is decoded or made by a resize, in pixels.
pub const MAX_SIDE: u32 = 16384;

/// Maximum size of a picture's file, and of its pixels, as the file holds them and as [`Image`] does together: 512 MiB.
pub const MAX_BYTES: u64 = 512 << 20;

/// The formats that [`Image::decode`] reads, for messages.
const SUPPORTED: &str = "PNG, JPEG, WebP, BMP and GIF (its first frame) are";

/// Colour channels of an [`Image`].
const CHANNELS: usize = 3;

/// A picture of 8-bit red, green and blue, row by row from the top left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The width in pixels, at least 1.
    pub width: usize,
    /// The height in pixels, at least 1.
    pub height: usize,
    /// The colours, `[height, width, 3]`.
    pub rgb: Vec<u8>,
}

impl Image {
    /// Reads and decodes the picture at `path`; the format is recognised by its content, never by its name.
    ///
    /// # Errors
    /// [`Error::Io`], and those of [`Image::decode`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::decode(&path.display().to_string(), &read_at_most(path, MAX_BYTES)?)
    }

    /// Decodes a PNG, JPEG, WebP, BMP or GIF held in `bytes`; `name` stands for it in messages.
    ///
    /// Palette and grey pictures become RGB, 16-bit samples are rounded to 8 bits, an alpha channel is dropped
    /// (the colours under it are kept, as Pillow's `convert("RGB")` does). Of an animation the first frame is taken, on its
    /// background where it does not cover the picture, as Pillow does. The EXIF orientation is applied.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another format, [`Error::Limit`] for a picture beyond [`MAX_SIDE`] or
    /// [`MAX_BYTES`] (checked before its pixels are decoded), [`Error::Format`] for a broken or truncated one.
    pub fn decode(name: &str, bytes: &[u8]) -> Result<Self> {
        if bytes.is_empty() {
            return Err(Error::format(name, "the file is empty, expected a picture"));
        }
        if bytes.len() as u64 > MAX_BYTES {
            return Err(too_large(name, format!("more than {MAX_BYTES} bytes of file")));
        }
        let format = supported_format(name, bytes)?;
        if format == ImageFormat::Jpeg {
            check_jpeg(name, bytes)?;
        }
        if format == ImageFormat::Gif {
            return gif::decode(name, bytes);
        }
        let (pixels, orientation) = decode_limited(bytes, format).map_err(|e| explain(name, bytes, format, e))?;
        let mut pixels = DynamicImage::ImageRgb8(pixels.into_rgb8());
        pixels.apply_orientation(orientation);
        Self::try_from(pixels).map_err(|e| Error::format(name, format!("not a picture: {e}")))
    }

    /// A picture from rows of red, green and blue bytes, `[height, width, 3]`.
    ///
    /// # Errors
    /// [`Error::Argument`] when a side is zero, [`Error::Shape`] when the number of bytes is another.
    pub fn from_rgb(width: usize, height: usize, rgb: Vec<u8>) -> Result<Self> {
        if width == 0 || height == 0 {
            return Err(Error::argument("image", format!("{width} x {height} pixels, expected at least 1 x 1")));
        }
        let expected = width.checked_mul(height).and_then(|n| n.checked_mul(CHANNELS));
        if expected != Some(rgb.len()) {
            let shape = format!("[{height}, {width}, {CHANNELS}] u8");
            return Err(Error::shape("image", shape, format!("{} bytes", rgb.len())));
        }
        Ok(Self { width, height, rgb })
    }

    /// A picture from rows of red, green, blue and alpha bytes, `[height, width, 4]`, as textures have them; alpha is dropped, as
    /// [`Image::decode`] drops it.
    ///
    /// # Errors
    /// As [`Image::from_rgb`].
    pub fn from_rgba(width: usize, height: usize, rgba: &[u8]) -> Result<Self> {
        let (pixels, rest) = rgba.as_chunks::<4>();
        if !rest.is_empty() {
            let shape = format!("[{height}, {width}, 4] u8");
            return Err(Error::shape("image", shape, format!("{} bytes", rgba.len())));
        }
        Self::from_rgb(width, height, pixels.iter().flat_map(|&[r, g, b, _]| [r, g, b]).collect())
    }

    /// The picture at `size` x `size` pixels, the aspect ratio ignored: Pillow's BICUBIC (a = -0.5, with the support
    /// widened when shrinking), as the processors of SigLIP and CLIP resize.
    ///
    /// At most 1 level from Pillow in a small share of the bytes, for the coefficients have fewer bits than Pillow's
    /// 22. A picture that has the size already is copied.
    ///
    /// # Errors
    /// [`Error::Argument`] when `size` is 0 or above [`MAX_SIDE`], [`Error::Limit`] when this picture has a side
    /// beyond 2^32.
    pub fn resized(&self, size: usize) -> Result<Image> {
        if size == 0 || size > MAX_SIDE as usize {
            return Err(Error::argument("image size", format!("{size}, expected 1 to {MAX_SIDE}")));
        }
        // Each pass rounds to 8 bits, so the order of the passes shows in the result: Pillow goes along the rows
        // first, and along the columns first where that makes the picture between the passes the smaller one.
        let columns_first = size > self.width && size < self.height;
        let passes =
            if columns_first { [(self.width, size), (size, size)] } else { [(size, self.height), (size, size)] };
        let mut image = self.clone();
        for (width, height) in passes {
            image = image.convolved(width, height)?;
        }
        Ok(image)
    }

    /// One pass of the resize, to a size that differs along one axis only.
    fn convolved(self, width: usize, height: usize) -> Result<Image> {
        if (self.width, self.height) == (width, height) {
            return Ok(self);
        }
        let side = |n: usize| u32::try_from(n).map_err(|_| too_large("image", format!("a side of {n} pixels")));
        let failed = |e: &dyn std::fmt::Display| Error::format("image", format!("cannot be resized: {e}"));
        let source =
            TypedImageRef::from_buffer(side(self.width)?, side(self.height)?, &self.rgb).map_err(|e| failed(&e))?;
        let mut rgb = vec![0; CHANNELS * width * height];
        let mut target = TypedImage::from_buffer(side(width)?, side(height)?, &mut rgb).map_err(|e| failed(&e))?;
        let algorithm = ResizeAlg::Convolution(FilterType::CatmullRom);
        let options = ResizeOptions::new().resize_alg(algorithm).use_alpha(false);
        // Typed, since the resize of whatever type there is would be compiled for all of them.
        Resizer::new().resize_typed::<U8x3>(&source, &mut target, &options).map_err(|e| failed(&e))?;
        Self::from_rgb(width, height, rgb)
    }

    /// What a vision encoder reads, `[3, height, width]`: `(x / 255 - mean) / std` for each channel.
    ///
    /// The scale is applied in f64 and rounded to f32, the rest is in f32, as the image processors of transformers do.
    pub fn pixel_values(&self, mean: [f32; 3], std: [f32; 3]) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.rgb.len());
        for (channel, (mean, std)) in mean.into_iter().zip(std).enumerate() {
            let table: [f32; 256] = std::array::from_fn(|u| ((u as f64 * (1.0 / 255.0)) as f32 - mean) / std);
            // A u8 cannot index past 256 entries.
            values.extend(self.rgb.iter().skip(channel).step_by(CHANNELS).map(|&u| table[usize::from(u)]));
        }
        values
    }
}

/// A decoded picture of the `image` crate: its colours in 8 bits, without alpha.
impl TryFrom<DynamicImage> for Image {
    type Error = Error;

    fn try_from(picture: DynamicImage) -> Result<Self> {
        let rgb = picture.into_rgb8();
        let (width, height) = rgb.dimensions();
        Self::from_rgb(width as usize, height as usize, rgb.into_raw())
    }
}

/// About how many bytes decoding the picture at `path` takes, by its header; those of the file where that cannot be told.
pub(crate) fn decoded_bytes(path: &Path) -> u64 {
    let of_file = std::fs::metadata(path).map_or(0, |file| file.len());
    let size = ImageReader::open(path).and_then(ImageReader::with_guessed_format).ok().and_then(|mut reader| {
        reader.limits(limits());
        reader.into_dimensions().ok()
    });
    let pixels = size.map_or(0, |(width, height)| u64::from(width) * u64::from(height));
    of_file.saturating_add(pixels.saturating_mul(2 * CHANNELS as u64))
}

/// The format that the first bytes tell, or an error that names what it looks like and what is read instead.
fn supported_format(name: &str, bytes: &[u8]) -> Result<ImageFormat> {
    let guess = image::guess_format(bytes).ok();
    match guess {
        Some(
            format @ (ImageFormat::Png | ImageFormat::Jpeg | ImageFormat::WebP | ImageFormat::Bmp | ImageFormat::Gif),
        ) => Ok(format),
        other => {
            let kind = other.map_or_else(|| look_of(bytes).to_string(), |format| format!("{format:?}"));
            let object = format!("{name}: the picture format ({kind})");
            Err(Error::Unsupported { object, problem: format!("only {SUPPORTED}; convert the picture first") })
        }
    }
}

/// What a file that is not a supported picture looks like, for the message.
fn look_of(bytes: &[u8]) -> &'static str {
    let head = bytes.get(..bytes.len().min(512)).unwrap_or(bytes);
    let text = String::from_utf8_lossy(head).to_ascii_lowercase();
    let text = text.trim_start_matches('\u{feff}').trim_start();
    if text.contains("<svg") || text.starts_with("<?xml") {
        "SVG or other XML"
    } else if text.starts_with("<!doctype html") || text.starts_with("<html") {
        "an HTML page"
    } else if text.starts_with("version https://git-lfs") {
        "a Git LFS pointer, fetch the file itself"
    } else if head.get(4..8) == Some(b"ftyp") {
        "HEIC, AVIF or a video"
    } else {
        "unknown"
    }
}

/// The limits that hold while a picture is decoded.
fn limits() -> Limits {
    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    limits.max_alloc = Some(MAX_BYTES);
    limits
}

/// Decodes under [`limits`], which are set before any pixel is read.
fn decode_limited(bytes: &[u8], format: ImageFormat) -> image::ImageResult<(DynamicImage, Orientation)> {
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    reader.limits(limits());
    let mut decoder = reader.into_decoder()?;
    let (width, height) = decoder.dimensions();
    let mut left = limits();
    left.check_dimensions(width, height)?;
    left.reserve(decoder.total_bytes())?;
    if decoder.color_type() != ColorType::Rgb8 {
        // Its copy in the colours of an [`Image`].
        left.reserve(u64::from(width) * u64::from(height) * CHANNELS as u64)?;
    }
    decoder.set_limits(left)?;
    // A picture whose EXIF data cannot be read is shown as it lies.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    Ok((DynamicImage::from_decoder(decoder)?, orientation))
}

/// The error of a picture that could not be decoded, with its size where a limit stopped it.
fn explain(name: &str, bytes: &[u8], format: ImageFormat, error: ImageError) -> Error {
    if !matches!(error, ImageError::Limits(_)) {
        return Error::format(name, format!("broken or truncated {format:?}, {} bytes: {error}", bytes.len()));
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), format);
    let mut header = Limits::no_limits();
    header.max_alloc = Some(MAX_BYTES);
    reader.limits(header);
    let size = reader.into_dimensions().map_or_else(|_| "more".into(), |(w, h)| format!("{w} x {h} pixels"));
    too_large(name, size)
}

/// [`Error::Limit`] for a picture.
pub(crate) fn too_large(name: &str, wanted: String) -> Error {
    Error::Limit {
        what: format!("{name}: the picture"),
        wanted,
        available: format!("{MAX_SIDE} pixels per side and {} MiB", MAX_BYTES >> 20),
        advice: "scale it down first".into(),
    }
}

/// Refuses a JPEG that is cut short, or has fewer bits than blocks of 8 × 8 pixels, each of which takes one at least: the JPEG
/// decoder fills what is missing with grey and reports nothing.
fn check_jpeg(name: &str, bytes: &[u8]) -> Result<()> {
    let truncated =
        |problem: &str| Err(Error::format(name, format!("the JPEG is truncated: {} bytes, {problem}", bytes.len())));
    if !jpeg_is_complete(bytes) {
        return truncated("no end marker");
    }
    // What has no size is refused by the decoder.
    let size = ImageReader::with_format(Cursor::new(bytes), ImageFormat::Jpeg).into_dimensions();
    match size {
        Ok((width, height))
            if u64::from(width.div_ceil(8)) * u64::from(height.div_ceil(8)) > 8 * bytes.len() as u64 =>
        {
            truncated(&format!("too few for {width} x {height} pixels"))
        }
        _ => Ok(()),
    }
}

/// Whether a JPEG runs up to its end marker: walks the segments by their lengths, and the compressed data between
/// them by its markers, so that the end marker of an embedded thumbnail is not taken for the picture's.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 2;
    loop {
        // Compressed data and padding are passed over: only FF and a code that is neither stuffing (00), fill (FF)
        // nor a restart (D0 to D7) begins a segment.
        let Some(&[mark, code]) = bytes.get(at..at + 2) else { return false };
        at += match (mark, code) {
            (0xFF, 0xD9) => return true,
            (0xFF, 0x00 | 0x01 | 0xD0..=0xD8) => 2,
            (0xFF, 0xFF) => 1,
            (0xFF, _) => match bytes.get(at + 2..at + 4) {
                Some(&[high, low]) => 2 + usize::from(u16::from_be_bytes([high, low])),
                _ => return false,
            },
            _ => 1,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{ImageBuffer, Luma, LumaA, Rgb, Rgba};

    const FORMATS: [ImageFormat; 5] =
        [ImageFormat::Png, ImageFormat::Jpeg, ImageFormat::WebP, ImageFormat::Bmp, ImageFormat::Gif];

    fn pattern(width: u32, height: u32) -> DynamicImage {
        ImageBuffer::from_fn(width, height, |x, y| Rgb([(x * 7) as u8, (y * 11) as u8, (x * y) as u8])).into()
    }

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    #[test]
    fn pixels_of_textures_and_of_decoders_become_pictures() {
        let rgb = Image::from_rgb(2, 1, vec![1, 2, 3, 4, 5, 6]).unwrap();
        assert_eq!(Image::from_rgba(2, 1, &[1, 2, 3, 0, 4, 5, 6, 255]).unwrap(), rgb);
        for bytes in [7, 9, 12] {
            assert!(matches!(Image::from_rgba(2, 1, &vec![0; bytes]), Err(Error::Shape { .. })), "{bytes} bytes");
        }
        let decoded = image::RgbImage::from_raw(2, 1, rgb.rgb.clone()).unwrap();
        assert_eq!(Image::try_from(DynamicImage::ImageRgb8(decoded)).unwrap(), rgb);
    }

    #[test]
    fn every_supported_format_is_read() {
        for format in FORMATS {
            let source = pattern(37, 23);
            let image = Image::decode("x", &encoded(&source, format)).unwrap();
            assert_eq!((image.width, image.height), (37, 23), "{format:?}");
            if matches!(format, ImageFormat::Png | ImageFormat::WebP | ImageFormat::Bmp) {
                assert_eq!(&image.rgb, source.as_bytes(), "{format:?}");
            }
        }
    }

    #[test]
    fn every_truncation_is_an_error_or_the_whole_picture() {
        for format in FORMATS {
            let bytes = encoded(&pattern(19, 13), format);
            let whole = Image::decode("x", &bytes).unwrap();
            for cut in 0..bytes.len() {
                // A file may lack its trailer; what is returned must then still be the whole picture.
                if let Ok(image) = Image::decode("x", &bytes[..cut]) {
                    assert!(cut + 32 > bytes.len() && image == whole, "{format:?} cut to {cut} of {}", bytes.len());
                }
            }
        }
    }

    #[test]
    fn grey_alpha_and_sixteen_bits_become_rgb() {
        let grey: DynamicImage = ImageBuffer::from_pixel(2, 1, Luma([200u8])).into();
        let veiled: DynamicImage = ImageBuffer::from_pixel(2, 1, Rgba([10u8, 20, 30, 0])).into();
        let deep: DynamicImage = ImageBuffer::from_pixel(2, 1, Rgb([0u16, 0x8080, 0xFFFF])).into();
        let both: DynamicImage = ImageBuffer::from_pixel(2, 1, LumaA([0x4040u16, 7])).into();
        let cases = [(grey, [200, 200, 200]), (veiled, [10, 20, 30]), (deep, [0, 128, 255]), (both, [64, 64, 64])];
        for (source, rgb) in cases {
            let image = Image::decode("x", &encoded(&source, ImageFormat::Png)).unwrap();
            assert_eq!(image.rgb, rgb.repeat(2));
        }
    }

    #[test]
    fn the_first_frame_of_an_animation_is_taken() {
        let mut bytes = Vec::new();
        let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
        for colour in [[255, 0, 0, 255], [0, 0, 255, 255]] {
            encoder.encode_frame(image::Frame::new(ImageBuffer::from_pixel(3, 2, Rgba(colour)))).unwrap();
        }
        drop(encoder);
        assert_eq!(Image::decode("x", &bytes).unwrap().rgb, [255, 0, 0].repeat(6));
    }

    #[test]
    fn exif_orientation_is_applied() {
        // A minimal little-endian EXIF block: one entry, orientation (0x0112) = 6, that is a quarter turn clockwise.
        let tiff: [u8; 26] = [73, 73, 42, 0, 8, 0, 0, 0, 1, 0, 0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0];
        let plain = encoded(&pattern(8, 4), ImageFormat::Jpeg);
        let mut bytes = plain[..2].to_vec();
        bytes.extend([0xFF, 0xE1, 0, 2 + 6 + 26]);
        bytes.extend(b"Exif\0\0");
        bytes.extend(tiff);
        bytes.extend(&plain[2..]);
        let (lying, turned) = (Image::decode("x", &plain).unwrap(), Image::decode("x", &bytes).unwrap());
        assert_eq!((turned.width, turned.height), (4, 8));
        assert_eq!(turned.rgb[3 * 3..4 * 3], lying.rgb[..3]);
    }

    #[test]
    fn other_formats_name_the_supported_ones() {
        let inputs: [(&[u8], &str); 6] = [
            (b"<svg xmlns=\"http://www.w3.org/2000/svg\"/>", "SVG"),
            (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
            (b"<!DOCTYPE html><html>", "HTML"),
            (b"version https://git-lfs.github.com/spec/v1", "LFS"),
            (b"II*\0\x08\0\0\0", "Tiff"),
            (b"abc", "unknown"),
        ];
        for (bytes, kind) in inputs {
            let error = Image::decode("pic", bytes).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            let text = error.to_string();
            assert!(text.starts_with("pic:") && text.contains(kind) && text.contains("PNG, JPEG"), "{text}");
        }
    }

    #[test]
    fn wrong_sizes_are_refused() {
        assert!(matches!(Image::from_rgb(0, 4, vec![]), Err(Error::Argument { .. })));
        assert!(matches!(Image::from_rgb(2, 2, vec![0; 11]), Err(Error::Shape { .. })));
        assert!(matches!(Image::from_rgb(usize::MAX, 2, vec![0; 11]), Err(Error::Shape { .. })));
        let image = Image::from_rgb(1, 1, vec![1, 2, 3]).unwrap();
        assert!(image.resized(0).is_err() && image.resized(1 << 20).is_err());
    }

    #[test]
    fn resizing_keeps_flat_colours_at_any_shape() {
        for (width, height) in [(1, 1), (1, 20000), (20000, 1), (3, 224), (224, 3), (224, 224)] {
            let image = Image::from_rgb(width, height, [9, 99, 255].repeat(width * height)).unwrap();
            for size in [1, 2, 224] {
                let out = image.resized(size).unwrap();
                assert_eq!(out.rgb, [9, 99, 255].repeat(size * size), "{width}x{height} to {size}");
            }
        }
    }

    #[test]
    fn same_size_is_a_copy_and_columns_go_first_when_only_the_width_grows() {
        let source = pattern(30, 90).into_rgb8();
        let image = Image::from_rgb(30, 90, source.into_raw()).unwrap();
        let columns_first = image.clone().convolved(30, 60).unwrap().convolved(60, 60).unwrap();
        let rows_first = image.clone().convolved(60, 90).unwrap().convolved(60, 60).unwrap();
        assert_eq!(image.resized(60).unwrap(), columns_first);
        assert_ne!(rows_first, columns_first, "the order must show for this test to mean anything");
        assert_eq!(columns_first.resized(60).unwrap(), columns_first);
    }

    #[test]
    fn pixel_values_are_planes_scaled_per_channel() {
        let image = Image::from_rgb(2, 1, vec![0, 255, 51, 255, 0, 51]).unwrap();
        let values = image.pixel_values([0.5, 0.0, 0.2], [0.5, 1.0, 0.1]);
        assert_eq!(values[..4], [-1.0, 1.0, 1.0, 0.0]);
        assert!(values[4..].iter().all(|v| v.abs() < 1e-6));
    }

    #[test]
    fn broken_bytes_never_panic() {
        for format in FORMATS {
            let good = encoded(&pattern(16, 16), format);
            let mut state = 1u32;
            let mut random = || {
                state = state.wrapping_mul(1664525).wrapping_add(1013904223);
                state >> 8
            };
            for _ in 0..300 {
                let mut bytes = good.clone();
                for _ in 0..1 + random() % 4 {
                    let at = random() as usize % bytes.len();
                    bytes[at] = random() as u8;
                }
                let _ = Image::decode("x", &bytes);
            }
        }
    }
}
