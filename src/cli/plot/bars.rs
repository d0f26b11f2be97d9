//! Rates of a benchmark as bars: a panel for each kind of test, so that each has one unit and a scale of its own.

use plotters::prelude::DrawingBackend;
use ternion::tools::bench::{BenchRow, Unit};

use crate::cli::output::digits;
use crate::cli::plot::heat::Scale;
use crate::cli::plot::text::{Align, Font};
use crate::cli::plot::{ANSWER, Drawn, Figure, GREY, INK, Paper};

/// Room around everything.
const MARGIN: i32 = 28;
/// Width of the longest bar, height of a bar, and of a line with its bar.
const BAR: [i32; 3] = [560, 22, 36];
/// Sizes of the title, of panels' titles, and of all else.
const SIZES: [f64; 3] = [26.0, 19.0, 16.0];
/// Where the title is, and the height of a line below it.
const HEAD: [i32; 2] = [MARGIN + 8, 26];
/// Height of a panel's title, and of the numbers below its bars.
const PANEL: [i32; 2] = [40, 44];

/// A bar with its texts.
#[derive(Debug)]
struct Bar {
    name: String,
    rate: f64,
    /// Lowest and highest sample; none of one.
    range: Option<[f64; 2]>,
    label: String,
}

/// Bars of one unit.
#[derive(Debug)]
struct Panel {
    title: &'static str,
    bars: Vec<Bar>,
    /// Number at the end of the longest bar.
    max: f64,
    /// Top of the first bar.
    top: i32,
}

/// A picture of what `ternion bench` measured.
#[derive(Debug)]
pub struct BarsFigure {
    title: String,
    notes: Vec<String>,
    panels: Vec<Panel>,
    /// Left edge of the bars.
    left: i32,
    size: (i32, i32),
}

fn title(unit: Unit) -> &'static str {
    match unit {
        Unit::Read => "Prompts: tokens read per second",
        Unit::Generated => "Text: tokens generated per second",
        Unit::Images => "Images per second",
        Unit::Texts => "Texts per second",
    }
}

fn bar(font: &Font, row: &BenchRow, label: &str) -> Bar {
    let (rate, [min, _, max]) = (row.mean_rate().0, row.rate_quantiles());
    let beside = if label.is_empty() { String::new() } else { format!(", {label}") };
    // The font does not have ×.
    let name = font.shown(&format!("{}{beside}", row.test.replace('×', "x")));
    let label = format!("{}, {:.0} % of bandwidth", digits(rate), 100.0 * row.bandwidth_share);
    Bar { name, rate, range: (row.repetitions > 1).then_some([min, max]), label }
}

/// What all rows have in common, in lines.
fn notes(rows: &[BenchRow]) -> Vec<String> {
    let Some(first) = rows.first() else { return Vec::new() };
    let common = |of: fn(&BenchRow) -> &String| rows.iter().all(|row| of(row) == of(first));
    let mut notes = Vec::new();
    if common(|row| &row.setup.model) {
        notes.push(first.setup.model.clone());
    }
    let processor = first.machine.processor.as_ref().map_or(String::new(), |name| format!(", {name}"));
    let on_cpu = rows.iter().all(|row| row.setup.adapter.is_none());
    let device = match common(|row| &row.setup.device) {
        true => first.setup.device.as_str(),
        false if on_cpu => "the CPU",
        false => "several devices",
    };
    notes.push(format!("on {device}{processor}, {}", first.machine.system));
    let times = first.repetitions;
    notes.push(match times {
        1 => "One repetition.".into(),
        _ => format!("Means of {times} repetitions; lines from the slowest to the fastest."),
    });
    notes
}

impl BarsFigure {
    /// Lays out a bar for each row; `labels` tell rows of one test apart.
    pub fn new(font: &Font, rows: &[BenchRow], labels: &[String]) -> Self {
        let title_text = rows.first().map_or(String::new(), |row| {
            let date = row.time.get(..10).unwrap_or_default();
            font.shown(&format!("{}, {date}", row.machine.program()))
        });
        let notes: Vec<String> = notes(rows).iter().map(|note| font.shown(note)).collect();
        let mut y = HEAD[0] + 8 + HEAD[1] * notes.len() as i32;
        let mut panels = Vec::new();
        for unit in [Unit::Read, Unit::Generated, Unit::Images, Unit::Texts] {
            let mut of_unit: Vec<_> = rows.iter().zip(labels).filter(|(row, _)| row.unit() == unit).collect();
            // What a sweep measured of one test stands together.
            of_unit.sort_by_key(|(row, _)| rows.iter().position(|other| other.test == row.test));
            let bars: Vec<Bar> = of_unit.into_iter().map(|(row, label)| bar(font, row, label)).collect();
            if bars.is_empty() {
                continue;
            }
            let end = bars.iter().map(|b| b.range.map_or(b.rate, |[_, max]| max)).fold(0.0, f64::max);
            let top = y + PANEL[0] + 14;
            y = top + BAR[2] * bars.len() as i32 + PANEL[1];
            panels.push(Panel { title: title(unit), bars, max: f64::from(Scale::up_to(end as f32).max), top });
        }
        // A viewer without the font may have a wider one.
        let wide = |text: &str, size: f64| (1.1 * font.width(text, size)).ceil() as i32;
        let widest = |text: fn(&Bar) -> &String| {
            panels.iter().flat_map(|p| &p.bars).map(|bar| wide(text(bar), SIZES[2])).max().unwrap_or(0)
        };
        let left = MARGIN + widest(|bar| &bar.name) + 12;
        let texts = notes.iter().map(|note| wide(note, SIZES[2])).chain([wide(&title_text, SIZES[0])]);
        let right = left + BAR[0] + 14 + widest(|bar| &bar.label) + MARGIN;
        let width = texts.map(|w| w + 2 * MARGIN).fold(right, i32::max);
        BarsFigure { title: title_text, notes, panels, left, size: (width, y) }
    }

    /// Where a number is on a panel's scale.
    fn at(&self, panel: &Panel, number: f64) -> i32 {
        self.left + (f64::from(BAR[0]) * (number / panel.max).clamp(0.0, 1.0)).round() as i32
    }

    fn draw_bar<B: DrawingBackend>(&self, paper: &Paper<B>, panel: &Panel, bar: &Bar, top: i32) -> Drawn<B> {
        let (middle, end) = (top + BAR[1] / 2, self.at(panel, bar.rate));
        paper.text(&bar.name, (self.left - 10, middle), SIZES[2], INK, Align::Right)?;
        paper.rectangle((self.left, top), (end.max(self.left + 1), top + BAR[1]), ANSWER)?;
        let ends = bar.range.map(|range| range.map(|rate| self.at(panel, rate)));
        if let Some([low, high]) = ends {
            paper.rectangle((low, middle - 1), (high + 1, middle + 1), INK)?;
            for end in [low, high] {
                paper.rectangle((end, middle - 5), (end + 2, middle + 5), INK)?;
            }
        }
        let right = ends.map_or(end, |[_, high]| high.max(end));
        paper.text(&bar.label, (right + 12, middle), SIZES[2], GREY, Align::Left)
    }

    fn draw_panel<B: DrawingBackend>(&self, paper: &Paper<B>, panel: &Panel) -> Drawn<B> {
        paper.text(panel.title, (MARGIN, panel.top - PANEL[0] / 2), SIZES[1], INK, Align::Left)?;
        for (i, bar) in panel.bars.iter().enumerate() {
            self.draw_bar(paper, panel, bar, panel.top + BAR[2] * i as i32)?;
        }
        let line = panel.top + BAR[2] * panel.bars.len() as i32;
        paper.rectangle((self.left, line), (self.left + BAR[0], line + 1), GREY)?;
        for part in 0..=4 {
            let number = panel.max * f64::from(part) / 4.0;
            let (x, text) = (self.at(panel, number), digits(number));
            paper.rectangle((x, line), (x + 1, line + 6), GREY)?;
            paper.text(&text, (x, line + 18), SIZES[2], GREY, Align::Center)?;
        }
        Ok(())
    }
}

impl Figure for BarsFigure {
    fn size(&self) -> (u32, u32) {
        (self.size.0 as u32, self.size.1 as u32)
    }

    fn draw<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        paper.text(&self.title, (MARGIN, HEAD[0]), SIZES[0], INK, Align::Left)?;
        for (note, i) in self.notes.iter().zip(1..) {
            paper.text(note, (MARGIN, HEAD[0] + 8 + HEAD[1] * i), SIZES[2], GREY, Align::Left)?;
        }
        self.panels.iter().try_for_each(|panel| self.draw_panel(paper, panel))
    }
}
