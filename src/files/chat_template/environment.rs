//! What a chat template finds around it: the environment of `transformers`, without its file access, and with bounds.

use std::fmt;
use std::time::SystemTime;

use jiff::tz::TimeZone;
use jiff::{Timestamp, fmt::strtime};
use minijinja::{Environment, Error, ErrorKind};

use crate::files::chat_template::bounds::{RenderBudget, bind};
use crate::files::chat_template::python_json::to_json;

/// An environment for one rendering, which sees the time `now` and may take `steps`. Numbers, truth values and none print as in Python; texts in a list or
/// a map that is printed whole stand in double quotes, where Python has single ones.
pub fn new(now: SystemTime, steps: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(steps));
    environment.remove_global("debug");
    bind(&mut environment, &RenderBudget::new());
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |words: String| Err::<(), _>(Refusal(words).into_error()));
    environment.add_function("strftime_now", move |format: &str| local_time(now, format));
    environment
}

/// What a template says with `raise_exception`.
#[derive(Debug)]
pub struct Refusal(String);

impl Refusal {
    fn into_error(self) -> Error {
        Error::new(ErrorKind::InvalidOperation, self.0.clone()).with_source(self)
    }

    /// The words, if this is what stopped a rendering.
    pub fn of(error: &Error) -> Option<&str> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            if let Some(Refusal(words)) = error.downcast_ref() {
                return Some(words);
            }
            cause = error.source();
        }
        None
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Refusal {}

/// The time in the system's zone, by a format of C's `strftime`.
fn local_time(now: SystemTime, format: &str) -> Result<String, Error> {
    let problem = |e: jiff::Error| Error::new(ErrorKind::InvalidOperation, format!("strftime_now({format:?}): {e}"));
    let time = Timestamp::try_from(now).map_err(problem)?.to_zoned(TimeZone::system());
    strtime::format(format, &time).map_err(problem)
}
