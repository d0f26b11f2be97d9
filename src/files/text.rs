//! Texts and JSON as people's tools write them: one reader for all of them.
//!
//! A byte order mark in front of UTF-8 is not part of the text. UTF-16 and UTF-32 are named in the error. JSON may hold the
//! `NaN`, `Infinity` and `-Infinity` that Python writes: they are read as strings, so that a key
//! that nobody reads is harmless and a number that is read is refused with its key.

use std::borrow::Cow;
use std::str;

use serde::de::DeserializeOwned;

use crate::error::{Error, Result};

/// What a text editor may put in front of UTF-8.
const BYTE_ORDER_MARK: &str = "\u{feff}";

/// The text of `bytes`, without its byte order mark; `name` stands for it in messages.
///
/// # Errors
/// [`Error::Format`] for what is not UTF-8, with the encoding that it seems to be in or with the offset.
pub fn decode<'a>(name: &str, bytes: &'a [u8]) -> Result<&'a str> {
    if let Some(encoding) = other_encoding(bytes) {
        return Err(Error::format(name, format!("is text in {encoding}; save it as UTF-8")));
    }
    let text =
        str::from_utf8(bytes).map_err(|e| Error::format(name, format!("is not UTF-8 at byte {}", e.valid_up_to())))?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

/// The JSON value of `bytes`; in messages `name` stands for it and `expected` ("a JSON object") for what it should be.
///
/// # Errors
/// [`Error::Format`] for what is not such JSON, with line and column, and those of [`decode`].
pub(crate) fn json<T: DeserializeOwned>(name: &str, bytes: &[u8], expected: &str) -> Result<T> {
    let text = decode(name, bytes)?;
    let value = serde_json::from_str(text).or_else(|error| match quoted_non_finite(text) {
        Cow::Owned(quoted) => serde_json::from_str(&quoted),
        Cow::Borrowed(_) => Err(error),
    });
    value.map_err(|error| {
        Error::format(name, instead(bytes).map_or_else(|| format!("is not {expected}: {error}"), str::to_owned))
    })
}

/// What is wrong with a file in whose place a download left something else.
pub(crate) fn instead(bytes: &[u8]) -> Option<&'static str> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Some("is a Git LFS pointer, not the file itself; run `git lfs pull` to fetch it");
    }
    let page = bytes.trim_ascii_start().starts_with(b"<");
    page.then_some("is an HTML or XML page, not the file itself; the download went wrong")
}

/// The encoding that is not UTF-8, by a byte order mark or by zero bytes between the first characters.
fn other_encoding(bytes: &[u8]) -> Option<&'static str> {
    Some(match bytes {
        [0xff, 0xfe, 0, 0, ..] | [0, 0, 0xfe, 0xff, ..] => "UTF-32",
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16",
        &[a, 0, b, 0, ..] | &[0, a, 0, b, ..] if a != 0 && b != 0 => "UTF-16",
        _ => return None,
    })
}

/// `json` with its numbers that are not finite as strings; borrowed if there are none.
fn quoted_non_finite(json: &str) -> Cow<'_, str> {
    let (mut quoted, mut kept) = (String::new(), 0);
    let (mut at, mut in_text) = (0, false);
    let bytes = json.as_bytes();
    while let Some(&byte) = bytes.get(at) {
        at += match byte {
            b'\\' if in_text => 2,
            b'"' => {
                in_text = !in_text;
                1
            }
            b'N' | b'I' | b'-' if !in_text => {
                let rest = &bytes[at..];
                let word = ["NaN", "Infinity", "-Infinity"].into_iter().find(|word| rest.starts_with(word.as_bytes()));
                if let Some(word) = word {
                    quoted.push_str(json.get(kept..at).unwrap_or_default());
                    quoted.push_str(&format!("\"{word}\""));
                    kept = at + word.len();
                }
                word.map_or(1, str::len)
            }
            _ => 1,
        };
    }
    if kept == 0 {
        return Cow::Borrowed(json);
    }
    quoted.push_str(json.get(kept..).unwrap_or_default());
    Cow::Owned(quoted)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn refusal(bytes: &[u8]) -> String {
        decode("f", bytes).unwrap_err().to_string()
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_a_text() {
        assert_eq!(decode("f", b"\xef\xbb\xbfWhat?").unwrap(), "What?");
        assert_eq!(decode("f", "\u{e9}".as_bytes()).unwrap(), "\u{e9}");
        assert_eq!(decode("f", b"").unwrap(), "");
    }

    #[test]
    fn other_encodings_are_named() {
        for text in [&b"\xff\xfeh\0"[..], b"\xfe\xff\0h", b"{\0\"\0", b"\0{\0\""] {
            assert_eq!(refusal(text), "f: is text in UTF-16; save it as UTF-8");
        }
        assert!(refusal(b"\xff\xfe\0\0h\0\0\0").contains("UTF-32"));
        assert_eq!(refusal(b"ab\xe9c"), "f: is not UTF-8 at byte 2");
    }

    #[test]
    fn numbers_that_are_not_finite_are_texts() {
        let read = |text: &str| json::<Value>("f", text.as_bytes(), "JSON");
        let text = r#"{"a": NaN, "b": [-Infinity, Infinity, -1], "NaN": "x\"NaN\\", "é": null}"#;
        let want = json!({"a": "NaN", "b": ["-Infinity", "Infinity", -1], "NaN": "x\"NaN\\", "é": null});
        assert_eq!(read(text).unwrap(), want);
        assert_eq!(read("\u{feff}[1]").unwrap(), json!([1]));
        for (broken, at) in [("[NaN, x]", "column 9"), ("[Nan]", "column 2"), ("{\"a\": \"NaN}", "column 11")] {
            let error = read(broken).unwrap_err().to_string();
            assert!(error.starts_with("f: is not JSON: ") && error.contains(at), "{broken}: {error}");
        }
    }
}
