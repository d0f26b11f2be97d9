//! `ternion compare`: two files of rows of `ternion bench`, side by side.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use serde_json::{Value, json};
use ternion::Error;
use ternion::tools::bench::{BenchRow, Comparison, Pair, compare};

use crate::cli::Outcome;
use crate::cli::bench::{block, json, read, test_name, write_wrapped};
use crate::cli::messages::say;
use crate::cli::output::{digits, markdown};
use crate::cli::plot::{Font, PlotFile, RatiosFigure};
use crate::cli::setup_labels::labels;
use crate::cli::terminal_text::printable;

/// Compare two files of rows of `ternion bench`: two machines, two versions, two settings.
///
/// The files are of -o json, jsonl or csv. Rows are joined by model, test and settings. The ratio is that of the geometric
/// means of the rates, B's over A's; its 95 % interval is Welch's t on their logarithms, and 1 in it means that the runs do
/// not show a difference. Where one test has other settings in B, nothing is compared unless --ignore names the setting.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion compare old.json new.json\n\
                        Example: ternion compare f16.json int8.json --ignore head --plot heads.svg")]
pub struct Compare {
    /// The rows to compare with.
    #[arg(value_name = "A")]
    a: PathBuf,
    /// The rows that are compared.
    #[arg(value_name = "B")]
    b: PathBuf,
    /// Compare rows that differ in this key: model, parameters, precision, head, kv, activations, threads, cpu_level,
    /// autotune, backend, warmup, or a number of the test. Can be given several times, or as a list.
    #[arg(long, value_name = "KEY", value_delimiter = ',')]
    ignore: Vec<String>,
    /// Draw the ratios into an .svg or .png file.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    plot: Option<PathBuf>,
    /// How the ratios are printed.
    #[arg(short, long, value_enum, default_value_t = Form::Md)]
    output: Form,
}

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// A table of Markdown.
    Md,
    /// A list of objects.
    Json,
}

impl Compare {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of reading the files, of [`compare`], and of writing.
    pub fn main(&self) -> Outcome {
        let plot = self.plot.as_ref().map(|file| PlotFile::new("plot", file.as_os_str())).transpose()?;
        let (a, b) = (read(&self.a)?, read(&self.b)?);
        let found = compare(&a, &b, &self.ignore)?;
        if let Some(plot) = plot {
            if [&self.a, &self.b].into_iter().any(|file| plot.is(file)) {
                return Err(Error::argument("plot", "is one of the files that are compared").into());
            }
            let font = Font::built_in()?;
            let names = [&self.a, &self.b].map(|path| path.display().to_string());
            plot.write(&font, &RatiosFigure::new(&font, &found, &row_names(&found), &names))?;
        }
        for (tests, file) in found.only.iter().zip([&self.a, &self.b]) {
            if !tests.is_empty() {
                say!("only in {}: {}", printable(&file.display().to_string()), tests.join(", "));
            }
        }
        let mut out = io::BufWriter::new(io::stdout().lock());
        match self.output {
            Form::Md => self.write_table(&mut out, &found)?,
            Form::Json => writeln!(out, "{}", json(&objects(&found), true)?)?,
        }
        Ok(out.flush()?)
    }

    fn write_table(&self, out: &mut impl Write, found: &Comparison) -> io::Result<()> {
        let first = |file: &Path, row: &BenchRow| {
            let [program, _, device, _] = block(row);
            let line = |text: &str| printable(text.trim_start_matches("- "));
            format!("{}: {}; {}", printable(&file.display().to_string()), line(&program), line(&device))
        };
        if let Some(pair) = found.pairs.first() {
            write_wrapped(out, &format!("- A is {}", first(&self.a, &pair.a)))?;
            write_wrapped(out, &format!("- B is {}", first(&self.b, &pair.b)))?;
            writeln!(out)?;
        }
        let cells = |(pair, name): (&Pair, String)| {
            let [a, b] = [&pair.a, &pair.b].map(|row| digits(row.mean_rate().0));
            let interval = pair.ratio.interval.map_or("–".into(), |[low, high]| format!("{low:.3}–{high:.3}"));
            vec![name, a, b, format!("{:.3}", pair.ratio.value), interval, verdict(pair).into()]
        };
        let rows: Vec<_> = found.pairs.iter().zip(row_names(found)).map(cells).collect();
        markdown(out, &["test", "A per second", "B per second", "B / A", "95 % interval", "B is"], 1, &rows)
    }
}

/// What the interval says of B.
fn verdict(pair: &Pair) -> &'static str {
    match pair.ratio.differs() {
        None => "–",
        Some(false) => "alike",
        Some(true) if pair.ratio.value > 1.0 => "faster",
        Some(true) => "slower",
    }
}

/// The test of each pair, and what tells it from the others.
fn row_names(found: &Comparison) -> Vec<String> {
    let rows: Vec<&BenchRow> = found.pairs.iter().map(|pair| &pair.a).collect();
    let name = |(row, label): (&&BenchRow, String)| {
        let test = test_name(&row.test, row.unit());
        if label.is_empty() { test } else { format!("{test}, {label}") }
    };
    rows.iter().zip(labels(&rows)).map(name).collect()
}

fn objects(found: &Comparison) -> Vec<Value> {
    let object = |pair: &Pair| {
        json!({
            "test": pair.a.test,
            "ratio": pair.ratio.value,
            "interval": pair.ratio.interval,
            "differs": pair.ratio.differs(),
            "a": pair.a,
            "b": pair.b,
        })
    };
    found.pairs.iter().map(object).collect()
}
