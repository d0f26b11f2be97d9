//! `ternion bench`: how fast a model runs on this machine.
//!
//! In reading order: this file, `sweep` (options with several values), `rows` (rows in every form, and from a file), `table`
//! and `fields` (for people, and for programs), `report` (a folder with all of it).

mod fields;
mod report;
mod rows;
mod sweep;
mod table;

use std::cell::RefCell;
use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use clap::Args;
use ternion::Error;
use ternion::tools::bench::{BenchEvent, BenchOptions, BenchRow, BenchRun, bench};

use crate::cli::args::byte_size;
use crate::cli::interrupts;
use crate::cli::messages::say;
use crate::cli::output::Bar;
use crate::cli::plot::{BarsFigure, Font, PlotFile};
use crate::cli::setup_labels::labels;
use crate::cli::{Failure, Outcome};
use report::Report;
use rows::{Format, RowWriter};
pub use rows::{json, read};
use sweep::{Counts, SweepArgs, SweepRun, numbers};
pub use table::{block, test_name, write_wrapped};

/// Measure how fast a model reads prompts and writes text.
///
/// Tests: ppN reads a prompt of N tokens, to the first token of the answer; tgN generates N tokens; with `@ dD` after D
/// tokens in the cache; with `× S sessions` in S sessions at once, whose tokens are added up; image encodes a picture;
/// image+ppN reads one and a prompt. Each test has a warm-up run. Prompts are random, and an end-of-text token does not
/// end a generation. For a BitGen, features are measured instead: image is one picture, image × 8 are eight at once,
/// text × 64 are 64 texts of one token each.
///
/// Rows are printed as their tests end; Ctrl-C ends the run with those that there are. %BW is the share of the device's
/// memory bandwidth, measured in the same run, at which a test reads weights and cache. A row whose times vary by more than a
/// tenth, and a bandwidth that is not the same before and behind the run, are reported on stderr: the machine was busy.
///
/// Models, shapes, devices, threads and all that says how numbers are kept take several values: each combination is
/// measured. Numbers can be ranges: 16-64+16, 16-64*2.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion bench --device cpu\n\
                        Example: ternion bench --shape bonsai-8b,falcon3-7b --device cpu,gpu -p 0 -n 64\n\
                        Example: ternion bench -m models/embernet -p 96 -n 64 -d 0,2048 -s 1,8 -o json > rows.json\n\
                        Example: ternion bench --threads 1-8*2 --head f16,int8 --report results")]
pub struct Bench {
    #[command(flatten)]
    sweep: SweepArgs,
    /// Memory that the model may hold of the device's, as 800MiB or 2GiB: of one that needs more, experts and layers move
    /// through it as they are needed, and the table shows how many were there.
    #[arg(long, value_name = "SIZE", value_parser = byte_size)]
    max_memory: Option<u64>,
    /// Lengths of prompts to read, 0 for none; default: 96,512, those of them that fit the model.
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',')]
    prompts: Option<Vec<Counts>>,
    /// Numbers of tokens to generate, 0 for none; default: 64, if that fits the model.
    #[arg(short = 'n', long, value_name = "TOKENS", value_delimiter = ',')]
    generated: Option<Vec<Counts>>,
    /// Tokens in the cache before each prompt and each generation.
    #[arg(short, long, value_name = "TOKENS", value_delimiter = ',', default_value = "0")]
    depths: Vec<Counts>,
    /// Numbers of sessions that generate together.
    #[arg(short, long, value_name = "SESSIONS", value_delimiter = ',', default_value = "1")]
    sessions: Vec<Counts>,
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
    /// Add launches, the host's time and memory to the table, which is wider than 100 columns then.
    #[arg(long)]
    wide: bool,
    /// Draw the rates into an .svg or .png file, a panel for each kind of test.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    plot: Option<PathBuf>,
    /// Also write the table, the rows as JSON, the chart and the list of devices into this folder, which is new or empty.
    #[arg(long, value_name = "DIR", allow_hyphen_values = true)]
    report: Option<PathBuf>,
}

/// Rows on stdout, beside a progress bar on stderr.
struct Printed {
    bar: Bar,
    rows: RowWriter<io::BufWriter<io::Stdout>>,
    /// What has been said of tests that do not fit; a sweep would say it again for each of its runs.
    said: Vec<String>,
    /// Why writing has failed, which ends the run.
    failed: Option<Failure>,
}

impl Printed {
    /// Shows an event; whether the run goes on.
    fn event(&mut self, event: &BenchEvent) -> ControlFlow<()> {
        match event {
            BenchEvent::Tests { tests, left_out } => {
                self.rows.begin_run(tests);
                let new: Vec<String> = left_out.iter().filter(|text| !self.said.contains(text)).cloned().collect();
                self.bar.aside(|| new.iter().for_each(|text| say!("{text}")));
                self.said.extend(new);
            }
            BenchEvent::Progress(progress) => return self.bar.show(progress),
            BenchEvent::Row(row) => {
                let written = self.bar.aside(|| {
                    let written = self.rows.row(row);
                    if let Some(share) = row.noise() {
                        let spread = 100.0 * share;
                        say!("{}: noisy: a spread of {spread:.0} %; repeat it on a quiet machine", row.test);
                    }
                    written
                });
                if let Err(failure) = written {
                    self.failed = Some(failure);
                    return ControlFlow::Break(());
                }
            }
            _ => {}
        }
        ControlFlow::Continue(())
    }
}

impl Bench {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`bench`], and of writing.
    pub fn main(&self) -> Outcome {
        if self.profile && self.output.is_flat() {
            let problem = "does not fit into rows of csv and sql; use -o md, json or jsonl";
            return Err(Error::argument("profile", problem).into());
        }
        let runs = self.sweep.runs()?;
        runs.iter().try_for_each(|run| self.options(run).validate())?;
        let plot = self.plot.as_ref().map(|file| PlotFile::new("plot", file.as_os_str())).transpose()?;
        let report = self.report.as_deref().map(Report::new).transpose()?;
        interrupts::watch()?;
        let rows = RowWriter::new(io::BufWriter::new(io::stdout()), self.output, self.wide);
        let mut printed = Printed { bar: Bar::new("measuring"), rows, said: Vec::new(), failed: None };
        let mut all = Vec::new();
        let measured = runs.iter().try_for_each(|run| self.measure(run, &mut printed, &mut all));
        let Printed { bar, rows, failed, .. } = printed;
        bar.end();
        // Before the text's end, whose reader may be gone.
        let drawn = self.draw(&all, plot.as_ref(), report.as_ref());
        let written = failed.map_or_else(|| rows.finish().map(drop), Err);
        written.and(measured).and(drawn)
    }

    /// Measures one combination; its rows are added to `all` as they come.
    fn measure(&self, run: &SweepRun, printed: &mut Printed, all: &mut Vec<BenchRow>) -> Outcome {
        let seen = RefCell::new(Vec::new());
        let done = bench(&run.files, &self.options(run), |event| {
            let flow = printed.event(&event);
            if let BenchEvent::Row(row) = event {
                seen.borrow_mut().push(row.clone());
            }
            if interrupts::came() { ControlFlow::Break(()) } else { flow }
        });
        all.append(&mut seen.into_inner());
        let ended = printed.bar.aside(|| if printed.failed.is_none() { printed.rows.end_run() } else { Ok(()) });
        let done = done?;
        ended?;
        printed.bar.aside(|| warn_of_moves(&done));
        match done.stopped {
            true if printed.failed.is_none() => Err(Failure::Interrupted),
            // That stdout has failed is reported at the end.
            true => Err(Failure::Reported),
            false => Ok(()),
        }
    }

    fn draw(&self, rows: &[BenchRow], plot: Option<&PlotFile>, report: Option<&Report>) -> Outcome {
        if rows.is_empty() || (plot.is_none() && report.is_none()) {
            return Ok(());
        }
        let font = Font::built_in()?;
        let figure = BarsFigure::new(&font, rows, &labels(&rows.iter().collect::<Vec<_>>()));
        if let Some(plot) = plot {
            plot.write(&font, &figure)?;
        }
        report.map_or(Ok(()), |report| report.write(rows, &font, &figure))
    }

    fn options(&self, run: &SweepRun) -> BenchOptions {
        BenchOptions {
            device: run.device.clone(),
            model: run.model,
            max_memory: self.max_memory,
            prompts: self.prompts.as_deref().map(numbers),
            generated: self.generated.as_deref().map(numbers),
            depths: numbers(&self.depths),
            sessions: numbers(&self.sessions),
            repetitions: self.repetitions,
            image: self.image,
            profile: self.profile,
        }
    }
}

/// Says where the machine did something else while it measured.
fn warn_of_moves(run: &BenchRun) {
    if let Some([before, after]) = run.moved().map(|ends| ends.map(|bandwidth| 1e-9 * bandwidth)) {
        say!(
            "the device read {before:.1} GB/s before the tests and {after:.1} behind them: the machine was busy, or changed its \
             speed; repeat the run on a quiet machine"
        );
    }
}
