//! Options of how text is generated.

use std::hash::{BuildHasher, Hasher, RandomState};

use clap::Args;
use ternion::engine::{GenerateOptions, Sampling};
use ternion::files::SamplingDefaults;
use ternion::{Error, Result};

use crate::cli::messages::say;

/// How text is generated.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Generation")]
pub struct GenerateArgs {
    /// Maximum number of tokens of an answer; default: as many as the context holds, at most 512, of a caption at most 32.
    #[arg(short = 'n', long, value_name = "TOKENS")]
    pub max_tokens: Option<usize>,
    /// Draw tokens at this temperature; with 0, the most likely token is taken, and --top-k, --top-p, --min-p and --seed do
    /// nothing; default: what the model's files recommend (-v says it), else 0.
    #[arg(long, value_name = "T", allow_negative_numbers = true)]
    pub temp: Option<f32>,
    /// Draw from this many of the likeliest tokens; 0 means all; default: what the model's files recommend, else 50.
    #[arg(long, value_name = "K")]
    pub top_k: Option<usize>,
    /// Draw from the likeliest tokens that make up this probability; 1 means all; default: what the model's files recommend,
    /// else 0.9.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub top_p: Option<f32>,
    /// Draw from tokens whose probability is at least this part of the likeliest one's; 0 means all; default: what the
    /// model's files recommend, else 0.
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub min_p: Option<f32>,
    /// Make tokens that occurred less likely, by this factor; 1 means no penalty; default: what the model's files recommend,
    /// else 1. As the other two penalties, it counts the tokens of the conversation, those of the prompt too.
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub repeat_penalty: Option<f32>,
    /// Subtract this from the logits of tokens that occurred; default: what the model's files recommend, else 0.
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub presence_penalty: Option<f32>,
    /// Subtract this from a token's logit for each time that it occurred; default: what the model's files recommend, else 0.
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub frequency_penalty: Option<f32>,
    /// Add a number to the logit of a token, which is given by its number; -inf bans it; can be given several times, or as a
    /// list with commas, for at most 256 tokens.
    #[arg(long, value_name = "TOKEN=NUMBER", value_delimiter = ',', value_parser = token_bias)]
    pub logit_bias: Vec<(u32, f32)>,
    /// Above temperature 0: equal seeds give equal text; default: a random one, which -v prints.
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// End the answer in front of this text; can be given several times.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub stop: Vec<String>,
    /// Let an answer repeat itself without end; else it ends where a passage of at most 64 tokens came eight times in a row, with
    /// 96 tokens together or more.
    #[arg(long)]
    pub allow_loops: bool,
}

impl GenerateArgs {
    /// Checks what was given, before anything is opened.
    ///
    /// # Errors
    /// [`Error::Argument`] for values out of range.
    pub fn check(&self) -> Result<()> {
        if self.max_tokens == Some(0) {
            return Err(Error::argument("max-tokens", "is 0, expected at least 1"));
        }
        self.sampling(&SamplingDefaults::default()).validate()
    }

    /// The values that were given.
    fn given(&self) -> SamplingDefaults {
        SamplingDefaults {
            file: None,
            temperature: self.temp,
            top_k: self.top_k,
            top_p: self.top_p,
            min_p: self.min_p,
            repetition_penalty: self.repeat_penalty,
            presence_penalty: self.presence_penalty,
            frequency_penalty: self.frequency_penalty,
        }
    }

    /// How tokens are chosen, as far as it was not given by the recommendation of the model's files.
    fn sampling(&self, files: &SamplingDefaults) -> Sampling {
        let usual = Sampling {
            temperature: 0.0,
            logit_bias: self.logit_bias.iter().copied().collect(),
            // The standard library's hash keys are random: enough for text that differs from run to run.
            seed: self.seed.unwrap_or_else(|| RandomState::new().build_hasher().finish()),
            ..Sampling::original()
        };
        usual.with(files).with(&self.given())
    }

    /// The options, for a model whose files recommend `files`; says which of them do nothing, and with `verbose` which
    /// recommendations apply, and the seed.
    ///
    /// # Errors
    /// As [`GenerateArgs::check`], and [`Error::Config`] for a recommendation out of range.
    pub fn options(&self, verbose: bool, files: &SamplingDefaults) -> Result<GenerateOptions> {
        let (sampling, recommended) = (self.sampling(files), files.without(&self.given()));
        if let Some(file) = recommended.file.as_ref().filter(|_| !recommended.is_empty()) {
            let file = file.display();
            // What was given is in range since `check`.
            sampling.validate().map_err(|error| Error::config(file.to_string(), error))?;
            if verbose {
                say!("sampling:  {file} recommends {recommended}");
            }
        }
        if sampling.temperature > 0.0 {
            if verbose {
                say!("seed:      {}", sampling.seed);
            }
        } else {
            let given = [
                ("--top-k", self.top_k.is_some()),
                ("--top-p", self.top_p.is_some()),
                ("--min-p", self.min_p.is_some()),
                ("--seed", self.seed.is_some()),
            ];
            let idle: Vec<&str> = given.into_iter().filter_map(|(name, given)| given.then_some(name)).collect();
            if !idle.is_empty() {
                let names = idle.join(" and ");
                say!("note: {names} without effect: the most likely token is taken, since no --temp above 0 is given");
            }
        }
        let stop = self.stop.clone();
        let (max_tokens, end_loops) = (self.max_tokens, !self.allow_loops);
        Ok(GenerateOptions { max_tokens, sampling, stop, end_loops, ..GenerateOptions::default() })
    }
}

/// A token and what is added to its logit, written `TOKEN=NUMBER`.
fn token_bias(text: &str) -> Result<(u32, f32), String> {
    let pair = text.split_once('=').and_then(|(token, bias)| Some((token.parse().ok()?, bias.parse().ok()?)));
    pair.ok_or_else(|| "expected TOKEN=NUMBER: a token's number, and what is added to its logit (-inf bans it)".into())
}
