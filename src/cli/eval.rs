//! `ternion eval`: questions with known answers, counted; with a BitGen, its objectives on captions, and retrieval.

use std::fs::{self, File};
use std::io::{self, BufReader, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use same_file::is_same_file;
use serde_json::{Map, Value, json};
use ternion::Error;
use ternion::files::{ModelFiles, atomic};
use ternion::tools::eval::{
    CaptionSet, DataSet, Evaluation, PairEvaluation, PairOptions, Queues, Score, evaluate, evaluate_pairs,
};
use ternion::unstable::models::BITGEN;

use crate::cli::args::{MemoryArgs, ModelArgs, family, model_files};
use crate::cli::interrupts;
use crate::cli::messages::say;
use crate::cli::output::{Bar, ms, table};
use crate::cli::{Failure, Outcome};

/// Answer a folder of questions about pictures and count the right answers; measure a BitGen on captions.
///
/// The folder holds the pictures and questions.json, a list of {"image", "family", "question", "answer"}; other fields
/// are passed over. The most likely token is taken at each step. An answer is right if it equals the expected one; case and
/// surrounding space are ignored. "own expert" is the share of layers and text tokens (of prompts and answers) in which
/// the expert with the family's name is among those that a token is routed to. "perplexity" is that of the expected
/// answers and the end of text, given their questions.
///
/// For a BitGen the folder holds captions.json, a list of {"image", "caption"}, and if the decoder's text is another one,
/// "description". Measured are: the contrastive loss (ITC) with the queues of the checkpoint; the matching loss
/// (ITM), the cosine as logit, of each pair, and of its text and its picture with the most similar wrong one; the
/// cross-entropy of the decoder's texts; the divergence of the memory; and the share of texts whose picture is the most similar,
/// among the 5 and the 10 most similar, and the same for pictures.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion eval --data examples/shapes/samples\n\
                        Example: ternion eval -m models/embernet --data photos --answers answers.json --json\n\
                        Example: ternion eval -m models/bitgen --data captioned")]
pub struct Eval {
    #[command(flatten)]
    model: ModelArgs,
    /// The folder with questions.json or captions.json and its pictures.
    #[arg(long, value_name = "DIR", allow_hyphen_values = true)]
    data: PathBuf,
    /// Maximum number of tokens of an answer.
    #[arg(short = 'n', long, value_name = "TOKENS", default_value_t = 64)]
    max_tokens: usize,
    /// Write the list of questions to this file, with the model's answers as "got".
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    answers: Option<PathBuf>,
    /// With a BitGen: the text that its encoder reads with each picture; default: the caption, or the start of a text for
    /// a decoder that predicts the next token.
    #[arg(short, long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// With a BitGen: pairs per batch of the contrastive loss; default: 128, as in training.
    #[arg(long, value_name = "N")]
    batch: Option<usize>,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

impl Eval {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of [`DataSet::open`], [`CaptionSet::open`], [`evaluate`] and [`evaluate_pairs`], and of writing.
    pub fn main(&self) -> Outcome {
        if self.max_tokens == 0 {
            return Err(Error::argument("max-tokens", "is 0, expected at least 1").into());
        }
        if self.batch == Some(0) {
            return Err(Error::argument("batch", "is 0, expected at least 1").into());
        }
        let captioned = self.data.join(CaptionSet::LIST).is_file();
        let captions = captioned.then(|| CaptionSet::open(&self.data)).transpose()?;
        let asked = !captioned || self.data.join(DataSet::LIST).is_file();
        let questions = asked.then(|| DataSet::open(&self.data)).transpose()?;
        if let Some(file) = &self.answers {
            check_answers(file, &self.data)?;
        }
        let files = model_files(self.model.model.as_deref())?;
        let family = family(&files)?;
        match (questions, captions) {
            (_, Some(captions)) if family == &BITGEN => self.pairs(files, &captions),
            (Some(questions), _) if family != &BITGEN => self.questions(files, &questions),
            (questions, _) => {
                let (found, wanted) = match questions {
                    Some(_) => (DataSet::LIST, CaptionSet::LIST),
                    None => (CaptionSet::LIST, DataSet::LIST),
                };
                let problem = format!("holds {found}; a model of the family {} needs {wanted}", family.name);
                Err(Error::argument(self.data.display(), problem).into())
            }
        }
    }

    fn questions(&self, files: ModelFiles, data: &DataSet) -> Outcome {
        self.memory.reject()?;
        let bitgens = [("prompt", self.prompt.is_some()), ("batch", self.batch.is_some())];
        if let Some((option, _)) = bitgens.iter().find(|(_, given)| *given) {
            return Err(Error::argument(option, "is for a BitGen, which is measured on captions").into());
        }
        let engine = self.model.open_chat(files)?;
        interrupts::watch()?;
        let (bar, start) = (Bar::new("answering"), Instant::now());
        let found = evaluate(&engine, data, self.max_tokens, |p| bar.show(&p))?;
        bar.end();
        let asked = found.answers.iter().flatten().count();
        say!("{asked} of {} questions in {}", data.questions().len(), ms(start.elapsed()));
        if let Some(file) = &self.answers {
            write_answers(file, data, &found)?;
        }
        let mut out = io::stdout().lock();
        if self.json {
            let families: Map<String, Value> = found.families.iter().map(|f| (f.family.clone(), json_of(f))).collect();
            writeln!(out, "{:#}", json!({ "families": families }))?;
        } else {
            print(&mut out, &found)?;
        }
        if interrupts::came() { Err(Failure::Interrupted) } else { Ok(()) }
    }

    fn pairs(&self, files: ModelFiles, data: &CaptionSet) -> Outcome {
        if self.answers.is_some() {
            return Err(Error::argument("answers", "is for questions; a BitGen is measured on captions").into());
        }
        let model = self.model.open_bitgen(files.clone())?;
        let _lock = self.memory.open(&model)?;
        let queues = Queues::read(files, model.sizes().d)?;
        if queues.is_none() {
            say!("the model's file has no queues: the contrastive loss is that of the batch alone");
        }
        let default = PairOptions::default();
        let batch = self.batch.unwrap_or(default.batch);
        let options = PairOptions { batch, prompt: self.prompt.clone(), noise: self.memory.noise() };
        interrupts::watch()?;
        let (bar, start) = (Bar::new("measuring"), Instant::now());
        let found = evaluate_pairs(&model, data, queues.as_ref(), &options, |p| bar.show(&p))?;
        bar.end();
        say!("{} pairs in {}", data.pairs().len(), ms(start.elapsed()));
        self.memory.save(&model)?;
        let mut out = io::stdout().lock();
        if self.json {
            writeln!(out, "{:#}", json_of_pairs(&found, batch, model.config().next_token))?;
        } else {
            print_pairs(&mut out, &found, batch)?;
        }
        Ok(())
    }
}

fn json_of_pairs(found: &PairEvaluation, batch: usize, next_token: bool) -> Value {
    let recall =
        |[at_1, at_5, at_10]: [f64; 3]| json!({ "recall_at_1": at_1, "recall_at_5": at_5, "recall_at_10": at_10 });
    let [pairs, pictures, captions] = found.counts;
    let texts = &found.reconstruction;
    json!({
        "pairs": pairs,
        "pictures": pictures,
        "captions": captions,
        "contrastive_loss": found.contrastive,
        "batch": batch,
        "queued": found.queued,
        "matching_loss": found.matching,
        "reconstruction": {
            "tokens": texts.tokens,
            "cross_entropy": texts.cross_entropy(),
            "perplexity": texts.perplexity(),
            "accuracy": texts.accuracy(),
            "next_token": next_token,
        },
        "memory_kl": found.memory_kl,
        "text_to_picture": recall(found.recall[0]),
        "picture_to_text": recall(found.recall[1]),
    })
}

fn print_pairs(out: &mut impl Write, found: &PairEvaluation, batch: usize) -> io::Result<()> {
    let [pairs, pictures, captions] = found.counts;
    let texts = &found.reconstruction;
    let against = match found.queued {
        0 => "no queues".into(),
        n => format!("{n} of each queued"),
    };
    let recalls = |recall: [f64; 3]| recall.map(percent).join(" / ");
    let row = |what: &str, value: String, of: String| vec![what.to_owned(), value, of];
    let rows = [
        row(
            "contrastive loss (ITC)",
            format!("{:.4}", found.contrastive),
            format!("{pairs} pairs in batches of {}, {against}", batch.min(pairs)),
        ),
        row("matching loss (ITM)", format!("{:.4}", found.matching), "with the most similar wrong ones".into()),
        row("perplexity of texts", format!("{:.4}", texts.perplexity()), format!("{} tokens", texts.tokens)),
        row("token accuracy", percent(texts.accuracy()), format!("{} right", texts.correct)),
        row("memory divergence (KL)", format!("{:.4}", found.memory_kl), "nats a value".into()),
        row(
            "text -> picture @1/5/10",
            recalls(found.recall[0]),
            format!("{captions} captions among {pictures} pictures"),
        ),
        row(
            "picture -> text @1/5/10",
            recalls(found.recall[1]),
            format!("{pictures} pictures among {captions} captions"),
        ),
    ];
    table(out, &["measure", "value", "of"], &rows)
}

/// A share in percent.
fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn json_of(score: &Score) -> Value {
    json!({
        "n": score.n,
        "correct": score.correct,
        "accuracy": score.accuracy(),
        "own_expert_share": score.own_expert_share(),
        "cross_entropy": score.cross_entropy(),
        "perplexity": score.perplexity(),
    })
}

fn print(out: &mut impl Write, found: &Evaluation) -> io::Result<()> {
    let row = |s: &Score| {
        let own = s.own_expert_share().map_or("-".into(), percent);
        let perplexity = format!("{:.4}", s.perplexity());
        vec![s.family.clone(), s.n.to_string(), s.correct.to_string(), percent(s.accuracy()), own, perplexity]
    };
    let all = found.all();
    let rows: Vec<Vec<String>> = found.families.iter().chain([&all]).map(row).collect();
    table(out, &["family", "n", "correct", "accuracy", "own expert", "perplexity"], &rows)
}

/// Checks that a file of answers can be written: there is none yet, or one of earlier answers and nothing else, which is
/// not the list of the folder `data`.
fn check_answers(file: &Path, data: &Path) -> ternion::Result<()> {
    let answered = |entry: &Value| entry.get("got").is_some();
    // Read as it comes: what is not a list ends at once, however long it is.
    let earlier = |file: File| match serde_json::from_reader(BufReader::new(file)) {
        Ok(Value::Array(entries)) => entries.iter().all(answered),
        _ => false,
    };
    if fs::metadata(file).is_ok_and(|m| m.is_file() && m.len() > 0) && !File::open(file).is_ok_and(earlier) {
        let problem = "holds no answers of an earlier run and would be replaced; give the name of a new file";
        return Err(Error::argument(file.display(), problem));
    }
    if is_same_file(file, data.join(DataSet::LIST)).unwrap_or(false) {
        let problem = "is the list of questions and would be replaced; give the name of a new file";
        return Err(Error::argument(file.display(), problem));
    }
    atomic::check_writable(file)
}

/// The list of questions as it was read, with the model's answers.
fn write_answers(file: &Path, data: &DataSet, found: &Evaluation) -> Outcome {
    let answered = data.questions().iter().zip(&found.answers).map(|(question, got)| {
        let mut entry = question.entry.clone();
        entry.insert("got".into(), got.as_deref().into());
        Value::Object(entry)
    });
    let json = format!("{:#}\n", Value::Array(answered.collect()));
    Ok(atomic::write(file, json)?)
}
