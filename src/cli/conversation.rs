//! Options of conversations: what a model is told first, how questions are written, and its thoughts.

use clap::Args;
use ternion::engine::{ContextShift, Engine, Session};
use ternion::{Error, Result};

use crate::cli::messages::say;

/// How a conversation with a model is written.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Conversation")]
pub struct ConversationArgs {
    /// Tell the model this before the first question, as its chat template writes it.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true, conflicts_with = "no_template")]
    pub system: Option<String>,
    /// Give the model the text as it is, without its chat template.
    #[arg(long)]
    no_template: bool,
    /// Have a model think before it answers that does so on demand.
    #[arg(long, overrides_with = "no_think")]
    think: bool,
    /// Have a model answer at once that can think before.
    #[arg(long, overrides_with = "think")]
    no_think: bool,
    /// Do not show what a model thinks; else it goes to stderr, dimmed on a terminal, and the answer to stdout.
    #[arg(long)]
    pub hide_thoughts: bool,
    /// Go on when the context is full: the older half of the conversation leaves, but for pictures and what --system says,
    /// and the rest is read again; without this option what does not fit is an error.
    #[arg(long)]
    pub context_shift: bool,
}

impl ConversationArgs {
    /// Whether the model is asked to think.
    fn thinking(&self) -> Option<bool> {
        (self.think || self.no_think).then_some(self.think)
    }

    /// Says which template is in use where it is not the files' own, and with `verbose` which is; and which options do nothing.
    pub fn check(&self, engine: &Engine, verbose: bool) {
        if self.no_template {
            return;
        }
        if let Some(note) = engine.prompt_note() {
            say!("note: {note}");
        }
        let template = engine.chat_template();
        if let Some(template) = template.filter(|_| verbose) {
            say!("template:  {}", template.name());
        }
        if self.thinking().is_some() && !template.is_some_and(|template| template.can_switch_thinking()) {
            say!("note: --think and --no-think change nothing: the model's chat template does not ask for them");
        }
    }

    /// Begins a conversation: also after [`Session::reset`].
    ///
    /// # Errors
    /// As [`Session::push_message`].
    pub fn begin(&self, session: &mut Session) -> Result<()> {
        session.enable_thinking(self.thinking());
        session.shift_context(self.context_shift.then(ContextShift::default));
        self.system.as_ref().map_or(Ok(()), |system| session.push_message("system", system))
    }

    /// Changes what the model is told first, by an empty text to nothing; what it was.
    ///
    /// # Errors
    /// [`Error::Argument`] without a template.
    pub fn change_system(&mut self, text: &str) -> Result<Option<String>> {
        if self.no_template {
            return Err(Error::argument("/system", "needs a chat template, and --no-template was given"));
        }
        Ok(std::mem::replace(&mut self.system, Some(text.to_owned()).filter(|text| !text.is_empty())))
    }

    /// Pushes a question.
    ///
    /// # Errors
    /// As [`Session::push_message`].
    pub fn ask(&self, session: &mut Session, question: &str) -> Result<()> {
        if self.no_template { session.push_text(question) } else { session.push_question(question) }
    }

    /// Refuses the options with a model that has no conversations.
    ///
    /// # Errors
    /// [`Error::Argument`].
    pub fn reject(&self) -> Result<()> {
        let given = [
            ("system", self.system.is_some()),
            ("no-template", self.no_template),
            ("think", self.think),
            ("no-think", self.no_think),
            ("hide-thoughts", self.hide_thoughts),
            ("context-shift", self.context_shift),
        ];
        match given.iter().find(|(_, given)| *given) {
            Some((option, _)) => Err(Error::argument(option, "is for a model that chats; a BitGen writes captions")),
            None => Ok(()),
        }
    }
}
