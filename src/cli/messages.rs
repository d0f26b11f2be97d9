//! Lines for people on stderr: notes, warnings, statistics, errors.
//!
//! Stderr may be closed, or its disk full. The result of a command goes to stdout, so a line that cannot be written to
//! stderr is dropped, and the command continues.

use std::fmt::Arguments;
use std::io::{self, Write};

/// Writes to stderr if that can be done.
pub fn write(text: Arguments) {
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
