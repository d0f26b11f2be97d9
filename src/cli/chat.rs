//! `ternion chat`: a conversation, line by line.

use std::io::{self, BufRead, IsTerminal, Read, Write};
use std::path::PathBuf;

use clap::Args;
use ternion::files::Image;
use ternion::files::tokenizer::MAX_TEXT_BYTES;
use ternion::runtime::{Engine, GenerateOptions, Session, Stats, StopReason};
use ternion::{Error, Result};

use super::args::{GenerateArgs, ModelArgs, open_images, utf8};
use super::output::{statistics, stream};
use super::{Failure, Outcome, report};

const HELP: &str = "\
/image FILE  begin a new conversation about a picture
/reset       begin a new conversation about the same pictures
/stats       show counts, times and experts of the last answer
/quit        end (also Ctrl-D)
/help        show this
Anything else is a question.";

/// Talk with a model: each line of stdin is a question.
///
/// Pictures are encoded once and stay. Type /help for the commands, Ctrl-D to end. Piped lines work too; then the exit
/// code is 2 if any of them failed.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion chat --image examples/shapes/samples/spatial_scene_100000.png\n\
                        Example: printf 'What is it?\\nWhich colour?\\n' | ternion chat -m models/embernet --image cat.png")]
pub struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// A picture to talk about (PNG, JPEG, WebP, BMP, GIF); can be given several times.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    #[command(flatten)]
    generate: GenerateArgs,
}

/// What a line asks for.
#[derive(Debug, PartialEq)]
enum Line<'a> {
    Nothing,
    Quit,
    Reset,
    Stats,
    Help,
    Image(&'a str),
    Unknown(&'a str),
    Question(&'a str),
}

fn parse(line: &str) -> Line<'_> {
    let line = line.trim();
    let (word, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
    match (word, rest.trim()) {
        ("", _) => Line::Nothing,
        ("/quit" | "/exit", "") => Line::Quit,
        ("/reset", "") => Line::Reset,
        ("/stats", "") => Line::Stats,
        ("/help", "") => Line::Help,
        ("/image", file) if !file.is_empty() => Line::Image(file),
        (word, _) if word.starts_with('/') => Line::Unknown(word),
        _ => Line::Question(line),
    }
}

impl Chat {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of the engine, and of writing to stdout.
    pub fn main(&self, verbose: bool) -> Outcome {
        let options = self.generate.options()?;
        let images = open_images(&self.image)?;
        let engine = self.model.open()?;
        let mut talk = Talk { session: engine.session()?, engine, options, images: 0, last: None, verbose };
        for image in &images {
            talk.session.push_image(image)?;
            talk.images += 1;
        }
        let terminal = io::stdin().is_terminal();
        if terminal {
            eprintln!("/help shows the commands, Ctrl-D ends.");
        }
        let mut failed = false;
        while let Some(line) = next_line(terminal)? {
            match line.map_err(Failure::Error).and_then(|line| talk.answer(&line)) {
                Ok(true) => {}
                Ok(false) => break,
                Err(Failure::Error(error)) => {
                    report(&error);
                    failed = true;
                }
                Err(other) => return Err(other),
            }
        }
        if failed && !terminal { Err(Failure::Reported) } else { Ok(()) }
    }
}

/// The next line of stdin, an error for one that is no text, or none at the end.
fn next_line(terminal: bool) -> Outcome<Option<Result<String>>> {
    if terminal {
        eprint!("> ");
        io::stderr().flush()?;
    }
    let mut bytes = Vec::new();
    let most = MAX_TEXT_BYTES as u64 + 1;
    io::stdin().lock().take(most).read_until(b'\n', &mut bytes).map_err(Error::io("stdin"))?;
    Ok(if bytes.is_empty() { None } else { Some(utf8("stdin", bytes)) })
}

/// A conversation in progress.
struct Talk {
    session: Session,
    engine: Engine,
    options: GenerateOptions,
    images: usize,
    last: Option<(Stats, Option<StopReason>)>,
    verbose: bool,
}

impl Talk {
    /// Does what a line asks for; false ends the conversation.
    fn answer(&mut self, line: &str) -> Outcome<bool> {
        match parse(line) {
            Line::Nothing => {}
            Line::Quit => return Ok(false),
            Line::Help => eprintln!("{HELP}"),
            Line::Unknown(word) => return Err(Error::argument(word, "is no command; /help shows them").into()),
            Line::Reset => self.session.reset(false),
            Line::Stats => match &self.last {
                Some(last) => statistics(&self.engine, &self.session, self.images, last)?,
                None => eprintln!("no answer yet"),
            },
            Line::Image(file) => self.show(file)?,
            Line::Question(question) => self.ask(question)?,
        }
        Ok(true)
    }

    fn show(&mut self, file: &str) -> Result<()> {
        // A file that is no picture leaves the conversation as it is.
        let image = Image::open(file)?;
        self.session.reset(true);
        self.images = 0;
        self.session.push_image(&image)?;
        self.images = 1;
        Ok(())
    }

    fn ask(&mut self, question: &str) -> Outcome {
        self.session.push_question(question)?;
        let room = self.session.room();
        if room == 0 {
            return Err(Error::Limit {
                what: "an answer".into(),
                wanted: "at least 1 token".into(),
                available: format!("0 of the {} of the context are", self.engine.context()),
                advice: "/reset begins a new conversation".into(),
            }
            .into());
        }
        let mut options = self.options.clone();
        // An answer that is cut by the context is better than none.
        options.max_tokens = options.max_tokens.map(|n| n.min(room));
        let result = stream(&mut self.session, options)?;
        if self.verbose {
            statistics(&self.engine, &self.session, self.images, &result)?;
        }
        self.last = Some(result);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_questions() {
        assert_eq!(parse("  \n"), Line::Nothing);
        assert_eq!(parse("/image my cat.png\n"), Line::Image("my cat.png"));
        assert_eq!(parse("/image"), Line::Unknown("/image"));
        assert_eq!(parse("/quit\r\n"), Line::Quit);
        assert_eq!(parse("what is 1 / 2?"), Line::Question("what is 1 / 2?"));
    }
}
