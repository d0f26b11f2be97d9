//! `ternion check`: a device against the plain CPU, node by node.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use ternion::Error;
use ternion::tools::check::{CheckOptions, CheckReport, check};

use crate::cli::args::{DeviceArgs, model_files};
use crate::cli::interrupts;
use crate::cli::messages::say;
use crate::cli::output::{Bar, table};
use crate::cli::{Failure, Outcome};

/// Compare a device with the plain definitions on the CPU, operation by operation, on this model.
///
/// Each operation gets the reference's inputs, so the first divergence is where an error begins. The exit code is 1 if
/// there is one.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion check --device gpu\n\
                        Example: ternion check -m models/embernet --device gpu")]
pub struct Check {
    /// The model: a directory, a safetensors file or index, or a torch checkpoint; default: the demo model.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    model: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Largest error of 32-bit results, relative to the largest magnitude of a result.
    #[arg(long, value_name = "T", default_value_t = CheckOptions::default().tolerance, allow_negative_numbers = true)]
    tolerance: f32,
}

impl Check {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`check`], of writing to stdout, and [`Failure::Diverged`].
    pub fn main(&self) -> Outcome {
        if !(self.tolerance.is_finite() && self.tolerance >= 0.0) {
            let problem = format!("is {}, expected 0 or more", self.tolerance);
            return Err(Error::argument("tolerance", problem).into());
        }
        let device = self.device.options();
        let options = CheckOptions { device, model: self.device.model_options(), tolerance: self.tolerance };
        let files = model_files(self.model.as_deref())?;
        interrupts::watch()?;
        let bar = Bar::new("checking");
        let found = check(files, &options, |p| bar.show(&p))?;
        bar.end();
        say!("device: {} ({})", found.device, found.why);
        print(&mut io::stdout().lock(), &found)?;
        if found.divergences > 0 { Err(Failure::Diverged) } else { Ok(()) }
    }
}

fn print(out: &mut impl Write, found: &CheckReport) -> io::Result<()> {
    let row = |op: &ternion::tools::check::OpReport| {
        let verdict = if op.divergences == 0 { "ok".into() } else { format!("{} diverge", op.divergences) };
        vec![op.op.to_owned(), op.nodes.to_string(), format!("{:.2e}", op.worst), verdict, op.at.clone()]
    };
    let rows: Vec<Vec<String>> = found.ops.iter().map(row).collect();
    table(out, &["op", "nodes", "worst error", "", "at"], &rows)?;
    match &found.first {
        None => writeln!(out, "{} nodes agree with the reference", found.nodes),
        Some(d) => {
            writeln!(out, "{} of {} nodes diverge; the first is {}", found.divergences, found.nodes, d.node)?;
            writeln!(out, "  output {}, element {}", d.output, d.element)?;
            writeln!(
                out,
                "  expected {}, found {}: error {:.2e}, at most {:.2e}",
                d.expected, d.found, d.error, d.tolerance
            )
        }
    }
}
