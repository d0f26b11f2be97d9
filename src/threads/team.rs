//! How the tasks of a call come to the threads of a team, and how those sleep and wake.
//!
//! What it knows of threads is in `sync`, in whose place `tests/schedules.rs` has one that tries every order of events.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::PoisonError;

use super::sync::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Mutex, Ordering, fence, park, spin, spin_for_long};

type Call = *mut &'static (dyn Fn(usize) + Sync);

/// What the threads of a team share.
#[derive(Debug)]
pub struct Team {
    /// [`Next`] in one word: a worker that comes late must not take a task of one call and run it for another.
    next: AtomicU64,
    /// Tasks that finished.
    finished: AtomicUsize,
    /// What a task does; valid while a task of its call has not finished.
    call: AtomicPtr<&'static (dyn Fn(usize) + Sync)>,
    sleeping: AtomicUsize,
    closed: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// Where a call is.
#[derive(Clone, Copy)]
struct Next {
    /// Number of the call, 32 bits.
    call: u32,
    /// Its tasks.
    tasks: u16,
    /// The first task that nobody has taken.
    task: u16,
}

impl Next {
    fn pack(self) -> u64 {
        u64::from(self.call) << 32 | u64::from(self.tasks) << 16 | u64::from(self.task)
    }

    fn unpack(word: u64) -> Self {
        Next { call: (word >> 32) as u32, tasks: (word >> 16) as u16, task: word as u16 }
    }
}

impl Team {
    /// A team without a call.
    pub fn new() -> Self {
        Team {
            next: AtomicU64::new(0),
            finished: AtomicUsize::new(0),
            call: AtomicPtr::new(ptr::null_mut()),
            sleeping: AtomicUsize::new(0),
            closed: AtomicBool::new(false),
            panic: Mutex::new(None),
        }
    }

    /// Lets all threads of the team run tasks, and returns when all finished, with the first panic of one. One call at a time;
    /// `wake` wakes the workers.
    pub fn call(&self, tasks: u16, task: &(dyn Fn(usize) + Sync), wake: impl FnOnce()) -> Option<Box<dyn Any + Send>> {
        // SAFETY: only the lifetime changes; the pointer is used while a task has not ended, and this call ends later.
        let mut task: &'static (dyn Fn(usize) + Sync) = unsafe { std::mem::transmute(task) };
        let call = Next::unpack(self.next.load(Ordering::Relaxed)).call.wrapping_add(1);
        self.call.store(&mut task, Ordering::Relaxed);
        self.finished.store(0, Ordering::Relaxed);
        self.next.store(Next { call, tasks, task: 0 }.pack(), Ordering::Release);
        // As in front of a worker's sleep: one of the two sees what the other wrote.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) > 0 {
            wake();
        }
        self.take_tasks(call);
        spin_for_long(|| self.finished.load(Ordering::Acquire) == usize::from(tasks));
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the workers, once they wake.
    pub fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
    }

    /// Runs tasks of call number `call` until none is left.
    fn take_tasks(&self, call: u32) {
        loop {
            let word = self.next.load(Ordering::Acquire);
            let next = Next::unpack(word);
            if next.call != call || next.task == next.tasks {
                return;
            }
            let task: Call = self.call.load(Ordering::Relaxed);
            if self.next.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: the task was not taken before, so the call has not finished: the pointer is this call's, and its
            // caller waits for this task.
            let run = unsafe { *task };
            if let Err(panic) = catch_unwind(AssertUnwindSafe(|| run(usize::from(next.task)))) {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                match *first {
                    None => *first = Some(panic),
                    // Dropping it might panic in turn, and unwind this thread while others still run the call's tasks.
                    Some(_) => std::mem::forget(panic),
                }
            }
            self.finished.fetch_add(1, Ordering::Release);
        }
    }

    fn call_number(&self) -> u32 {
        Next::unpack(self.next.load(Ordering::Acquire)).call
    }

    /// A worker's life.
    pub fn work(&self) {
        let mut seen = 0;
        while !self.closed.load(Ordering::SeqCst) {
            let call = self.call_number();
            if call != seen {
                seen = call;
                self.take_tasks(call);
                continue;
            }
            if spin(|| self.call_number() != seen) {
                continue;
            }
            self.sleeping.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.call_number() == seen && !self.closed.load(Ordering::SeqCst) {
                park();
            }
            self.sleeping.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
