//! `ternion convert`: a model in its packed form.

use std::path::PathBuf;

use clap::Args;
use ternion::engine::Precision;
use ternion::tools::convert::{ConvertOptions, convert};
use ternion::unstable::models::HiddenAct;

use crate::cli::Outcome;
use crate::cli::args::{ThreadArgs, one_of};
use crate::cli::interrupts;
use crate::cli::messages::say;
use crate::cli::output::{Bar, bytes, ms};

/// Write a model in its packed form, which is smaller and opens faster.
///
/// Ternary matrices are quantised once, to 1 or 2 bits per weight, and give the same results as the original. Tensors that
/// the model does not read are left out.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion convert models/embernet models/embernet-packed")]
pub struct Convert {
    /// The model: a directory, a safetensors file or index, or a torch checkpoint.
    input: PathBuf,
    /// The directory to write: new, empty, or an earlier conversion of such a model.
    output: PathBuf,
    /// The tokenizer.json to copy, or a folder with it or with vocab.json and merges.txt, of which one is made; default:
    /// those beside the model.
    #[arg(long, value_name = "PATH", allow_hyphen_values = true)]
    tokenizer: Option<PathBuf>,
    /// How full-precision weights are written.
    #[arg(long, default_value = "f16", value_parser = one_of::<Precision>())]
    precision: Precision,
    /// The activation of feed-forward parts, for a bitnet whose file does not tell which of the two it was trained with.
    #[arg(long, value_parser = one_of::<HiddenAct>())]
    hidden_act: Option<HiddenAct>,
    #[command(flatten)]
    threads: ThreadArgs,
}

impl Convert {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`convert`].
    pub fn main(&self) -> Outcome {
        self.threads.size_pool();
        interrupts::watch()?;
        let bar = Bar::new("converting");
        let options = ConvertOptions { precision: self.precision, hidden_act: self.hidden_act };
        let report = convert(&self.input, &self.output, self.tokenizer.as_deref(), options, |p| bar.show(&p))?;
        bar.end();
        let (from, to) = (bytes(report.input_bytes), bytes(report.output_bytes));
        let (n, ternary, left_out) = (report.tensors, report.ternary, report.left_out);
        say!("{}: {n} tensors, {ternary} of them ternary; {left_out} left out", report.file.display());
        say!("{from} became {to} in {}", ms(report.time));
        if report.output_bytes >= report.input_bytes {
            say!("there was nothing to gain: the model was as small before");
        }
        if !report.left_out_extras.is_empty() {
            let names = report.left_out_extras.join(" and ");
            say!("{names} are left out, more than a tenth of the file; evaluation goes without them");
        }
        if !report.tokenizer {
            say!("no tokenizer was found; give one with --tokenizer, here or when the model is run");
        }
        Ok(())
    }
}
