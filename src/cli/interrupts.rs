//! Ctrl-C in commands that have something to keep: the first one ends them at their next step, the second one at once.

use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use signal_hook::{consts, flag};
use ternion::{Error, Result};

use crate::cli::INTERRUPTED;

/// Whether Ctrl-C came; nothing before [`watch`].
static CAME: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on the first Ctrl-C makes [`came`] true, and the second one ends the program.
///
/// # Errors
/// [`Error::Io`].
pub fn watch() -> Result<()> {
    if CAME.get().is_some() {
        return Ok(());
    }
    set(CAME.get_or_init(Arc::default))
}

/// From here on Ctrl-C sets a flag, and ends the program where it is set already.
///
/// # Errors
/// [`Error::Io`].
pub fn set(came: &Arc<AtomicBool>) -> Result<()> {
    flag::register_conditional_shutdown(consts::SIGINT, INTERRUPTED.into(), came.clone())
        .and_then(|_| flag::register(consts::SIGINT, came.clone()))
        .map(drop)
        .map_err(Error::io("Ctrl-C"))
}

/// Whether Ctrl-C came since [`watch`].
pub fn came() -> bool {
    CAME.get().is_some_and(|came| came.load(Ordering::SeqCst))
}
