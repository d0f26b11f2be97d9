//! A handle that ends what runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::error::{Error, Result};

/// Ends what was given it: an opening ([`Options::cancel`](crate::engine::Options::cancel)), or what a session does
/// ([`Session::cancel_with`](crate::engine::Session::cancel_with)). Clones are one handle; any thread may use it.
#[derive(Debug, Clone, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// A handle that has ended nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends what runs and what begins later, until [`Cancel::reset`]: at the next weight of an opening, or the next batch of a
    /// prompt, an image or a text.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Lets what begins from now on run.
    pub fn reset(&self) {
        self.0.store(false, Ordering::SeqCst);
    }

    /// Whether it has ended something.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    /// Whether there is a handle that has ended something.
    pub(crate) fn has_ended(cancel: &Option<Cancel>) -> bool {
        cancel.as_ref().is_some_and(Cancel::is_cancelled)
    }

    /// [`Error::Cancelled`] for `what` once it is.
    pub(crate) fn check(&self, what: &str) -> Result<()> {
        if self.is_cancelled() { Err(Error::Cancelled(what.to_owned())) } else { Ok(()) }
    }
}

/// Handles are equal if they are one.
impl PartialEq for Cancel {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Cancel {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clones_are_one_handle() {
        let (a, b) = (Cancel::new(), Cancel::new());
        let clone = a.clone();
        assert!(a == clone && a != b && a.check("x").is_ok());
        clone.cancel();
        assert!(matches!(a.check("loading"), Err(Error::Cancelled(what)) if what == "loading"));
        a.reset();
        assert!(!clone.is_cancelled());
    }
}
