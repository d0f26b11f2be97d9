//! The threads of the process: for loading, for pictures, and for the tasks of one op, which last microseconds: between ops its
//! workers spin instead of sleeping, since waking a thread takes longer than an op of a decode step.
//!
//! In reading order: `sync`, `team` (how tasks come to threads), `cores` (how many threads), this file.

mod cores;
mod sync;
mod team;

use std::ops::Range;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};

use smallvec::SmallVec;

use crate::alloc::COPY_CHUNK;
use team::Team;

/// Most tasks of one call.
const MAX_TASKS: usize = u16::MAX as usize;

/// The number of a task, and of the one that its thread will most likely take next.
pub type Task = (usize, Option<usize>);

/// How many tasks of a list have been taken, in cache lines without anything else that threads read.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Taken(AtomicUsize);

impl Taken {
    /// The next of the list's tasks.
    fn next(&self, list: Range<usize>) -> Option<usize> {
        // Looked at first: where there are many lists, most are empty in the end.
        if self.0.load(Ordering::Relaxed) >= list.len() {
            return None;
        }
        Some(list.start + self.0.fetch_add(1, Ordering::Relaxed)).filter(|&task| task < list.end)
    }
}

/// The calling thread and its workers. Calls from several threads at once, and calls inside of tasks, are run by their
/// own thread alone.
#[derive(Debug)]
pub struct ThreadPool {
    team: Arc<Team>,
    workers: Vec<JoinHandle<()>>,
    calling: Mutex<()>,
}

impl ThreadPool {
    /// A team of `count` threads, the calling one among them.
    pub fn new(count: usize) -> Self {
        let team = Arc::new(Team::new());
        let worker = |i: usize| {
            let team = team.clone();
            // A system that gives no more threads gets a smaller team.
            thread::Builder::new().name(format!("ternion {i}")).spawn(move || team.work()).ok()
        };
        let workers = (1..count).map_while(worker).collect();
        ThreadPool { team, workers, calling: Mutex::new(()) }
    }

    /// A team of the calling thread alone.
    pub fn one() -> Self {
        Self::new(1)
    }

    /// A team with a thread for each physical core that this process may use, of those with most performance where the system
    /// tells which they are.
    pub fn all() -> Self {
        Self::new(cores::count())
    }

    /// Threads of the team.
    pub fn count(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task(i)` for each `i` below `tasks`, in any order, on any thread of the team, and returns when all finished.
    ///
    /// # Panics
    /// With a task's panic.
    pub fn run(&self, tasks: usize, task: impl Fn(usize) + Sync) {
        if tasks <= MAX_TASKS {
            return self.call(tasks, &task);
        }
        let per = tasks.div_ceil(MAX_TASKS);
        self.call(tasks.div_ceil(per), &|i| (i * per..tasks.min((i + 1) * per)).for_each(&task));
    }

    /// Up to [`MAX_TASKS`] tasks.
    fn call(&self, tasks: usize, task: &(impl Fn(usize) + Sync)) {
        let alone = tasks < 2 || self.workers.is_empty();
        let Some(turn) = (if alone { None } else { self.calling.try_lock().ok() }) else {
            return (0..tasks).for_each(task);
        };
        let wake = || self.workers.iter().for_each(|worker| worker.thread().unpark());
        // Before the turn ends: the panic of the next call is not this one's.
        let panic = self.team.call(tasks as u16, task, wake);
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// [`ThreadPool::run`] where a task also learns which one its thread will most likely take next, whose data it may fetch
    /// ahead. A thread takes tasks of neighbouring numbers as long as it can.
    pub fn run_ahead(&self, tasks: usize, task: impl Fn(usize, Option<usize>) + Sync) {
        let threads = self.count();
        let lists: Vec<usize> = (0..=threads).map(|i| tasks * i / threads).collect();
        self.run_each(&lists, |mine| mine.for_each(|(i, next)| task(i, next)));
    }

    /// [`ThreadPool::run_ahead`] where a thread takes its tasks from an iterator: `each` may make what all of them need, once for
    /// each thread. It has at least one task, and takes all.
    ///
    /// Tasks are in lists, of which `lists` has the first task of each, and the end. A thread takes those of a list of its own in
    /// their order, and then what others have left of theirs: a number that all threads count with costs more than a small task
    /// where two cores have no cache in common.
    pub fn run_each(&self, lists: &[usize], each: impl Fn(&mut dyn Iterator<Item = Task>) + Sync) {
        let count = lists.len().saturating_sub(1);
        let taken: SmallVec<[Taken; 8]> = (0..count).map(|_| Taken::default()).collect();
        let tasks = lists.last().map_or(0, |end| end - lists[0]);
        // What a thread reads on its way to its first task lies together.
        self.run(tasks.min(self.count()), move |own| {
            let take = |list: usize| taken[list].next(lists[list]..lists[list + 1]);
            let mut left = (own..count).chain(0..own.min(count));
            let (mut list, mut next) = (left.next(), None);
            let mut mine = std::iter::from_fn(|| {
                let task = loop {
                    match next.take().or_else(|| take(list?)) {
                        Some(task) => break task,
                        None => list = Some(left.next()?),
                    }
                };
                if list == Some(own) {
                    // Taken before this one runs: one of another thread's list would wait for it.
                    next = take(own);
                    return Some((task, next));
                }
                Some((task, Some(task + 1).filter(|&likely| list.is_some_and(|list| likely < lists[list + 1]))))
            })
            .peekable();
            if mine.peek().is_some() {
                each(&mut mine);
            }
        });
    }

    /// What `task` makes of each item, in their order.
    ///
    /// # Panics
    /// With a task's panic.
    pub fn map<T: Send, U: Send>(&self, items: impl IntoIterator<Item = T>, task: impl Fn(T) -> U + Sync) -> Vec<U> {
        let items: Vec<Mutex<(Option<T>, Option<U>)>> =
            items.into_iter().map(|i| Mutex::new((Some(i), None))).collect();
        let of = |cell: &Mutex<(Option<T>, Option<U>)>| cell.lock().unwrap_or_else(PoisonError::into_inner).0.take();
        self.run(items.len(), |i| {
            let made = of(&items[i]).map(&task);
            items[i].lock().unwrap_or_else(PoisonError::into_inner).1 = made;
        });
        items.into_iter().filter_map(|cell| cell.into_inner().unwrap_or_else(PoisonError::into_inner).1).collect()
    }

    /// Copies words into as many others.
    pub fn copy(&self, to: &mut [u32], from: &[u32]) {
        self.map(to.chunks_mut(COPY_CHUNK).zip(from.chunks(COPY_CHUNK)), |(to, from)| to.copy_from_slice(from));
    }

    /// [`ThreadPool::run`] over the ranges that cut `0..len` into pieces of `grain`, the last one shorter.
    pub fn chunks(&self, len: usize, grain: usize, task: impl Fn(Range<usize>) + Sync) {
        let grain = grain.max(1);
        self.run(len.div_ceil(grain), |i| task(i * grain..((i + 1) * grain).min(len)));
    }
}

/// The pool of the process.
static SHARED: OnceLock<Arc<ThreadPool>> = OnceLock::new();

/// The pool of the process: it loads weights and prepares pictures, and runs the ops of CPU devices whose number of
/// threads is its own. Made by the first call of this or of [`size_pool`].
pub fn shared() -> Arc<ThreadPool> {
    SHARED.get_or_init(|| Arc::new(ThreadPool::all())).clone()
}

/// Gives the pool of the process `count` threads, the caller's among them (default: as [`ThreadPool::all`]), or as many as
/// the system gives. A pool that is there already stays as it is.
pub fn size_pool(count: Option<usize>) {
    SHARED.get_or_init(|| Arc::new(count.map_or_else(ThreadPool::all, ThreadPool::new)));
}

/// A pool of `count` threads: that of the process if it has as many.
pub fn pool_of(count: usize) -> Arc<ThreadPool> {
    let shared = shared();
    if shared.count() == count { shared } else { Arc::new(ThreadPool::new(count)) }
}

/// Calls both functions, the second one on a thread of its own if the process may have more than one and the system gives
/// it.
///
/// # Panics
/// With a panic of either.
pub fn join<A, B: Send>(first: impl FnOnce() -> A, second: impl Fn() -> B + Sync) -> (A, B) {
    if shared().count() == 1 {
        return (first(), second());
    }
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("ternion join".into()).spawn_scoped(scope, &second);
        let first = first();
        let second = match thread {
            Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
            Err(_) => second(),
        };
        (first, second)
    })
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.team.close();
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            let _ = worker.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::time::Duration;

    use super::sync::SPIN;
    use super::*;

    fn counts(threads: &ThreadPool, tasks: usize) -> Vec<usize> {
        let all: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
        threads.run(tasks, |i| {
            all[i].fetch_add(1, Ordering::Relaxed);
        });
        all.into_iter().map(AtomicUsize::into_inner).collect()
    }

    #[test]
    fn every_task_runs_once() {
        for count in [1, 2, 3, 8] {
            let threads = ThreadPool::new(count);
            for round in 0..2000 {
                let tasks = round % 7;
                assert_eq!(counts(&threads, tasks), vec![1; tasks], "round {round} of {count} threads");
            }
            thread::sleep(2 * SPIN);
            assert_eq!(counts(&threads, 100), [1; 100], "after a sleep");
            assert_eq!(counts(&threads, 3 * MAX_TASKS + 5), vec![1; 3 * MAX_TASKS + 5], "more than a call has");
        }
    }

    #[test]
    fn calls_may_nest_and_come_from_several_threads() {
        let threads = ThreadPool::new(3);
        let total = AtomicUsize::new(0);
        thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        threads.run(4, |_| {
                            threads.run(3, |_| {
                                let _ = total.fetch_add(1, Ordering::Relaxed);
                            })
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 200 * 4 * 3);
    }

    #[test]
    fn what_becomes_of_items_is_in_their_order() {
        for count in [1, 3] {
            let threads = ThreadPool::new(count);
            let mut to = [0; 100];
            let firsts = threads.map(to.chunks_mut(7).enumerate(), |(i, piece)| {
                piece.fill(i);
                piece.len()
            });
            assert_eq!(firsts, [[7; 14].as_slice(), &[2]].concat());
            assert!(to.iter().enumerate().all(|(i, &piece)| piece == i / 7), "{to:?}");
            assert!(threads.map(0..0, |i: usize| i).is_empty());
        }
    }

    #[test]
    fn both_functions_of_a_join_run_and_either_may_panic() {
        assert_eq!(join(|| 1, || 2), (1, 2));
        let panics = |call: fn() -> (i32, i32)| catch_unwind(call).is_err();
        assert!(panics(|| join(|| panic!("first"), || 2)) && panics(|| join(|| 1, || panic!("second"))));
    }

    #[test]
    fn devices_of_as_many_threads_share_the_pool_of_the_process() {
        let n = shared().count();
        assert!(Arc::ptr_eq(&pool_of(n), &shared()));
        let other = pool_of(n + 1);
        assert!(!Arc::ptr_eq(&other, &shared()) && other.count() == n + 1);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_stays_usable() {
        let threads = ThreadPool::new(2);
        for bad in 0..4 {
            let call = || threads.run(4, |i| assert_ne!(i, bad));
            assert!(catch_unwind(AssertUnwindSafe(call)).is_err());
            assert_eq!(counts(&threads, 9), [1; 9]);
        }
    }

    /// A payload that panics when it is dropped.
    struct Bad;

    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("a payload was dropped");
        }
    }

    #[test]
    fn no_payload_of_a_task_is_dropped_inside_of_the_team() {
        let threads = ThreadPool::new(2);
        let payload = catch_unwind(AssertUnwindSafe(|| threads.run(4, |_| std::panic::panic_any(Bad)))).unwrap_err();
        assert!(payload.is::<Bad>());
        std::mem::forget(payload);
        assert_eq!(counts(&threads, 9), [1; 9]);
    }

    #[test]
    fn each_of_two_callers_gets_its_own_panic() {
        let threads = ThreadPool::new(2);
        thread::scope(|s| {
            for _ in 0..2 {
                s.spawn(|| {
                    for round in 0..2000 {
                        let call = || threads.run(2, |i| assert!(i > 0 || round % 2 > 0));
                        assert_eq!(catch_unwind(AssertUnwindSafe(call)).is_err(), round % 2 == 0, "round {round}");
                    }
                });
            }
        });
    }

    #[test]
    fn a_thread_alone_takes_the_task_that_it_was_told() {
        for tasks in [0, 1, 5] {
            let told = Mutex::new(Vec::new());
            ThreadPool::one().run_ahead(tasks, |i, next| told.lock().unwrap().push((i, next)));
            let expected: Vec<Task> = (0..tasks).map(|i| (i, Some(i + 1).filter(|&next| next < tasks))).collect();
            assert_eq!(told.into_inner().unwrap(), expected);
        }
    }

    #[test]
    fn tasks_of_lists_run_once_and_each_names_a_later_one_of_its_list() {
        for lists in [&[][..], &[0], &[0, 7], &[0, 0, 1], &[0, 5, 5, 30], &[3, 4, 90, 91, 100]] {
            for (count, slow) in [(1, false), (2, false), (2, true), (3, true)] {
                let ran = Mutex::new(Vec::new());
                ThreadPool::new(count).run_each(lists, |mine| {
                    for (i, next) in mine {
                        // A thread that is slowed down leaves its tasks to others.
                        if slow && i == lists[0] {
                            thread::sleep(Duration::from_millis(1));
                        }
                        // Not always the one behind it, which another thread may have taken.
                        let later = |next| next > i && !lists.iter().any(|first| (i + 1..=next).contains(first));
                        assert!(next.is_none_or(later), "{next:?} behind {i}");
                        ran.lock().unwrap().push(i);
                    }
                });
                let mut ran = ran.into_inner().unwrap();
                ran.sort_unstable();
                let all = lists.first().map_or(0..0, |&first| first..lists[lists.len() - 1]);
                assert_eq!(ran, all.collect::<Vec<_>>(), "{lists:?} on {count} threads");
            }
        }
    }

    /// Two threads on one processor, as where other programs run: who waits must not keep the other from its task.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_that_waits_lets_others_of_its_processor_run() {
        let on_one_processor = || {
            // SAFETY: a set of processors is plain numbers; this thread alone, and those that it makes, are moved.
            unsafe {
                let mut set: libc::cpu_set_t = std::mem::zeroed();
                libc::CPU_SET(libc::sched_getcpu() as usize, &mut set);
                assert_eq!(libc::sched_setaffinity(0, size_of_val(&set), &set), 0);
            }
            let threads = ThreadPool::new(2);
            let computed = || {
                let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
                // SAFETY: it writes one time.
                assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) }, 0);
                Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
            };
            let (caller, before) = (thread::current().id(), computed());
            for _ in 0..20 {
                let started = AtomicUsize::new(0);
                threads.run(2, |_| {
                    started.fetch_add(1, Ordering::Relaxed);
                    while started.load(Ordering::Relaxed) < 2 {
                        thread::yield_now();
                    }
                    let from = computed();
                    while thread::current().id() != caller && computed() - from < Duration::from_millis(1) {}
                });
            }
            computed() - before
        };
        let waited = thread::scope(|s| s.spawn(on_one_processor).join().unwrap());
        assert!(waited < Duration::from_millis(10), "20 tasks of 1 ms kept the caller busy for {waited:?}");
    }

    #[test]
    fn chunks_cover_the_range() {
        let sum = AtomicUsize::new(0);
        ThreadPool::new(2).chunks(10, 4, |r| {
            let _ = sum.fetch_add(r.map(|i| i + 1).sum(), Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 55);
    }
}
