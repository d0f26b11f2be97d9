//! The filter `tojson` as `transformers` has it: Python's `json.dumps` with `ensure_ascii` off. Templates print tools with
//! it, and models know the spaces that it writes.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

use crate::files::tokenizer::MAX_TEXT_BYTES;

/// The deepest nesting that is written.
const MAX_DEPTH: usize = 64;

/// How JSON is laid out.
struct Layout {
    /// Spaces or tabs of one level; none for all on one line.
    indent: Option<String>,
    item_separator: String,
    key_separator: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

/// `value | tojson(indent=…, ensure_ascii=…, separators=…, sort_keys=…)`.
///
/// # Errors
/// A value that JSON has no form for, nesting above 64, a text above [`MAX_TEXT_BYTES`].
pub fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent = match options.get::<Option<Value>>("indent")? {
        Some(value) if value.kind() == ValueKind::String => value.as_str().map(str::to_owned),
        Some(value) if !value.is_none() => {
            let width = value.as_usize().filter(|&n| n <= MAX_DEPTH);
            Some(" ".repeat(width.ok_or_else(|| invalid("an indent is a number of spaces up to 64"))?))
        }
        _ => None,
    };
    let separators = options.get::<Option<Value>>("separators")?;
    let usual = if indent.is_some() { "," } else { ", " };
    let (item_separator, key_separator) =
        separators.map_or_else(|| Ok((usual.to_owned(), ": ".to_owned())), |given| pair(&given))?;
    let flag = |name| options.get::<Option<bool>>(name).map(|flag| flag.unwrap_or(false));
    let (ensure_ascii, sort_keys) = (flag("ensure_ascii")?, flag("sort_keys")?);
    options.assert_all_used()?;
    let layout = Layout { indent, item_separator, key_separator, ensure_ascii, sort_keys };
    let mut out = String::new();
    write_value(&mut out, value, &layout, 0)?;
    Ok(out)
}

/// The two separators of `separators=(…, …)`.
fn pair(given: &Value) -> Result<(String, String), Error> {
    let texts: Vec<Value> = given.try_iter()?.take(3).collect();
    match &texts[..] {
        [item, key] => Ok((item.to_string(), key.to_string())),
        _ => Err(invalid("separators are two texts")),
    }
}

fn invalid(problem: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("tojson: {}", problem.into()))
}

fn write_value(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    if depth > MAX_DEPTH {
        return Err(invalid("is nested more than 64 levels deep"));
    }
    if out.len() > MAX_TEXT_BYTES {
        return Err(invalid(format!("makes more than {MAX_TEXT_BYTES} bytes")));
    }
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(out, value)?,
        ValueKind::String => write_text(out, value.as_str().unwrap_or_default(), layout.ensure_ascii)?,
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?;
            write_items(out, ['[', ']'], items, layout, depth, |out, item| write_value(out, &item, layout, depth + 1))?;
        }
        ValueKind::Map => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sort_keys {
                keys.sort();
            }
            write_items(out, ['{', '}'], keys.into_iter(), layout, depth, |out, key| {
                write_key(out, &key, layout)?;
                out.push_str(&layout.key_separator);
                write_value(out, &value.get_item(&key)?, layout, depth + 1)
            })?;
        }
        other => return Err(invalid(format!("JSON has no form for {other}"))),
    }
    Ok(())
}

/// Writes items between two brackets.
fn write_items(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl Iterator<Item = Value>,
    layout: &Layout,
    depth: usize,
    mut write: impl FnMut(&mut String, Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let line = |out: &mut String, depth: usize| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            (0..depth).for_each(|_| out.push_str(indent));
        }
    };
    out.push(open);
    let mut empty = true;
    for item in items {
        if !empty {
            out.push_str(&layout.item_separator);
        }
        empty = false;
        line(out, depth + 1);
        write(out, item)?;
    }
    if !empty {
        line(out, depth);
    }
    out.push(close);
    Ok(())
}

/// A key: Python turns numbers, truth values and none into texts.
fn write_key(out: &mut String, key: &Value, layout: &Layout) -> Result<(), Error> {
    match key.as_str() {
        Some(text) => write_text(out, text, layout.ensure_ascii),
        None => {
            let mut text = String::new();
            write_value(&mut text, key, layout, MAX_DEPTH)?;
            write_text(out, &text, layout.ensure_ascii)
        }
    }
}

/// A number as Python's `repr` writes it: the shortest digits, with an exponent below 1e-4 and from 1e16 on.
fn write_number(out: &mut String, value: &Value) -> Result<(), Error> {
    if value.is_integer() {
        let written = write!(out, "{value}");
        return written.map_err(|_| invalid("cannot write a number"));
    }
    let number = f64::try_from(value.clone())?;
    if !number.is_finite() {
        // Python writes what JSON does not have.
        out.push_str(if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        });
        return Ok(());
    }
    let size = number.abs();
    let written = if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        write!(out, "{digits}e{sign}{exponent:0>2}")
    } else {
        write!(out, "{number:?}")
    };
    written.map_err(|_| invalid("cannot write a number"))
}

/// A text in quotes.
fn write_text(out: &mut String, text: &str, ensure_ascii: bool) -> Result<(), Error> {
    let quoted = serde_json::to_string(text).map_err(|e| invalid(e.to_string()))?;
    if !ensure_ascii {
        out.push_str(&quoted);
        return Ok(());
    }
    for c in quoted.chars() {
        if c.is_ascii() {
            out.push(c);
        } else {
            for unit in c.encode_utf16(&mut [0; 2]) {
                write!(out, "\\u{unit:04x}").map_err(|_| invalid("cannot write a character"))?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::files::chat_template::{ChatTemplate, TemplateOptions};

    fn text(source: &str) -> String {
        ChatTemplate::new("m", source, ["", ""]).unwrap().render(&[], &TemplateOptions::default()).unwrap()
    }

    /// Expected: what Python 3 writes for the same values.
    #[test]
    fn json_is_pythons() {
        for (value, json) in [
            ("{'b': 1, 'a': [true, none, 'x<&>\\'\"']}", r#"{"b": 1, "a": [true, null, "x<&>'\""]}"#),
            (
                "[1.0, 0.1, 1e16, 1e-5, -2.5e-7, 123456789012345.0]",
                "[1.0, 0.1, 1e+16, 1e-05, -2.5e-07, 123456789012345.0]",
            ),
            ("'Z\u{fc}rich \u{1f642}\\n\\t'", "\"Z\u{fc}rich \u{1f642}\\n\\t\""),
            ("{}", "{}"),
            ("[]", "[]"),
            ("{1: 2}", r#"{"1": 2}"#),
        ] {
            assert_eq!(text(&format!("{{{{ {value} | tojson }}}}")), json, "{value}");
        }
    }

    #[test]
    fn its_options_are_pythons() {
        let indented = "{\n  \"b\": [\n    1,\n    2\n  ],\n  \"a\": {}\n}";
        assert_eq!(text("{{ {'b': [1, 2], 'a': {}} | tojson(indent=2) }}"), indented);
        assert_eq!(text("{{ {'b': 1, 'a': 2} | tojson(separators=(',', ':'), sort_keys=true) }}"), r#"{"a":2,"b":1}"#);
        assert_eq!(text("{{ '\u{e9}\u{1f642}' | tojson(ensure_ascii=true) }}"), r#""\u00e9\ud83d\ude42""#);
    }

    #[test]
    fn what_json_has_no_form_for_is_an_error() {
        for source in ["{{ nothing | tojson }}", "{{ range | tojson }}", "{{ [] | tojson(indent=99) }}"] {
            let made = ChatTemplate::new("m", source, ["", ""]).unwrap().render(&[], &TemplateOptions::default());
            assert!(made.unwrap_err().to_string().contains("tojson"), "{source}");
        }
    }
}
