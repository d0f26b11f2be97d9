//! The messages of a session, and the tokens that they become.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::Tokenizer;
use crate::files::chat_template::thoughts::ThoughtSplitter;
use crate::files::chat_template::{ChatTemplate, Message, TemplateOptions, opens_thought};
use crate::models::Prompt;

/// Who asks, and who answers.
const USER: &str = "user";
const ASSISTANT: &str = "assistant";

/// What was said, and where it ended in the session's tokens.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Conversation {
    messages: Vec<Said>,
    /// Whether a model that can think is to do so; none leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// When it began.
    began: Option<SystemTime>,
    /// Whether the prompt ended inside a thought.
    inside_thought: bool,
    /// Tokens of a system message at the beginning.
    pub opening: usize,
}

/// A message, and the tokens that it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Said {
    message: Message,
    /// The number of tokens before it, when it was said.
    start: usize,
    /// The number of tokens at its end.
    end: usize,
}

/// A conversation with one more message, or fewer, and how the session's tokens become its prompt.
#[derive(Debug)]
pub(crate) struct Advance {
    pub conversation: Conversation,
    /// How many of the session's tokens stay.
    pub keep: usize,
    /// What comes behind them.
    pub ids: Vec<u32>,
}

impl Conversation {
    /// The conversation with `message` behind what was said; a session of `tokens` changes as it says.
    ///
    /// A template writes all messages anew, so that it may leave out the thoughts of earlier answers; what is equal from
    /// the first token on stays. The text of an answer is what was generated behind the last prompt. A message after which
    /// the model does not answer (of the system, or an answer that it is told it gave) waits for the next that it does.
    ///
    /// # Errors
    /// [`Error::Argument`] for a role or an order that the form rejects, those of the template, the tokenizer's.
    pub fn with(
        &self,
        message: Message,
        tokens: &[u32],
        with_image: bool,
        prompt: &Prompt,
        tokenizer: &Tokenizer,
    ) -> Result<Advance> {
        let mut next = self.clone();
        let template = match prompt {
            Prompt::Turns(turns) => {
                let text = turns.turn(&message, tokens.is_empty(), with_image)?;
                let ids = tokenizer.encode(&text, tokens.is_empty())?;
                next.messages.push(Said { message, start: tokens.len(), end: tokens.len() + ids.len() });
                return Ok(Advance { conversation: next, keep: tokens.len(), ids });
            }
            Prompt::Template(template) => template,
        };
        let said = self.messages.last().map_or(0, |said| said.end);
        if self.messages.is_empty() && !tokens.is_empty() {
            let problem = "cannot follow text that was pushed as it is; reset the session";
            return Err(Error::argument("message", problem));
        }
        if let Some(answer) = tokens.get(said..).filter(|answer| !answer.is_empty()) {
            let answer = Message::new(ASSISTANT, tokenizer.decode(answer, true)?);
            next.messages.push(Said { message: answer, start: said, end: tokens.len() });
        }
        let answers = matches!(message.role.as_str(), USER | "tool");
        next.messages.push(Said { message, start: tokens.len(), end: tokens.len() });
        if !answers {
            return Ok(Advance { conversation: next, keep: tokens.len(), ids: Vec::new() });
        }
        let now = *next.began.get_or_insert_with(SystemTime::now);
        let options = TemplateOptions { add_generation_prompt: true, enable_thinking: self.enable_thinking, now };
        let messages = next.said();
        let text = template.render(&messages, &options)?;
        let ids = tokenizer.encode_prompt(&text)?;
        next.opening = opening(&messages, &ids, &options, template, tokenizer);
        next.inside_thought = opens_thought(&text);
        let keep = tokens.iter().zip(&ids).take_while(|(a, b)| a == b).count();
        if let Some(last) = next.messages.last_mut() {
            last.end = ids.len();
        }
        Ok(Advance { conversation: next, keep, ids: ids.get(keep..).unwrap_or_default().to_vec() })
    }

    /// The conversation without the last message of the user and what followed it, and how the session's tokens become it; none
    /// where the user has said nothing.
    ///
    /// # Errors
    /// Those of the template and the tokenizer.
    pub fn without_last(&self, tokens: &[u32], prompt: &Prompt, tokenizer: &Tokenizer) -> Result<Option<Advance>> {
        let Some(at) = self.messages.iter().rposition(|said| said.message.role == USER) else { return Ok(None) };
        let (mut next, mut keep, mut ids) = (self.clone(), self.messages[at].start, Vec::new());
        next.messages.truncate(at);
        next.inside_thought = false;
        if let Prompt::Template(template) = prompt {
            if next.messages.iter().any(|said| said.message.role == USER) {
                let now = self.began.unwrap_or_else(SystemTime::now);
                let enable_thinking = self.enable_thinking;
                let options = TemplateOptions { add_generation_prompt: false, enable_thinking, now };
                ids = tokenizer.encode_prompt(&template.render(&next.said(), &options)?)?;
            }
            // Else the next message of the user writes what there is.
            let end = ids.len();
            next.messages.iter_mut().for_each(|said| (said.start, said.end) = (said.start.min(end), said.end.min(end)));
            if let Some(last) = next.messages.last_mut() {
                last.end = end;
            }
            keep = tokens.iter().zip(&ids).take_while(|(a, b)| a == b).count();
            ids.drain(..keep);
        }
        Ok(Some(Advance { conversation: next, keep: keep.min(tokens.len()), ids }))
    }

    /// Whether all that it says of tokens can be so where there are `tokens`.
    pub fn fits(&self, tokens: usize) -> bool {
        self.opening <= tokens && self.messages.iter().all(|said| said.start <= said.end && said.end <= tokens)
    }

    fn said(&self) -> Vec<Message> {
        self.messages.iter().map(|said| said.message.clone()).collect()
    }

    /// Forgets the messages that do not lie within the first `tokens` tokens.
    pub fn truncate(&mut self, tokens: usize) {
        while self.messages.last().is_some_and(|said| said.end > tokens) {
            self.messages.pop();
        }
    }

    /// Forgets all messages.
    pub fn clear(&mut self) {
        *self = Conversation { enable_thinking: self.enable_thinking, ..Self::default() };
    }

    /// What tells a thought from an answer in the text that comes; none for a form without thoughts.
    pub fn thought_splitter(&self, prompt: &Prompt) -> Option<ThoughtSplitter> {
        matches!(prompt, Prompt::Template(_)).then(|| ThoughtSplitter::new(self.inside_thought))
    }
}

/// How many tokens of a conversation are those of a system message in front; 0 where the template writes none without more.
fn opening(
    messages: &[Message],
    ids: &[u32],
    options: &TemplateOptions,
    template: &ChatTemplate,
    tokenizer: &Tokenizer,
) -> usize {
    let Some(system) = messages.first().filter(|message| message.role == "system") else { return 0 };
    let alone = TemplateOptions { add_generation_prompt: false, ..*options };
    let text = template.render(std::slice::from_ref(system), &alone);
    let system = text.and_then(|text| tokenizer.encode_prompt(&text)).unwrap_or_default();
    system.iter().zip(ids).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::files::chat_template::thoughts::Part;
    use crate::files::tokenizer::gpt2::byte_char;

    /// One token per byte.
    fn tokenizer() -> Tokenizer {
        let vocab: Map<String, Value> = (0..=255u8).map(|b| (byte_char(b).to_string(), json!(b))).collect();
        let level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let json = json!({"version": "1.0", "normalizer": null, "pre_tokenizer": level, "post_processor": null,
            "decoder": level, "truncation": null, "padding": null, "added_tokens": [],
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        Tokenizer::from_bytes("bytes", json.to_string().into_bytes()).unwrap()
    }

    /// Messages as `role: text;`, thoughts of earlier answers left out.
    const SOURCE: &str = "{% for m in messages %}{{ m.role[0] }}:{{ m.content.split('</think>')[-1] }};{% endfor %}\
                          {% if add_generation_prompt %}a:{% if enable_thinking %}<think>{% endif %}{% endif %}";

    /// A session's part of it.
    struct Talk {
        conversation: Conversation,
        tokens: Vec<u32>,
        prompt: Prompt,
        tokenizer: Tokenizer,
    }

    impl Talk {
        fn new(source: &str) -> Self {
            let prompt = Prompt::Template(ChatTemplate::new("t", source, ["", ""]).unwrap());
            Talk { conversation: Conversation::default(), tokens: Vec::new(), prompt, tokenizer: tokenizer() }
        }

        /// Pushes a message; how many tokens stayed.
        fn push(&mut self, role: &str, text: &str) -> Result<usize> {
            let message = Message::new(role, text);
            let advance = self.conversation.with(message, &self.tokens, false, &self.prompt, &self.tokenizer)?;
            self.tokens.truncate(advance.keep);
            self.tokens.extend(advance.ids);
            self.conversation = advance.conversation;
            Ok(advance.keep)
        }

        /// Takes the last question back; the text then.
        fn undo(&mut self) -> Option<String> {
            let (prompt, tokenizer) = (&self.prompt, &self.tokenizer);
            let advance = self.conversation.without_last(&self.tokens, prompt, tokenizer).unwrap()?;
            self.tokens.truncate(advance.keep);
            self.tokens.extend(advance.ids);
            self.conversation = advance.conversation;
            Some(self.text())
        }

        fn generate(&mut self, text: &str) {
            self.tokens.extend(self.tokenizer.encode(text, false).unwrap());
        }

        fn text(&self) -> String {
            self.tokenizer.decode(&self.tokens, true).unwrap()
        }
    }

    #[test]
    fn a_conversation_is_written_anew_and_what_is_equal_stays() {
        let mut talk = Talk::new(SOURCE);
        assert_eq!(talk.push("system", "be kind").unwrap(), 0);
        assert_eq!(talk.text(), "", "nobody answers a system message");
        talk.push("user", "hi").unwrap();
        assert_eq!(talk.text(), "s:be kind;u:hi;a:");
        assert_eq!(talk.conversation.opening, "s:be kind;".len());
        talk.generate("hello");
        assert_eq!(talk.push("user", "bye").unwrap(), "s:be kind;u:hi;a:hello".len());
        assert_eq!(talk.text(), "s:be kind;u:hi;a:hello;u:bye;a:");
    }

    #[test]
    fn thoughts_of_earlier_answers_leave_the_prompt() {
        let mut talk = Talk::new(SOURCE);
        talk.conversation.enable_thinking = Some(true);
        talk.push("user", "hi").unwrap();
        assert_eq!(talk.text(), "u:hi;a:<think>");
        let splitter = talk.conversation.thought_splitter(&talk.prompt);
        assert!(splitter.is_some_and(|mut s| s.push("x").iter().all(|(part, _)| *part == Part::Thought)));
        talk.generate("hm</think>hello");
        assert_eq!(talk.push("user", "bye").unwrap(), "u:hi;a:".len());
        assert_eq!(talk.text(), "u:hi;a:hello;u:bye;a:<think>");
    }

    #[test]
    fn messages_that_are_cut_off_are_forgotten() {
        let mut talk = Talk::new(SOURCE);
        talk.push("user", "hi").unwrap();
        talk.generate("hello");
        let before = talk.tokens.len();
        talk.push("user", "bye").unwrap();
        talk.tokens.truncate(before);
        talk.conversation.truncate(before);
        talk.push("user", "again").unwrap();
        assert_eq!(talk.text(), "u:hi;a:hello;u:again;a:");
        talk.tokens.clear();
        talk.conversation.clear();
        talk.push("user", "new").unwrap();
        assert_eq!(talk.text(), "u:new;a:");
    }

    #[test]
    fn the_last_question_can_be_taken_back_until_none_is_left() {
        let mut talk = Talk::new(SOURCE);
        talk.conversation.enable_thinking = Some(true);
        talk.push("system", "be kind").unwrap();
        for question in ["one", "two", "three"] {
            talk.push("user", question).unwrap();
            talk.generate("hm</think>yes");
        }
        assert_eq!(talk.text(), "s:be kind;u:one;a:yes;u:two;a:yes;u:three;a:<think>hm</think>yes");
        assert_eq!(talk.undo().as_deref(), Some("s:be kind;u:one;a:yes;u:two;a:yes;"));
        talk.push("user", "again").unwrap();
        assert_eq!(talk.text(), "s:be kind;u:one;a:yes;u:two;a:yes;u:again;a:<think>");
        assert_eq!(talk.undo().as_deref(), Some("s:be kind;u:one;a:yes;u:two;a:yes;"));
        assert_eq!(talk.undo().as_deref(), Some("s:be kind;u:one;a:yes;"));
        assert_eq!(talk.undo().as_deref(), Some(""));
        assert_eq!(talk.undo(), None);
        talk.push("user", "new").unwrap();
        assert_eq!(talk.text(), "s:be kind;u:new;a:<think>");
    }

    #[test]
    fn an_error_leaves_the_conversation_as_it_was() {
        let mut talk = Talk::new(
            "{% if messages|length > 1 %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}",
        );
        talk.push("user", "hi").unwrap();
        talk.generate("!");
        assert!(talk.push("user", "bye").unwrap_err().to_string().contains("one only"));
        assert_eq!(talk.text(), "hi!");
        let mut raw = Talk::new(SOURCE);
        raw.generate("raw");
        assert!(raw.push("user", "hi").unwrap_err().to_string().contains("reset the session"));
    }
}
