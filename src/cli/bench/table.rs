//! Rows for people: a block that says what was measured where, and a table of at most 100 columns under it.

use std::io::{self, Write};

use ternion::tools::bench::{BenchRow, OpTime, Unit};

use crate::cli::output::{bytes, digits, markdown};
use crate::cli::terminal_text::{columns, padded, padded_left, printable};

/// Maximum number of columns of the block, and of the table unless a test's name is long.
const WIDTH: usize = 100;

/// A column of numbers: its title, the width that it has at least, and what a row has in it.
type Column = (&'static str, usize, fn(&BenchRow) -> String);

/// The columns of each table, behind that of the test.
const NARROW: [Column; 6] = [
    ("per second", 13, rate),
    ("median", 6, |row| short(row.rate_quantiles()[1])),
    ("min–max", 11, range),
    ("ms", 7, |row| digits(row.ms)),
    ("MB/token", 8, |row| digits(1e-6 * row.bytes_per_token)),
    ("%BW", 5, |row| format!("{:.1}", 100.0 * row.bandwidth_share)),
];

/// Those that a wide table has besides.
const WIDE: [Column; 4] = [
    ("launches/token", 14, |row| digits(row.dispatches_per_token)),
    ("host µs/token", 13, |row| digits(row.host_us_per_token)),
    ("host memory", 11, |row| row.peak_host_bytes.map_or("–".into(), bytes)),
    ("device memory", 13, |row| bytes(row.device_bytes)),
];

/// Those of weights that move through memory.
const PAGED: [Column; 3] = [
    ("%hits", 5, |row| percent(row.pages.page_hit_rate)),
    ("moved MB/token", 14, |row| row.pages.moved_bytes_per_token.map_or("–".into(), |bytes| digits(1e-6 * bytes))),
    ("%stalled", 8, |row| percent(row.pages.stalled_share)),
];

fn percent(share: Option<f64>) -> String {
    share.map_or("–".into(), |share| format!("{:.1}", 100.0 * share))
}

/// A number, in thousands where it has six digits or more.
fn short(n: f64) -> String {
    if n >= 1e5 { format!("{}k", digits(1e-3 * n)) } else { digits(n) }
}

/// Mean and deviation; of one sample, the sample.
fn rate(row: &BenchRow) -> String {
    let (mean, deviation) = row.mean_rate();
    if row.repetitions > 1 { format!("{} ± {}", short(mean), short(deviation)) } else { short(mean) }
}

/// The slowest and the fastest; nothing of one sample.
fn range(row: &BenchRow) -> String {
    let [min, _, max] = row.rate_quantiles();
    if row.repetitions > 1 { format!("{}–{}", short(min), short(max)) } else { "–".into() }
}

/// The test's name, with what is counted where that is not tokens.
pub fn test_name(test: &str, unit: Unit) -> String {
    match unit {
        Unit::Read | Unit::Generated => test.to_owned(),
        Unit::Images | Unit::Texts => format!("{test} ({})", unit.word()),
    }
}

/// A table that is written row by row.
pub struct Table {
    columns: Vec<Column>,
    /// Width of the tests' column.
    tests: usize,
}

impl Table {
    /// A table for these tests; nothing is written yet.
    pub fn new(tests: &[String], wide: bool) -> Self {
        let columns_of = if wide { [&NARROW[..], &WIDE[..]].concat() } else { NARROW.to_vec() };
        // Any of them may count images or texts.
        let longest = tests.iter().map(|test| match test.contains("pp") || test.starts_with("tg") {
            true => columns(test),
            false => columns(&test_name(test, Unit::Images)),
        });
        Table { columns: columns_of, tests: longest.fold("test".len(), usize::max) }
    }

    /// Writes the block for the run of which `row` is the first one, and the table's head; where memory is bounded, the table also
    /// tells what moved.
    ///
    /// # Errors
    /// Those of writing.
    pub fn begin(&mut self, out: &mut impl Write, row: &BenchRow) -> io::Result<()> {
        self.columns.extend(row.pages.max_memory.iter().flat_map(|_| PAGED));
        for line in block(row) {
            write_wrapped(out, &printable(&line))?;
        }
        writeln!(out)?;
        let titles: Vec<String> = self.columns.iter().map(|c| padded_left(c.0, width(c))).collect();
        writeln!(out, "| {} | {} |", padded("test", self.tests), titles.join(" | "))?;
        let rules: Vec<String> = self.columns.iter().map(|c| format!("{}:", "-".repeat(width(c) + 1))).collect();
        writeln!(out, "|{}|{}|", "-".repeat(self.tests + 2), rules.join("|"))
    }

    /// Writes a row.
    ///
    /// # Errors
    /// Those of writing.
    pub fn row(&self, out: &mut impl Write, row: &BenchRow) -> io::Result<()> {
        let cells: Vec<String> = self.columns.iter().map(|c| padded_left(&c.2(row), width(c))).collect();
        let name = padded(&test_name(&row.test, row.unit()), self.tests);
        writeln!(out, "| {name} | {} |", cells.join(" | "))
    }
}

fn width(column: &Column) -> usize {
    column.1.max(columns(column.0))
}

/// What was measured, by what, and where.
pub fn block(row: &BenchRow) -> [String; 4] {
    let (machine, setup) = (&row.machine, &row.setup);
    let (size, parameters) = (bytes(setup.weight_bytes), 1e-6 * setup.parameters as f64);
    let memory = machine.memory_bytes.map_or(String::new(), |n| format!(", {}", bytes(n)));
    let processor = machine.processor.as_ref().map_or(String::new(), |name| format!("; {name}"));
    let mut settings = vec![format!("precision {}", setup.precision), format!("head {}", setup.head)];
    settings.extend(setup.kv.as_ref().map(|kv| format!("cache {kv}")));
    settings.extend(setup.activations.as_ref().map(|a| format!("activations {a}")));
    settings.extend(row.pages.max_memory.map(|limit| format!("at most {} of memory", bytes(limit))));
    settings.extend(setup.autotune.map(|tuned| if tuned { "autotuned" } else { "variants not timed" }.to_owned()));
    let times = if row.repetitions == 1 { "repetition" } else { "repetitions" };
    let runs = format!("{} {times} behind {} for warming up", row.repetitions, row.warmup);
    let bandwidth = 1e-9 * row.bandwidth;
    [
        format!("- {}, {}, {}", machine.program(), row.time, machine.system),
        format!("- model: {}, {size} of weights, {parameters:.1} M parameters", setup.model),
        format!("- device: {}{processor}{memory}; it reads {bandwidth:.1} GB/s at best", setup.device),
        format!("- settings: {}; {runs}", settings.join(", ")),
    ]
}

/// Writes a line, broken between words where it is longer than 100 columns.
///
/// # Errors
/// Those of writing.
pub fn write_wrapped(out: &mut impl Write, text: &str) -> io::Result<()> {
    let mut line = String::new();
    for word in text.split(' ') {
        if !line.is_empty() && columns(&line) + 1 + columns(word) > WIDTH {
            writeln!(out, "{line}")?;
            line = " ".into();
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    writeln!(out, "{line}")
}

/// Writes the times by op of rows that have them.
///
/// # Errors
/// Those of writing.
pub fn profiles(out: &mut impl Write, rows: &[BenchRow]) -> io::Result<()> {
    for row in rows.iter().filter(|row| !row.profile.is_empty()) {
        let step = if row.test.starts_with("image") { "its picture" } else { "one step" };
        writeln!(out, "\n{}, {step}:\n", row.test)?;
        let cells = |op: &OpTime| {
            let (us, share) = (digits(op.us), format!("{:.1} %", 100.0 * op.share));
            vec![op.op.clone(), op.launches.to_string(), us, digits(op.gb_per_s), share]
        };
        let ops: Vec<_> = row.profile.iter().map(cells).collect();
        markdown(out, &["op", "launches", "µs", "GB/s", "share"], 1, &ops)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_numbers_are_in_thousands() {
        assert_eq!([99_999.0, 100_000.0, 182_004.4, 2.5e6].map(short), ["99999", "100k", "182k", "2500k"]);
    }

    #[test]
    fn a_table_is_at_most_100_columns_wide() {
        let table = Table::new(&["tg64 @ d2048 × 8 sessions".into(), "pp512".into()], false);
        let numbers: usize = table.columns.iter().map(|c| width(c) + 3).sum();
        assert!(table.tests + numbers + 4 <= WIDTH, "{} and {numbers}", table.tests);
    }

    #[test]
    fn long_lines_are_broken_between_words() {
        let mut out = Vec::new();
        write_wrapped(&mut out, &format!("- {}end", "word ".repeat(40))).unwrap();
        let text = String::from_utf8(out).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert!(lines.len() == 3 && lines.iter().all(|l| l.len() <= WIDTH) && lines[1].starts_with("  word"), "{text}");
        assert_eq!(text.split_whitespace().count(), 42);
    }
}
