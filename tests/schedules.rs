//! The thread team under every order of events: tasks run once, callers return, workers sleep and wake, and nobody waits for ever.
//! `loom` runs the same source with its own threads, and tries each order that the memory model allows, up to a number of
//! preemptions.

#[path = "../src/threads/team.rs"]
#[allow(dead_code)]
mod team;

/// The threads that [`team`] knows here.
mod sync {
    pub use loom::sync::Mutex;
    pub use loom::sync::atomic::{AtomicBool, AtomicPtr, AtomicU64, AtomicUsize, Ordering, fence};
    pub use loom::thread::park;

    /// A worker that has no patience: it looks once.
    pub fn spin(is_so: impl Fn() -> bool) -> bool {
        is_so()
    }

    /// Others run until something is so.
    pub fn spin_for_long(is_so: impl Fn() -> bool) {
        while !is_so() {
            loom::thread::yield_now();
        }
    }
}

use std::sync::atomic::{AtomicUsize as Count, Ordering::SeqCst};

use loom::model::Builder;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::thread::{self, JoinHandle};
use team::Team;

/// Runs a model in every order with so many preemptions; how many orders there were.
fn orders(preemptions: usize, model: impl Fn() + Sync + Send + 'static) -> usize {
    let (all, mut builder) = (std::sync::Arc::new(Count::new(0)), Builder::new());
    builder.preemption_bound = Some(preemptions);
    let counted = all.clone();
    builder.check(move || {
        counted.fetch_add(1, SeqCst);
        model();
    });
    all.load(SeqCst)
}

fn workers(team: &Arc<Team>, count: usize) -> Vec<JoinHandle<()>> {
    let worker = |_| {
        let team = team.clone();
        thread::spawn(move || team.work())
    };
    (0..count).map(worker).collect()
}

/// Calls of two tasks each, one after the other, on a team with so many workers; then it closes.
fn calls(count: usize, calls: usize) {
    let team = Arc::new(Team::new());
    let workers = workers(&team, count);
    for _ in 0..calls {
        // Without an order of their own: that what tasks did is seen behind the call is the team's work.
        let ran = [(); 2].map(|()| AtomicUsize::new(0));
        let task = |i: usize| ran[i].store(ran[i].load(Ordering::Relaxed) + 1, Ordering::Relaxed);
        let panic = team.call(2, &task, || workers.iter().for_each(|worker| worker.thread().unpark()));
        assert!(panic.is_none() && ran.iter().all(|ran| ran.load(Ordering::Relaxed) == 1), "each task runs once");
    }
    team.close();
    for worker in workers {
        worker.thread().unpark();
        worker.join().unwrap();
    }
}

#[test]
fn calls_end_and_each_task_runs_once_whatever_the_order() {
    for (preemptions, workers, times) in [(4, 1, 1), (2, 1, 2), (1, 2, 1)] {
        let found = orders(preemptions, move || calls(workers, times));
        println!("{workers} workers, {times} calls, {preemptions} preemptions: {found} orders");
        assert!(found > 1000, "{found} orders");
    }
}

#[test]
fn a_team_that_nobody_calls_ends() {
    assert!(orders(4, || calls(2, 0)) > 10);
}
