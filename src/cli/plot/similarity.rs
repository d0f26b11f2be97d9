//! Similarities of texts and pictures: a cell for each pair.

use plotters::prelude::DrawingBackend;
use ternion::Result;
use ternion::files::Image;

use crate::cli::plot::heat::{Cells, Scale};
use crate::cli::plot::text::{Align, Font};
use crate::cli::plot::{Drawn, Figure, GREY, INK, Paper, fitted};

/// Room around everything.
const MARGIN: i32 = 28;
/// Widths of the longest text and of the longest name of a picture that are shown whole.
const MAX_TEXT_WIDTH: [f64; 2] = [420.0, 180.0];
/// Room for the colour bar and its numbers.
const BAR_ROOM: i32 = 130;
/// Widest and highest panel of cells, while they are not too small.
const PANEL: [usize; 2] = [1120, 900];
/// Smallest and largest widths and heights of a cell.
const CELL: [[usize; 2]; 2] = [[6, 104], [6, 40]];
/// Minimum width of cells with small pictures above them and numbers in them.
const WIDE: i32 = 44;
/// Minimum height of cells with numbers in them, and the height of lines of text.
const HIGH: i32 = 20;
/// Fewer bytes at the beginning of all names stay.
const MIN_COMMON: usize = 4;
/// Sizes of the title and of all else.
const SIZES: [f64; 2] = [26.0, 16.0];
/// Where names of pictures begin.
const TOP: i32 = 104;

/// Texts by pictures, each cell coloured by a number.
pub struct SimilarityFigure<'a> {
    note: String,
    texts: Vec<String>,
    names: Vec<String>,
    thumbs: Vec<Image>,
    values: &'a [Vec<f32>],
    scale: Scale,
    cells: Cells,
    size: (i32, i32),
}

/// Of how many lines of this size one has room for its text.
fn every(size: i32) -> usize {
    (HIGH / size + i32::from(HIGH % size != 0)).max(1) as usize
}

/// Names without the ending that all have, and with `…` for the words with which all begin: what is left tells them apart.
fn without_common(names: &[String]) -> Vec<String> {
    let Some((first, others)) = names.split_first().filter(|(_, others)| !others.is_empty()) else {
        return names.to_vec();
    };
    let ending = first.rfind('.').map(|dot| &first[dot..]).filter(|e| others.iter().all(|name| name.ends_with(e)));
    let stems: Vec<&str> = names.iter().map(|n| ending.and_then(|e| n.strip_suffix(e)).unwrap_or(n)).collect();
    // Up to the last sign between two words that is common to all.
    let begins = |end: usize| stems.iter().all(|stem| stem.len() > end && stem.starts_with(&stems[0][..end]));
    let ends = stems[0].char_indices().filter(|(_, c)| !c.is_alphanumeric()).map(|(i, c)| i + c.len_utf8());
    let common = ends.filter(|&end| end >= MIN_COMMON && begins(end)).max().unwrap_or(0);
    let mark = if common > 0 { "…" } else { "" };
    stems.iter().map(|stem| format!("{mark}{}", &stem[common..])).collect()
}

fn cell_width(pictures: usize) -> i32 {
    (PANEL[0] / pictures.max(1)).clamp(CELL[0][0], CELL[0][1]) as i32
}

impl<'a> SimilarityFigure<'a> {
    /// Lays out numbers `[texts][pictures]`; `note` says what they are, and `shares` whether they are probabilities.
    pub fn new(
        font: &Font,
        (note, shares): (String, bool),
        values: &'a [Vec<f32>],
        texts: &[String],
        names: &[String],
        thumbs: Vec<Image>,
    ) -> Self {
        let texts: Vec<String> =
            texts.iter().map(|text| font.cut(&font.shown(text), SIZES[1], MAX_TEXT_WIDTH[0])).collect();
        let names: Vec<String> = without_common(names)
            .iter()
            .map(|name| font.cut_middle(&font.shown(name), SIZES[1], MAX_TEXT_WIDTH[1]))
            .collect();
        // A viewer without the font may have a wider one.
        let widest =
            |all: &[String]| all.iter().map(|t| font.width(t, SIZES[1]).ceil() as i32).max().unwrap_or(0) * 11 / 10;
        let (columns, rows) = (names.len(), texts.len());
        let height = (PANEL[1] / rows.max(1)).clamp(CELL[1][0], CELL[1][1]) as i32;
        let thumb = thumbs.iter().map(|t| t.height as i32 + 8).max().unwrap_or(0);
        let (x, y) = (MARGIN + widest(&texts) + 14, TOP + thumb);
        let cells = Cells { x, y, width: cell_width(columns), height, columns, rows };
        let all = || values.iter().flatten().copied();
        let (min, max) = (all().fold(f32::INFINITY, f32::min), all().fold(f32::NEG_INFINITY, f32::max));
        let scale = if shares { Scale::up_to(1.0) } else { Scale::between(min, max) };
        let note = match every(cells.width) {
            1 => note,
            n => format!("{note} Of the pictures, one in {n} is named."),
        };
        let note_end = MARGIN + font.width(&note, SIZES[1]) as i32 * 11 / 10;
        let width = (cells.right() + BAR_ROOM).max(note_end) + MARGIN;
        let below = (cells.bottom() + widest(&names) + 16).max(cells.y + 100);
        SimilarityFigure { note, texts, names, thumbs, values, scale, cells, size: (width, below + MARGIN) }
    }

    /// A picture as it is drawn above its column of `n`; none if there is no room for it.
    ///
    /// # Errors
    /// [`ternion::Error::Argument`] if its bytes are not those of its size.
    pub fn thumb(picture: &Image, pictures: usize) -> Result<Option<Image>> {
        let width = cell_width(pictures);
        if width < WIDE { Ok(None) } else { fitted(picture, width as u32 - 4).map(Some) }
    }
}

impl Figure for SimilarityFigure<'_> {
    fn size(&self) -> (u32, u32) {
        (self.size.0 as u32, self.size.1 as u32)
    }

    fn draw<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        let cells = &self.cells;
        paper.text("Texts and pictures", (MARGIN, 42), SIZES[0], INK, Align::Left)?;
        paper.text(&self.note, (MARGIN, 78), SIZES[1], GREY, Align::Left)?;
        let at = |text: usize, picture: usize| {
            self.values.get(text).and_then(|row| row.get(picture)).copied().unwrap_or_default()
        };
        paper.cells(cells, self.scale, cells.width >= WIDE && cells.height >= HIGH, at)?;
        for (row, text) in self.texts.iter().enumerate().step_by(every(cells.height)) {
            paper.text(text, (cells.x - 9, cells.row(row)), SIZES[1], INK, Align::Right)?;
        }
        for (column, name) in self.names.iter().enumerate().step_by(every(cells.width)) {
            paper.upright(name, (cells.column(column), cells.bottom() + 6), SIZES[1], INK)?;
        }
        paper.bar(self.scale, (cells.right() + 24, cells.y), (cells.bottom() - cells.y).max(80), "")
    }

    fn pictures(&self) -> Vec<(Image, (usize, usize))> {
        let cells = &self.cells;
        let place = |(column, thumb): (usize, &Image)| {
            let left = cells.column(column) - thumb.width as i32 / 2;
            (thumb.clone(), (left as usize, cells.y as usize - 6 - thumb.height))
        };
        self.thumbs.iter().enumerate().map(place).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_keep_what_tells_them_apart() {
        let short = |names: &[&str]| without_common(&names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(
            short(&["spatial_scene_100000.png", "spatial_scene_100001.png"]),
            ["…100000", "…100001"],
            "the beginning and the ending are common"
        );
        assert_eq!(short(&["spatial_scene_1.png", "spatial_reasoning_1.png"]), ["…scene_1", "…reasoning_1"]);
        assert_eq!(short(&["a_1.png", "a_2.jpg"]), ["a_1.png", "a_2.jpg"], "a short beginning stays");
        assert_eq!(short(&["picture.png"]), ["picture.png"], "one name stays whole");
        assert_eq!(short(&["größe_1", "größe_2"]), ["…1", "…2"]);
        assert_eq!(short(&["same-thing.png", "same-.png"]), ["same-thing", "same-"], "none becomes empty");
    }

    #[test]
    fn everything_has_its_place_however_much_there_is() {
        let font = Font::built_in().unwrap();
        for (texts, pictures) in [(1, 1), (2, 3), (30, 25), (3, 1000), (1000, 100)] {
            let values: Vec<Vec<f32>> = (0..texts).map(|t| (0..pictures).map(|p| (t + p) as f32).collect()).collect();
            let named = |what: &str, n: usize| -> Vec<String> { (0..n).map(|i| format!("{what} {i}.png")).collect() };
            let picture = Image::from_rgb(2, 1, vec![0; 6]).unwrap();
            let thumbs: Vec<Image> =
                (0..pictures).filter_map(|_| SimilarityFigure::thumb(&picture, pictures).unwrap()).collect();
            let drawn = thumbs.len();
            let (rows, columns) = (named("a text", texts), named("picture", pictures));
            let figure = SimilarityFigure::new(&font, (String::new(), false), &values, &rows, &columns, thumbs);
            let cells = figure.cells;
            assert!(cells.x > MARGIN + 50 && cells.right() + BAR_ROOM <= figure.size.0);
            assert!(cells.bottom() + 50 < figure.size.1 && figure.size.0.max(figure.size.1) < 8000);
            assert_eq!(drawn, if cells.width >= WIDE { pictures } else { 0 });
            for (thumb, (x, y)) in figure.pictures() {
                assert!(x as i32 >= cells.x && (x + thumb.width) as i32 <= cells.right());
                assert!(y as i32 >= TOP - 6 && ((y + thumb.height) as i32) < cells.y);
            }
        }
    }
}
