//! Colours for numbers: cells, and the bar that says which colour is which number.

use plotters::prelude::{ColorMap, DrawingBackend, RGBColor, Rectangle, ViridisRGB};
use plotters::style::Color as _;

use crate::cli::plot::text::Align;
use crate::cli::plot::{Drawn, GREY, INK, Paper};

/// Colour of cells where there is nothing.
const NOTHING: RGBColor = RGBColor(238, 238, 238);
/// Width of a colour bar.
const BAR: i32 = 18;
/// Steps of a colour bar.
const STEPS: i32 = 128;

/// Numbers from `min` to `max` and their colours, which are perceptually uniform.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Scale {
    /// The smallest number.
    pub min: f32,
    /// The largest number.
    pub max: f32,
    /// Digits behind the point of numbers; none: they are shares, written as percentages.
    digits: Option<usize>,
}

impl Scale {
    /// A scale of shares from 0 that ends with a round number and holds `largest`.
    pub fn up_to(largest: f32) -> Self {
        let unit = 10f32.powi(largest.max(1e-6).log10().floor() as i32);
        let round = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0].map(|n| n * unit);
        let max = round.into_iter().find(|&r| r >= largest * 0.9999).unwrap_or(10.0 * unit);
        Scale { min: 0.0, max, digits: None }
    }

    /// A scale of numbers of any sign that begins and ends with a round one and holds `min` to `max`.
    pub fn between(min: f32, max: f32) -> Self {
        let range = (max - min).max(1e-3);
        let power = range.log10().floor() as i32;
        let ten = 10f32.powi(power);
        let unit = ten
            * if range >= 4.0 * ten {
                1.0
            } else if range >= 2.0 * ten {
                0.5
            } else {
                0.2
            };
        // A round number is not taken for one beside it; numbers that are all equal lie at the scale's beginning.
        let (min, max) = ((min / unit + 1e-3).floor(), (max / unit - 1e-3).ceil());
        let digits = Some(usize::try_from(1 - power).unwrap_or(0));
        Scale { min: min * unit, max: max.max(min + 1.0) * unit, digits }
    }

    /// The colour of a number.
    pub fn colour(self, number: f32) -> RGBColor {
        ViridisRGB.get_color_normalized(number.clamp(self.min, self.max), self.min, self.max)
    }

    /// The colour of a number's cell: where it is a share of 0, none of the scale's.
    fn cell(self, number: f32) -> RGBColor {
        if self.is_nothing(number) { NOTHING } else { self.colour(number) }
    }

    fn is_nothing(self, number: f32) -> bool {
        self.digits.is_none() && number <= 0.0
    }

    /// A number as it is written beside the scale.
    fn label(self, number: f32) -> String {
        self.digits.map_or_else(|| percent(number), |digits| format!("{number:.digits$}"))
    }

    /// A number as it is written into its cell.
    fn short(self, number: f32) -> String {
        self.digits.map_or_else(|| format!("{:.0}", 100.0 * number), |digits| format!("{number:.digits$}"))
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
            let (number, corner) = (at(row, column), (x + cells.width - gap, y + cells.height - gap));
            let colour = scale.cell(number);
            self.rectangle((x, y), corner, colour)?;
            if numbers && !scale.is_nothing(number) {
                let light = 0.299 * f64::from(colour.0) + 0.587 * f64::from(colour.1) + 0.114 * f64::from(colour.2);
                let ink = if light > 110.0 { INK } else { RGBColor(255, 255, 255) };
                self.text(&scale.short(number), (cells.column(column), cells.row(row) + 1), 14.0, ink, Align::Center)?;
            }
        }
        Ok(())
    }

    /// A bar of the scale's colours with numbers at its right; `what` says above it what they count.
    pub fn bar(&self, scale: Scale, (x, y): (i32, i32), height: i32, what: &str) -> Drawn<B> {
        for step in 0..STEPS {
            let colour = scale.colour(scale.min + (scale.max - scale.min) * (step as f32 + 0.5) / STEPS as f32);
            let [top, bottom] = [step + 1, step].map(|s| y + height - height * s / STEPS);
            self.rectangle((x, top), (x + BAR, bottom), colour)?;
        }
        for part in 0..=2 {
            let at = y + height - height * part / 2;
            self.rectangle((x + BAR, at - i32::from(part == 2)), (x + BAR + 5, at + i32::from(part != 2)), GREY)?;
            let number = scale.min + (scale.max - scale.min) * part as f32 / 2.0;
            self.text(&scale.label(number), (x + BAR + 9, at), 15.0, INK, Align::Left)?;
        }
        self.text(what, (x, y - 18), 15.0, INK, Align::Left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_end_with_round_numbers() {
        for (largest, max) in [(0.37, 0.4), (0.4, 0.4), (0.61, 0.8), (0.95, 1.0), (0.031, 0.04), (1.0, 1.0)] {
            assert!((Scale::up_to(largest).max - max).abs() < 1e-6, "{largest}");
        }
        assert!(Scale::up_to(0.0).max > 0.0);
    }

    #[test]
    fn colours_begin_dark_and_end_light() {
        let scale = Scale::up_to(0.5);
        assert_eq!(scale.colour(-1.0), scale.colour(0.0));
        assert_eq!(scale.colour(0.5), RGBColor(254, 232, 37));
        assert_eq!(scale.cell(0.0), NOTHING);
        let scale = Scale::between(-0.4, 0.4);
        assert_eq!(scale.cell(-0.4), scale.colour(-1.0));
        assert_eq!(scale.colour(0.4), RGBColor(254, 232, 37));
        assert_ne!(scale.cell(0.0), NOTHING);
    }

    #[test]
    fn scales_of_any_sign_hold_their_numbers_with_digits_that_tell_them_apart() {
        for (numbers, ends, label) in [
            ([0.12, 0.34], [0.1, 0.35], "0.12"),
            ([-0.31, 0.62], [-0.4, 0.7], "-0.31"),
            ([-3.2, 14.0], [-4.0, 14.0], "-3"),
            ([0.3011, 0.3094], [0.301, 0.310], "0.3011"),
            ([0.25, 0.25], [0.25, 0.2502], "0.2500"),
            ([0.0, 0.0], [0.0, 0.0002], "0.0000"),
        ] {
            let scale = Scale::between(numbers[0], numbers[1]);
            let near = |a: f32, b: f32| (a - b).abs() < 1e-5 * b.abs().max(1.0);
            assert!(near(scale.min, ends[0]) && near(scale.max, ends[1]), "{numbers:?}: {scale:?}");
            assert_eq!(scale.label(numbers[0]), label);
            assert_eq!(scale.short(numbers[0]), label);
        }
    }

    #[test]
    fn percentages_have_the_digits_that_matter() {
        assert_eq!(
            [0.0, 0.005, 0.021, 5.0 * 0.01, 0.25, 1.0].map(percent),
            ["0 %", "0.50 %", "2.1 %", "5 %", "25 %", "100 %"]
        );
    }
}
