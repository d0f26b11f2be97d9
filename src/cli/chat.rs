//! `ternion chat`: a conversation, line by line.

use std::cell::Cell;
use std::io::{self, BufRead, IsTerminal, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Args;
use percent_encoding::percent_decode_str;
use signal_hook::flag;
use ternion::engine::{Engine, GenerateOptions, Session, Stats, StopReason};
use ternion::files::tokenizer::MAX_TEXT_BYTES;
use ternion::files::{Image, SamplingDefaults};
use ternion::{Error, Result};

use crate::cli::args::{ModelArgs, model_files, open_images, utf8};
use crate::cli::conversation::ConversationArgs;
use crate::cli::generate::GenerateArgs;
use crate::cli::line_editor::{Input, LineEditor};
use crate::cli::messages::say;
use crate::cli::output::{Answer, statistics, stream};
use crate::cli::{Failure, INTERRUPTED, Outcome, report, report_with};

const HELP: &str = "\
/image FILE  begin a new conversation about a picture
/reset       begin a new conversation about the same pictures
/stats       show counts, times and experts of the last answer
/quit        end (also Ctrl-D)
/help        show this
Anything else is a question. Ctrl-C ends an answer.";

/// What the user types behind.
const PROMPT: &str = "> ";

/// Talk with a model: each line of stdin is a question.
///
/// Pictures are encoded once and stay in the conversation. Type /help for the commands, Ctrl-D to end. Piped lines work too; then the exit
/// code is 2 if any of them failed.
#[derive(Debug, Args)]
#[command(after_help = "Example: ternion chat --image examples/shapes/samples/spatial_scene_100000.png\n\
                        Example: printf 'What is it?\\nWhich colour?\\n' | ternion chat -m models/embernet --image cat.png")]
pub struct Chat {
    #[command(flatten)]
    model: ModelArgs,
    /// A picture to talk about (PNG, JPEG, WebP, BMP, GIF); can be given several times.
    #[arg(long, value_name = "FILE", allow_hyphen_values = true)]
    image: Vec<PathBuf>,
    #[command(flatten)]
    generate: GenerateArgs,
    #[command(flatten)]
    conversation: ConversationArgs,
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
        self.generate.check()?;
        let images = open_images(&self.image)?;
        let files = model_files(self.model.model.as_deref())?;
        let options = self.generate.options(verbose, &SamplingDefaults::of(&files)?)?;
        let engine = self.model.open_chat(files)?;
        self.conversation.check(&engine, verbose);
        let mut editor = LineEditor::new();
        let (session, interrupt) = (engine.session()?, Interrupt::new(editor.is_none()));
        let form = &self.conversation;
        let mut chat = ChatLoop { session, engine, options, form, images: 0, last: None, verbose, interrupt };
        for image in &images {
            chat.session.push_image(image)?;
            chat.images += 1;
        }
        form.begin(&mut chat.session)?;
        let terminal = io::stdin().is_terminal();
        if terminal {
            chat.interrupt.watch()?;
            say!("/help lists the commands, Ctrl-D ends.");
        }
        let (mut failed, mut warned) = (false, false);
        loop {
            let line = match &mut editor {
                Some(editor) => {
                    let read = editor.read(PROMPT, || chat.interrupt.came());
                    Ok(read.map_err(Error::io("the terminal"))?)
                }
                None => next_line(terminal)?,
            };
            let done = match line {
                Ok(Input::Line(line)) => chat.answer(&line),
                Ok(Input::Interrupted) if warned => return Err(Failure::Interrupted),
                // It may have been meant for an answer that has just ended.
                Ok(Input::Interrupted) => {
                    say!("Ctrl-C again ends, as Ctrl-D does.");
                    warned = true;
                    continue;
                }
                Ok(Input::End) => break,
                Err(error) => Err(error.into()),
            };
            warned = false;
            match done {
                Ok(true) => {}
                Ok(false) => break,
                Err(Failure::Error(error)) => {
                    chat.report(&error);
                    failed = true;
                }
                Err(other) => return Err(other),
            }
        }
        if failed && !terminal { Err(Failure::Reported) } else { Ok(()) }
    }
}

/// The next line of stdin where there is no editor; an error inside for a line that is not text or is too long, which is
/// skipped.
fn next_line(terminal: bool) -> Outcome<Result<Input>> {
    if terminal {
        super::messages::write(format_args!("{PROMPT}"));
    }
    let (mut input, mut bytes) = (io::stdin().lock(), Vec::new());
    let max = MAX_TEXT_BYTES as u64 + 1;
    input.by_ref().take(max).read_until(b'\n', &mut bytes).map_err(Error::io("stdin"))?;
    if bytes.len() as u64 == max && !bytes.ends_with(b"\n") {
        input.skip_until(b'\n').map_err(Error::io("stdin"))?;
    }
    Ok(if bytes.is_empty() { Ok(Input::End) } else { utf8("stdin", bytes).map(Input::Line) })
}

/// The file that a line names: as it is written, or as terminals write a file that is dragged into them, in quotes, with
/// escaped characters or as a file:// address; `~` is the user's folder. A file with the very name comes first.
fn picture_path(written: &str) -> PathBuf {
    let literal = PathBuf::from(written);
    if literal.exists() {
        return literal;
    }
    if let Some(address) = written.strip_prefix("file://") {
        let path = address.strip_prefix("localhost").unwrap_or(address);
        // An address of Windows has a slash in front of the drive.
        let path = if cfg!(windows) { path.trim_start_matches('/') } else { path };
        return percent_decode_str(path).decode_utf8().map_or(literal, |path| path.as_ref().into());
    }
    let path = if cfg!(windows) {
        written.trim_matches('"').to_owned()
    } else {
        // One word as a shell reads it; several are a name with spaces.
        let words = shlex::split(written).and_then(|words| <[String; 1]>::try_from(words).ok());
        words.map_or_else(|| written.to_owned(), |[word]| word)
    };
    let in_home = written.strip_prefix('~').filter(|rest| rest.is_empty() || rest.starts_with(['/', '\\']));
    match (in_home, etcetera::home_dir()) {
        (Some(_), Ok(home)) => home.join(path.trim_start_matches('~').trim_start_matches(['/', '\\'])),
        _ => path.into(),
    }
}

/// What Ctrl-C does as a signal: ends an answer, or the program where the answer does not end.
struct Interrupt {
    /// Whether the next Ctrl-C ends the program; the one that comes while it does not, sets it.
    ends_all: Arc<AtomicBool>,
    /// Whether one that comes where there is no answer ends the program; else the prompt asks for it.
    at_prompt: bool,
}

impl Interrupt {
    fn new(at_prompt: bool) -> Self {
        Interrupt { ends_all: Arc::new(AtomicBool::new(at_prompt)), at_prompt }
    }

    /// Takes Ctrl-C from the system, which ends the program with it until then.
    fn watch(&self) -> Result<()> {
        let (signal, code) = (signal_hook::consts::SIGINT, INTERRUPTED.into());
        flag::register_conditional_shutdown(signal, code, self.ends_all.clone())
            .and_then(|_| flag::register(signal, self.ends_all.clone()))
            .map(|_| ())
            .map_err(Error::io("Ctrl-C"))
    }

    /// Whether one came that has ended nothing; it is forgotten then.
    fn came(&self) -> bool {
        !self.at_prompt && self.ends_all.swap(false, Ordering::SeqCst)
    }

    /// Runs `answer`, which is to end once the function that it gets says so.
    fn during<T>(&self, answer: impl FnOnce(&dyn Fn() -> bool) -> T) -> T {
        // Without this, one that has come since the question was typed ends its answer.
        if self.at_prompt {
            self.ends_all.store(false, Ordering::SeqCst);
        }
        let ended = Cell::new(false);
        let answered = answer(&|| {
            ended.set(self.ends_all.load(Ordering::SeqCst));
            ended.get()
        });
        if self.at_prompt || ended.get() {
            self.ends_all.store(self.at_prompt, Ordering::SeqCst);
        }
        answered
    }
}

/// A conversation in progress.
struct ChatLoop<'a> {
    session: Session,
    engine: Engine,
    options: GenerateOptions,
    /// How questions are written.
    form: &'a ConversationArgs,
    images: usize,
    last: Option<(Stats, Option<StopReason>)>,
    verbose: bool,
    interrupt: Interrupt,
}

impl ChatLoop<'_> {
    /// Does what a line asks for; false ends the conversation.
    fn answer(&mut self, line: &str) -> Outcome<bool> {
        match parse(line) {
            Line::Nothing => {}
            Line::Quit => return Ok(false),
            Line::Help => say!("{HELP}"),
            Line::Unknown(word) => return Err(Error::argument(word, "is not a command; /help lists them").into()),
            Line::Reset => {
                self.session.reset(false);
                self.form.begin(&mut self.session)?;
            }
            Line::Stats => match &self.last {
                Some(last) => statistics(&self.engine, &self.session, self.images, last)?,
                None => say!("no answer yet"),
            },
            Line::Image(file) => self.show(&picture_path(file))?,
            Line::Question(question) => self.ask(question)?,
        }
        Ok(true)
    }

    /// Begins a conversation about a picture; one that cannot be shown leaves the conversation as it is.
    fn show(&mut self, file: &Path) -> Result<()> {
        self.session.reset_to_image(&Image::open(file)?)?;
        self.images = 1;
        self.form.begin(&mut self.session)
    }

    /// Answers a question; one that cannot be answered leaves the conversation as it is.
    fn ask(&mut self, question: &str) -> Outcome {
        let before = self.session.tokens().len() + self.session.forgotten();
        let answered = self.push(question).map_err(Failure::Error).and_then(|()| {
            let options = self.options.clone();
            // An answer that is cut by the context is better than none.
            let most = if self.form.context_shift { usize::MAX } else { self.session.room() };
            let (max_tokens, is_cut) =
                (options.max_tokens.map(|n| n.min(most)), options.max_tokens.is_some_and(|n| n > most));
            let (options, form) = (GenerateOptions { max_tokens, ..options }, &self.form);
            let mut answer = self
                .interrupt
                .during(|interrupted| stream(&mut self.session, options, false, form.hide_thoughts, interrupted))?;
            if let Some(end @ StopReason::Length) = answer.stats.1.as_mut().filter(|_| is_cut) {
                *end = StopReason::Context;
            }
            Ok(answer)
        });
        if answered.is_err() {
            self.session.truncate(before.saturating_sub(self.session.forgotten()));
        }
        let Answer { stats, written } = answered?;
        if self.verbose {
            statistics(&self.engine, &self.session, self.images, &stats)?;
        }
        self.last = Some(stats);
        Ok(written?)
    }

    /// Pushes a question, with room for an answer.
    fn push(&mut self, question: &str) -> Result<()> {
        self.form.ask(&mut self.session, question)?;
        if self.session.room() == 0 && !self.form.context_shift {
            let context = self.engine.context() as u64;
            let what = "the question with an answer".into();
            return Err(Error::ContextFull { what, needed: context + 1, available: context });
        }
        Ok(())
    }

    /// Prints an error, with what to do in a conversation.
    fn report(&self, error: &Error) {
        match error {
            Error::ContextFull { .. } if self.session.tokens().is_empty() => {
                report_with(error, Some("shorten the question, or make room for more with --context"));
            }
            Error::ContextFull { .. } => report_with(
                error,
                Some(
                    "/reset begins a new conversation, --context makes room for a longer one, --context-shift forgets \
                     the older half",
                ),
            ),
            _ => report(error),
        }
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

    #[test]
    fn a_dragged_picture_is_found() {
        let dir = tempfile::TempDir::new().expect("a folder");
        let file = dir.path().join("my pics").join("a b.png");
        std::fs::create_dir(file.parent().expect("a folder")).expect("made");
        std::fs::write(&file, "").expect("written");
        let path = file.to_str().expect("UTF-8");
        assert_eq!(picture_path(path), file);
        assert_eq!(picture_path(&format!("\"{path}\"")), file);
        if cfg!(unix) {
            assert_eq!(picture_path(&format!("'{path}'")), file);
            assert_eq!(picture_path(&path.replace(' ', "\\ ")), file);
            let address = path.replace(' ', "%20");
            assert_eq!(picture_path(&format!("file://{address}")), file);
            assert_eq!(picture_path(&format!("file://localhost{address}")), file);
            let odd = dir.path().join("it's \\ \"odd\".png");
            std::fs::write(&odd, "").expect("written");
            assert_eq!(picture_path(odd.to_str().expect("UTF-8")), odd, "the very name comes first");
        }
        let home = etcetera::home_dir().expect("a home");
        assert_eq!(picture_path("~/no such picture.png"), home.join("no such picture.png"));
        assert_eq!(picture_path("~no_such_user/a.png"), Path::new("~no_such_user/a.png"));
        assert_eq!(picture_path("no such picture.png"), Path::new("no such picture.png"));
    }
}
