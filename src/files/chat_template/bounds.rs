//! Bounds on what a rendering makes, beside its steps: a few lines of a template can double a text until memory ends, or
//! nest lists until the stack does.
//!
//! The library counts steps only. So its instructions that put values together are replaced by calls of functions with the
//! same operands, which charge a budget first; its filters and methods are called through such functions as well.
//! What is written, into the text or into a variable, is charged where values are written.

use std::fmt::{self, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use minijinja::machinery::{CompiledTemplate, Instruction, Instructions, Token, WhitespaceConfig, tokenize};
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Output, State, Value, filters};
use minijinja_contrib::pycompat::unknown_method_callback;

use crate::files::chat_template::operators;

/// Steps that a rendering may take; a conversation of a thousand messages needs some hundred thousand.
pub const MAX_STEPS: u64 = 4_000_000;
/// Bytes of texts and lists that a rendering may make, or walk through.
pub const MAX_MADE: usize = 128 << 20;
/// Bytes of an entry of a list.
pub const ENTRY: usize = size_of::<Value>();
/// Bytes of the template's own text that a rendering may write; steps are cut so that it cannot be more.
const MAX_RAW: u64 = 1 << 30;
/// The deepest nesting of lists and maps.
const MAX_DEPTH: usize = 64;
/// Maximum number of products in a template: the library computes those of constants while it compiles, up to 100 MB each.
const MAX_PRODUCTS: usize = 8;

/// What a rendering may still make.
#[derive(Debug, Clone)]
pub struct RenderBudget(Arc<AtomicUsize>);

/// What stops a rendering that makes too much.
#[derive(Debug)]
pub struct Exhausted;

impl fmt::Display for Exhausted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "makes more than {MAX_MADE} bytes")
    }
}

impl std::error::Error for Exhausted {}

impl RenderBudget {
    /// A whole one.
    pub fn new() -> Self {
        RenderBudget(Arc::new(AtomicUsize::new(MAX_MADE)))
    }

    /// Takes `n` bytes.
    pub fn charge(&self, n: usize) -> Result<(), Error> {
        let taken = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(n));
        taken.map(|_| ()).map_err(|_| invalid(Exhausted.to_string()).with_source(Exhausted))
    }

    /// Walks a value and charges its entries; so none that is used whole is too deep, or contains itself.
    pub fn walk(&self, value: &Value) -> Result<(), Error> {
        let mut next = vec![(value.clone(), 0)];
        while let Some((value, depth)) = next.pop() {
            if depth > MAX_DEPTH {
                return Err(invalid(format!("nests values more than {MAX_DEPTH} levels deep")));
            }
            let is_map = value.kind() == ValueKind::Map;
            if is_map || matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
                for item in value.try_iter()? {
                    self.charge(ENTRY)?;
                    let item = if is_map { value.get_item(&item)? } else { item };
                    next.push((item, depth + 1));
                }
            }
        }
        Ok(())
    }

    /// The text of a value, as it prints.
    pub fn text(&self, value: &Value) -> Result<String, Error> {
        let mut text = Charged { budget: self, text: String::new(), full: None };
        match value.as_str() {
            Some(s) => text.push(s)?,
            None => {
                self.walk(value)?;
                let written = write!(text, "{value}");
                text.full.take().map_or(Ok(()), Err)?;
                written.map_err(|_| invalid("cannot print a value"))?;
            }
        }
        Ok(text.text)
    }

    /// Charges what a function made: the bytes of a text, the entries of a list with their bytes.
    fn made(&self, value: Value) -> Result<Value, Error> {
        if let Some(text) = value.as_str() {
            self.charge(text.len())?;
        } else if matches!(value.kind(), ValueKind::Seq | ValueKind::Iterable) {
            for item in value.try_iter()? {
                self.charge(ENTRY + item.as_str().map_or(0, str::len))?;
            }
        }
        Ok(value)
    }
}

/// The error of an operation that cannot be done.
pub fn invalid(problem: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem)
}

/// A text that is charged as it grows.
struct Charged<'a> {
    budget: &'a RenderBudget,
    text: String,
    full: Option<Error>,
}

impl Charged<'_> {
    fn push(&mut self, piece: &str) -> Result<(), Error> {
        self.budget.charge(piece.len())?;
        self.text.push_str(piece);
        Ok(())
    }
}

impl fmt::Write for Charged<'_> {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        self.push(piece).map_err(|error| {
            self.full = Some(error);
            fmt::Error
        })
    }
}

/// Compiles a template of an environment that [`bind`] has bounded; with it come the steps that it may take.
pub fn compile<'a>(name: &'a str, source: &'a str) -> Result<(CompiledTemplate<'a>, u64), Error> {
    let layout = WhitespaceConfig { keep_trailing_newline: false, lstrip_blocks: true, trim_blocks: true };
    // Up to the first error, which it repeats without end; compiling reports it.
    let tokens = tokenize(source, false, Default::default(), layout).map_while(Result::ok);
    let products = tokens.filter(|(token, _)| matches!(token, Token::Mul | Token::Pow)).count();
    if products > MAX_PRODUCTS {
        return Err(invalid(format!("has more than {MAX_PRODUCTS} products")));
    }
    let config = minijinja::machinery::TemplateConfig {
        syntax_config: Default::default(),
        ws_config: layout,
        default_auto_escape: Arc::new(|_| minijinja::AutoEscape::None),
    };
    let mut template = CompiledTemplate::new(name, source, &config)?;
    let mut longest = replace(&mut template.instructions);
    for block in template.blocks.values_mut() {
        longest = longest.max(replace(block));
    }
    let steps = MAX_STEPS.min(MAX_RAW / longest.max(1) as u64);
    Ok((template, steps))
}

/// Replaces the instructions that put values together; gives the length of the longest text that is written as it stands.
fn replace(instructions: &mut Instructions) -> usize {
    let mut longest = 0;
    for at in (0..).take(instructions.len()) {
        let Some(instruction) = instructions.get_mut(at) else { break };
        let (name, operands) = match instruction {
            Instruction::EmitRaw(text) => {
                longest = longest.max(text.len());
                continue;
            }
            Instruction::Add => ("+", 2),
            Instruction::Mul => ("*", 2),
            Instruction::StringConcat => ("~", 2),
            Instruction::Slice => ("[:]", 4),
            Instruction::Eq => ("==", 2),
            Instruction::Ne => ("!=", 2),
            Instruction::Lt => ("<", 2),
            Instruction::Lte => ("<=", 2),
            Instruction::Gt => (">", 2),
            Instruction::Gte => (">=", 2),
            Instruction::In => ("in", 2),
            Instruction::BuildList(Some(n)) => match u16::try_from(*n) {
                Ok(n) => ("[]", n),
                Err(_) => continue,
            },
            Instruction::BuildMap(n) => match u16::try_from(2 * *n) {
                Ok(n) => ("{}", n),
                Err(_) => continue,
            },
            _ => continue,
        };
        *instruction = Instruction::CallFunction(name, Some(operands));
    }
    longest
}

/// Gives an environment the functions that the replaced instructions call, and its filters, tests and methods with bounds.
pub fn bind(environment: &mut Environment<'_>, budget: &RenderBudget) {
    operators::add(environment, budget);
    bound_filters(environment, budget);
    let spent = budget.clone();
    environment.set_formatter(move |out: &mut Output, _: &State, value: &Value| {
        if value.is_undefined() {
            return Ok(());
        }
        out.write_str(&spent.text(value)?).map_err(Error::from)
    });
    let spent = budget.clone();
    environment.set_unknown_method_callback(move |state, value, method, arguments| {
        let text = |n: usize| arguments.get(n).and_then(|v| v.as_str());
        match (method, value.as_str()) {
            ("format", Some(_)) => return Err(ErrorKind::UnknownMethod.into()),
            ("replace", Some(own)) => spent.charge(replaced(own, text(0), text(1)))?,
            ("join", Some(own)) => return spent.joined(arguments.first(), own).map(Value::from),
            _ => {}
        }
        spent.made(unknown_method_callback(state, value, method, arguments)?)
    });
}

/// The most bytes that replacing a text in another one adds.
fn replaced(own: &str, from: Option<&str>, to: Option<&str>) -> usize {
    let places = match from {
        None | Some("") => own.len() + 1,
        Some(from) => own.matches(from).count(),
    };
    places.saturating_mul(to.map_or(0, str::len))
}

impl RenderBudget {
    /// The texts of a list with another one between.
    fn joined(&self, list: Option<&Value>, between: &str) -> Result<String, Error> {
        let mut text = Charged { budget: self, text: String::new(), full: None };
        for (i, item) in list.unwrap_or(&Value::UNDEFINED).try_iter()?.enumerate() {
            text.push(if i > 0 { between } else { "" })?;
            let item = self.text(&item)?;
            text.text.push_str(&item);
        }
        Ok(text.text)
    }
}

/// Filters that no chat template needs and whose results have any size that an argument asks for.
const UNBOUNDED: [&str; 4] = ["batch", "slice", "format", "pprint"];

/// The library's filters, each called with what it reads and what it makes charged.
fn bound_filters(environment: &mut Environment<'_>, budget: &RenderBudget) {
    UNBOUNDED.iter().for_each(|name| environment.remove_filter(name));
    macro_rules! charged {
        ($($name:ident)*) => {$(
            // The library's own under a name that no template can write.
            environment.add_filter(concat!("=", stringify!($name)), filters::$name);
            let spent = budget.clone();
            environment.add_filter(stringify!($name), move |state: &State, arguments: Rest<Value>| -> Result<Value, Error> {
                arguments.iter().try_for_each(|value| spent.walk(value))?;
                spent.made(state.apply_filter(concat!("=", stringify!($name)), &arguments)?)
            });
        )*};
    }
    charged!(lower upper title capitalize trim split lines dictsort items reverse list sort unique map select reject);
    charged!(selectattr rejectattr sum min max first last groupby chain zip escape safe);
    let spent = budget.clone();
    environment.add_filter("string", move |value: &Value| spent.text(value));
    let spent = budget.clone();
    environment
        .add_filter("join", move |list: &Value, between: Option<&str>| spent.joined(Some(list), between.unwrap_or("")));
    let spent = budget.clone();
    let indent =
        move |text: &str, width: Option<usize>, first: Option<bool>, options: Kwargs| -> Result<String, Error> {
            let width = width.map_or_else(|| options.get("width"), |width| Ok(Some(width)))?.unwrap_or(4);
            let first = first.map_or_else(|| options.get("first"), |first| Ok(Some(first)))?.unwrap_or(false);
            let blank = options.get::<Option<bool>>("blank")?.unwrap_or(false);
            options.assert_all_used()?;
            spent.charge(text.len().saturating_add(text.split('\n').count().saturating_mul(width)))?;
            let indented = |(i, line): (usize, &str)| match line {
                line if (i == 0 && !first) || (line.is_empty() && !blank) => line.to_owned(),
                line => " ".repeat(width) + line,
            };
            Ok(text.split('\n').enumerate().map(indented).collect::<Vec<_>>().join("\n"))
        };
    environment.add_filter("indent", indent);
    let spent = budget.clone();
    environment.add_filter("replace", move |value: &Value, from: &str, to: &str| -> Result<String, Error> {
        let own = spent.text(value)?;
        spent.charge(replaced(&own, Some(from), Some(to)))?;
        Ok(own.replace(from, to))
    });
}
