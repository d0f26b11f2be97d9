//! Templates for files that have none, or one that does not work. Each is named to whoever asks, never taken in silence.

use crate::error::Result;
use crate::files::Tokenizer;
use crate::files::chat_template::{ChatTemplate, Message, TemplateOptions};

/// A template of this crate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Builtin {
    /// "chatml".
    pub name: &'static str,
    /// A token that a vocabulary of this form has.
    token: &'static str,
    /// Its text.
    pub(crate) source: &'static str,
}

/// `<|im_start|>user … <|im_end|>`: Qwen and many others.
pub const CHATML: Builtin =
    Builtin { name: "chatml", token: "<|im_start|>", source: include_str!("builtin/chatml.jinja") };
/// Llama 3's headers.
pub const LLAMA3: Builtin =
    Builtin { name: "llama3", token: "<|start_header_id|>", source: include_str!("builtin/llama3.jinja") };
/// Falcon 3's roles.
pub const FALCON3: Builtin =
    Builtin { name: "falcon3", token: "<|user|>", source: include_str!("builtin/falcon3.jinja") };
/// BitNet b1.58 2B-4T, whose published GGUF has a template that is not the one it was trained with. Its vocabulary is
/// Llama 3's: only a family can choose it.
pub const BITNET: Builtin =
    Builtin { name: "bitnet", token: "<|eot_id|>", source: include_str!("builtin/bitnet.jinja") };
/// `User: …` and `Assistant:` on lines of their own, for any vocabulary.
pub const PLAIN: Builtin = Builtin { name: "plain", token: "", source: include_str!("builtin/plain.jinja") };

/// Those that a vocabulary's tokens tell, the first that fits.
const BY_TOKEN: [Builtin; 3] = [CHATML, LLAMA3, FALCON3];

impl Builtin {
    /// The one for a vocabulary, by its tokens.
    pub fn of(tokenizer: &Tokenizer) -> Self {
        BY_TOKEN.into_iter().find(|b| tokenizer.token_id(b.token).is_some()).unwrap_or(PLAIN)
    }

    /// The template, with the texts of the tokens that begin and end a text.
    ///
    /// # Errors
    /// None, but for a mistake in this crate.
    pub fn template(self, special: [&str; 2]) -> Result<ChatTemplate> {
        ChatTemplate::new(format!("the built-in template {:?}", self.name), self.source, special)
    }
}

/// A template, and why it is not the file's, if it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChosenTemplate {
    /// What renders the conversation.
    pub template: ChatTemplate,
    /// A sentence for the user where a built-in template stands in.
    pub note: Option<String>,
}

impl ChosenTemplate {
    /// The template `source` of the file `name`; where there is none, or it does not compile, or cannot render one
    /// question, `builtin`, with a note that says which and why.
    ///
    /// # Errors
    /// Those of [`Builtin::template`].
    pub fn of(name: &str, source: Option<&str>, builtin: Builtin, special: [&str; 2]) -> Result<Self> {
        let stands_in = |why: String| {
            let note = format!("{why}; {:?} is taken, which is built in", builtin.name);
            Ok(ChosenTemplate { template: builtin.template(special)?, note: Some(note) })
        };
        let Some(source) = source else { return stands_in(format!("{name} has no chat template")) };
        let question = [Message::new("user", "?")];
        let tried = ChatTemplate::new(name, source, special)
            .and_then(|template| template.render(&question, &TemplateOptions::default()).map(|_| template));
        match tried {
            Ok(template) => Ok(ChosenTemplate { template, note: None }),
            Err(error) => stands_in(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPECIAL: [&str; 2] = ["<s>", "</s>"];

    fn talk() -> [Message; 4] {
        let say = |(role, text): (&str, &str)| Message::new(role, text);
        [("system", "Be brief."), ("user", "Hi"), ("assistant", "<think>\nhm\n</think>\n\nHello"), ("user", "1+1?")]
            .map(say)
    }

    #[test]
    fn each_builtin_template_has_the_form_of_its_models() {
        let text = |b: Builtin| b.template(SPECIAL).unwrap().render(&talk(), &TemplateOptions::default()).unwrap();
        assert_eq!(
            text(CHATML),
            "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n\
             <|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n"
        );
        assert!(text(LLAMA3).starts_with("<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"));
        assert!(text(LLAMA3).ends_with("\n\n1+1?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"));
        assert!(text(BITNET).starts_with("<s>System: Be brief.<|eot_id|>User: Hi<|eot_id|>Assistant: "));
        assert!(text(BITNET).ends_with("<|eot_id|>User: 1+1?<|eot_id|>Assistant: "));
        assert!(text(FALCON3).starts_with("<|system|>\nBe brief.\n<|user|>\nHi\n<|assistant|>\n"));
        assert!(text(FALCON3).ends_with("Hello</s>\n<|user|>\n1+1?\n<|assistant|>\n"));
        assert!(text(PLAIN).ends_with("\nUser: 1+1?\nAssistant:"));
    }

    #[test]
    fn chatml_can_be_told_not_to_think() {
        let options = TemplateOptions { enable_thinking: Some(false), ..TemplateOptions::default() };
        let text = CHATML.template(SPECIAL).unwrap().render(&talk(), &options).unwrap();
        assert!(text.ends_with("<|im_start|>assistant\n<think>\n\n</think>\n\n"), "{text}");
    }

    #[test]
    fn a_builtin_template_stands_in_with_the_reason() {
        let chosen = |source| ChosenTemplate::of("m.gguf", source, CHATML, SPECIAL).unwrap();
        assert_eq!(chosen(Some("{{ messages[0].content }}")).note, None);
        for (source, why) in [
            (None, "m.gguf has no chat template"),
            (Some("{% if %}"), "m.gguf, line 1"),
            (Some("{{ messages[0].content.nothing() }}"), "cannot be rendered"),
        ] {
            let chosen = chosen(source);
            let note = chosen.note.unwrap();
            assert!(note.contains(why) && note.ends_with("; \"chatml\" is taken, which is built in"), "{note}");
            assert_eq!(chosen.template.name(), "the built-in template \"chatml\"");
        }
    }
}
