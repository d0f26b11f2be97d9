//! `ternion bench`: how fast a model runs on this machine.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use ternion::Error;
use ternion::files::ModelFiles;
use ternion::tools::bench::{BenchOptions, BenchRow, OpTime, bench};
use ternion::tools::synthetic::PublishedModel;

use crate::cli::Outcome;
use crate::cli::args::{DeviceArgs, one_of};
use crate::cli::output::{Bar, bytes, markdown};
use crate::cli::plot::{BarsFigure, Font, PlotFile};

/// Measure how fast a model reads prompts and writes text.
///
/// Tests: ppN reads a prompt of N tokens, to the first token of the answer; tgN generates N tokens, with `@ dD` after D
/// tokens in the cache, with `× S sessions` in S sessions at once, whose tokens are added up; image encodes a picture;
/// image+ppN reads one and a prompt. Each test has a warm-up run. Prompts are random, and an end-of-text token does not
/// end a generation. For a BitGen, features are measured instead: image is one picture, image × 8 are eight at once,
/// text × 64 are 64 texts of one token each.
///
/// %BW is the share of the device's memory bandwidth, measured in the same run, at which a test reads weights and cache.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion bench --device cpu\n\
                        Example: ternion bench --shape bonsai-8b --device gpu\n\
                        Example: ternion bench -m models/embernet -p 96 -n 64 -d 0,2048 -s 1,8 -o json > rows.json")]
pub struct Bench {
    /// The model: a directory, a safetensors file or index, or a torch checkpoint.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    model: Option<PathBuf>,
    /// Instead of a model: the sizes and the form of a published one, with random weights that are made in memory.
    #[arg(long, value_name = "NAME", conflicts_with = "model", default_value = "embernet",
        value_parser = one_of::<PublishedModel>())]
    shape: PublishedModel,
    #[command(flatten)]
    device: DeviceArgs,
    /// Lengths of prompts to read, 0 for none; default: 96,512, at most what the model's context holds.
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',')]
    prompts: Option<Vec<usize>>,
    /// Numbers of tokens to generate, 0 for none; default: 64, at most what the model's context holds.
    #[arg(short = 'n', long, value_name = "TOKENS", value_delimiter = ',')]
    generated: Option<Vec<usize>>,
    /// Tokens in the cache before each generation.
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',', default_value = "0")]
    depths: Vec<usize>,
    /// Numbers of sessions that generate together.
    #[arg(short, long, value_name = "SESSIONS", value_delimiter = ',', default_value = "1")]
    sessions: Vec<usize>,
    /// Repetitions of each test.
    #[arg(short, long, value_name = "TIMES", default_value_t = 5)]
    repetitions: usize,
    /// Also encode a picture, and read it with a prompt of 32 tokens.
    #[arg(long)]
    image: bool,
    /// Add a table of times by op for a step of each test.
    #[arg(long)]
    profile: bool,
    /// How the rows are printed.
    #[arg(short, long, value_enum, default_value_t = Format::Md)]
    output: Format,
    /// Draw tokens per second by test into an .svg or .png file.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    plot: Option<PathBuf>,
}

/// The output format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// A table of Markdown.
    Md,
    /// A list of objects.
    Json,
    /// Comma-separated values under a header.
    Csv,
    /// One object per line.
    Jsonl,
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`bench`], and of writing.
    pub fn main(&self) -> Outcome {
        let options = self.options();
        options.validate()?;
        if self.profile && self.output == Format::Csv {
            return Err(Error::argument("profile", "does not fit into csv; use -o md, json or jsonl").into());
        }
        let plot = self.plot.as_ref().map(|file| PlotFile::new("plot", file.as_os_str())).transpose()?;
        let files = self.model.as_deref().map_or_else(|| self.shape.files(), |path| Ok(ModelFiles::from(path)))?;
        let bar = Bar::new("measuring");
        let rows = bench(files, &options, |p| bar.show(&p))?;
        bar.end();
        // Before the text, whose reader may be gone.
        if let Some(plot) = plot {
            let font = Font::built_in()?;
            plot.write(&font, &BarsFigure::new(&font, &rows))?;
        }
        let mut out = io::BufWriter::new(io::stdout().lock());
        match self.output {
            Format::Md => write_markdown(&mut out, &rows)?,
            Format::Json => writeln!(out, "{}", json(&rows, true)?)?,
            Format::Jsonl => {
                rows.iter().try_for_each(|row| Ok::<_, super::Failure>(writeln!(out, "{}", json(row, false)?)?))?
            }
            Format::Csv => write_csv(&mut out, &rows)?,
        }
        Ok(out.flush()?)
    }

    fn options(&self) -> BenchOptions {
        BenchOptions {
            device: self.device.options(),
            model: self.device.model_options(),
            prompts: self.prompts.clone(),
            generated: self.generated.clone(),
            depths: self.depths.clone(),
            sessions: self.sessions.clone(),
            repetitions: self.repetitions,
            image: self.image,
            profile: self.profile,
        }
    }
}

fn json(value: &(impl serde::Serialize + ?Sized), pretty: bool) -> ternion::Result<String> {
    let text = if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) };
    text.map_err(|e| Error::format("the rows as JSON", e))
}

fn write_csv(out: &mut impl Write, rows: &[BenchRow]) -> Outcome {
    let mut writer = csv::Writer::from_writer(out);
    let failed = |e: csv::Error| match e.into_kind() {
        csv::ErrorKind::Io(e) => super::Failure::from(e),
        other => Error::format("the rows as CSV", format!("{other:?}")).into(),
    };
    rows.iter().try_for_each(|row| writer.serialize(row)).map_err(failed)?;
    Ok(writer.flush()?)
}

/// A table with a line for each test, and one for each profile.
fn write_markdown(out: &mut impl Write, rows: &[BenchRow]) -> Outcome {
    const HEADER: [&str; 14] = [
        "model",
        "size",
        "params",
        "backend",
        "device",
        "test",
        "t/s",
        "ms",
        "MB/token",
        "%BW",
        "launches/token",
        "host µs/token",
        "host memory",
        "device memory",
    ];
    let cells = |row: &BenchRow| {
        vec![
            row.model.clone(),
            bytes(row.weight_bytes),
            format!("{:.1} M", 1e-6 * row.parameters as f64),
            row.backend.to_owned(),
            row.device.clone(),
            row.test.clone(),
            format!("{} ± {}", digits(row.tokens_per_s), digits(row.stddev)),
            digits(row.ms),
            digits(1e-6 * row.bytes_per_token),
            format!("{:.1}", 100.0 * row.bandwidth_share),
            digits(row.dispatches_per_token),
            digits(row.host_us_per_token),
            row.peak_host_bytes.map_or("–".into(), bytes),
            bytes(row.device_bytes),
        ]
    };
    markdown(out, &HEADER, 6, &rows.iter().map(cells).collect::<Vec<_>>())?;
    if let Some(row) = rows.first() {
        writeln!(out, "\nThe device reads {:.1} GB/s at best.", 1e-9 * row.bandwidth)?;
    }
    for row in rows {
        for (rate, what) in [(row.images_per_s, "images"), (row.texts_per_s, "texts")] {
            if let Some(rate) = rate {
                writeln!(out, "\n{}: {} {what} a second.", row.test, digits(rate))?;
            }
        }
    }
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

/// A number with three digits or more, and with no more behind the point than say something.
fn digits(n: f64) -> String {
    let places = if n >= 100.0 || n == 0.0 {
        0
    } else if n >= 10.0 {
        1
    } else {
        2
    };
    format!("{n:.places$}")
}

#[cfg(test)]
mod tests {
    use super::digits;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        assert_eq!([0.0, 0.123, 4.567, 45.67, 456.7, 4567.8].map(digits), ["0", "0.12", "4.57", "45.7", "457", "4568"]);
    }
}
