//! Where in a picture a token's attention goes.

use plotters::prelude::DrawingBackend;
use ternion::Result;
use ternion::apps::attention_rollout::{ImageAttention, TokenAttention};
use ternion::files::Image;

use crate::cli::plot::heat::{Scale, percent};
use crate::cli::plot::text::{Align, Font};
use crate::cli::plot::{Drawn, Figure, GREY, INK, Paper, fitted};

/// Room around everything.
const MARGIN: i32 = 28;
/// Maximum width of a token's text; a longer one is cut.
const MAX_TEXT_WIDTH: f64 = 300.0;
/// Room between a picture and its heat.
const BETWEEN: i32 = 24;
/// Largest sides of a picture as it is drawn.
const SIDE: u32 = 520;
/// Room above a picture.
const ABOVE: i32 = 40;
/// Room for the colour bar and its numbers.
const BAR_ROOM: i32 = 130;
/// How light a colour of the scale is where the picture is black; where it is white, it is as in the bar.
const DARKEST: f32 = 0.45;
/// Sizes of the title and of all else.
const SIZES: [f64; 2] = [26.0, 16.0];
/// Where the first picture's part begins.
const TOP: i32 = 104;

/// A picture with its heat.
struct Part {
    picture: Image,
    heat: Image,
    caption: String,
    scale: Scale,
    y: i32,
}

/// Pictures of a session, and over them the attention of one text token.
pub struct AttentionFigure {
    title: String,
    note: String,
    parts: Vec<Part>,
    size: (i32, i32),
}

impl AttentionFigure {
    /// Lays out the pictures with a token's attention to them; `texts` are those of all tokens.
    ///
    /// # Errors
    /// [`Error::Argument`] if a picture's sides are zero.
    pub fn new(font: &Font, attention: &TokenAttention, pictures: &[Image], texts: &[String]) -> Result<Self> {
        let (layers, mut parts, mut y, mut widest) = (attention.layers.len(), Vec::new(), TOP, 0);
        for (n, (picture, part)) in pictures.iter().zip(&attention.images).enumerate() {
            let picture = fitted(picture, SIDE)?;
            let blocks = blocks(part);
            let scale = Scale::up_to(blocks.iter().copied().fold(0.0, f32::max));
            let heat = heat(&picture, &blocks, [part.grid, part.block.max(1)], scale);
            let number = if pictures.len() > 1 { format!("Picture {}: ", n + 1) } else { String::new() };
            let caption = format!("{number}{} of its attention goes to this picture", percent(part.share));
            let height = picture.height as i32;
            widest = widest.max(2 * picture.width as i32 + BETWEEN + BAR_ROOM);
            parts.push(Part { picture, heat, caption, scale, y: y + ABOVE });
            y += ABOVE + height + MARGIN;
        }
        let (grid, block) = attention.images.first().map_or((0, 1), |i| (i.grid, i.block));
        let cells = match block {
            0 | 1 => format!("{grid} x {grid} patches. Colours: the part of this on each patch"),
            _ => {
                let side = grid.div_ceil(block);
                format!("{side} x {side} blocks of {block} x {block} patches. Colours: the part of this on each block")
            }
        };
        let quoted = |token: usize| texts.get(token).map(|t| font.cut(&font.token(t), SIZES[0], MAX_TEXT_WIDTH));
        let mut title = format!("Attention of text token {}", attention.token);
        title += &quoted(attention.token).map_or(String::new(), |text| format!(" “{text}”"));
        let next = attention.token + 1;
        title += &quoted(next).map_or(String::new(), |text| format!("; the next, {next}, is “{text}”"));
        let note = format!("Mean of {layers} layers, led back to {cells}.");
        let texts = [(&title, SIZES[0]), (&note, SIZES[1])].map(|(t, size)| font.width(t, size) as i32 * 11 / 10);
        let captions = parts.iter().map(|p| font.width(&p.caption, SIZES[1]) as i32 * 11 / 10);
        let width = texts.into_iter().chain(captions).fold(widest, i32::max) + 2 * MARGIN;
        Ok(AttentionFigure { title, note, parts, size: (width, y) })
    }
}

/// The parts of the attention on the blocks of a picture, `[side, side]` with the grid's side in blocks, rounded up. The
/// model does not tell the patches of a block apart, so a number beside the scale is that of what is seen in one colour.
fn blocks(part: &ImageAttention) -> Vec<f32> {
    let (grid, block) = (part.grid, part.block.max(1));
    let side = grid.div_ceil(block);
    let mut blocks = vec![0.0; side * side];
    for (i, patch) in part.patches.iter().enumerate() {
        if let Some(sum) = blocks.get_mut(i / grid / block * side + i % grid / block) {
            *sum += patch;
        }
    }
    blocks
}

/// The picture in the colours of its blocks' numbers; `grid` patches per side, of which blocks join `block` per side.
fn heat(picture: &Image, blocks: &[f32], [grid, block]: [usize; 2], scale: Scale) -> Image {
    let (mut heat, side) = (picture.clone(), grid.div_ceil(block));
    for (i, pixel) in heat.rgb.chunks_exact_mut(3).enumerate() {
        let (x, y) = (i % picture.width * grid / picture.width, i / picture.width * grid / picture.height);
        let colour = scale.colour(blocks.get(y / block * side + x / block).copied().unwrap_or(0.0));
        let grey = 0.299 * f32::from(pixel[0]) + 0.587 * f32::from(pixel[1]) + 0.114 * f32::from(pixel[2]);
        for (value, colour) in pixel.iter_mut().zip([colour.0, colour.1, colour.2]) {
            *value = (f32::from(colour) * (DARKEST + (1.0 - DARKEST) * grey / 255.0)).round() as u8;
        }
    }
    heat
}

impl Figure for AttentionFigure {
    fn size(&self) -> (u32, u32) {
        (self.size.0 as u32, self.size.1 as u32)
    }

    fn draw<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        paper.text(&self.title, (MARGIN, 42), SIZES[0], INK, Align::Left)?;
        paper.text(&self.note, (MARGIN, 82), SIZES[1], GREY, Align::Left)?;
        for part in &self.parts {
            paper.text(&part.caption, (MARGIN, part.y - 18), SIZES[1], INK, Align::Left)?;
            let x = MARGIN + 2 * part.picture.width as i32 + BETWEEN + 20;
            paper.bar(part.scale, (x, part.y), part.picture.height as i32, "")?;
        }
        Ok(())
    }

    fn pictures(&self) -> Vec<(Image, (usize, usize))> {
        let place = |part: &Part| {
            let (left, right) = (MARGIN as usize, MARGIN as usize + part.picture.width + BETWEEN as usize);
            [(part.picture.clone(), (left, part.y as usize)), (part.heat.clone(), (right, part.y as usize))]
        };
        self.parts.iter().flat_map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use plotters::style::Color as _;

    use super::*;

    #[test]
    fn a_block_has_the_colour_of_all_its_patches() {
        let patches = vec![0.075, 0.075, 0.05, 0.075, 0.075, 0.05, 0.3, 0.1, 0.2];
        let part = ImageAttention { share: 0.5, rows: 0..4, grid: 3, block: 2, patches };
        let blocks = blocks(&part);
        let want = [0.3, 0.1, 0.4, 0.2];
        assert!(blocks.iter().zip(want).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{blocks:?}");

        let picture = Image { width: 6, height: 6, rgb: vec![255; 3 * 36] };
        let scale = Scale::up_to(0.4);
        let heat = heat(&picture, &blocks, [3, 2], scale);
        let pixel = |x: usize, y: usize| &heat.rgb[3 * (6 * y + x)..][..3];
        let colour = |share: f32| <[u8; 3]>::from(scale.colour(share).rgb());
        for ((x, y), share) in [((0, 0), 0.3), ((3, 3), 0.3), ((4, 0), 0.1), ((0, 5), 0.4), ((5, 5), 0.2)] {
            assert_eq!(pixel(x, y), colour(share), "pixel {x}, {y}");
        }
    }
}
