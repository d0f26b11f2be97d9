//! How many times as fast one benchmark's rates are as another's: a dot for each test on a line from slower to faster, with
//! its interval.

use plotters::prelude::DrawingBackend;
use ternion::tools::bench::{BenchRow, Comparison, Pair, Ratio};

use crate::cli::plot::text::{Align, Font};
use crate::cli::plot::{ANSWER, Drawn, Figure, GREY, INK, Paper};

/// Room around everything.
const MARGIN: i32 = 28;
/// Width of the scale, and height of a test's line.
const LINE: [i32; 2] = [560, 34];
/// Half the side of a dot.
const DOT: i32 = 6;
/// Sizes of the title and of all else.
const SIZES: [f64; 2] = [26.0, 16.0];
/// Where the first test's line begins, and the height of the numbers below the last one.
const ENDS: [i32; 2] = [166, 52];
/// Numbers that the scale names, if it holds them.
const MARKS: [f64; 17] = [0.01, 0.02, 0.05, 0.1, 0.2, 0.33, 0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0, 5.0, 10.0, 100.0];
/// The scale reaches at least this far from 1, upwards and downwards, and at most to the last one.
const REACH: [f64; 2] = [1.25, 1000.0];

/// A picture of what `ternion compare` found.
#[derive(Debug)]
pub struct RatiosFigure {
    notes: Vec<String>,
    /// Each test with its ratio and the text beside it.
    tests: Vec<(String, Ratio, String)>,
    /// The number at the right end of the scale; that at the left is 1 over it.
    reach: f64,
    left: i32,
    width: i32,
}

/// What a run was, in one line; `rows` are those that are compared.
fn run(name: &str, rows: &[&BenchRow]) -> Option<String> {
    let first = rows.first()?;
    let device = match rows.iter().all(|row| row.setup.device == first.setup.device) {
        true => format!(", {}", first.setup.device),
        false => String::new(),
    };
    let processor = first.machine.processor.as_ref().map_or(String::new(), |p| format!(", {p}"));
    let (program, date) = (first.machine.program(), first.time.get(..10).unwrap_or_default());
    Some(format!("{name}: {program}, {date}{device}{processor}"))
}

impl RatiosFigure {
    /// Lays out a line for each pair, named by `names`; `files` are those of the two runs.
    pub fn new(font: &Font, found: &Comparison, names: &[String], files: &[String; 2]) -> Self {
        let mut notes =
            vec!["Ratios of the geometric means of the rates, with 95 % intervals (Welch's t on logarithms).".into()];
        let (a, b): (Vec<&BenchRow>, Vec<&BenchRow>) = found.pairs.iter().map(|pair| (&pair.a, &pair.b)).unzip();
        notes.extend(run(&format!("A, {}", files[0]), &a));
        notes.extend(run(&format!("B, {}", files[1]), &b));
        let notes: Vec<String> = notes.iter().map(|note| font.shown(note)).collect();
        let test = |(pair, name): (&Pair, &String)| {
            let label = match pair.ratio.interval {
                Some([low, high]) => format!("{:.2} ({low:.2} to {high:.2})", pair.ratio.value),
                None => format!("{:.2}, no interval of one sample", pair.ratio.value),
            };
            // The font does not have ×.
            (font.shown(&name.replace('×', "x")), pair.ratio, label)
        };
        let tests: Vec<_> = found.pairs.iter().zip(names).map(test).collect();
        let away = |n: f64| n.max(1.0 / n);
        let ends = tests.iter().flat_map(|(_, r, _)| [r.value].into_iter().chain(r.interval.into_iter().flatten()));
        let reach = (1.1 * ends.map(away).fold(1.0, f64::max)).clamp(REACH[0], REACH[1]);
        // A viewer without the font may have a wider one.
        let wide = |text: &str, size: f64| (1.1 * font.width(text, size)).ceil() as i32;
        let left = MARGIN + tests.iter().map(|(name, ..)| wide(name, SIZES[1])).max().unwrap_or(0) + 16;
        let labels = tests.iter().map(|(.., label)| wide(label, SIZES[1])).max().unwrap_or(0);
        let right = left + LINE[0] + 20 + labels + MARGIN;
        let width = notes.iter().map(|n| wide(n, SIZES[1]) + 2 * MARGIN).fold(right, i32::max);
        RatiosFigure { notes, tests, reach, left, width }
    }

    /// Where a number is on the scale, which is logarithmic.
    fn at(&self, number: f64) -> i32 {
        let part = 0.5 + 0.5 * number.ln() / self.reach.ln();
        self.left + (f64::from(LINE[0]) * part.clamp(0.0, 1.0)).round() as i32
    }

    fn bottom(&self) -> i32 {
        ENDS[0] + LINE[1] * self.tests.len() as i32
    }

    fn draw_scale<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        let (line, mut last) = (self.bottom(), self.left - LINE[0]);
        paper.rectangle((self.left, line), (self.left + LINE[0], line + 1), GREY)?;
        paper.rectangle((self.at(1.0), ENDS[0] - 6), (self.at(1.0) + 1, line), GREY)?;
        let inside = |mark: &&f64| mark.max(1.0 / **mark) <= self.reach;
        for &mark in MARKS.iter().filter(inside) {
            let x = self.at(mark);
            // Numbers that would touch the one before them are left out, but for the 1.
            if x - last < 44 && (mark - 1.0).abs() > 1e-9 {
                continue;
            }
            last = x;
            paper.rectangle((x, line), (x + 1, line + 6), GREY)?;
            paper.text(&format!("{mark}"), (x, line + 18), SIZES[1], GREY, Align::Center)?;
        }
        paper.text("B is slower", (self.left, ENDS[0] - 18), SIZES[1], GREY, Align::Left)?;
        paper.text("B is faster", (self.left + LINE[0], ENDS[0] - 18), SIZES[1], GREY, Align::Right)
    }
}

impl Figure for RatiosFigure {
    fn size(&self) -> (u32, u32) {
        (self.width as u32, (self.bottom() + ENDS[1]) as u32)
    }

    fn draw<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        paper.text("Speed of B over speed of A", (MARGIN, MARGIN + 8), SIZES[0], INK, Align::Left)?;
        for (note, i) in self.notes.iter().zip(0..) {
            paper.text(note, (MARGIN, MARGIN + 40 + 24 * i), SIZES[1], GREY, Align::Left)?;
        }
        self.draw_scale(paper)?;
        for ((name, ratio, label), i) in self.tests.iter().zip(0..) {
            let y = ENDS[0] + LINE[1] * i + LINE[1] / 2;
            let colour = if ratio.differs() == Some(true) { ANSWER } else { GREY };
            paper.text(name, (self.left - 12, y), SIZES[1], INK, Align::Right)?;
            if let Some(interval) = ratio.interval {
                let [low, high] = interval.map(|n| self.at(n));
                paper.rectangle((low, y - 1), (high + 1, y + 1), colour)?;
                for end in [low, high] {
                    paper.rectangle((end, y - 5), (end + 1, y + 5), colour)?;
                }
            }
            let x = self.at(ratio.value);
            paper.rectangle((x - DOT, y - DOT), (x + DOT, y + DOT), colour)?;
            paper.text(label, (self.left + LINE[0] + 14, y), SIZES[1], INK, Align::Left)?;
        }
        Ok(())
    }
}
