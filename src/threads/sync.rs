//! The threads that [`super::team`] knows: the system's.

use std::time::{Duration, Instant};

pub use std::sync::Mutex;
pub use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
pub use std::thread::park;

/// How long a worker spins for the next call before it sleeps: longer than what lies between the ops of a step and
/// between two steps, short enough to cost nobody anything.
pub const SPIN: Duration = Duration::from_micros(200);
/// How long a thread spins before it lets others of its processor run as well. Where other programs run, the system puts two of
/// the team on one processor, and who spins there keeps the other one from the task that it waits for.
const ALONE: Duration = Duration::from_micros(20);
/// Spins between two looks at the clock.
const SPINS: usize = 64;

/// Waits until something is so, for [`SPIN`] at most; whether it was.
pub fn spin(is_so: impl Fn() -> bool) -> bool {
    spin_until(is_so, SPIN)
}

/// Waits until something is so.
pub fn spin_for_long(is_so: impl Fn() -> bool) {
    spin_until(is_so, Duration::MAX);
}

/// Waits until something is so, for some time at most; whether it was.
fn spin_until(is_so: impl Fn() -> bool, at_most: Duration) -> bool {
    let spin = || {
        (0..SPINS).any(|_| {
            let so = is_so();
            if !so {
                std::hint::spin_loop();
            }
            so
        })
    };
    if spin() {
        return true;
    }
    let start = Instant::now();
    while !spin() {
        let spun = start.elapsed();
        if spun > at_most {
            return false;
        }
        if spun > ALONE {
            std::thread::yield_now();
        }
    }
    true
}
