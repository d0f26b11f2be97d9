//! Options of the commands that compare texts and pictures, and reading their texts.

use std::path::{Path, PathBuf};

use clap::Args;
use ternion::files::ModelFiles;
use ternion::runtime::{BitGen, BitGenOptions};
use ternion::{Error, Result};

use super::args::{Head, PlaceArgs, read_prompt};
use super::messages::say;
use super::output::Bar;

/// Which model, and where and how it runs.
#[derive(Debug, Args)]
pub struct BitGenArgs {
    /// The model, a BitGen: a directory, a safetensors file or a torch checkpoint, with config.json beside it.
    #[arg(short, long, value_name = "PATH", allow_hyphen_values = true)]
    model: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
    /// The tokenizer.json; default: the one beside the model.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    tokenizer: Option<PathBuf>,
}

impl BitGenArgs {
    /// Opens the model, with a progress bar on a terminal, and says where it runs.
    ///
    /// # Errors
    /// As [`open_bitgen`].
    pub fn open(&self) -> Result<BitGen> {
        open_bitgen(self.model.as_path().into(), &self.place, self.tokenizer.as_deref())
    }
}

/// Opens a BitGen, with a progress bar on a terminal, and says where it runs.
///
/// # Errors
/// As [`BitGen::open`]; [`Error::Argument`] for a form of the logits' matrix, which is ternary.
pub fn open_bitgen(files: ModelFiles, place: &PlaceArgs, tokenizer: Option<&Path>) -> Result<BitGen> {
    if matches!(place.head, Head::Int8) {
        return Err(Error::argument("head", "is for a model that chats; a BitGen's is ternary"));
    }
    let (tokenizer, precision) = (tokenizer.map(Path::to_owned), place.precision.into());
    let options = BitGenOptions { place: place.place(), precision, tokenizer };
    let bar = Bar::new("loading");
    let model = BitGen::open_with(files, &options, |p| bar.show(&p))?;
    bar.end();
    let report = model.report();
    say!("device: {} ({})", report.device, report.why);
    Ok(model)
}

/// The texts that `--text` stands for: itself, or one a line of stdin (`-`) or of a file (`@FILE`). Empty lines are
/// passed over.
///
/// # Errors
/// As [`read_prompt`].
pub fn read_texts(given: &[String]) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for text in given {
        let read = read_prompt(text)?;
        if text == "-" || text.starts_with('@') {
            texts.extend(read.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned));
        } else {
            texts.push(read);
        }
    }
    Ok(texts)
}

/// The tokens of texts, each checked.
///
/// # Errors
/// Those of [`BitGen::tokens`], and [`Error::Argument`] for a text with too many tokens, or none.
pub fn tokens(model: &BitGen, texts: &[String]) -> Result<Vec<Vec<u32>>> {
    let most = model.sizes().positions;
    let of = |text: &String| {
        let tokens = model.tokens(text)?;
        let n = tokens.len();
        let refused = || Error::argument(format!("text {text:?}"), format!("has {n} tokens, expected 1..={most}"));
        if (1..=most).contains(&n) { Ok(tokens) } else { Err(refused()) }
    };
    texts.iter().map(of).collect()
}
