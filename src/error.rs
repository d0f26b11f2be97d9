//! The one error type: what is wrong, with which object, what was expected and found, and what to do.

use std::path::PathBuf;
use std::sync::Arc;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What is wrong with a file, in a few words; the cause says it as the system does.
fn io_problem(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::NotFound => "there is no such file or folder",
        std::io::ErrorKind::PermissionDenied => "may not be read or written",
        _ => "cannot be read or written",
    }
}

/// Every error that files, devices and callers can cause. The engine stays usable, except after an [`Error::DeviceLost`].
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be opened, read or written.
    #[error("{path}: {problem}", path = path.display(), problem = io_problem(source))]
    Io {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        source: Arc<std::io::Error>,
    },
    /// A file, or a named part of it, is not what it should be.
    #[error("{object}: {problem}")]
    Format {
        /// The file, with the offset, tensor or key where it is known.
        object: String,
        /// What was expected, what was found, and what to do.
        problem: String,
    },
    /// A tensor or an op's input has another shape or dtype than needed.
    #[error("{object} is {found}, expected {expected}")]
    Shape {
        /// The tensor or the op.
        object: String,
        /// The shape and dtype needed.
        expected: String,
        /// The shape and dtype found.
        found: String,
    },
    /// Tensors that the model needs and the checkpoint lacks, all of them; the message names the first.
    #[error("{file}: {n} tensors are missing: {list}", n = names.len(), list = first(names))]
    MissingTensors {
        /// The checkpoint.
        file: String,
        /// Their names.
        names: Vec<String>,
    },
    /// A key of a model's configuration is missing, of the wrong type or out of bounds.
    #[error("{key}: {problem}")]
    Config {
        /// The key, with its path in the file.
        key: String,
        /// What was expected and found.
        problem: String,
    },
    /// Valid, but not something that this engine runs.
    #[error("{object} is not supported: {problem}")]
    Unsupported {
        /// What is not supported.
        object: String,
        /// What is supported instead.
        problem: String,
    },
    /// A value given by the caller is out of range.
    #[error("{name}: {problem}")]
    Argument {
        /// The option or parameter.
        name: String,
        /// The value found and the range allowed.
        problem: String,
    },
    /// As many sessions are open as the engine was opened for; nothing is evicted.
    #[error("{open} sessions are open, {max} at most; drop one, or open the engine with more `sessions`")]
    SessionsFull {
        /// Sessions that are open.
        open: usize,
        /// Sessions that can be.
        max: usize,
    },
    /// Tokens do not fit in the context of a session.
    #[error(
        "{what} needs {needed} tokens, a context of {available} is available; shorten it, or open the engine with a larger context"
    )]
    ContextFull {
        /// What does not fit.
        what: String,
        /// The context that it needs, in tokens.
        needed: u64,
        /// The context that the session has, in tokens.
        available: u64,
    },
    /// There is no memory for something, of the system or of a device.
    #[error("{what} needs {needed} bytes of memory, {} on {device}; use a smaller context or fewer sessions", some(*available))]
    OutOfMemory {
        /// What does not fit.
        what: String,
        /// Bytes that it needs.
        needed: u64,
        /// Bytes that it can have; none where the system does not tell.
        available: Option<u64>,
        /// Whose memory it is.
        device: String,
    },
    /// A file, a text or a step is larger than what is accepted.
    #[error("{what} needs {wanted}, {available} available; {advice}")]
    Limit {
        /// What is too large.
        what: String,
        /// How much it needs.
        wanted: String,
        /// How much there may be.
        available: String,
        /// What to do.
        advice: String,
    },
    /// The caller ended it ([`crate::Cancel`], or a progress callback that breaks).
    #[error("{0} was cancelled")]
    Cancelled(String),
    /// The device is gone, or what a step left on it is not known. Everything else of the engine fails with this too: open
    /// it again.
    #[error("device {device}: {problem}; open the engine again")]
    DeviceLost {
        /// The adapter's name.
        device: String,
        /// What happened.
        problem: String,
    },
    /// A graphics device is absent, or refused a command.
    #[error("device {device}: {problem}")]
    Device {
        /// The adapter's name, or what was asked for.
        device: String,
        /// What happened, and what to do.
        problem: String,
    },
    /// The logits of a step hold NaN or infinity, so no token can be chosen.
    #[error("{0}: the logits are not finite; the weights or the input are broken")]
    NonFiniteLogits(String),
    /// A model was recorded with operands that do not fit; a mistake in a model definition.
    #[error("{op} at {at}: {source}")]
    Plan {
        /// The op's name.
        op: &'static str,
        /// The file and line that recorded it.
        at: String,
        /// What does not fit.
        source: Box<Error>,
    },
}

/// Bytes that are available, as far as it is known.
fn some(available: Option<u64>) -> String {
    available.map_or_else(|| "less is available".into(), |bytes| format!("{bytes} are available"))
}

/// Maximum number of names that a message lists.
const MAX_LISTED: usize = 50;

/// The first of some names, and how many there are besides.
fn first(names: &[String]) -> String {
    let list = names.iter().take(MAX_LISTED).map(String::as_str).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MAX_LISTED) {
        0 => list,
        more => format!("{list} and {more} more"),
    }
}

impl Error {
    /// [`Error::Io`] for `path`, as a closure for `map_err`.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Error::Io { path, source: source.into() }
    }

    /// [`Error::Format`].
    pub fn format(object: impl ToString, problem: impl ToString) -> Self {
        Error::Format { object: object.to_string(), problem: problem.to_string() }
    }

    /// [`Error::Argument`].
    pub fn argument(name: impl ToString, problem: impl ToString) -> Self {
        Error::Argument { name: name.to_string(), problem: problem.to_string() }
    }

    /// [`Error::Config`].
    pub fn config(key: impl ToString, problem: impl ToString) -> Self {
        Error::Config { key: key.to_string(), problem: problem.to_string() }
    }

    /// [`Error::OutOfMemory`] for `bytes` that the system does not give.
    pub fn memory(what: impl ToString, bytes: usize) -> Self {
        let device = "this system".into();
        Error::OutOfMemory { what: what.to_string(), needed: bytes as u64, available: None, device }
    }

    /// [`Error::Shape`], from anything that prints.
    pub fn shape(object: impl ToString, expected: impl ToString, found: impl ToString) -> Self {
        Error::Shape { object: object.to_string(), expected: expected.to_string(), found: found.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_lists_some_of_the_missing_tensors() {
        let names = |n: usize| (0..n).map(|i| format!("layers.{i}.weight")).collect();
        let message = |n| Error::MissingTensors { file: "model".into(), names: names(n) }.to_string();
        assert!(message(50).ends_with(", layers.49.weight"), "{}", message(50));
        assert!(message(60_000).ends_with(", layers.49.weight and 59950 more"), "{}", message(60_000));
        assert!(message(60_000).starts_with("model: 60000 tensors are missing: layers.0.weight, "));
    }
}
