//! How the tasks of a call come to the threads of a team, and how those sleep and wake.
//!
//! What it knows of threads is in `sync`, in whose place `tests/schedules.rs` has one that tries every order of events.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr;
use std::sync::PoisonError;

use super::sync::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Mutex, Ordering, fence, park, spin, spin_for_long};

/// What the threads of a team share. What a worker reads on its way to a task is in one line of its own: where two cores have no
/// cache in common, a line that the other has just written takes longer than a small task.
#[derive(Debug)]
pub struct Team {
    call: Line<Call>,
    /// Tasks that finished.
    finished: Line<AtomicUsize>,
    /// Workers that sleep, or are about to.
    sleeping: Line<AtomicUsize>,
    closed: Line<AtomicBool>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
}

/// A call, and where it is.
#[derive(Debug)]
struct Call {
    /// [`Next`] in one word: a worker that comes late must not take a task of one call and run it for another.
    next: AtomicU64,
    /// What all tasks borrow, and the function that runs one, [`RunTask`]; valid while a task of the call has not finished.
    task: AtomicPtr<()>,
    run: AtomicPtr<()>,
}

/// Runs a task with what all tasks of its call borrow.
type RunTask = unsafe fn(*const (), usize);

/// Alone in its cache lines, of which processors fetch two together.
#[derive(Debug)]
#[repr(align(128))]
struct Line<T>(T);

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
        let none = || AtomicPtr::new(ptr::null_mut());
        Team {
            call: Line(Call { next: AtomicU64::new(0), task: none(), run: none() }),
            finished: Line(AtomicUsize::new(0)),
            sleeping: Line(AtomicUsize::new(0)),
            closed: Line(AtomicBool::new(false)),
            panic: Mutex::new(None),
        }
    }

    /// Lets all threads of the team run tasks, and returns when all finished, with the first panic of one. One call at a time;
    /// `wake` wakes the workers.
    pub fn call<T: Fn(usize) + Sync>(&self, tasks: u16, task: &T, wake: impl FnOnce()) -> Option<Box<dyn Any + Send>> {
        let run: RunTask = run_task::<T>;
        let Call { next, task: at, run: with } = &self.call.0;
        let call = Next::unpack(next.load(Ordering::Relaxed)).call.wrapping_add(1);
        at.store(ptr::from_ref(task).cast_mut().cast(), Ordering::Relaxed);
        with.store(run as *mut (), Ordering::Relaxed);
        self.finished.0.store(0, Ordering::Relaxed);
        next.store(Next { call, tasks, task: 0 }.pack(), Ordering::Release);
        // As in front of a worker's sleep: one of the two sees what the other wrote.
        fence(Ordering::SeqCst);
        if self.sleeping.0.load(Ordering::Relaxed) > 0 {
            wake();
        }
        self.take_tasks(call);
        spin_for_long(|| self.finished.0.load(Ordering::Acquire) == usize::from(tasks));
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Ends the workers, once they wake.
    pub fn close(&self) {
        self.closed.0.store(true, Ordering::SeqCst);
    }

    /// Runs tasks of call number `call` until none is left.
    fn take_tasks(&self, call: u32) {
        let Call { next: all, task, run } = &self.call.0;
        loop {
            let word = all.load(Ordering::Acquire);
            let next = Next::unpack(word);
            if next.call != call || next.task == next.tasks {
                return;
            }
            let (task, run) = (task.load(Ordering::Relaxed), run.load(Ordering::Relaxed));
            if all.compare_exchange_weak(word, word + 1, Ordering::AcqRel, Ordering::Relaxed).is_err() {
                continue;
            }
            // SAFETY: the task was not taken before, so the call has not finished: both pointers are this call's, and its caller
            // waits for this task.
            let done = AssertUnwindSafe(|| unsafe {
                let run = std::mem::transmute::<*mut (), RunTask>(run);
                run(task, usize::from(next.task));
            });
            if let Err(panic) = catch_unwind(done) {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                match *first {
                    None => *first = Some(panic),
                    // Dropping it might panic in turn, and unwind this thread while others still run the call's tasks.
                    Some(_) => std::mem::forget(panic),
                }
            }
            self.finished.0.fetch_add(1, Ordering::Release);
        }
    }

    fn call_number(&self) -> u32 {
        Next::unpack(self.call.0.next.load(Ordering::Acquire)).call
    }

    /// A worker's life.
    pub fn work(&self) {
        let mut seen = 0;
        while !self.closed.0.load(Ordering::SeqCst) {
            let call = self.call_number();
            if call != seen {
                seen = call;
                self.take_tasks(call);
                continue;
            }
            if spin(|| self.call_number() != seen) {
                continue;
            }
            self.sleeping.0.fetch_add(1, Ordering::Relaxed);
            fence(Ordering::SeqCst);
            if self.call_number() == seen && !self.closed.0.load(Ordering::SeqCst) {
                park();
            }
            self.sleeping.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// [`RunTask`] of tasks of one type.
///
/// # Safety
/// `task` is a `T` that nobody writes.
unsafe fn run_task<T: Fn(usize)>(task: *const (), i: usize) {
    // SAFETY: by the contract.
    unsafe { (*task.cast::<T>())(i) };
}
