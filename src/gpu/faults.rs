//! Errors in place of what a device does, for tests: devices that fail on demand are rare.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The device has no memory: commands are not run.
    OutOfMemory,
    /// The device refuses commands, which are not run.
    Refused,
    /// The thread that gives the commands panics.
    Panic,
}

/// Whether, and when, something goes wrong on a device. Clones are of the same device.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Option<Waiting>>>);

/// A fault to come.
#[derive(Debug)]
struct Waiting {
    fault: Fault,
    /// Groups of commands to come before it.
    left: u64,
}

impl Faults {
    /// Lets one group of commands fail, after so many others: what is made, written, run or read back together is a group.
    pub fn inject(&self, fault: Fault, after: u64) {
        *self.waiting() = Some(Waiting { fault, left: after });
    }

    /// Whether the fault has not come; it is taken back.
    pub fn take_back(&self) -> bool {
        self.waiting().take().is_some()
    }

    /// The fault of the next group of commands, if it is its turn.
    pub(super) fn next(&self) -> Option<Fault> {
        let mut waiting = self.waiting();
        match waiting.as_mut() {
            Some(Waiting { left: 0, .. }) => waiting.take().map(|waiting| waiting.fault),
            Some(waiting) => {
                waiting.left -= 1;
                None
            }
            None => None,
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
