//! Bold letters, stamped from `letters.png`: Pillow's own rendering of Aileron Regular (CC0), written by `letters.py`.
//! A font's outlines alone would come out otherwise, since FreeType fits them to the pixel grid.

use std::sync::LazyLock;

use image::{GrayImage, ImageFormat};

use crate::canvas::{Canvas, Ink, Point};

/// The letters of the sheet, from left to right.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-=?";
/// The sizes of the sheet, from top to bottom.
const SIZES: [u32; 3] = [28, 30, 32];
/// Width and height of a letter's cell; the letter is around its centre.
const CELL: u32 = 36;

/// How much of each pixel is covered, of 255.
static SHEET: LazyLock<Option<GrayImage>> = LazyLock::new(|| {
    let sheet = image::load_from_memory_with_format(include_bytes!("letters.png"), ImageFormat::Png);
    sheet.ok().map(|s| s.to_luma8())
});

/// Draws a letter around a point; `None` if the sheet lacks it in this size.
pub fn letter(canvas: &mut Canvas, (x, y): Point, letter: char, size: u32, ink: Ink) -> Option<()> {
    let column = LETTERS.find(letter)? as u32;
    let row = SIZES.iter().position(|&s| s == size)? as u32;
    let (left, top) = ((x + 0.5).floor() as i32 - CELL as i32 / 2, y as i32 - CELL as i32 / 2);
    for (dx, dy) in (0..CELL).flat_map(|dy| (0..CELL).map(move |dx| (dx, dy))) {
        let share = SHEET.as_ref()?.get_pixel_checked(column * CELL + dx, row * CELL + dy)?.0[0];
        canvas.blend(left + dx as i32, top + dy as i32, ink, share);
    }
    Some(())
}
