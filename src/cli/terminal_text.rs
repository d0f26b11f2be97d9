//! Text from files and users made fit for a terminal: without control characters, of limited length, and aligned by display
//! width.

use std::error::Error as _;

use ternion::Error;
use unicode_width::UnicodeWidthStr;

/// Maximum number of characters of a message at its beginning and at its end; what lies between them is left out.
const MESSAGE_PARTS: [usize; 2] = [3000, 1000];

/// The text with control characters, and those that turn the direction of writing, as escapes.
pub fn printable(text: &str) -> String {
    let turns = |c| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || turns(c) {
            shown.extend(c.escape_default());
        } else {
            shown.push(c);
        }
    }
    shown
}

/// A message on one line that can be read: drivers and shader compilers put line breaks into theirs, names in files may
/// hold control characters, and lists and texts may be of any length.
pub fn message(text: &str) -> String {
    let line = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ");
    let [first, last] = MESSAGE_PARTS;
    let n = line.chars().count();
    if n <= first + last {
        return printable(&line);
    }
    let at = |index: usize| line.char_indices().nth(index).map_or(line.len(), |(at, _)| at);
    let (begin, end) = (&line[..at(first)], &line[at(n - last)..]);
    format!("{} … ({} characters are left out) … {}", printable(begin), n - first - last, printable(end))
}

/// The commands that call what a message of the library names.
const COMMANDS: [(&str, &str); 3] = [
    ("Engine::open", "`ternion run` or `ternion chat`"),
    ("BitGen::open", "`ternion run`, `similarity` or `search`"),
    ("RobotModel::open", "`ternion robots`"),
];

/// A message of the library in the words of the command line: its options and calls are those of a program.
pub fn on_command_line(text: &str) -> String {
    let mut parts = text.split("the option `");
    let mut said = parts.next().unwrap_or("").to_owned();
    for part in parts {
        let (name, rest) = part.split_once('`').unwrap_or((part, ""));
        said += &format!("--{}{rest}", name.replace('_', "-"));
    }
    COMMANDS.iter().fold(said, |said, (call, command)| said.replace(call, command))
}

/// What to do on the command line about an error.
pub fn advice(error: &ternion::Error) -> Option<&'static str> {
    use ternion::Error::{ContextFull, DeviceLost, NonFiniteLogits, OutOfMemory};
    Some(match error {
        ContextFull { .. } => "--context N makes room for more, --context-shift lets the oldest text leave",
        OutOfMemory { .. } => {
            "--context N takes less, --kv int8 halves the cache, --reserve N as large as the context needs no second copy, \
             --device cpu has the memory of the system"
        }
        DeviceLost { .. } => "run it again; `ternion check` compares the device with the CPU",
        NonFiniteLogits(_) => "`ternion check` finds the op",
        _ => return None,
    })
}

/// Columns that a text takes.
pub fn columns(text: &str) -> usize {
    text.width()
}

/// The text with spaces behind it, up to a number of columns.
pub fn padded(text: &str, width: usize) -> String {
    format!("{text}{}", " ".repeat(width.saturating_sub(columns(text))))
}

/// The text with spaces in front of it, up to a number of columns.
pub fn padded_left(text: &str, width: usize) -> String {
    format!("{}{text}", " ".repeat(width.saturating_sub(columns(text))))
}

/// An error and its causes, on one line.
pub fn causes(error: &Error) -> String {
    let (mut text, mut cause) = (error.to_string(), error.source());
    while let Some(error) = cause {
        text += &format!(": {error}");
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_and_calls_are_those_of_the_command_line() {
        let text = "it is unknown; give the option `hidden_act` or the option `kv` to Engine::open";
        let said = "it is unknown; give --hidden-act or --kv to `ternion run` or `ternion chat`";
        assert_eq!(on_command_line(text), said);
        assert_eq!(on_command_line("no `tokenizer`"), "no `tokenizer`");
    }

    #[test]
    fn control_characters_are_shown_and_not_obeyed() {
        assert_eq!(printable("a\x1b[31mX\x07\u{9b}\u{202e}é緑"), r"a\u{1b}[31mX\u{7}\u{9b}\u{202e}é緑");
        assert_eq!(message("one\r\n  two\x1b[0m\n\nthree\n"), r"one two\u{1b}[0m three");
    }

    #[test]
    fn a_long_message_keeps_its_ends() {
        let long = format!("begin {} end", "é".repeat(1_000_000));
        let short = message(&long);
        assert!(short.chars().count() < 4100 && short.starts_with("begin é") && short.ends_with("é end"), "{short}");
        assert!(short.contains("(996010 characters are left out)"), "{short}");
        let fits = "é".repeat(4000);
        assert_eq!(message(&fits), fits);
    }

    #[test]
    fn columns_are_counted_as_screens_do() {
        assert_eq!(["abc", "緑の", "🟩", "e\u{301}"].map(columns), [3, 4, 2, 1]);
        assert_eq!([padded("緑", 4), padded_left("緑", 4), padded("abc", 2)], ["緑  ", "  緑", "abc"]);
    }
}
