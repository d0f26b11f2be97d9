//! `ternion inspect`: what a model file holds.

use std::io::{self, Write};
use std::path::PathBuf;

use clap::Args;
use ternion::engine::Precision;
use ternion::tools::inspect::{Card, InspectOptions, Inspection, TensorLine, inspect};
use ternion::unstable::models::HiddenAct;

use crate::cli::args::{ThreadArgs, model_files, one_of};
use crate::cli::interrupts;
use crate::cli::output::{Bar, bytes, table};
use crate::cli::terminal_text::printable;
use crate::cli::{Failure, Outcome};

/// Show what a model is: its sizes, its parameters, what it needs of memory; and its tensors.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion inspect\n\
                        Example: ternion inspect models/embernet --json > embernet.json")]
pub struct Inspect {
    /// The model: a directory, a safetensors file or index, a torch checkpoint, or a GGUF file; default: the demo model.
    model: Option<PathBuf>,
    /// List the tensors too: shapes, how they are packed, and shares of −1, 0 and +1.
    #[arg(long, conflicts_with = "json")]
    tensors: bool,
    /// Print all of it as JSON.
    #[arg(long)]
    json: bool,
    /// How full-precision weights would be kept.
    #[arg(long, default_value = "f16", value_parser = one_of::<Precision>())]
    precision: Precision,
    /// The activation of feed-forward parts, for a bitnet whose file does not tell which of the two it was trained with.
    #[arg(long, value_parser = one_of::<HiddenAct>())]
    hidden_act: Option<HiddenAct>,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl Inspect {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`inspect`], and of writing to stdout.
    pub fn main(&self) -> Outcome {
        self.threads.size_pool();
        let files = model_files(self.model.as_deref())?;
        interrupts::watch()?;
        let bar = Bar::new("inspecting");
        let options = InspectOptions { precision: self.precision, hidden_act: self.hidden_act };
        let found = inspect(files, options, |p| bar.show(&p))?;
        bar.end();
        let mut out = io::BufWriter::new(io::stdout().lock());
        if self.json {
            serde_json::to_writer_pretty(&mut out, &found).map_err(|e| Failure::Output(e.into()))?;
            writeln!(out)?;
        } else {
            print(&mut out, &found, self.tensors)?;
        }
        out.flush()?;
        Ok(())
    }
}

fn print(out: &mut impl Write, found: &Inspection, tensors: bool) -> io::Result<()> {
    let (stored, packed) = (bytes(found.stored_bytes), bytes(found.packed_bytes));
    let (file, n) = (printable(&found.file), found.tensors.len());
    writeln!(out, "{file}: {}, {n} tensors, {stored} stored, {packed} packed", found.family)?;
    found.card.as_ref().map_or(Ok(()), |card| print_card(out, card))?;
    writeln!(out)?;
    let share = |n: u64| format!("{:.1} %", 100.0 * n as f64 / found.parameters.max(1) as f64);
    let line = |name: &str, n: u64| vec![name.to_owned(), n.to_string(), share(n)];
    let mut rows: Vec<_> = found.components.iter().map(|c| line(&c.name, c.parameters)).collect();
    rows.push(line("all", found.parameters));
    rows.push(line("ternary", found.ternary_parameters));
    table(out, &["component", "parameters", "share"], &rows)?;
    if tensors {
        writeln!(out)?;
        let header = ["tensor", "shape", "stored", "packed", "bytes", "-1", "0", "+1", "scale"];
        let rows: Vec<Vec<String>> = found.tensors.iter().map(row).collect();
        table(out, &header, &rows)?;
    }
    print_problems(out, found)
}

/// What a model is, a line for each thing.
fn print_card(out: &mut impl Write, card: &Card) -> io::Result<()> {
    writeln!(out, "  layers         {}", card.layers)?;
    writeln!(out, "  vocabulary     {} tokens", card.vocab)?;
    writeln!(out, "  context        {} tokens at most", card.max_context)?;
    if !card.experts.is_empty() {
        let names: Vec<String> = card.experts.iter().map(|name| printable(name)).collect();
        writeln!(out, "  experts        {}, {} for a token", names.join(", "), card.experts_per_token)?;
    }
    if let Some([side, tokens]) = card.image {
        writeln!(out, "  pictures       {side} x {side} pixels, {tokens} tokens each")?;
    }
    if let Some(form) = &card.conversations {
        writeln!(out, "  conversations  {}", printable(form))?;
    }
    let stop: Vec<String> = card.stop_tokens.iter().map(u32::to_string).collect();
    writeln!(out, "  answers end    at token {}", stop.join(", "))?;
    if let Some(license) = &card.license {
        writeln!(out, "  licence        {}", printable(license))?;
    }
    if let Some(memory) = &card.memory {
        let (all, context) = (bytes(memory.max_bytes()), memory.context);
        let least = bytes(memory.least_bytes);
        writeln!(
            out,
            "  memory         {all} at most, for a conversation of {context} tokens; --max-memory from {least} on"
        )?;
    }
    Ok(())
}

fn print_problems(out: &mut impl Write, found: &Inspection) -> io::Result<()> {
    for problem in &found.problems {
        writeln!(out, "problem: {}", printable(problem))?;
    }
    match found.unreadable.first_key_value() {
        None => Ok(()),
        // Among the problems.
        Some(_) if !found.problems.is_empty() => Ok(()),
        Some((name, why)) => {
            let (n, why) = (found.unreadable.len(), printable(why));
            writeln!(out, "{n} entries cannot be read and are not needed, {name:?} for one: {why}")
        }
    }
}

fn row(tensor: &TensorLine) -> Vec<String> {
    let share = |i: usize| tensor.shares.and_then(|s| s.get(i).copied()).map(|s| format!("{:.1} %", 100.0 * s));
    let size = if tensor.packed_bytes == 0 { String::new() } else { bytes(tensor.packed_bytes) };
    let mut row = vec![tensor.name.clone(), format!("{:?}", tensor.shape), tensor.stored.clone()];
    row.extend([tensor.packed.clone(), size]);
    row.extend((0..3).map(|i| share(i).unwrap_or_default()));
    row.push(tensor.scale.map_or(String::new(), |s| format!("{s:.6}")));
    row
}
