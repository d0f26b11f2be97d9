//! Which experts were chosen, by layer and by token.

use plotters::prelude::DrawingBackend;
use ternion::engine::Routing;
use ternion::unstable::models::ModelInfo;

use crate::cli::plot::heat::{Cells, Scale};
use crate::cli::plot::text::{Align, Font};
use crate::cli::plot::{ANSWER, Drawn, Figure, GREY, INK, Paper};

/// Maximum number of tokens that are drawn: those at the end.
const MAX_TOKENS: usize = 360;
/// Maximum number of tokens side by side.
const MAX_PER_LINE: usize = 45;
/// Room around everything.
const MARGIN: i32 = 28;
/// Room between the panels.
const BETWEEN: i32 = 44;
/// Maximum width of an expert's name and of a token's text; longer ones are cut.
const MAX_TEXT_WIDTH: [f64; 2] = [240.0, 120.0];
/// Room for a colour bar and its numbers, from the right edge of the cells.
const BAR_ROOM: i32 = 150;
/// Maximum width of a panel of cells.
const MAX_WIDTH: usize = 1180;
/// Sizes of the title, of a panel's title, and of all else.
const SIZES: [f64; 3] = [26.0, 19.0, 16.0];
/// Heights of lines of these sizes.
const LINES: [i32; 3] = [40, 28, 24];

/// A picture of a session's routing.
pub struct RoutingFigure<'a> {
    routing: &'a Routing,
    title: String,
    captions: [String; 2],
    names: Vec<String>,
    /// Texts of the tokens that are drawn, and the number of the first one.
    tokens: Vec<String>,
    first: usize,
    /// Number of the first token of the answer.
    answer: usize,
    by_layer: Cells,
    /// Cells of the tokens, line by line.
    lines: Vec<Cells>,
    size: (i32, i32),
}

impl<'a> RoutingFigure<'a> {
    /// Lays out the picture of text tokens with these texts, whose answer begins with number `answer`.
    pub fn new(font: &Font, routing: &'a Routing, info: &ModelInfo, texts: &[String], answer: usize) -> Self {
        let names: Vec<String> =
            info.experts.iter().map(|name| font.cut(&font.shown(name), SIZES[2], MAX_TEXT_WIDTH[0])).collect();
        let first = texts.len().saturating_sub(MAX_TOKENS);
        let text = |text: &String| font.cut(&font.token(text), SIZES[2], MAX_TEXT_WIDTH[1]);
        let tokens: Vec<String> = texts.iter().skip(first).map(text).collect();
        let widest = |texts: &[String]| texts.iter().map(|t| font.width(t, SIZES[2]).ceil() as i32).max().unwrap_or(0);
        // A viewer without the font may have a wider one.
        let left = MARGIN + widest(&names) * 11 / 10 + 14;
        let below = widest(&tokens) * 11 / 10 + 16;

        let height = (560 / routing.experts.max(1)).clamp(10, 28) as i32;
        let cells = |columns: usize, y: i32, [min, max]: [usize; 2]| {
            let width = (MAX_WIDTH / columns.max(1)).clamp(min, max) as i32;
            Cells { x: left, y, width, height, columns, rows: routing.experts }
        };
        let by_layer = cells(routing.layers(), MARGIN + LINES[0] + 2 * LINES[1] + 14, [4, 60]);
        let mut y = by_layer.bottom() + 2 * LINES[2] + BETWEEN + 2 * LINES[1];
        let in_line = tokens.len().div_ceil(tokens.len().div_ceil(MAX_PER_LINE).max(1)).max(1);
        let mut lines = Vec::new();
        for line in tokens.chunks(in_line) {
            let width = cells(in_line, y, [26, 44]).width;
            lines.push(Cells { width, ..cells(line.len(), y, [26, 44]) });
            y += height * routing.experts as i32 + below + LINES[2] + 10;
        }
        let mut figure = RoutingFigure {
            routing,
            title: format!("Experts that {} chose", font.shown(info.family)),
            captions: captions(routing, texts.len(), first, answer),
            names,
            tokens,
            first,
            answer,
            by_layer,
            lines,
            size: (0, y - LINES[2] + MARGIN / 2),
        };
        let cells = [&figure.by_layer].into_iter().chain(&figure.lines).map(|c| c.right() + BAR_ROOM);
        let texts = figure.captions.iter().map(|t| MARGIN + font.width(t, SIZES[2]) as i32 * 11 / 10);
        figure.size.0 = cells.chain(texts).max().unwrap_or(0) + MARGIN;
        figure
    }
}

/// What the panels show, in a sentence each.
fn captions(routing: &Routing, tokens: usize, first: usize, answer: usize) -> [String; 2] {
    let (per_row, experts, rows) = (routing.per_row, routing.experts, routing.rows());
    let pictures = match routing.image_rows {
        0 => String::new(),
        n => format!(" ({n} of them from pictures)"),
    };
    let by_layer = format!(
        "Per cent of the {rows} tokens{pictures} that chose an expert. Each token chooses {per_row} of {experts} in each layer."
    );
    let part = if first > 0 {
        format!("The last {} of {tokens} text tokens", tokens - first)
    } else {
        format!("The {tokens} text tokens")
    };
    let answered = if answer < tokens { "; the answer is blue" } else { "" };
    let layers = routing.layers();
    let by_token =
        format!("{part}{answered}. Per cent of the {layers} layers in which a token chose an expert; grey: none.");
    [by_layer, by_token]
}

impl Figure for RoutingFigure<'_> {
    fn size(&self) -> (u32, u32) {
        (self.size.0 as u32, self.size.1 as u32)
    }

    fn draw<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        paper.text(&self.title, (MARGIN, MARGIN + LINES[0] / 2 - 8), SIZES[0], INK, Align::Left)?;
        self.draw_by_layer(paper)?;
        self.draw_by_token(paper)
    }
}

impl RoutingFigure<'_> {
    fn draw_by_layer<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        let (cells, rows) = (&self.by_layer, self.routing.rows());
        let share = |expert, layer| self.routing.share_of_rows(expert, layer, 0..rows);
        let largest = (0..cells.rows).flat_map(|e| (0..cells.columns).map(move |l| share(e, l))).fold(0.0, f32::max);
        let scale = Scale::up_to(largest);
        self.heading(paper, cells, "By layer", &self.captions[0])?;
        paper.cells(cells, scale, cells.width >= 30 && cells.height >= 18, share)?;
        self.experts(paper, cells)?;
        let every = (30 / cells.width).max(1) as usize;
        for layer in (0..cells.columns).step_by(every) {
            let at = (cells.column(layer), cells.bottom() + LINES[2] / 2 + 2);
            paper.text(&layer.to_string(), at, SIZES[2], INK, Align::Center)?;
        }
        let middle = ((cells.x + cells.right()) / 2, cells.bottom() + LINES[2] * 3 / 2 + 2);
        paper.text("layer", middle, SIZES[2], GREY, Align::Center)?;
        paper.bar(scale, (cells.right() + 24, cells.y), cells.bottom() - cells.y, "")
    }

    fn draw_by_token<B: DrawingBackend>(&self, paper: &Paper<B>) -> Drawn<B> {
        let scale = Scale::up_to(1.0);
        let mut first = self.first;
        for (n, cells) in self.lines.iter().enumerate() {
            if n == 0 {
                self.heading(paper, cells, "By token", &self.captions[1])?;
            }
            paper.bar(scale, (cells.right() + 24, cells.y), cells.bottom() - cells.y, "")?;
            let row = |column: usize| self.routing.image_rows + first + column;
            paper.cells(cells, scale, false, |expert, column| self.routing.share_of_layers(expert, row(column)))?;
            self.experts(paper, cells)?;
            for column in 0..cells.columns {
                let token = first + column;
                let colour = if token >= self.answer { ANSWER } else { INK };
                if column == 0 {
                    paper.text("token", (cells.x - 9, cells.y - 11), 14.0, GREY, Align::Right)?;
                }
                let Some(text) = self.tokens.get(token - self.first) else { continue };
                paper.upright(text, (cells.column(column), cells.bottom() + 6), SIZES[2], colour)?;
                // The first number of a line leaves room for the next.
                if token.is_multiple_of(5) || column == 0 && !(token + 1).is_multiple_of(5) {
                    paper.text(&token.to_string(), (cells.column(column), cells.y - 11), 14.0, GREY, Align::Center)?;
                }
            }
            first += cells.columns;
        }
        Ok(())
    }

    /// A panel's title and what it shows, above its cells.
    fn heading<B: DrawingBackend>(&self, paper: &Paper<B>, cells: &Cells, title: &str, caption: &str) -> Drawn<B> {
        paper.text(title, (MARGIN, cells.y - 2 * LINES[1]), SIZES[1], INK, Align::Left)?;
        paper.text(caption, (MARGIN, cells.y - LINES[1] - 4), SIZES[2], GREY, Align::Left)
    }

    /// Names of the experts at the left of their rows.
    fn experts<B: DrawingBackend>(&self, paper: &Paper<B>, cells: &Cells) -> Drawn<B> {
        let every = (18 / cells.height).max(1) as usize;
        for (expert, name) in self.names.iter().enumerate().step_by(every) {
            paper.text(name, (cells.x - 9, cells.row(expert)), SIZES[2], INK, Align::Right)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(experts: usize) -> ModelInfo {
        ModelInfo {
            family: "EmberNet",
            vocab: 512,
            max_positions: 2048,
            layers: 16,
            eos: vec![2],
            image: None,
            experts: (0..experts).map(|e| format!("an expert with a long name {e}")).collect(),
            experts_per_token: 2,
        }
    }

    fn routing(experts: usize, layers: usize, rows: usize) -> Routing {
        let choose = |row: usize, layer: usize| [row % experts, (row + layer + 1) % experts].map(|e| e as u32);
        let choices = (0..layers).map(|l| (0..rows).flat_map(|r| choose(r, l)).collect()).collect();
        Routing { experts, per_row: 2, image_rows: 0, choices }
    }

    #[test]
    fn everything_has_its_place_however_much_there_is() {
        let font = Font::built_in().unwrap();
        for (experts, layers, tokens) in [(8, 16, 100), (2, 1, 1), (64, 48, 37), (8, 4, 1000)] {
            let routing = routing(experts, layers, tokens);
            let texts: Vec<String> = (0..tokens).map(|t| format!(" word{t}")).collect();
            let figure = RoutingFigure::new(&font, &routing, &info(experts), &texts, tokens / 2);
            assert_eq!(figure.tokens.len(), tokens.min(MAX_TOKENS));
            assert_eq!(figure.lines.iter().map(|l| l.columns).sum::<usize>(), figure.tokens.len());
            let panels: Vec<&Cells> = [&figure.by_layer].into_iter().chain(&figure.lines).collect();
            for pair in panels.windows(2) {
                assert!(pair[0].bottom() + 60 < pair[1].y, "labels fit between panels");
            }
            for cells in panels {
                assert!(cells.x > 150 && cells.right() + BAR_ROOM <= figure.size.0);
                assert!(cells.bottom() + 60 < figure.size.1 && cells.columns <= MAX_PER_LINE.max(layers));
            }
        }
        let many = routing(8, 4, 1000);
        let texts = vec!["x".to_owned(); 1000];
        let figure = RoutingFigure::new(&font, &many, &info(8), &texts, 500);
        assert_eq!(figure.first, 1000 - MAX_TOKENS);
        assert!(figure.captions[1].contains("last 360 of 1000"), "{}", figure.captions[1]);
    }
}
