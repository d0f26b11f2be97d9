//! Chat templates: from the messages of a conversation to the text that a model goes on with.
//!
//! Model files carry a Jinja template for that, written for `transformers`. It is untrusted code: what a rendering
//! may do, make and write is bounded, and a template sees nothing but the conversation, the tokens that begin and end
//! texts, and the time.
//!
//! * this file: [`ChatTemplate`], what it renders, and its errors;
//! * `bounds`: what a rendering may make, with `operators`;
//! * `environment`: functions, filters and methods that templates find in `transformers`;
//! * `python_json`: the filter `tojson`, as Python writes JSON;
//! * [`source`]: where model files have their templates;
//! * [`thoughts`]: telling a thought from an answer;
//! * [`builtin`]: templates for files that have none, or one that does not work.

mod bounds;
pub mod builtin;
mod environment;
mod operators;
mod python_json;
pub mod source;
pub mod thoughts;

use std::time::SystemTime;

use minijinja::machinery::{Vm, make_string_output};
use minijinja::{AutoEscape, ErrorKind, Value};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::files::contained;
use crate::files::tokenizer::MAX_TEXT_BYTES;
use bounds::{Exhausted, MAX_MADE, MAX_STEPS};
use environment::Refusal;

/// The longest template that is read: 1 MiB of UTF-8, thirty times the longest in use.
pub const MAX_TEMPLATE_BYTES: usize = 1 << 20;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who says it: `system`, `user`, `assistant`, or another role that the template knows.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl Message {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Message { role: role.into(), content: content.into() }
    }
}

/// What a rendering is asked for beside the messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TemplateOptions {
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Whether a model that can think before it answers is to do so; none leaves it to the template.
    pub enable_thinking: Option<bool>,
    /// The time that a template sees which asks for it. A conversation keeps the one that it began at, so that its
    /// beginning stays the same text.
    pub now: SystemTime,
}

impl Default for TemplateOptions {
    /// An answer begins, thinking is the template's choice, and it is now.
    fn default() -> Self {
        TemplateOptions { add_generation_prompt: true, enable_thinking: None, now: SystemTime::now() }
    }
}

/// The variables of a rendering. `tools` and `documents` are there for templates that ask whether they are none.
#[derive(Serialize)]
struct Variables<'a> {
    messages: &'a [Message],
    tools: Option<()>,
    documents: Option<()>,
    add_generation_prompt: bool,
    bos_token: &'a str,
    eos_token: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    enable_thinking: Option<bool>,
}

/// A template that compiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    name: String,
    source: String,
    bos_token: String,
    eos_token: String,
}

impl ChatTemplate {
    /// The template `source`; `name` stands for it in messages. `special` are the texts of the tokens that begin and end a
    /// text, which templates write; empty for a vocabulary without them.
    ///
    /// # Errors
    /// [`Error::Format`] with the line for what is not Jinja, or is Jinja that chat templates do not use
    /// [`Error::Limit`] above [`MAX_TEMPLATE_BYTES`].
    pub fn new(name: impl Into<String>, source: impl Into<String>, special: [&str; 2]) -> Result<Self> {
        let (name, source) = (name.into(), without_generation_blocks(&source.into()));
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(Error::Limit {
                what: format!("{name}: the chat template"),
                wanted: format!("{} bytes", source.len()),
                available: format!("{MAX_TEMPLATE_BYTES} bytes are"),
                advice: "check that it is a chat template".into(),
            });
        }
        let [bos_token, eos_token] = special.map(str::to_owned);
        let template = ChatTemplate { name, source, bos_token, eos_token };
        template.contained("is not a Jinja template that can be used", || {
            bounds::compile(&template.name, &template.source).map(|_| ())
        })?;
        Ok(template)
    }

    /// What messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it asks for [`TemplateOptions::enable_thinking`].
    pub fn can_switch_thinking(&self) -> bool {
        self.source.contains("enable_thinking")
    }

    /// The text of a conversation.
    ///
    /// # Errors
    /// [`Error::Argument`] for a conversation that the template refuses (an unknown role, two questions in a row), with
    /// its words; [`Error::Format`] with the line for a template that fails; [`Error::Limit`] for one that takes more
    /// than its bound of steps, or writes more than [`MAX_TEXT_BYTES`].
    pub fn render(&self, messages: &[Message], options: &TemplateOptions) -> Result<String> {
        let variables = Variables {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: options.add_generation_prompt,
            bos_token: &self.bos_token,
            eos_token: &self.eos_token,
            enable_thinking: options.enable_thinking,
        };
        self.render_with(variables, options.now)
    }

    /// The text for any variables, which are those of `apply_chat_template` in `transformers`: `messages` with parts and
    /// calls of tools, `tools`, `add_generation_prompt`, `bos_token` and so on. Maps keep the order in which they serialize.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`].
    pub fn render_with(&self, variables: impl Serialize, now: SystemTime) -> Result<String> {
        let variables = Value::from_serialize(&variables);
        let mut text = String::new();
        self.contained("cannot be rendered", || {
            let (template, steps) = bounds::compile(&self.name, &self.source)?;
            let environment = environment::new(now, steps);
            let mut out = make_string_output(&mut text);
            let vm = Vm::new(&environment);
            vm.eval(&template.instructions, variables, &template.blocks, &mut out, AutoEscape::None).map(|_| ())
        })?;
        if text.len() > MAX_TEXT_BYTES {
            return Err(Error::Limit {
                what: format!("{}: the text of the chat template", self.name),
                wanted: format!("more than {MAX_TEXT_BYTES} bytes"),
                available: format!("{MAX_TEXT_BYTES} bytes are"),
                advice: "shorten the conversation, or check the template".into(),
            });
        }
        Ok(text)
    }

    /// Runs `work` of the template library. A panic in there becomes an error as well.
    fn contained<T>(&self, what: &str, work: impl FnOnce() -> Result<T, minijinja::Error>) -> Result<T> {
        let failure = match contained(work) {
            Some(Ok(value)) => return Ok(value),
            Some(Err(failure)) => failure,
            None => return Err(Error::format(&self.name, format!("{what}: the template library failed"))),
        };
        if let Some(words) = Refusal::of(&failure) {
            let problem = format!("are refused by the chat template of {}: {words}", self.name);
            return Err(Error::argument("messages", problem));
        }
        let exhausted = std::error::Error::source(&failure).is_some_and(|cause| cause.is::<Exhausted>());
        let most = match failure.kind() {
            ErrorKind::OutOfFuel => Some(format!("{MAX_STEPS} steps")),
            _ => exhausted.then(|| format!("{MAX_MADE} bytes of texts and lists")),
        };
        if let Some(most) = most {
            return Err(Error::Limit {
                what: format!("{}: the chat template", self.name),
                wanted: format!("more than {most}"),
                available: "no more are".into(),
                advice: "shorten the conversation, or check that the template ends".into(),
            });
        }
        let line = failure.line().map_or_else(String::new, |line| format!(", line {line}"));
        let detail = failure.detail().map_or_else(|| failure.kind().to_string(), str::to_owned);
        Err(Error::format(format!("{}{line}", self.name), format!("the chat template {what}: {detail}")))
    }
}

/// Whether a text that a model goes on with ends inside a thought, so that its answer begins with more of it.
pub fn opens_thought(prompt: &str) -> bool {
    prompt.trim_end().ends_with("<think>")
}

/// The template with `{% generation %}` and `{% endgeneration %}`, which mark answers for training, as blocks that change
/// nothing. White space around tags stays what it was.
fn without_generation_blocks(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        out.push_str(before);
        let sign = tag[2..].chars().next().filter(|c| matches!(c, '-' | '+')).map_or(0, char::len_utf8);
        let (opening, inner) = tag.split_at(2 + sign);
        let word = inner.trim_start();
        let space = &inner[..inner.len() - word.len()];
        let name: &str = word.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').next().unwrap_or_default();
        let stands_for = match name {
            "generation" => "if true",
            "endgeneration" => "endif",
            other => other,
        };
        out.push_str(opening);
        out.push_str(space);
        out.push_str(stands_for);
        rest = &word[name.len()..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(source: &str) -> ChatTemplate {
        ChatTemplate::new("model.gguf", source, ["<s>", "</s>"]).unwrap()
    }

    fn text(source: &str) -> String {
        template(source).render(&[Message::new("user", "Hi <b> & 'you'")], &TemplateOptions::default()).unwrap()
    }

    fn failure(source: &str) -> Error {
        let made = ChatTemplate::new("model.gguf", source, ["", ""]);
        made.and_then(|t| t.render(&[Message::new("user", "Hi")], &TemplateOptions::default())).unwrap_err()
    }

    #[test]
    fn content_is_not_escaped_and_special_tokens_are_there() {
        assert_eq!(text("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"), "<s>Hi <b> & 'you'</s>");
        assert_eq!(text("{{ tools is none }} {{ enable_thinking is defined }} {{ nothing }}|"), "True False |");
        let options = TemplateOptions { enable_thinking: Some(false), ..TemplateOptions::default() };
        assert_eq!(template("{{ enable_thinking }}").render(&[], &options).unwrap(), "False");
    }

    #[test]
    fn blocks_take_the_white_space_around_them_as_in_transformers() {
        assert_eq!(text("{% if true %}\n    a\n    {% endif %}\nb\n"), "    a\nb");
        assert_eq!(text("a\n  {%- generation %}\n b{% endgeneration %}\nc"), "a bc");
        assert_eq!(text("{%- for m in messages[::-1] %}{{ m.role }}{% break %}{% endfor %}"), "user");
    }

    #[test]
    fn values_are_written_as_python_writes_them() {
        assert_eq!(text("{{ none }} {{ true }} {{ 1.0 }} {{ [1, 2] }}"), "None True 1.0 [1, 2]");
        assert_eq!(text("{{ 'a,b'.split(',')[-1] }}{{ '\\nx\\n'.strip('\\n') }}{{ 'ab'.startswith('a') }}"), "bxTrue");
        assert_eq!(text("{% set ns = namespace(n=1) %}{% set ns.n = ns.n + 1 %}{{ ns.n }}"), "2");
    }

    #[test]
    fn a_template_tells_the_time_of_the_conversation() {
        let day = |source| {
            let now = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(86_400 * 365 + 43_200);
            template(source).render(&[], &TemplateOptions { now, ..TemplateOptions::default() })
        };
        assert_eq!(day("{{ strftime_now('%Y') }}").unwrap(), "1971");
        assert_eq!(day("{{ strftime_now('%B %d') }}").unwrap(), "January 01");
        assert!(day("{{ strftime_now('%!') }}").unwrap_err().to_string().contains("%!"));
    }

    #[test]
    fn a_refusal_is_the_callers_to_mend_and_a_failure_the_files() {
        let error = failure("a\n{{ raise_exception('roles must alternate') }}");
        assert!(matches!(error, Error::Argument { .. }), "{error}");
        assert!(error.to_string().ends_with("model.gguf: roles must alternate"), "{error}");
        for (source, line) in
            [("a\n{% if %}", 2), ("\n\n{{ x.y.z }}", 3), ("{% include 'a' %}", 1), ("{{ 'a' | nothing }}", 1)]
        {
            let error = failure(source);
            assert!(matches!(error, Error::Format { .. }), "{error}");
            assert!(error.to_string().starts_with(&format!("model.gguf, line {line}: the chat template ")), "{error}");
        }
    }

    #[test]
    fn work_and_text_are_bounded() {
        let endless = "{% for a in range(9999) %}{% for b in range(9999) %}{% for c in range(9999) %}{{ '' }}{% endfor %}{% endfor %}{% endfor %}";
        let error = failure(endless);
        assert!(matches!(error, Error::Limit { .. }) && error.to_string().contains("steps"), "{error}");
        let long = format!("{{% for a in range(9999) %}}{}{{% endfor %}}", "x".repeat(20_000));
        let error = failure(&long);
        assert!(matches!(error, Error::Limit { .. }) && error.to_string().contains("67108864 bytes"), "{error}");
        let error = failure(&"x".repeat(MAX_TEMPLATE_BYTES + 1));
        assert!(matches!(error, Error::Limit { .. }) && error.to_string().contains("1048577"), "{error}");
    }

    #[test]
    fn texts_and_lists_that_double_stop_at_the_bound() {
        for step in [
            "{% set ns.s = ns.s ~ ns.s %}",
            "{% set ns.s = ns.s + ns.s %}",
            "{% set ns.s = ns.s * 9 %}",
            "{% set s %}{{ ns.s }}{{ ns.s }}{% endset %}{% set ns.s = s %}",
            "{% set ns.s = ns.s | replace('a', 'aa') %}",
            "{% set ns.s = ns.s.replace('a', 'aa') %}",
            "{% set ns.s = [ns.s, ns.s] | join %}",
            "{% set ns.s = ns.s.join([ns.s, ns.s]) %}",
            "{% set ns.s = ns.s | indent(99999, true) %}",
            "{% set ns.l = ns.l + ns.l %}",
            "{% set ns.l = ns.l + [ns.s.upper() ~ 'aaaaaaaaaaaaaaaa'[1:] * 99999] %}",
        ] {
            let source =
                format!("{{% set ns = namespace(s='a', l=[1]) %}}{{% for i in range(9999) %}}{step}{{% endfor %}}");
            let error = failure(&source);
            assert!(
                matches!(error, Error::Limit { .. })
                    && error.to_string().contains("134217728 bytes of texts and lists"),
                "{step}: {error}"
            );
        }
        let error = failure(&format!("{{{{ 'a' {} }}}}", "* 99999".repeat(9)));
        assert!(error.to_string().contains("more than 8 products"), "{error}");
    }

    #[test]
    fn lists_that_grow_deep_or_hold_themselves_are_errors() {
        for source in [
            "{% set ns = namespace(l=[]) %}{% for i in range(99999) %}{% set ns.l = [ns.l] %}{% endfor %}",
            "{% set ns = namespace(l={}) %}{% for i in range(99999) %}{% set ns.l = {'a': ns.l} %}{% endfor %}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns == ns }}",
            "{% set ns = namespace() %}{% set ns.a = ns %}{{ ns | string }}",
        ] {
            let error = failure(source);
            assert!(error.to_string().contains("more than 64 levels"), "{source}: {error}");
        }
        let doubled = "{% set ns = namespace(l=[]) %}{% for i in range(60) %}{% set ns.l = [ns.l, ns.l] %}{% endfor %}";
        assert!(matches!(failure(doubled), Error::Limit { .. }));
    }

    #[test]
    fn operators_are_pythons() {
        for (expression, value) in [
            (
                "1 + 2, 1.5 + 1, 'a' + 'b', [1] + [2], 2 * 3, 'ab' * 2, 2 * 0.5, 1 ~ 'a' ~ none",
                "3 2.5 ab [1, 2] 6 abab 1.0 1aNone",
            ),
            (
                "[1,2,3,4][::-1], [1,2,3,4][1:], [1,2,3,4][:-1], [1,2,3,4][-2:], [1,2,3,4][3:0:-2]",
                "[4, 3, 2, 1] [2, 3, 4] [1, 2, 3] [3, 4] [4, 2]",
            ),
            ("'h\u{e9}llo'[1:3], 'abc'[::-1], 'abc'[5:], 'abc'[:99]", "\u{e9}l cba  abc"),
            (
                "1 == 1.0, 1 != 1, 'a' < 'b', 2 >= 2, 1 in [1], 'x' not in 'abc', {'a': 1} == {'a': 1}",
                "True False True True True True True",
            ),
            (
                "1 is eq 1, 2 is gt 1, 1 is in [2], ('a b' | title), ([1, 2] | join('-')), ('ab' | replace('a', 'c'))",
                "True True False A B 1-2 cb",
            ),
            (
                "('a\nb' | indent(2)), ('a\nb' | indent(width=1, first=true)), {'b': 1}['b'], ({'k': 2} | items | list)[0][1]",
                "a\n  b  a\n b 1 2",
            ),
        ] {
            let source: Vec<String> = split_top(expression).iter().map(|e| format!("{{{{ {e} }}}}")).collect();
            assert_eq!(text(&source.join(" ")), value, "{expression}");
        }
    }

    /// The parts of a list of expressions.
    fn split_top(list: &str) -> Vec<&str> {
        let (mut depth, mut quoted) = (0, false);
        let outside = |c: char| {
            quoted ^= c == '\'';
            depth += i32::from(matches!(c, '[' | '(' | '{')) - i32::from(matches!(c, ']' | ')' | '}'));
            c == ',' && depth == 0 && !quoted
        };
        list.split(outside).map(str::trim).collect()
    }

    #[test]
    fn nesting_that_has_no_end_is_an_error() {
        for source in [
            "(".repeat(100_000),
            format!("{{{{ {} }}}}", "[".repeat(100_000)),
            "{% if true %}".repeat(50_000),
            "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}".into(),
        ] {
            let made = ChatTemplate::new("m", source, ["", ""]);
            let _ = made.and_then(|t| t.render(&[], &TemplateOptions::default()));
        }
    }

    #[test]
    fn a_prompt_may_end_inside_a_thought() {
        assert!(opens_thought("<|im_start|>assistant\n<think>\n"));
        assert!(!opens_thought("<think>\n\n</think>\n\n") && !opens_thought(""));
    }
}
