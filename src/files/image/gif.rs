//! The first frame of a GIF, as Pillow shows it.

use std::io::Cursor;
use std::num::NonZeroU64;

use gif::{ColorOutput, DecodeOptions, DecodingError, MemoryLimit};

use crate::error::{Error, Result};
use crate::files::Image;
use crate::files::image::{MAX_BYTES, MAX_SIDE, too_large};

/// Bytes of a colour.
const COLOUR: usize = 3;

/// Decodes the first frame. Pixels that it does not cover have the transparent colour of the palette, else the first one;
/// transparent pixels show the colour that the palette has for them. A frame that reaches beyond the picture enlarges it.
///
/// # Errors
/// [`Error::Limit`] beyond the limits of [`Image::decode`], [`Error::Format`] for what is broken or cut off.
pub(crate) fn decode(name: &str, bytes: &[u8]) -> Result<Image> {
    let broken = |e: DecodingError| Error::format(name, format!("broken or truncated Gif, {} bytes: {e}", bytes.len()));
    let mut options = DecodeOptions::new();
    options.set_color_output(ColorOutput::Indexed);
    if let Some(limit) = NonZeroU64::new(MAX_BYTES) {
        options.set_memory_limit(MemoryLimit::Bytes(limit));
    }
    let mut decoder = options.read_info(Cursor::new(bytes)).map_err(broken)?;
    let canvas = [decoder.width(), decoder.height()];
    let none = || Error::format(name, format!("broken or truncated Gif, {} bytes: no frame", bytes.len()));
    let frame = decoder.next_frame_info().map_err(broken)?.ok_or_else(none)?;
    let (corner, size) = ([frame.left, frame.top].map(usize::from), [frame.width, frame.height].map(usize::from));
    let [width, height] = [0, 1].map(|i| usize::from(canvas[i]).max(corner[i] + size[i]));
    if width.max(height) > MAX_SIDE as usize || (width * height * COLOUR) as u64 > MAX_BYTES {
        return Err(too_large(name, format!("{width} x {height} pixels")));
    }
    let background = frame.transparent.unwrap_or(0);
    let mut covered = vec![0; size[0] * size[1]];
    if !covered.is_empty() {
        decoder.read_into_buffer(&mut covered).map_err(broken)?;
    }
    let palette = decoder.palette().map_err(broken)?;
    // A palette may be shorter than the indices; what is beyond it is black.
    let colour = |index: u8| {
        let found = palette.as_chunks::<COLOUR>().0.get(usize::from(index));
        found.copied().unwrap_or_default()
    };
    let mut rgb = colour(background).repeat(width * height);
    let rows = rgb.as_chunks_mut::<COLOUR>().0.chunks_mut(width.max(1)).skip(corner[1]);
    for (to, from) in rows.zip(covered.chunks(size[0].max(1))) {
        to.iter_mut().skip(corner[0]).zip(from).for_each(|(to, &index)| *to = colour(index));
    }
    Image::from_rgb(width, height, rgb).map_err(|e| Error::format(name, format!("not a picture: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    const PALETTE: [u8; 12] = [9, 8, 7, 255, 0, 0, 0, 255, 0, 0, 0, 255];

    /// A GIF of one frame on a canvas of 4 x 2.
    fn gif(transparent: Option<u8>, [left, top, width, height]: [u16; 4], indices: &[u8]) -> Image {
        let mut bytes = Vec::new();
        let mut encoder = gif::Encoder::new(&mut bytes, 4, 2, &PALETTE).unwrap();
        let frame =
            gif::Frame { left, top, width, height, transparent, buffer: indices.into(), ..gif::Frame::default() };
        encoder.write_frame(&frame).unwrap();
        drop(encoder);
        Image::decode("x.gif", &bytes).unwrap()
    }

    fn colours(image: &Image) -> Vec<usize> {
        let index = |c: &[u8; 3]| PALETTE.as_chunks::<3>().0.iter().position(|p| p == c).unwrap();
        image.rgb.as_chunks::<3>().0.iter().map(index).collect()
    }

    #[test]
    fn what_the_frame_does_not_cover_is_the_background() {
        let small = [1, 1, 2, 1];
        assert_eq!(colours(&gif(None, small, &[2, 3])), [0, 0, 0, 0, 0, 2, 3, 0]);
        assert_eq!(colours(&gif(Some(1), small, &[2, 1])), [1, 1, 1, 1, 1, 2, 1, 1]);
        assert_eq!(colours(&gif(None, [0, 0, 4, 2], &[0, 1, 2, 3, 3, 2, 1, 0])), [0, 1, 2, 3, 3, 2, 1, 0]);
    }

    #[test]
    fn a_frame_beyond_the_canvas_enlarges_the_picture() {
        let image = gif(None, [3, 1, 2, 2], &[1, 2, 3, 1]);
        assert_eq!((image.width, image.height), (5, 3));
        assert_eq!(colours(&image), [0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 0, 0, 0, 3, 1]);
    }
}
