//! Reading lines from a terminal: keys that move, delete, complete and recall earlier lines, and texts that are pasted.

use std::env;
use std::io::{self, IsTerminal};

use console::{Key, Term};
use unicode_width::UnicodeWidthChar;

use crate::cli::history::History;

/// What a reader of lines gets.
#[derive(Debug, PartialEq)]
pub enum Input {
    /// A line, without its end.
    Line(String),
    /// Ctrl-C.
    Interrupted,
    /// The end: Ctrl-D on an empty line, or a terminal that is gone.
    End,
}

/// Keys that terminals send as control characters.
mod control {
    pub const B: char = '\x02';
    pub const D: char = '\x04';
    pub const F: char = '\x06';
    pub const K: char = '\x0b';
    pub const N: char = '\x0e';
    pub const P: char = '\x10';
    pub const U: char = '\x15';
    pub const W: char = '\x17';
}

/// What makes terminals mark a text that is pasted, and what ends that. A pasted line break is a part of the line.
const MARKS_PASTED: [&str; 2] = if cfg!(unix) { ["\x1b[?2004h", "\x1b[?2004l"] } else { [""; 2] };
/// What the marks begin with, as a key: `ESC [ 200 ~` before a text and `ESC [ 201 ~` behind it.
const MARK: [char; 3] = ['[', '2', '0'];
/// Maximum number of completions that are listed.
const MAX_LISTED: usize = 40;

/// Reads lines on one row of the terminal, which moves along lines that are longer. The prompt goes to stderr.
pub struct LineEditor {
    term: Term,
    history: History,
    /// The texts that one before the cursor may become.
    complete: fn(&str) -> Vec<String>,
}

impl LineEditor {
    /// An editor; none where stdin or stderr is not a terminal, or one whose cursor does not move.
    pub fn new(complete: fn(&str) -> Vec<String>) -> Option<Self> {
        let term = Term::buffered_stderr();
        let moves = env::var_os("TERM").is_none_or(|name| name != "dumb");
        let is_terminal = moves && term.is_term() && io::stdin().is_terminal();
        is_terminal.then(|| LineEditor { term, history: History::open(), complete })
    }

    /// Reads a line behind a prompt. Ctrl-C is a key meanwhile; `interrupted` says whether one came before that.
    ///
    /// # Errors
    /// Those of the terminal.
    pub fn read(&mut self, prompt: &str, interrupted: impl Fn() -> bool) -> io::Result<Input> {
        let _keys = Keys::take()?;
        if interrupted() {
            return self.leave(Input::Interrupted);
        }
        self.term.write_str(MARKS_PASTED[0])?;
        let mut line = Line::default();
        // Which line of the history is shown; its length stands for the new one, which is kept meanwhile.
        let (mut shown, mut new) = (self.history.lines().len(), String::new());
        loop {
            self.draw(prompt, &mut line)?;
            let key = match self.term.read_key_raw() {
                Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return self.leave(Input::End),
                key => key?,
            };
            let to = match key {
                Key::Enter => {
                    let text = line.text();
                    self.history.add(&text);
                    return self.leave(Input::Line(text));
                }
                Key::CtrlC => return self.leave(Input::Interrupted),
                Key::Char(control::D) if line.chars.is_empty() => return self.leave(Input::End),
                Key::ArrowUp | Key::Char(control::P) => shown.saturating_sub(1),
                Key::ArrowDown | Key::Char(control::N) => (shown + 1).min(self.history.lines().len()),
                Key::UnknownEscSeq(keys) if keys == MARK => {
                    self.pasted()?.chars().for_each(|c| line.insert(c));
                    shown
                }
                Key::Tab => {
                    self.complete(&mut line)?;
                    shown
                }
                key => {
                    line.press(&key);
                    shown
                }
            };
            if to != shown {
                if shown == self.history.lines().len() {
                    new = line.text();
                }
                line = Line::new(self.history.lines().get(to).unwrap_or(&new));
                shown = to;
            }
        }
    }

    /// The text between the marks of which the first has begun; line breaks and tabs stay, other keys do not.
    fn pasted(&self) -> io::Result<String> {
        let mut text = String::new();
        if self.term.read_key_raw()? != Key::Char('0') || self.term.read_key_raw()? != Key::Char('~') {
            return Ok(text);
        }
        loop {
            match self.term.read_key_raw()? {
                Key::UnknownEscSeq(keys) if keys == MARK => break,
                Key::Enter => text.push('\n'),
                Key::Tab => text.push('\t'),
                Key::Char(c) if !c.is_control() => text.push(c),
                _ => {}
            }
        }
        // The rest of the second mark.
        self.term.read_key_raw()?;
        self.term.read_key_raw()?;
        Ok(text)
    }

    /// Completes what is before the cursor as far as all completions agree; lists them where they agree no further.
    fn complete(&self, line: &mut Line) -> io::Result<()> {
        let before: String = line.chars[..line.at].iter().collect();
        let all = (self.complete)(&before);
        let Some(first) = all.first() else { return Ok(()) };
        let agreed = all.iter().fold(first.chars().count(), |n, other| {
            n.min(first.chars().zip(other.chars()).take_while(|(a, b)| a == b).count())
        });
        if agreed > line.at || all.len() == 1 {
            line.delete(0, line.at);
            first.chars().take(agreed).for_each(|c| line.insert(c));
            return Ok(());
        }
        self.term.clear_line()?;
        // Of a path the last part, as it is the one that differs.
        let name = |text: &String| match text.trim_end().split_once(' ') {
            Some((_, path)) => path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned(),
            None => text.trim_end().to_owned(),
        };
        let mut names: Vec<String> = all.iter().take(MAX_LISTED).map(name).collect();
        if all.len() > MAX_LISTED {
            names.push("…".into());
        }
        self.term.write_line(&names.join("  "))
    }

    /// Shows the part of the line around the cursor.
    fn draw(&self, prompt: &str, line: &mut Line) -> io::Result<()> {
        let columns = usize::from(self.term.size().1);
        let room = columns.saturating_sub(prompt.chars().map(width).sum::<usize>() + 1).max(1);
        let (text, behind) = line.visible(room);
        self.term.clear_line()?;
        self.term.write_str(prompt)?;
        self.term.write_str(&text)?;
        if behind > 0 {
            self.term.move_cursor_left(behind)?;
        }
        self.term.flush()
    }

    fn leave(&self, input: Input) -> io::Result<Input> {
        self.term.write_line("")?;
        self.term.write_str(MARKS_PASTED[1])?;
        self.term.flush()?;
        Ok(input)
    }
}

/// The terminal in the mode in which each key comes at once and as it is, until this is dropped.
///
/// Reading a key sets that mode too, but for this key alone: one that comes between two keys would be shown, be lost, or
/// be a signal.
#[cfg(unix)]
struct Keys(rustix::termios::Termios);

#[cfg(unix)]
impl Keys {
    fn take() -> io::Result<Self> {
        use rustix::termios::{OptionalActions, tcgetattr, tcsetattr};
        let old = tcgetattr(io::stdin())?;
        let mut raw = old.clone();
        raw.make_raw();
        // What is written still ends its lines as always.
        raw.output_modes = old.output_modes;
        tcsetattr(io::stdin(), OptionalActions::Drain, &raw)?;
        Ok(Keys(old))
    }
}

#[cfg(unix)]
impl Drop for Keys {
    fn drop(&mut self) {
        // A terminal that is gone needs no mode.
        let _ = rustix::termios::tcsetattr(io::stdin(), rustix::termios::OptionalActions::Drain, &self.0);
    }
}

/// Elsewhere keys come as they are.
#[cfg(not(unix))]
struct Keys;

#[cfg(not(unix))]
impl Keys {
    fn take() -> io::Result<Self> {
        Ok(Keys)
    }
}

/// Columns that a character takes.
fn width(c: char) -> usize {
    shown(c).width().unwrap_or(0)
}

/// What a character looks like in a line.
fn shown(c: char) -> char {
    match c {
        '\n' => '⏎',
        '\t' => ' ',
        c => c,
    }
}

/// A line and a cursor in it.
#[derive(Debug, Default)]
struct Line {
    chars: Vec<char>,
    /// Characters before the cursor.
    at: usize,
    /// The first character that is shown.
    first: usize,
}

impl Line {
    fn new(text: &str) -> Self {
        let chars: Vec<char> = text.chars().collect();
        Line { at: chars.len(), chars, first: 0 }
    }

    fn text(&self) -> String {
        self.chars.iter().collect()
    }

    /// The cursor one character to the left. What is drawn onto a character, such as an accent, belongs to it.
    fn left(&self) -> usize {
        let before = self.chars[..self.at].iter();
        self.at - before.rev().position(|&c| width(c) > 0).map_or(self.at, |marks| marks + 1)
    }

    /// The cursor one character to the right.
    fn right(&self) -> usize {
        let marks = self.chars.iter().skip(self.at + 1).take_while(|&&c| width(c) == 0).count();
        (self.at + 1 + marks).min(self.chars.len())
    }

    /// Where the word before the cursor begins.
    fn word(&self) -> usize {
        let before = &self.chars[..self.at];
        let end = before.iter().rposition(|c| !c.is_whitespace()).map_or(0, |last| last + 1);
        before[..end].iter().rposition(|c| c.is_whitespace()).map_or(0, |space| space + 1)
    }

    fn delete(&mut self, from: usize, to: usize) {
        self.chars.drain(from..to);
        self.at = from;
    }

    /// Does what a key asks for; keys that it does not know change nothing.
    fn press(&mut self, key: &Key) {
        match key {
            Key::ArrowLeft | Key::Char(control::B) => self.at = self.left(),
            Key::ArrowRight | Key::Char(control::F) => self.at = self.right(),
            Key::Home => self.at = 0,
            Key::End => self.at = self.chars.len(),
            Key::Backspace => self.delete(self.left(), self.at),
            Key::Del | Key::Char(control::D) => self.delete(self.at, self.right()),
            Key::Char(control::K) => self.delete(self.at, self.chars.len()),
            Key::Char(control::U) => self.delete(0, self.at),
            Key::Char(control::W) => self.delete(self.word(), self.at),
            Key::Char(c) if !c.is_control() => self.insert(*c),
            _ => {}
        }
    }

    fn insert(&mut self, c: char) {
        self.chars.insert(self.at, c);
        self.at += 1;
    }

    /// As much of the line as fits into `room` columns with the cursor among them, and how many columns of it lie behind
    /// the cursor.
    fn visible(&mut self, room: usize) -> (String, usize) {
        self.first = self.first.min(self.at);
        let mut before: usize = self.chars[self.first..self.at].iter().map(|&c| width(c)).sum();
        while before > room {
            before -= width(self.chars[self.first]);
            self.first += 1;
        }
        // In a terminal that has become wider, as much as fits is shown again.
        let behind: usize = self.chars[self.at..].iter().map(|&c| width(c)).sum();
        while let Some(&c) = self.first.checked_sub(1).and_then(|first| self.chars.get(first)) {
            if width(c) + before + behind > room {
                break;
            }
            before += width(c);
            self.first -= 1;
        }
        let (mut text, mut columns) = (String::new(), 0);
        for &c in &self.chars[self.first..] {
            if columns + width(c) > room {
                break;
            }
            columns += width(c);
            text.push(shown(c));
        }
        (text, columns - before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A line after some keys: its text, with a bar where the cursor is.
    fn after(text: &str, keys: &[Key]) -> String {
        let mut line = Line::new(text);
        keys.iter().for_each(|key| line.press(key));
        let (before, behind) = line.chars.split_at(line.at);
        [before, &['|'], behind].concat().iter().collect()
    }

    #[test]
    fn keys_move_and_delete() {
        use Key::*;
        assert_eq!(after("2 + 3?", &[ArrowLeft, ArrowLeft, Char('4'), ArrowRight]), "2 + 43|?");
        assert_eq!(after("abc", &[Home, Char('x'), End, Backspace]), "xab|");
        assert_eq!(after("abc", &[Home, ArrowLeft, Del, ArrowRight, ArrowRight, ArrowRight]), "bc|");
        assert_eq!(after("one two  ", &[Char(control::W)]), "one |");
        assert_eq!(after("one two", &[ArrowLeft, Char(control::U), Char(control::K)]), "|");
        assert_eq!(after("", &[Backspace, Del, ArrowLeft, ArrowRight, Char('\x1b'), Char('\x01')]), "|");
        assert_eq!(after("ne\u{301}e", &[ArrowLeft, Backspace]), "n|e", "an accent goes with its letter");
        assert_eq!(after("e\u{301}e", &[Home, Del]), "|e");
    }

    #[test]
    fn line_breaks_of_a_pasted_text_are_seen_and_kept() {
        let mut line = Line::new("one\n\ttwo\n");
        assert_eq!((line.visible(20), line.text()), (("one⏎ two⏎".into(), 0), "one\n\ttwo\n".to_owned()));
        line.press(&Key::Backspace);
        assert_eq!(line.text(), "one\n\ttwo");
    }

    #[test]
    fn a_long_line_moves_under_the_cursor() {
        let mut line = Line::new("0123456789");
        assert_eq!(line.visible(20), ("0123456789".into(), 0));
        assert_eq!(line.visible(4), ("6789".into(), 0));
        line.press(&Key::ArrowLeft);
        assert_eq!(line.visible(4), ("6789".into(), 1));
        line.press(&Key::Home);
        assert_eq!(line.visible(4), ("0123".into(), 4));
        line.press(&Key::End);
        assert_eq!(line.visible(4), ("6789".into(), 0));
        assert_eq!(line.visible(6), ("456789".into(), 0), "a wider terminal");
        assert_eq!(line.visible(20), ("0123456789".into(), 0));
        let mut wide = Line::new("緑の四角形");
        assert_eq!(wide.visible(5), ("角形".into(), 0));
        wide.press(&Key::Home);
        assert_eq!(wide.visible(5), ("緑の".into(), 4));
    }
}
