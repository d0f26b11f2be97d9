//! `ternion devices`: the adapters on which a model can run.

use std::io::{self, Write};

use clap::Args;
use ternion::engine::{DeviceOptions, choose_device};
use ternion::gpu::{AdapterKind, Adapters};

use crate::cli::Outcome;
use crate::cli::terminal_text::message;

/// List the graphics adapters, and the one that `--device auto` takes.
///
/// WGPU_BACKEND (vulkan, metal, dx12, gl) and WGPU_ADAPTER_NAME narrow the list.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion devices")]
pub struct Devices {
    /// Print a JSON array of the adapters, without the choice of `auto`.
    #[arg(long)]
    json: bool,
}

impl Devices {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of writing to stdout.
    pub fn main(&self) -> Outcome {
        let mut out = io::stdout().lock();
        if self.json {
            let text = serde_json::to_string_pretty(&Adapters::find().summaries()).map_err(io::Error::from)?;
            return Ok(writeln!(out, "{text}")?);
        }
        Ok(list(&mut out)?)
    }
}

/// Writes the list.
///
/// # Errors
/// Those of writing.
pub fn list(out: &mut impl Write) -> io::Result<()> {
    let adapters = Adapters::find().summaries();
    if adapters.is_empty() {
        writeln!(out, "no graphics adapter was found")?;
    }
    for a in &adapters {
        let kind = match a.kind {
            AdapterKind::Discrete => "graphics card",
            AdapterKind::Integrated => "part of the processor",
            AdapterKind::Software => "software on the CPU",
            _ => "virtual or unknown",
        };
        writeln!(out, "{}: {} ({}, {kind})", a.index, a.name, a.backend)?;
        writeln!(out, "   driver: {}", a.driver)?;
        let word = |has: bool| if has { "yes" } else { "no" };
        let features: Vec<String> = a.features.iter().map(|(name, has)| format!("{name} {}", word(*has))).collect();
        writeln!(out, "   features: {}", features.join(", "))?;
        for (name, value) in &a.limits {
            writeln!(out, "   {name}: {value}")?;
        }
    }
    match choose_device(&DeviceOptions { autotune: false, ..DeviceOptions::default() }) {
        Ok((backend, why)) => writeln!(out, "auto: {} ({why})", backend.describe())?,
        Err(error) => writeln!(out, "auto: fails: {}", message(&error.to_string()))?,
    }
    Ok(())
}
