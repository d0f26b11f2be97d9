//! Colours for numbers: cells, and the bar that says which colour is which number.

use plotters::prelude::{ColorMap, DrawingBackend, RGBColor, Rectangle, ViridisRGB};
use plotters::style::Color as _;

use super::text::Align;
use super::{Drawn, GREY, INK, Paper};

/// Colour of cells where there is nothing.
const NOTHING: RGBColor = RGBColor(238, 238, 238);
/// Width of a colour bar.
const BAR: i32 = 18;
/// Steps of a colour bar.
const STEPS: i32 = 128;

/// Numbers from 0 to `most` and their colours, which are even to the eye.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The largest number.
    pub most: f32,
}

impl Scale {
    /// A scale that ends with a round number and holds `largest`.
    pub fn up_to(largest: f32) -> Self {
        let unit = 10f32.powi(largest.max(1e-6).log10().floor() as i32);
        let round = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0].map(|n| n * unit);
        let most = round.into_iter().find(|&r| r >= largest * 0.9999).unwrap_or(10.0 * unit);
        Scale { most }
    }

    /// The colour of a number.
    pub fn colour(self, number: f32) -> RGBColor {
        ViridisRGB.get_color_normalized(number.clamp(0.0, self.most), 0.0, self.most)
    }

    /// The colour of a number's cell: where it is 0, none of the scale's.
    fn cell(self, number: f32) -> RGBColor {
        if number > 0.0 { self.colour(number) } else { NOTHING }
    }
}

/// A share as a percentage with as many digits as say something.
pub fn percent(share: f32) -> String {
    let number = 100.0 * share;
    let digits = if number >= 10.0 || (number - number.round()).abs() < 1e-4 {
        0
    } else if number >= 1.0 {
        1
    } else {
        2
    };
    format!("{number:.digits$} %")
}

/// Where cells are: the top left corner, the size of a cell, and how many.
#[derive(Debug, Clone, Copy)]
pub struct Cells {
    /// Left edge of the first column.
    pub x: i32,
    /// Top of the first row.
    pub y: i32,
    /// Width of a column.
    pub width: i32,
    /// Height of a row.
    pub height: i32,
    /// Number of columns.
    pub columns: usize,
    /// Number of rows.
    pub rows: usize,
}

impl Cells {
    /// Right edge.
    pub fn right(&self) -> i32 {
        self.x + self.width * self.columns as i32
    }

    /// Lower edge.
    pub fn bottom(&self) -> i32 {
        self.y + self.height * self.rows as i32
    }

    /// Middle of a column.
    pub fn column(&self, i: usize) -> i32 {
        self.x + self.width * i as i32 + self.width / 2
    }

    /// Middle of a row.
    pub fn row(&self, i: usize) -> i32 {
        self.y + self.height * i as i32 + self.height / 2
    }
}

impl<B: DrawingBackend> Paper<'_, B> {
    /// A filled rectangle.
    pub fn rectangle(&self, from: (i32, i32), to: (i32, i32), colour: RGBColor) -> Drawn<B> {
        self.area.draw(&Rectangle::new([from, to], colour.filled()))
    }

    /// Cells coloured by a number each, given row and column. With `numbers`, it is written into them.
    pub fn cells(&self, cells: &Cells, scale: Scale, numbers: bool, at: impl Fn(usize, usize) -> f32) -> Drawn<B> {
        // Wide cells are told apart by a thin gap.
        let gap = i32::from(cells.width >= 8 && cells.height >= 8);
        for (row, column) in (0..cells.rows).flat_map(|r| (0..cells.columns).map(move |c| (r, c))) {
            let (x, y) = (cells.x + cells.width * column as i32, cells.y + cells.height * row as i32);
            let (share, corner) = (at(row, column), (x + cells.width - gap, y + cells.height - gap));
            let colour = scale.cell(share);
            self.rectangle((x, y), corner, colour)?;
            if numbers && share > 0.0 {
                let light = 0.299 * f64::from(colour.0) + 0.587 * f64::from(colour.1) + 0.114 * f64::from(colour.2);
                let ink = if light > 110.0 { INK } else { RGBColor(255, 255, 255) };
                let text = format!("{:.0}", 100.0 * share);
                self.text(&text, (cells.column(column), cells.row(row) + 1), 14.0, ink, Align::Center)?;
            }
        }
        Ok(())
    }

    /// A bar of the scale's colours with numbers at its right; `what` says above it what they count.
    pub fn bar(&self, scale: Scale, (x, y): (i32, i32), height: i32, what: &str) -> Drawn<B> {
        for step in 0..STEPS {
            let colour = scale.colour(scale.most * (step as f32 + 0.5) / STEPS as f32);
            let [top, bottom] = [step + 1, step].map(|s| y + height - height * s / STEPS);
            self.rectangle((x, top), (x + BAR, bottom), colour)?;
        }
        for part in 0..=2 {
            let at = y + height - height * part / 2;
            self.rectangle((x + BAR, at - i32::from(part == 2)), (x + BAR + 5, at + i32::from(part != 2)), GREY)?;
            let text = percent(scale.most * part as f32 / 2.0);
            self.text(&text, (x + BAR + 9, at), 15.0, INK, Align::Left)?;
        }
        self.text(what, (x, y - 18), 15.0, INK, Align::Left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_with_round_numbers() {
        for (largest, most) in [(0.37, 0.4), (0.4, 0.4), (0.61, 0.8), (0.95, 1.0), (0.031, 0.04), (1.0, 1.0)] {
            assert!((Scale::up_to(largest).most - most).abs() < 1e-6, "{largest}");
        }
        assert!(Scale::up_to(0.0).most > 0.0);
    }

    #[test]
    fn colours_begin_dark_and_end_light() {
        let scale = Scale { most: 0.5 };
        assert_eq!(scale.colour(-1.0), scale.colour(0.0));
        assert_eq!(scale.colour(0.5), RGBColor(254, 232, 37));
        assert_eq!(scale.cell(0.0), NOTHING);
    }

    #[test]
    fn percentages_have_the_digits_that_matter() {
        assert_eq!(
            [0.0, 0.005, 0.021, 5.0 * 0.01, 0.25, 1.0].map(percent),
            ["0 %", "0.50 %", "2.1 %", "5 %", "25 %", "100 %"]
        );
    }
}
