//! `ternion report`: what a bug report, or a report of an adapter, needs.

use std::env;
use std::io::{self, Write};
use std::ops::ControlFlow;

use clap::Args;
use ternion::engine::{DeviceChoice, DeviceOptions, Progress};
use ternion::files::ModelFiles;
use ternion::gpu::Adapters;
use ternion::tools::bench::{BenchEvent, BenchOptions, BenchRow, Machine, bench};
use ternion::tools::check::{CheckOptions, CheckReport, check};
use ternion::{Error, Result};

use crate::cli::Outcome;
use crate::cli::args::model_files;
use crate::cli::devices::list;
use crate::cli::interrupts;
use crate::cli::output::{Bar, markdown};
use crate::cli::terminal_text::message;

/// Write what a bug report needs: the version, the machine, its adapters and drivers, and for each device a check and a short
/// benchmark of the demo model.
///
/// It is Markdown on stdout. No path, and no name of a user or of the machine, is in it.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion report > report.md")]
pub struct Report {
    /// Leave the check and the benchmark out.
    #[arg(long)]
    no_tests: bool,
}

/// The lengths of the benchmark's prompt and of what it generates.
const PROMPT: usize = 64;
const GENERATED: usize = 32;

/// Environment variables that change what runs, and name nothing private.
const VARIABLES: [&str; 5] = ["TERNION_CPU", "TERNION_DEVICE", "WGPU_ADAPTER_NAME", "WGPU_BACKEND", "RUST_LOG"];

/// What a device did.
struct Tried {
    device: String,
    check: Result<CheckReport>,
    rows: Result<Vec<BenchRow>>,
}

impl Report {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of writing to stdout, and [`Error::Cancelled`] behind Ctrl-C. What fails on a device is part of the report.
    pub fn main(&self) -> Outcome {
        interrupts::watch()?;
        let mut out = io::stdout().lock();
        write_machine(&mut out)?;
        writeln!(out, "\n## Adapters\n\n```text")?;
        list(&mut out)?;
        writeln!(out, "```")?;
        if self.no_tests {
            return Ok(());
        }
        let (files, bar) = (model_files(None)?, Bar::new("trying"));
        let mut tried = Vec::new();
        for (device, choice) in devices() {
            tried.push(try_device(&files, device, choice, |p| bar.show(&p))?);
        }
        bar.end();
        Ok(write_tried(&mut out, &tried)?)
    }
}

/// The CPU and every adapter, with their names.
fn devices() -> Vec<(String, DeviceChoice)> {
    let adapters = Adapters::find().summaries();
    let named = adapters.into_iter().map(|a| (format!("{}: {} ({})", a.index, a.name, a.backend), a.index));
    let gpus = named.map(|(name, index)| (name, DeviceChoice::Number(index)));
    [("CPU".to_owned(), DeviceChoice::Cpu)].into_iter().chain(gpus).collect()
}

fn try_device(
    files: &ModelFiles,
    device: String,
    choice: DeviceChoice,
    progress: impl Fn(Progress) -> ControlFlow<()>,
) -> Result<Tried> {
    let place = DeviceOptions { autotune: false, ..choice.into() };
    let check_options = CheckOptions { device: place.clone(), ..CheckOptions::default() };
    let check = check(files.clone(), &check_options, &progress);
    let options = BenchOptions {
        device: place,
        prompts: Some(vec![PROMPT]),
        generated: Some(vec![GENERATED]),
        repetitions: 2,
        ..BenchOptions::default()
    };
    let run = bench(files, &options, |event| match event {
        BenchEvent::Progress(p) => progress(p),
        _ => ControlFlow::Continue(()),
    });
    if interrupts::came() {
        return Err(Error::Cancelled("the report".into()));
    }
    Ok(Tried { device, check, rows: run.map(|run| run.rows) })
}

fn write_machine(out: &mut impl Write) -> io::Result<()> {
    let machine = Machine::this();
    writeln!(out, "# Ternion: report\n")?;
    writeln!(out, "- program: {}", machine.program())?;
    writeln!(out, "- system: {}", machine.system)?;
    writeln!(out, "- processor: {}", machine.processor.as_deref().unwrap_or("not told"))?;
    let memory = machine.memory_bytes.map(|bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64));
    writeln!(out, "- memory: {}", memory.as_deref().unwrap_or("not told"))?;
    for name in VARIABLES {
        if let Some(value) = env::var_os(name) {
            writeln!(out, "- {name}={}", message(&value.to_string_lossy()))?;
        }
    }
    Ok(())
}

fn write_tried(out: &mut impl Write, tried: &[Tried]) -> io::Result<()> {
    writeln!(out, "\n## The demo model on each device\n")?;
    let header = ["device", "as defined", "tokens read / s", "generated / s", "GB/s"];
    let rows: Vec<Vec<String>> = tried.iter().map(row).collect();
    markdown(out, &header, 2, &rows)?;
    for Tried { device, check, rows } in tried {
        let failures = [check.as_ref().err(), rows.as_ref().err()];
        for error in failures.into_iter().flatten() {
            writeln!(out, "\n{}: {}", message(device), message(&error.to_string()))?;
        }
        if let Some(first) = check.as_ref().ok().and_then(|check| check.first.as_ref()) {
            let (device, node) = (message(device), &first.node);
            writeln!(out, "\n{device}: {node}: expected {}, found {}", first.expected, first.found)?;
        }
    }
    Ok(())
}

fn row(tried: &Tried) -> Vec<String> {
    let agree = match &tried.check {
        Ok(check) if check.divergences == 0 => format!("{} ops agree", check.nodes),
        Ok(check) => format!("{} of {} ops differ", check.divergences, check.nodes),
        Err(_) => "failed".to_owned(),
    };
    let rows = tried.rows.as_deref().unwrap_or_default();
    let rate = |generates: bool| rows.iter().find(|row| (row.numbers.n_gen > 0) == generates);
    let number =
        |row: Option<&BenchRow>| row.map_or("failed".to_owned(), |row| format!("{:.0}", row.tokens_per_s_median));
    let bandwidth = rows.first().map_or(String::new(), |row| format!("{:.1}", 1e-9 * row.bandwidth));
    vec![message(&tried.device), agree, number(rate(false)), number(rate(true)), bandwidth]
}
