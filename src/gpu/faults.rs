//! Errors in place of what a device does, for tests: devices that fail on demand are rare.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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

/// No fault is waited for.
const NEVER: u64 = u64::MAX;

/// Whether, and when, something goes wrong on a device. Clones are of the same device.
#[derive(Debug, Clone)]
pub struct Faults(Arc<State>);

#[derive(Debug)]
struct State {
    /// Groups of commands to come before the fault.
    left: AtomicU64,
    kind: AtomicU64,
}

impl Default for Faults {
    fn default() -> Self {
        Faults(Arc::new(State { left: AtomicU64::new(NEVER), kind: AtomicU64::new(0) }))
    }
}

impl Faults {
    const KINDS: [Fault; 3] = [Fault::OutOfMemory, Fault::Refused, Fault::Panic];

    /// Lets one group of commands fail, after so many others: what is made, written, run or read back together is a group.
    pub fn inject(&self, fault: Fault, after: u64) {
        let kind = Self::KINDS.iter().position(|&kind| kind == fault).unwrap_or(0);
        self.0.kind.store(kind as u64, Ordering::SeqCst);
        self.0.left.store(after, Ordering::SeqCst);
    }

    /// Whether the fault has not come; it is taken back.
    pub fn take_back(&self) -> bool {
        self.0.left.swap(NEVER, Ordering::SeqCst) != NEVER
    }

    /// The fault of the next group of commands, if it is its turn.
    pub(super) fn next(&self) -> Option<Fault> {
        let count = |left: u64| (left != NEVER).then(|| left.checked_sub(1).unwrap_or(NEVER));
        let before = self.0.left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, count);
        (before == Ok(0)).then(|| Self::KINDS[self.0.kind.load(Ordering::SeqCst) as usize])
    }
}
