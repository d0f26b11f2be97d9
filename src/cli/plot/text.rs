//! Text: the built-in font, what it can show, and drawing it.

use ab_glyph::{Font as _, FontRef, PxScale, ScaleFont as _, point};
use plotters::prelude::{BitMapBackend, DrawingBackend, FontDesc, FontFamily, FontStyle, FontTransform};
use plotters::prelude::{RGBColor, TextStyle};
use plotters::style::register_font;
/// Which part of a text is at its place.
pub use plotters::style::text_anchor::HPos as Align;
use plotters::style::text_anchor::{Pos, VPos};
use plotters_backend::{BackendColor, BackendStyle, BackendTextStyle, DrawingErrorKind};
use ternion::files::Tokenizer;
use ternion::files::tokenizer::DecodeStream;
use ternion::{Error, Result};

use crate::cli::plot::{Drawn, Paper};

/// The font's name.
pub const FAMILY: &str = "Aileron";
/// Aileron Regular with letters, digits and signs of ASCII and a few more (see `THIRD-PARTY.md`).
pub const FONT: &[u8] = include_bytes!("../aileron.ttf");
/// Plotters' sizes are this much larger than the em in pixels.
const SIZE_OF_EM: f64 = 1.24;
/// Stands for a space, which would not be seen.
const SPACE: char = '·';
/// Stands for what was cut off.
const CUT: char = '…';

/// The font that every figure uses; sizes are ems in pixels.
#[derive(Debug, Clone)]
pub struct Font(FontRef<'static>);

impl Font {
    /// Reads the font and makes it known to plotters.
    ///
    /// # Errors
    /// [`Error::Format`] if it is broken.
    pub fn built_in() -> Result<Self> {
        let broken = || Error::format("the built-in font", "cannot be read");
        register_font(FAMILY, FontStyle::Normal, FONT).map_err(|_| broken())?;
        Ok(Font(FontRef::try_from_slice(FONT).map_err(|_| broken())?))
    }

    fn shows(&self, c: char) -> bool {
        self.0.glyph_id(c).0 != 0
    }

    /// The text with what the font cannot show written as `\n` or `\u{..}`.
    pub fn shown(&self, text: &str) -> String {
        let mut shown = String::new();
        for c in text.chars() {
            if self.shows(c) && !c.is_control() { shown.push(c) } else { shown.extend(c.escape_default()) }
        }
        shown
    }

    /// A token's text with its spaces as dots, so that ` red` and `red` can be told apart.
    pub fn token(&self, text: &str) -> String {
        let dotted: String = text.chars().map(|c| if c == ' ' { SPACE } else { c }).collect();
        self.shown(&dotted)
    }

    /// Width of a text in pixels.
    pub fn width(&self, text: &str, size: f64) -> f64 {
        let mut width = 0.0;
        self.place(text, size, |_, x| width = x);
        f64::from(width)
    }

    /// The text, or as much of its beginning as fits in a width, with `…` behind.
    pub fn cut(&self, text: &str, size: f64, max: f64) -> String {
        if self.width(text, size) <= max {
            return text.to_owned();
        }
        let ends = text.char_indices().map(|(i, _)| i).rev();
        let shorter = ends.map(|end| format!("{}{CUT}", &text[..end]));
        shorter.into_iter().find(|cut| self.width(cut, size) <= max).unwrap_or_default()
    }

    /// The text, or as much of its beginning and of its end as fits in a width, with `…` between them.
    pub fn cut_middle(&self, text: &str, size: f64, max: f64) -> String {
        if self.width(text, size) <= max {
            return text.to_owned();
        }
        let all: Vec<char> = text.chars().collect();
        let with = |kept: usize| -> String {
            let (begin, end) = (kept.div_ceil(2), all.len() - kept / 2);
            all[..begin].iter().chain([&CUT]).chain(&all[end..]).collect()
        };
        (0..all.len()).rev().map(with).find(|cut| self.width(cut, size) <= max).unwrap_or_default()
    }

    /// Calls `each` with the characters and the places where they begin; at last with none, and the end.
    fn place(&self, text: &str, size: f64, mut each: impl FnMut(Option<char>, f32)) {
        let font = self.0.as_scaled(self.scale(size));
        let (mut x, mut last) = (0.0, None);
        for c in text.chars() {
            let glyph = font.glyph_id(c);
            x += last.map_or(0.0, |last| font.kern(last, glyph));
            each(Some(c), x);
            x += font.h_advance(glyph);
            last = Some(glyph);
        }
        each(None, x);
    }

    /// ab_glyph's sizes are those of a line.
    fn scale(&self, size: f64) -> PxScale {
        let em = self.0.units_per_em().unwrap_or(1000.0);
        PxScale::from(size as f32 * self.0.height_unscaled() / em)
    }
}

/// The text that each token adds to those before it, special tokens as the tokenizer spells them. Of a character that
/// several tokens make, the last one has it, and the others are shown by number.
///
/// # Errors
/// Those of the tokenizer.
pub fn pieces(tokenizer: &Tokenizer, ids: &[u32]) -> Result<Vec<String>> {
    let mut stream = DecodeStream::new(false);
    let piece = |&id: &u32| -> Result<String> {
        let text = stream.push(tokenizer, id)?;
        Ok(if text.is_empty() { format!("#{id}") } else { text })
    };
    ids.iter().map(piece).collect()
}

impl<B: DrawingBackend> Paper<'_, B> {
    /// A text whose lower-case letters are centred at the height of `at`.
    pub fn text(&self, text: &str, at: (i32, i32), size: f64, colour: RGBColor, align: Align) -> Drawn<B> {
        self.put(text, at, size, colour, align, FontTransform::None)
    }

    /// A text that reads upwards, and ends below `at`.
    pub fn upright(&self, text: &str, at: (i32, i32), size: f64, colour: RGBColor) -> Drawn<B> {
        self.put(text, at, size, colour, Align::Right, FontTransform::Rotate270)
    }

    fn put(
        &self,
        text: &str,
        at: (i32, i32),
        size: f64,
        colour: RGBColor,
        align: Align,
        turn: FontTransform,
    ) -> Drawn<B> {
        let font = FontDesc::new(FontFamily::Name(FAMILY), size * SIZE_OF_EM, FontStyle::Normal).transform(turn);
        let style = TextStyle::from(font).color(&colour).pos(Pos::new(align, VPos::Center));
        self.area.draw_text(&self.font.shown(text), &style, at)
    }
}

/// A bitmap whose letters stand where they belong: plotters' own keep to whole pixels and lose their side bearings.
pub struct Sharp<'a> {
    bitmap: BitMapBackend<'a>,
    font: Font,
}

impl<'a> Sharp<'a> {
    /// Draws on a bitmap.
    pub fn new(bitmap: BitMapBackend<'a>, font: Font) -> Self {
        Sharp { bitmap, font }
    }
}

type Failed<'a> = DrawingErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>;

impl<'a> DrawingBackend for Sharp<'a> {
    type ErrorType = <BitMapBackend<'a> as DrawingBackend>::ErrorType;

    fn get_size(&self) -> (u32, u32) {
        self.bitmap.get_size()
    }

    fn ensure_prepared(&mut self) -> Result<(), Failed<'a>> {
        self.bitmap.ensure_prepared()
    }

    fn present(&mut self) -> Result<(), Failed<'a>> {
        self.bitmap.present()
    }

    fn draw_pixel(&mut self, at: (i32, i32), colour: BackendColor) -> Result<(), Failed<'a>> {
        self.bitmap.draw_pixel(at, colour)
    }

    fn draw_line<S: BackendStyle>(&mut self, a: (i32, i32), b: (i32, i32), style: &S) -> Result<(), Failed<'a>> {
        self.bitmap.draw_line(a, b, style)
    }

    fn draw_rect<S: BackendStyle>(
        &mut self,
        a: (i32, i32),
        b: (i32, i32),
        style: &S,
        fill: bool,
    ) -> Result<(), Failed<'a>> {
        self.bitmap.draw_rect(a, b, style, fill)
    }

    fn draw_text<S: BackendTextStyle>(&mut self, text: &str, style: &S, at: (i32, i32)) -> Result<(), Failed<'a>> {
        let (em, turn, colour) = (style.size() / SIZE_OF_EM, style.transform(), style.color());
        let left = match style.anchor().h_pos {
            Align::Left => 0.0,
            Align::Center => -self.font.width(text, em) / 2.0,
            Align::Right => -self.font.width(text, em),
        };
        // The heights of plotters' SVG: 0.76 em, half an x, and half an x the other way.
        let half_x = 0.26;
        let base = match style.anchor().v_pos {
            VPos::Top => 0.76 * em,
            VPos::Center => half_x * em,
            VPos::Bottom => -half_x * em,
        };
        let (font, scale) = (self.font.clone(), self.font.scale(em));
        let mut dots = Vec::new();
        font.place(text, em, |c, x| {
            let glyph =
                c.map(|c| font.0.glyph_id(c).with_scale_and_position(scale, point(left as f32 + x, base as f32)));
            let Some(outline) = glyph.and_then(|g| font.0.outline_glyph(g)) else { return };
            let corner = outline.px_bounds().min;
            outline.draw(|x, y, cover| dots.push((corner.x as i32 + x as i32, corner.y as i32 + y as i32, cover)));
        });
        for (x, y, cover) in dots {
            let (x, y) = turn.transform(x, y);
            let alpha = colour.alpha * f64::from(cover.min(1.0));
            self.bitmap.draw_pixel((at.0 + x, at.1 + y), BackendColor { alpha, ..colour })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_font_lacks_is_escaped() {
        let font = Font::built_in().unwrap();
        assert_eq!(font.token(" red\n\u{e9}"), "·red\\n\\u{e9}");
        assert_eq!(font.token("a\tb"), "a\\tb");
        assert_eq!(font.shown("a b…"), "a b…");
    }

    #[test]
    fn a_long_text_is_cut_to_its_width() {
        let font = Font::built_in().unwrap();
        let name = "agentic_knowledge";
        assert_eq!(font.cut(name, 16.0, 500.0), name);
        let cut = font.cut(name, 16.0, 80.0);
        assert!(cut.ends_with(CUT) && name.starts_with(cut.trim_end_matches(CUT)), "{cut}");
        assert!(font.width(&cut, 16.0) <= 80.0 && font.width(&cut, 16.0) > 60.0);
        assert_eq!(font.cut(name, 16.0, 1.0), "");
        let cut = font.cut_middle("spatial_reasoning_100017", 16.0, 120.0);
        let (begin, end) = cut.split_once(CUT).unwrap();
        assert!("spatial_reasoning_100017".starts_with(begin) && end.ends_with("100017"), "{cut}");
        assert!(font.width(&cut, 16.0) <= 120.0 && font.width(&cut, 16.0) > 100.0);
        assert_eq!([font.cut_middle(name, 16.0, 500.0), font.cut_middle(name, 16.0, 1.0)], [name, ""]);
    }
}
