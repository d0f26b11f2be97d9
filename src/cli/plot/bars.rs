//! Tokens per second by test.

use plotters::prelude::DrawingBackend;
use ternion::tools::bench::BenchRow;

use crate::cli::plot::heat::Scale;
use crate::cli::plot::text::{Align, Font};
use crate::cli::plot::{ANSWER, Drawn, Figure, GREY, INK, Paper};

/// Room around everything.
const MARGIN: i32 = 28;
/// Width of the longest bar, height of a bar, and of a line with its bar.
const BAR: [i32; 3] = [560, 22, 36];
/// Sizes of the title and of all else.
const SIZES: [f64; 2] = [26.0, 16.0];
/// Height of the title and of what is below it, to the first bar.
const HEAD: i32 = 92;
/// Height of the numbers below the bars.
const FOOT: i32 = 52;

/// A bar with its texts.
#[derive(Debug)]
struct Bar {
    name: String,
    rate: f64,
    deviation: f64,
    label: String,
}

/// A picture of what `ternion bench` measured.
#[derive(Debug)]
pub struct BarsFigure {
    title: String,
    device: String,
    bars: Vec<Bar>,
    /// Number at the end of the longest bar.
    max: f64,
    /// Left edge of the bars.
    left: i32,
    width: i32,
}

impl BarsFigure {
    /// Lays out a bar for each row.
    pub fn new(font: &Font, rows: &[BenchRow]) -> Self {
        let bar = |row: &BenchRow| Bar {
            // The font does not have ×.
            name: font.shown(&row.test.replace('×', "x")),
            rate: row.tokens_per_s,
            deviation: row.stddev,
            label: format!(
                "{:.1} ± {:.1}, {:.0} % of bandwidth",
                row.tokens_per_s,
                row.stddev,
                100.0 * row.bandwidth_share
            ),
        };
        let bars: Vec<Bar> = rows.iter().map(bar).collect();
        // A viewer without the font may have a wider one.
        let wide = |text: &str, size: f64| (1.1 * font.width(text, size)).ceil() as i32;
        let [names, labels] = [|b: &Bar| b.name.clone(), |b: &Bar| b.label.clone()]
            .map(|text| bars.iter().map(|b| wide(&text(b), SIZES[1])).max().unwrap_or(0));
        let ends = bars.iter().map(|b| b.rate + b.deviation).fold(0.0, f64::max);
        let first = rows.first();
        let title = first.map_or(String::new(), |r| font.shown(&format!("{}: tokens per second", r.model)));
        let device = first.map_or(String::new(), |r| font.shown(&format!("on {}", r.device)));
        let left = MARGIN + names + 12;
        let texts = [wide(&title, SIZES[0]), wide(&device, SIZES[1])].map(|w| w + 2 * MARGIN);
        let width = texts.into_iter().fold(left + BAR[0] + 14 + labels + MARGIN, i32::max);
        BarsFigure { title, device, bars, max: f64::from(Scale::up_to(ends as f32).max), left, width }
    }

    /// Where a number is on the scale.
    fn at(&self, number: f64) -> i32 {
        self.left + (f64::from(BAR[0]) * (number / self.max).clamp(0.0, 1.0)).round() as i32
    }

    /// Lower end of the bars.
    fn bottom(&self) -> i32 {
        HEAD + BAR[2] * self.bars.len() as i32
    }

    fn draw_bar<B: DrawingBackend>(&self, paper: &Paper<B>, bar: &Bar, top: i32) -> Drawn<B> {
        let middle = top + BAR[1] / 2;
        paper.text(&bar.name, (self.left - 10, middle), SIZES[1], INK, Align::Right)?;
        paper.rectangle((self.left, top), (self.at(bar.rate).max(self.left + 1), top + BAR[1]), ANSWER)?;
        let [low, high] = [-1.0, 1.0].map(|sign| self.at(bar.rate + sign * bar.deviation));
        paper.rectangle((low, middle - 1), (high + 1, middle + 1), INK)?;
        for end in [low, high] {
            paper.rectangle((end, middle - 5), (end + 2, middle + 5), INK)?;
        }
        paper.text(&bar.label, (high.max(self.at(bar.rate)) + 12, middle), SIZES[1], GREY, Align::Left)
    }
}

impl Figure for BarsFigure {
    fn size(&self) -> (u32, u32) {
        (self.width as u32, (self.bottom() + FOOT) as u32)
    }

    fn draw<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        paper.text(&self.title, (MARGIN, MARGIN + 8), SIZES[0], INK, Align::Left)?;
        paper.text(&self.device, (MARGIN, MARGIN + 38), SIZES[1], GREY, Align::Left)?;
        for (i, bar) in self.bars.iter().enumerate() {
            self.draw_bar(paper, bar, HEAD + BAR[2] * i as i32)?;
        }
        let line = self.bottom();
        paper.rectangle((self.left, line), (self.left + BAR[0], line + 1), GREY)?;
        for part in 0..=4 {
            let number = self.max * f64::from(part) / 4.0;
            let places = if self.max >= 40.0 {
                0
            } else if self.max >= 4.0 {
                1
            } else {
                3
            };
            let (x, text) = (self.at(number), format!("{number:.places$}"));
            paper.rectangle((x, line), (x + 1, line + 6), GREY)?;
            paper.text(&text, (x, line + 18), SIZES[1], GREY, Align::Center)?;
        }
        Ok(())
    }
}
