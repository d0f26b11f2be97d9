//! `ternion eval`: questions with known answers, counted.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use serde_json::{Map, Value, json};
use ternion::Error;
use ternion::runtime::eval::{DataSet, Evaluation, Score, evaluate};

use super::Outcome;
use super::args::ModelArgs;
use super::output::{Bar, check_writable, ms, table, write_whole};

/// Answer a folder of questions about pictures and count the right answers.
///
/// The folder holds the pictures and questions.json, a list of {"image", "family", "question", "answer"}; other fields
/// are passed over. The most likely token is taken at each step. An answer is right if it is the expected one, but for
/// case and for space around it. "own expert" is how often the expert with the family's name was chosen: the share of
/// all layers and all text tokens, of prompts and answers, in which it is among the experts that a token is routed to.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion eval --data examples/shapes/samples\n\
                        Example: ternion eval -m models/embernet --data photos --answers answers.json --json")]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// The folder with questions.json and its pictures.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Most tokens of an answer.
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64)]
    max_tokens: usize,
    /// Write the list of questions to this file, with what the model answered as "got".
    #[arg(long, value_name = "FILE")]
    answers: Option<PathBuf>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Eval {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`DataSet::open`] and [`evaluate`], and of writing.
    pub fn main(&self) -> Outcome {
        if self.max_tokens == 0 {
            return Err(Error::argument("max-tokens", "is 0, expected at least 1").into());
        }
        let data = DataSet::open(&self.data)?;
        if let Some(file) = &self.answers {
            check_writable(file)?;
        }
        let engine = self.model.open()?;
        let (bar, start) = (Bar::new("answering"), Instant::now());
        let found = evaluate(&engine, &data, self.max_tokens, |p| bar.show(&p))?;
        bar.end();
        eprintln!("{} questions in {}", data.questions().len(), ms(start.elapsed()));
        if let Some(file) = &self.answers {
            write_answers(file, &data, &found)?;
        }
        let mut out = io::stdout().lock();
        if self.json {
            let families: Map<String, Value> = found.families.iter().map(|f| (f.family.clone(), json_of(f))).collect();
            writeln!(out, "{:#}", json!({ "families": families }))?;
        } else {
            print(&mut out, &found)?;
        }
        Ok(())
    }
}

fn json_of(score: &Score) -> Value {
    json!({
        "n": score.n,
        "correct": score.correct,
        "accuracy": score.accuracy(),
        "own_expert_share": score.own_expert_share(),
    })
}

fn print(out: &mut impl Write, found: &Evaluation) -> io::Result<()> {
    let percent = |share: f64| format!("{:.1} %", 100.0 * share);
    let row = |s: &Score| {
        let own = s.own_expert_share().map_or("-".into(), percent);
        vec![s.family.clone(), s.n.to_string(), s.correct.to_string(), percent(s.accuracy()), own]
    };
    let all = found.all();
    let rows: Vec<Vec<String>> = found.families.iter().chain([&all]).map(row).collect();
    table(out, &["family", "n", "correct", "accuracy", "own expert"], &rows)
}

/// The list of questions as it was read, with the model's answers.
fn write_answers(file: &Path, data: &DataSet, found: &Evaluation) -> Outcome {
    let answered = data.questions().iter().zip(&found.answers).map(|(question, got)| {
        let mut entry = question.entry.clone();
        entry.insert("got".into(), got.as_str().into());
        Value::Object(entry)
    });
    let json = format!("{:#}\n", Value::Array(answered.collect()));
    Ok(write_whole(file, json)?)
}
