//! `ternion chat`: a conversation, line by line.

use std::cell::Cell;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Args, Parser};
use ternion::engine::{Engine, GenerateOptions, Session, Stats, StopReason};
use ternion::files::SamplingDefaults;
use ternion::{Error, Result};

use crate::cli::args::{ModelArgs, bounded_line, model_files, open_image, open_images};
use crate::cli::chat_lines::{BLOCK, HELP, Line, block, completions, file_path, parse, set_options};
use crate::cli::conversation::ConversationArgs;
use crate::cli::generate::GenerateArgs;
use crate::cli::interrupts;
use crate::cli::line_editor::{Input, LineEditor};
use crate::cli::messages::say;
use crate::cli::output::{Answer, bytes, statistics, stream};
use crate::cli::{Failure, Outcome, print_error, print_error_with};

/// What the user types behind.
const PROMPT: &str = "> ";
/// The same inside a question of several lines.
const MORE: &str = "… ";

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

impl Chat {
    /// Runs the command.
    ///
    /// # Errors
    /// Those of the engine, and of writing to stdout.
    pub fn main(&self, verbose: bool) -> Outcome {
        self.generate.check()?;
        let images = open_images(&self.image)?;
        let files = model_files(self.model.model.as_deref())?;
        let recommended = SamplingDefaults::of(&files)?;
        let options = self.generate.options(verbose, &recommended)?;
        let engine = self.model.open_chat(files)?;
        self.conversation.check(&engine, verbose);
        let mut lines = Lines::new();
        let (session, interrupt) = (engine.session()?, Interrupt::new(lines.editor.is_none()));
        let (form, settings) = (self.conversation.clone(), self.generate.clone());
        let mut chat =
            ChatLoop { session, engine, options, settings, recommended, form, last: None, verbose, interrupt };
        images.iter().try_for_each(|image| chat.session.push_image(image))?;
        chat.form.begin(&mut chat.session)?;
        if lines.terminal {
            chat.interrupt.watch()?;
            say!("/help lists the commands, Ctrl-D ends.");
        }
        let (mut failed, mut warned) = (false, false);
        loop {
            let done = match lines.next(PROMPT, &chat.interrupt)? {
                Ok(Input::Line(line)) => lines.whole(line, &chat.interrupt).and_then(|asked| match asked {
                    Some(Asked::Line(line)) => chat.answer(&line),
                    Some(Asked::Block(text)) => chat.ask(&text).map(|()| true),
                    None => Ok(true),
                }),
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
        if failed && !lines.terminal { Err(Failure::Reported) } else { Ok(()) }
    }
}

/// What the user asks.
enum Asked {
    /// A line: a command or a question.
    Line(String),
    /// A question of several lines.
    Block(String),
}

/// Where lines come from.
struct Lines {
    editor: Option<LineEditor>,
    terminal: bool,
}

impl Lines {
    fn new() -> Self {
        Lines { editor: LineEditor::new(completions), terminal: io::stdin().is_terminal() }
    }

    /// The next line; an error inside for one that is not text or is too long, which is skipped.
    fn next(&mut self, prompt: &str, interrupt: &Interrupt) -> Outcome<Result<Input>> {
        match &mut self.editor {
            Some(editor) => {
                let read = editor.read(prompt, || interrupt.came());
                Ok(Ok(read.map_err(Error::io("the terminal"))?))
            }
            None => next_line(prompt, self.terminal),
        }
    }

    /// What a line asks, with the lines behind it where it begins a question of several; none where Ctrl-C ended that.
    fn whole(&mut self, line: String, interrupt: &Interrupt) -> Outcome<Option<Asked>> {
        if !line.trim_start().starts_with(BLOCK) {
            return Ok(Some(Asked::Line(line)));
        }
        let mut interrupted = false;
        let text = block(&line, || match self.next(MORE, interrupt)?? {
            Input::Line(line) => Ok::<_, Failure>(Some(line.trim_end_matches(['\r', '\n']).to_owned())),
            Input::End => Ok(None),
            Input::Interrupted => {
                interrupted = true;
                Ok(None)
            }
        })?;
        Ok(if interrupted { None } else { Some(Asked::Block(text)) })
    }
}

/// The next line of stdin where there is no editor.
fn next_line(prompt: &str, terminal: bool) -> Outcome<Result<Input>> {
    if terminal {
        super::messages::write(format_args!("{prompt}"));
    }
    let line = bounded_line(&mut io::stdin().lock(), "stdin")?;
    Ok(line.map_or(Ok(Input::End), |line| line.map(Input::Line)))
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
        interrupts::set(&self.ends_all)
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

/// The options that `/set` changes.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Settings {
    #[command(flatten)]
    generate: GenerateArgs,
}

/// A conversation in progress.
struct ChatLoop {
    session: Session,
    engine: Engine,
    options: GenerateOptions,
    /// What the options are made of: what was given, and what the model's files recommend.
    settings: GenerateArgs,
    recommended: SamplingDefaults,
    /// How questions are written.
    form: ConversationArgs,
    last: Option<(Stats, Option<StopReason>)>,
    verbose: bool,
    interrupt: Interrupt,
}

impl ChatLoop {
    /// Does what a line asks for; false ends the conversation.
    fn answer(&mut self, line: &str) -> Outcome<bool> {
        match parse(line) {
            Line::Nothing => {}
            Line::Quit => return Ok(false),
            Line::Help => say!("{HELP}"),
            Line::Unknown(word) => return Err(Error::argument(word, "is not a command; /help lists them").into()),
            Line::Reset => {
                self.session.reset_text();
                self.form.begin(&mut self.session)?;
            }
            Line::Stats => match &self.last {
                Some(last) => statistics(&self.engine, &self.session, self.session.images(), last)?,
                None => say!("no answer yet"),
            },
            Line::Image(file) => self.show(&file_path(file))?,
            Line::System(text) => self.tell(text)?,
            Line::Set(given) => self.set(given)?,
            Line::Save(file) => self.save(&file_path(file))?,
            Line::Load(file) => self.load(&file_path(file))?,
            Line::Retry => self.retry()?,
            Line::Undo if self.session.undo()? => say!("the last question and its answer are taken back"),
            Line::Undo => return Err(Error::argument("/undo", "there is no question to take back").into()),
            Line::Question(question) => self.ask(question)?,
        }
        Ok(true)
    }

    /// Begins a conversation about a picture; one that cannot be shown leaves the conversation as it is.
    fn show(&mut self, file: &Path) -> Result<()> {
        self.session.reset_to_image(&open_image(file)?)?;
        self.form.begin(&mut self.session)
    }

    /// Begins a conversation in which the model is told something first; where that cannot be, one as before.
    fn tell(&mut self, text: &str) -> Result<()> {
        let old = self.form.change_system(text)?;
        self.session.reset_text();
        let begun = self.form.begin(&mut self.session);
        if begun.is_err() {
            self.form.system = old;
            self.form.begin(&mut self.session)?;
        }
        begun
    }

    /// Changes how text is generated, or says how it is.
    fn set(&mut self, given: &str) -> Result<()> {
        let wrong = |problem: &str| Error::argument("/set", problem);
        let options = set_options(given).ok_or_else(|| wrong("expected names, each with a value: /set temp 0.8"))?;
        if options.is_empty() {
            self.say_settings();
            return Ok(());
        }
        let mut settings = Settings { generate: self.settings.clone() };
        settings.try_update_from(options).map_err(|error| {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            wrong(line.trim_start_matches("error: "))
        })?;
        settings.generate.check()?;
        self.options = settings.generate.options(self.verbose, &self.recommended)?;
        self.settings = settings.generate;
        Ok(())
    }

    fn say_settings(&self) {
        let GenerateOptions { max_tokens, sampling, stop, .. } = &self.options;
        let most = max_tokens.map_or("as the context allows".into(), |n| n.to_string());
        say!("max-tokens {most}, temp {}, top-k {}", sampling.temperature, sampling.top_k);
        say!("top-p {}, min-p {}, seed {}", sampling.top_p, sampling.min_p, sampling.seed);
        say!("repeat-penalty {}, presence-penalty {}", sampling.repetition_penalty, sampling.presence_penalty);
        say!("frequency-penalty {}", sampling.frequency_penalty);
        if !stop.is_empty() {
            say!("stop {stop:?}");
        }
    }

    /// Keeps the conversation in a file.
    fn save(&self, file: &Path) -> Result<()> {
        self.session.save(file)?;
        let size = std::fs::metadata(file).map_or(0, |data| data.len());
        say!("{}: {} tokens, {}", file.display(), self.session.len(), bytes(size));
        Ok(())
    }

    /// Goes on with a conversation from a file; one that cannot be read leaves the conversation as it is.
    fn load(&mut self, file: &Path) -> Result<()> {
        self.session.load(file)?;
        say!("{}: {} tokens", file.display(), self.session.len());
        Ok(())
    }

    /// Answers the last question again.
    fn retry(&mut self) -> Outcome {
        if !self.session.undo_answer() {
            return Err(Error::argument("/retry", "there is no answer to take back").into());
        }
        if self.options.sampling.temperature > 0.0 {
            self.options.sampling.seed = self.options.sampling.seed.wrapping_add(1);
        } else {
            say!("note: at temperature 0 an answer is always the same; /set temp 0.8 draws others");
        }
        self.generate()
    }

    /// Answers a question; one that cannot be answered leaves the conversation as it is.
    fn ask(&mut self, question: &str) -> Outcome {
        let before = self.session.tokens().len() + self.session.forgotten();
        self.form.ask(&mut self.session, question)?;
        let answered = self.check_room().map_err(Failure::Error).and_then(|()| self.generate());
        // A question without messages is text behind the text before it.
        if answered.is_err() && !self.session.undo()? {
            self.session.truncate(before.saturating_sub(self.session.forgotten()));
        }
        answered
    }

    /// Generates an answer and prints it.
    fn generate(&mut self) -> Outcome {
        let options = self.options.clone();
        // An answer that is cut by the context is better than none.
        let most = if self.form.context_shift { usize::MAX } else { self.session.room() };
        let (max_tokens, is_cut) =
            (options.max_tokens.map(|n| n.min(most)), options.max_tokens.is_some_and(|n| n > most));
        let (options, hide) = (GenerateOptions { max_tokens, ..options }, self.form.hide_thoughts);
        let session = &mut self.session;
        let answer = self.interrupt.during(|interrupted| stream(session, options, false, hide, interrupted))?;
        let Answer { mut stats, written } = answer;
        if let Some(end @ StopReason::Length) = stats.1.as_mut().filter(|_| is_cut) {
            *end = StopReason::Context;
        }
        if self.verbose {
            statistics(&self.engine, &self.session, self.session.images(), &stats)?;
        }
        self.last = Some(stats);
        Ok(written?)
    }

    /// Checks that there is room for an answer.
    fn check_room(&self) -> Result<()> {
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
                print_error_with(error, Some("shorten the question, or make room for more with --context"));
            }
            Error::ContextFull { .. } => print_error_with(
                error,
                Some(
                    "/reset begins a new conversation, --context makes room for a longer one, --context-shift forgets \
                     the older half",
                ),
            ),
            _ => print_error(error),
        }
    }
}
