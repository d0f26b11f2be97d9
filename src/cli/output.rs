//! Progress bars, tables, streamed text and statistics.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::sync::LazyLock;
use std::time::Duration;

use console::Style;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use ternion::engine::{Engine, GenerateOptions, Progress, Session, Stats, StopReason};
use ternion::files::chat_template::thoughts::{Part, ThoughtSplitter};

use crate::cli::interrupts;
use crate::cli::messages::{say, write};
use crate::cli::terminal_text::{columns, padded, padded_left, printable};

/// The bars that are on the screen, with which what else is logged there is written.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Stderr for what is logged while bars are shown, which are out of the way meanwhile.
pub struct BesideBars;

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        BARS.suspend(|| io::stderr().lock().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// A progress bar on stderr; nothing where stderr is not a terminal.
pub struct Bar(ProgressBar);

impl Bar {
    /// A bar with a word in front.
    pub fn new(what: &'static str) -> Self {
        let bar = ProgressBar::no_length().with_prefix(what);
        // A template that does not parse leaves the usual style.
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:30} {pos}/{len} {wide_msg}") {
            bar.set_style(style);
        }
        Bar(BARS.add(bar))
    }

    /// Shows how far things are; they go on until Ctrl-C, where a command watches for it.
    pub fn show(&self, progress: &Progress) -> ControlFlow<()> {
        self.0.set_length(progress.total as u64);
        self.0.set_position(progress.done as u64);
        self.0.set_message(printable(&progress.what));
        if interrupts::came() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// Runs what writes lines to the same terminal, with the bar out of the way.
    pub fn aside<T>(&self, write: impl FnOnce() -> T) -> T {
        self.0.suspend(write)
    }

    /// Removes the bar.
    pub fn end(&self) {
        self.0.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.end();
    }
}

/// Prints rows in aligned columns under a header; cells may hold names of any characters.
///
/// # Errors
/// What writing to `out` gives.
pub fn table(out: &mut impl Write, header: &[&str], rows: &[Vec<String>]) -> io::Result<()> {
    let header: Vec<String> = header.iter().map(|h| printable(h)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|c| printable(c)).collect()).collect();
    let widths = widths(&header, &rows);
    for row in [&header].into_iter().chain(&rows) {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, &width)| padded(cell, width)).collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// The widest cell of each column.
fn widths(header: &[String], rows: &[Vec<String>]) -> Vec<usize> {
    let widest = |(column, name): (usize, &String)| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| columns(cell)).fold(columns(name), usize::max)
    };
    header.iter().enumerate().map(widest).collect()
}

/// Prints a table of Markdown in aligned columns; the first `words` are of words, the others of numbers, which stand at
/// the right.
///
/// # Errors
/// What writing to `out` gives.
pub fn markdown(out: &mut impl Write, header: &[&str], words: usize, rows: &[Vec<String>]) -> io::Result<()> {
    let cell = |text: &str| printable(text).replace('|', "\\|");
    let header: Vec<String> = header.iter().map(|h| cell(h)).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(|row| row.iter().map(|c| cell(c)).collect()).collect();
    let widths = widths(&header, &rows);
    for (number, row) in [&header].into_iter().chain(&rows).enumerate() {
        let line = row.iter().zip(&widths).enumerate().map(|(column, (cell, &width))| match column < words {
            true => format!(" {} |", padded(cell, width)),
            false => format!(" {} |", padded_left(cell, width)),
        });
        writeln!(out, "|{}", line.collect::<String>())?;
        if number == 0 {
            let rule = widths.iter().enumerate().map(|(column, &width)| {
                let colon = if column < words { "-" } else { ":" };
                format!("-{}{colon}|", "-".repeat(width))
            });
            writeln!(out, "|{}", rule.collect::<String>())?;
        }
    }
    Ok(())
}

/// A number of bytes in a unit that suits it.
pub fn bytes(n: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    let unit = units.iter().find(|(shift, _)| n >> shift > 0);
    unit.map_or(format!("{n} B"), |(shift, name)| format!("{:.2} {name}", n as f64 / (1u64 << shift) as f64))
}

/// A number with three digits or more, and with no more behind the point than say something.
pub fn digits(n: f64) -> String {
    let places = if n >= 100.0 || n == 0.0 {
        0
    } else if n >= 10.0 {
        1
    } else {
        2
    };
    format!("{n:.places$}")
}

/// A duration in milliseconds.
pub fn ms(time: Duration) -> String {
    format!("{:.1} ms", 1e3 * time.as_secs_f64())
}

/// The result of an answer.
pub struct Answer {
    /// Counts and times, and why the text ended.
    pub stats: (Stats, Option<StopReason>),
    /// Whether stdout took the text. It is reported after all other output of the command.
    pub written: io::Result<()>,
}

/// Generated text, streamed to stdout.
pub struct StreamedText {
    out: io::StdoutLock<'static>,
    /// Whether anything but space has come.
    pub begun: bool,
    /// The first error of stdout; nothing is written behind it.
    pub written: io::Result<()>,
}

impl StreamedText {
    /// An empty text.
    pub fn new() -> Self {
        StreamedText { out: io::stdout().lock(), begun: false, written: Ok(()) }
    }

    /// Writes a piece. Many tokenizers put a space in front of a text's first word: it is left out.
    pub fn push(&mut self, piece: &str) {
        let piece = if self.begun { piece } else { piece.trim_start() };
        self.begun |= !piece.is_empty();
        if !piece.is_empty() && self.written.is_ok() {
            self.written = self.out.write_all(piece.as_bytes()).and_then(|()| self.out.flush());
        }
    }

    /// Ends the line.
    ///
    /// # Errors
    /// The first one of stdout.
    pub fn end(mut self) -> io::Result<()> {
        self.written?;
        writeln!(self.out)?;
        self.out.flush()
    }
}

/// What a model writes, its thoughts on stderr and its answer on stdout.
struct AnswerText {
    answer: StreamedText,
    /// None for a model without thoughts.
    splitter: Option<ThoughtSplitter>,
    hides_thoughts: bool,
    /// Whether a thought is shown whose line has not ended.
    thinks: bool,
}

impl AnswerText {
    fn push(&mut self, piece: &str) {
        match &mut self.splitter {
            Some(splitter) => {
                let parts = splitter.push(piece);
                self.show(parts);
            }
            None => self.answer.push(piece),
        }
    }

    fn show(&mut self, parts: Vec<(Part, String)>) {
        for (part, text) in parts {
            match part {
                Part::Thought if self.hides_thoughts => {}
                Part::Thought => {
                    write(format_args!("{}", Style::new().for_stderr().dim().apply_to(&text)));
                    self.thinks = true;
                }
                Part::Answer => {
                    self.end_thought();
                    self.answer.push(&text);
                }
            }
        }
    }

    fn end_thought(&mut self) {
        if std::mem::take(&mut self.thinks) {
            say!("");
        }
    }

    fn end(mut self) -> io::Result<()> {
        let rest = self.splitter.as_mut().map_or_else(Vec::new, ThoughtSplitter::finish);
        self.show(rest);
        self.end_thought();
        self.answer.end()
    }
}

/// Generates an answer to stdout as it comes, without leading space, and what the model thinks to stderr, until
/// `interrupted` returns true. If stdout cannot be written, the answer is completed if `whole` asks for that, and ends there
/// otherwise.
///
/// # Errors
/// Those of the engine.
pub fn stream(
    session: &mut Session,
    options: GenerateOptions,
    whole: bool,
    hides_thoughts: bool,
    interrupted: impl Fn() -> bool,
) -> ternion::Result<Answer> {
    let splitter = session.thought_splitter();
    let mut text = AnswerText { answer: StreamedText::new(), splitter, hides_thoughts, thinks: false };
    let mut stream = session.generate(options)?;
    for token in stream.by_ref() {
        let token = match token {
            Ok(token) => token,
            Err(error) => {
                // The text so far ends its line; that stdout cannot be written matters less than this error.
                let _ = text.end();
                return Err(error);
            }
        };
        text.push(&token.text);
        if interrupted() || (text.answer.written.is_err() && !whole) {
            break;
        }
    }
    let written = text.end();
    if stream.stop_reason() == Some(StopReason::Repetition) {
        say!(
            "note: the answer repeated itself and was ended; --temp and --repeat-penalty give other ones, --allow-loops lets it \
             go on"
        );
    }
    Ok(Answer { stats: (stream.stats(), stream.stop_reason()), written })
}

/// Why a text ended.
pub fn ending(end: Option<StopReason>) -> &'static str {
    match end {
        Some(StopReason::Eos) => "the model ended its text",
        Some(StopReason::StopString) => "a stop text came",
        Some(StopReason::Length) => "the maximum number of tokens was reached",
        Some(StopReason::Context) => "the context is full",
        Some(StopReason::Repetition) => "it repeated itself without end",
        Some(_) | None => "it was stopped",
    }
}

/// Prints counts and times of the last answer to stderr, with how often each expert was chosen.
///
/// # Errors
/// [`ternion::Error::DeviceLost`] if the device was lost.
pub fn statistics(
    engine: &Engine,
    session: &Session,
    images: usize,
    (stats, end): &(Stats, Option<StopReason>),
) -> ternion::Result<()> {
    let report = engine.report();
    let (weights, memory) = (bytes(report.weight_bytes), bytes(report.memory_bytes));
    say!("loaded:    {weights} of weights, {memory} on the device, in {}", ms(report.time));
    let (now, max) = (engine.memory_bytes()?, report.max_memory_bytes);
    if max > report.memory_bytes {
        let (now, max) = (bytes(now), bytes(max.max(now)));
        say!("memory:    {now} on the device by now, {max} with a full context of {} tokens", engine.context());
    }
    if let Some(pages) = engine.paging()? {
        let (hits, moved, stalled) = (100.0 * pages.hit_rate(), bytes(pages.moved_bytes), ms(pages.stalled));
        say!("moved:     {moved} of experts and layers, {stalled}; {hits:.1} % of what steps needed was in memory");
    }
    if images > 0 {
        let plural = if images == 1 { "" } else { "s" };
        say!("image:     {images} picture{plural} in {}", ms(session.image_time()));
    }
    let (prompt, prefill) = (stats.prompt_tokens, ms(stats.prefill));
    say!("prefill:   {prompt} tokens in {prefill}, {:.1} tokens/s", stats.prefill_rate());
    let why = ending(*end);
    let (each, rate) = (stats.ms_per_token(), stats.decode_rate());
    say!("generated: {} tokens, {each:.2} ms/token, {rate:.1} tokens/s; {why}", stats.generated);
    if session.forgotten() > 0 {
        say!("context:   {} of {} tokens, {} have left", session.len(), engine.context(), session.forgotten());
    }
    let names = &engine.info().experts;
    if !names.is_empty() {
        let layers = session.expert_shares()?;
        let mean = |e: usize| layers.iter().filter_map(|l| l.get(e)).sum::<f32>() / layers.len().max(1) as f32;
        let shares: Vec<String> =
            names.iter().enumerate().map(|(e, name)| format!("{name} {:.1} %", 100.0 * mean(e))).collect();
        say!("experts:   {}", shares.join(", "));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        assert_eq!([0.0, 0.123, 4.567, 45.67, 456.7, 4567.8].map(digits), ["0", "0.12", "4.57", "45.7", "457", "4568"]);
    }
}
