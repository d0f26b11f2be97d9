//! How a conversation with a model becomes the text that the model goes on with.

use std::fmt::Debug;

use crate::error::Result;
use crate::files::chat_template::builtin::{Builtin, ChosenTemplate};
use crate::files::chat_template::source::TemplateSource;
use crate::files::chat_template::{ChatTemplate, Message};
use crate::files::{ModelFiles, SpecialTokens, Tokenizer};

/// What a family says of its conversations: [`crate::models::ChatModel::prompt`].
#[derive(Debug, Clone, Copy)]
pub enum FamilyPrompt {
    /// It has a form of its own, which no file says.
    Own(&'static dyn TurnPrompt),
    /// The chat template of the model's files; where they have none that works, this one, or the one that the vocabulary
    /// tells.
    Template(Option<Builtin>),
    /// This template, whatever the files say: theirs is known to be wrong.
    Builtin(Builtin),
}

/// A form of conversations in which each message is text behind the text before it.
pub trait TurnPrompt: Debug + Send + Sync {
    /// The text of a message, with what the answer begins behind; `first` where nothing was said before, `with_image`
    /// where the conversation is about a picture.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] for a role that the family does not know.
    fn turn(&self, message: &Message, first: bool, with_image: bool) -> Result<String>;
}

/// The form of the conversations with an open model.
#[derive(Debug, Clone)]
pub enum Prompt {
    /// The family's own, message by message.
    Turns(&'static dyn TurnPrompt),
    /// A template, which writes the whole conversation anew for each answer.
    Template(ChatTemplate),
}

/// The form of conversations, what the user should know of it, and the tokens that end an answer.
#[derive(Debug, Clone)]
pub struct OpenedPrompt {
    /// The form.
    pub prompt: Prompt,
    /// A sentence where a built-in template stands in for the files' own.
    pub note: Option<String>,
    /// Tokens that end an answer, beside the model's own.
    pub stop: Vec<u32>,
}

impl FamilyPrompt {
    /// The form of the conversations with the model of `files`; none for a template without a tokenizer, which has no text.
    ///
    /// # Errors
    /// Those of [`SpecialTokens::of`] and [`TemplateSource::of`].
    pub fn open(self, files: &ModelFiles, tokenizer: Option<&Tokenizer>) -> Result<Option<OpenedPrompt>> {
        let stands_in = match self {
            FamilyPrompt::Own(turns) => {
                return Ok(Some(OpenedPrompt { prompt: Prompt::Turns(turns), note: None, stop: Vec::new() }));
            }
            FamilyPrompt::Template(stands_in) => stands_in,
            FamilyPrompt::Builtin(builtin) => Some(builtin),
        };
        let Some(tokenizer) = tokenizer else { return Ok(None) };
        let special = SpecialTokens::of(files, tokenizer)?;
        let texts = special.texts(tokenizer);
        let texts = [texts[0].as_str(), texts[1].as_str()];
        let builtin = stands_in.unwrap_or_else(|| Builtin::of(tokenizer));
        let chosen = match self {
            FamilyPrompt::Builtin(builtin) => ChosenTemplate { template: builtin.template(texts)?, note: None },
            _ => match TemplateSource::of(files, None)? {
                Some(TemplateSource { name, source }) => ChosenTemplate::of(&name, Some(&source), builtin, texts)?,
                None => ChosenTemplate::of(&files.to_string(), None, builtin, texts)?,
            },
        };
        let prompt = Prompt::Template(chosen.template);
        Ok(Some(OpenedPrompt { prompt, note: chosen.note, stop: special.stop }))
    }
}
