//! `ternion perplexity`: what a text surprises a chat model by.

use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Instant;

use clap::Args;
use serde_json::json;
use ternion::engine::Options;
use ternion::tools::eval::{PerplexityOptions, perplexity};

use crate::cli::Outcome;
use crate::cli::args::{ModelArgs, model_files, text_file};
use crate::cli::interrupts;
use crate::cli::messages::say;
use crate::cli::output::{Bar, ms};

/// Measure how well a model predicts a text: the perplexity, exp of the mean −ln p of a token.
///
/// The text is cut into windows of --context tokens (default: 512), of which the second half counts; what is left at the end does
/// not. Numbers of llama.cpp's llama-perplexity for the same text and context can be compared.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion perplexity -m models/bonsai-8b --file wiki.test.raw\n\
                        Example: ternion perplexity --file scenes.txt --context 128")]
pub struct Perplexity {
    #[command(flatten)]
    model: ModelArgs,
    /// The text, in UTF-8.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    file: PathBuf,
    /// Windows that run together.
    #[arg(short, long, value_name = "N", default_value_t = PerplexityOptions::default().sessions)]
    sessions: usize,
    /// Print JSON instead of a line.
    #[arg(long)]
    json: bool,
}

impl Perplexity {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`perplexity`], of reading the text, and of writing.
    pub fn main(&self) -> Outcome {
        let text = text_file(&self.file)?;
        let window = self.model.context.unwrap_or(PerplexityOptions::default().window);
        let files = model_files(self.model.model.as_deref())?;
        let options = Options { context: Some(window), sessions: self.sessions, ..self.model.options() };
        let engine = self.model.open_with(files, options)?;
        interrupts::watch()?;
        let (bar, start) = (Bar::new("reading"), Instant::now());
        let found =
            perplexity(&engine, &text, PerplexityOptions { window, sessions: self.sessions }, |p| bar.show(&p))?;
        bar.end();
        say!("{} tokens of {} windows of {window} in {}", found.tokens, found.windows, ms(start.elapsed()));
        let mut out = io::stdout().lock();
        if self.json {
            let numbers = json!({
                "perplexity": found.perplexity(),
                "standard_error": found.standard_error(),
                "cross_entropy": found.cross_entropy(),
                "tokens": found.tokens,
                "windows": found.windows,
                "window": window,
            });
            writeln!(out, "{numbers:#}")?;
        } else {
            writeln!(out, "perplexity {:.4} ± {:.4}", found.perplexity(), found.standard_error())?;
        }
        Ok(())
    }
}
