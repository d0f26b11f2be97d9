//! The prompt of EmberNet: the text that its training and its own generate() wrap around a question.

use crate::error::{Error, Result};
use crate::files::chat_template::Message;
use crate::models::TurnPrompt;

/// The form of a conversation with EmberNet: questions, each followed by its answer.
#[derive(Debug)]
pub struct EmberNetPrompt;

impl TurnPrompt for EmberNetPrompt {
    fn turn(&self, message: &Message, first: bool, with_image: bool) -> Result<String> {
        match message.role.as_str() {
            "user" if first => Ok(embernet_prompt(&message.content, with_image)),
            "user" => Ok(embernet_follow_up(&message.content)),
            role => Err(Error::argument("role", format!("is {role:?}; EmberNet answers questions of a user only"))),
        }
    }
}

/// The text that stands for the picture in a prompt; the tokenizer turns it into the image token.
pub const IMAGE_MARK: &str = "<image>";

/// The prompt for one question: `User: <image>`, the question and `Assistant:` on lines of their own, with nothing
/// after the colon.
///
/// The original always writes the image mark. Without a picture (`with_image` false) it is left out and the rest stays
/// as it is, with the space after `User:`, so that the words around it become the same tokens. The beginning-of-text
/// token is not part of this text; encode it with the tokenizer's special tokens.
pub fn embernet_prompt(question: &str, with_image: bool) -> String {
    let mark = if with_image { IMAGE_MARK } else { "" };
    format!("User: {mark}\n{question}\nAssistant:")
}

/// What follows an answer in a conversation: a new line, `User: ` with the next question, and `Assistant:`.
///
/// The original answers single questions only; this continues its layout, and is to be encoded without special tokens.
pub fn embernet_follow_up(question: &str) -> String {
    format!("\nUser: {question}\nAssistant:")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prompts_have_the_layout_of_the_original() {
        assert_eq!(embernet_prompt("What is it?", true), "User: <image>\nWhat is it?\nAssistant:");
        assert_eq!(embernet_prompt("What is it?", false), "User: \nWhat is it?\nAssistant:");
        assert_eq!(embernet_follow_up("And now?"), "\nUser: And now?\nAssistant:");
        let turn = |role, first| EmberNetPrompt.turn(&Message::new(role, "What?"), first, true);
        assert_eq!(turn("user", true).unwrap(), embernet_prompt("What?", true));
        assert_eq!(turn("user", false).unwrap(), embernet_follow_up("What?"));
        assert!(turn("system", true).unwrap_err().to_string().contains("\"system\""));
    }
}
