//! Answers as JSON: one, or one for each line of a file of questions.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use ternion::engine::{Engine, GenerateOptions, Session, Stats, StopReason};
use ternion::files::chat_template::thoughts::{Part, ThoughtSplitter};
use ternion::{Error, Result};

use crate::cli::args::{bounded_line, open_images};
use crate::cli::conversation::ConversationArgs;
use crate::cli::terminal_text::causes;
use crate::cli::{Failure, Outcome};

/// An answer and what there is to know of it.
#[derive(Debug, Serialize)]
pub struct JsonAnswer<'a> {
    version: &'static str,
    model: &'a str,
    device: &'a str,
    text: String,
    /// What the model thought before it answered.
    thoughts: String,
    tokens: Vec<u32>,
    stop: Option<StopReason>,
    stats: Stats,
}

impl<'a> JsonAnswer<'a> {
    /// Generates an answer.
    ///
    /// # Errors
    /// Those of the generation.
    pub fn of(engine: &'a Engine, session: &mut Session, options: GenerateOptions) -> Result<Self> {
        let mut splitter = session.thought_splitter();
        let (mut text, mut thoughts, mut tokens) = (String::new(), String::new(), Vec::new());
        let mut add = |parts: Vec<(Part, String)>| {
            for (part, piece) in parts {
                if part == Part::Thought { thoughts += &piece } else { text += &piece }
            }
        };
        let mut stream = session.generate(options)?;
        for token in stream.by_ref() {
            let token = token?;
            tokens.push(token.id);
            add(match &mut splitter {
                Some(splitter) => splitter.push(&token.text),
                None => vec![(Part::Answer, token.text)],
            });
        }
        add(splitter.as_mut().map_or_else(Vec::new, ThoughtSplitter::finish));
        let (stop, stats) = (stream.stop_reason(), stream.stats());
        let (version, model, device) = (env!("CARGO_PKG_VERSION"), engine.info().family, &engine.report().device);
        let text = text.trim_start().to_owned();
        Ok(JsonAnswer { version, model, device, text, thoughts, tokens, stop, stats })
    }

    /// Prints it over several lines.
    ///
    /// # Errors
    /// Those of stdout.
    pub fn print(&self) -> Outcome {
        let json = serde_json::to_string_pretty(self).map_err(io::Error::from)?;
        Ok(writeln!(io::stdout().lock(), "{json}")?)
    }
}

/// A line of a file of questions.
#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Question {
    prompt: String,
    /// Pictures to ask about: a path, or several.
    #[serde(default)]
    image: Paths,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(untagged)]
enum Paths {
    One(PathBuf),
    Several(Vec<PathBuf>),
}

impl Default for Paths {
    fn default() -> Self {
        Paths::Several(Vec::new())
    }
}

impl Paths {
    fn all(&self) -> &[PathBuf] {
        match self {
            Paths::One(path) => std::slice::from_ref(path),
            Paths::Several(paths) => paths,
        }
    }
}

/// The answer to a line, or why there is none.
#[derive(Debug, Serialize)]
struct LineAnswer<'a> {
    /// Counted from 1.
    line: usize,
    #[serde(flatten)]
    answer: Option<JsonAnswer<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// Answers each line of a file, or of stdin for `-`, by itself: an object a line, in their order, as they come. Empty lines are
/// passed over.
///
/// # Errors
/// Those of reading the file and of writing; [`Failure::Reported`] at the end if a line has no answer.
pub fn batch(engine: &Engine, form: &ConversationArgs, file: &Path, options: &GenerateOptions) -> Outcome {
    let mut input: Box<dyn BufRead> = match file.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(BufReader::new(File::open(file).map_err(Error::io(file))?)),
    };
    let (mut session, mut failed) = (engine.session()?, false);
    for line in 1.. {
        let Some(read) = bounded_line(&mut input, &file.to_string_lossy())? else { break };
        let answer = match read {
            Ok(text) if text.trim().is_empty() => continue,
            Ok(text) => answered(engine, &mut session, form, &text, options.clone()),
            Err(error) => Err(error),
        };
        let (answer, error) = match answer {
            Ok(answer) => (Some(answer), None),
            Err(error) => (None, Some(causes(&error))),
        };
        failed |= error.is_some();
        let json = serde_json::to_string(&LineAnswer { line, answer, error }).map_err(io::Error::from)?;
        let mut out = io::stdout().lock();
        writeln!(out, "{json}")?;
        out.flush()?;
    }
    if failed { Err(Failure::Reported) } else { Ok(()) }
}

fn answered<'a>(
    engine: &'a Engine,
    session: &mut Session,
    form: &ConversationArgs,
    line: &str,
    options: GenerateOptions,
) -> Result<JsonAnswer<'a>> {
    let wrong =
        |e| Error::format("a line", format!("{e}; expected {{\"prompt\": TEXT}}, with \"image\": FILE or a list"));
    let question: Question = serde_json::from_str(line).map_err(wrong)?;
    let images = open_images(question.image.all())?;
    session.reset();
    images.iter().try_for_each(|image| session.push_image(image))?;
    form.begin(session)?;
    form.ask(session, &question.prompt)?;
    JsonAnswer::of(engine, session, options)
}
