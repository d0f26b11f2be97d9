//! Lines for people on stderr: notes, warnings, statistics, errors.
//!
//! Stderr may be closed, or its disk full. The result of a command goes to stdout, so a line that cannot be written to
//! stderr is dropped, and the command continues.

use std::fmt::Arguments;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether only errors are written.
static QUIET: AtomicBool = AtomicBool::new(false);

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

/// A line on stderr, formatted as by `format!`.
macro_rules! say {
    ($($part:tt)*) => {
        $crate::cli::messages::write(format_args!("{}\n", format_args!($($part)*)))
    };
}
pub(crate) use say;

/// A line on stderr that is written whatever the user wants to hear, of an error.
macro_rules! complain {
    ($($part:tt)*) => {
        $crate::cli::messages::write_always(format_args!("{}\n", format_args!($($part)*)))
    };
}
pub(crate) use complain;
