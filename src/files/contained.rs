//! Panics of other libraries, which crafted files bring about, as errors.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Whether a panic of this thread is about to become an [`crate::Error`]: a program's panic hook need not report it.
pub fn panic_is_contained() -> bool {
    CONTAINED.get()
}

/// Runs `work`, code of another library; none if it panics.
pub(crate) fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    let before = CONTAINED.replace(true);
    let done = catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(before);
    done.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_none_and_what_runs_later_is_not_contained() {
        assert_eq!(contained(panic_is_contained), Some(true));
        assert_eq!(contained(|| contained(|| panic!("as a test asks")).map(|(): ()| 1)), Some(None));
        assert!(!panic_is_contained());
    }
}
