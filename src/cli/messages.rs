//! Lines for people on stderr: notes, warnings, statistics, errors.
//!
//! Stderr may be closed, or its disk full. The result of a command goes to stdout, so a line that cannot be written to
//! stderr is dropped, and the command continues.

use std::fmt::Arguments;
use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicBool, Ordering};

use console::style;

use crate::cli::terminal_text::printable;

/// A line on stderr, formatted as by `format!`.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::cli::messages::write(format_args!("{}\n", format_args!($($part)*)))
    };
}
pub(crate) use say;

/// Whether only errors are written.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether all that there is to say is written.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// From here on reasons are written too.
pub fn be_verbose() {
    VERBOSE.store(true, Ordering::Relaxed);
}

/// Whether reasons are written.
pub fn is_verbose() -> bool {
    VERBOSE.load(Ordering::Relaxed)
}

/// Columns of the line that says how a command is set up.
const SETUP_COLUMNS: usize = 78;

/// Says on which device a model runs: with -v all of it with the reason, else one short line, on a terminal alone.
pub fn say_setup(model: &str, device: &str, why: &str) {
    if is_verbose() {
        say!("device: {device} ({why})");
    } else if io::stderr().is_terminal() {
        let line = printable(&format!("{model} · {device}"));
        let cut: String = line.chars().take(SETUP_COLUMNS).collect();
        say!("{}{}", style(&cut).for_stderr().dim(), if cut == line { "" } else { "…" });
    }
}

/// From here on only errors are written.
pub fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

/// Writes to stderr, unless that cannot be done or is not wanted.
pub fn write(text: Arguments) {
    if !QUIET.load(Ordering::Relaxed) {
        write_always(text);
    }
}

/// Writes to stderr if that can be done.
pub fn write_always(text: Arguments) {
    let mut stderr = io::stderr().lock();
    let _ = stderr.write_fmt(text).and_then(|()| stderr.flush());
}

/// A line on stderr that is written whatever the user wants to hear, of an error.
macro_rules! complain {
    ($($part:tt)*) => {
        $crate::cli::messages::write_always(format_args!("{}\n", format_args!($($part)*)))
    };
}
pub(crate) use complain;
