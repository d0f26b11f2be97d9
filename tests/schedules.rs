//! The thread team and the engine's queue under every order of events: tasks and steps run once, callers return, workers sleep and
//! wake, and nobody waits for ever. `loom` runs the same sources with its own threads, and tries each order that the memory model
//! allows, up to a number of preemptions.

#[path = "../src/engine/queue.rs"]
#[allow(dead_code)]
mod queue;
#[path = "../src/threads/team.rs"]
#[allow(dead_code)]
mod team;

mod error {
    pub use ternion::{Error, Result};
}

/// What [`queue`] knows of the engine here: jobs of rows and images that say nothing but what they are.
mod engine {
    pub mod cancel {
        use loom::sync::Arc;
        use loom::sync::atomic::{AtomicBool, Ordering};

        #[derive(Debug, Clone)]
        pub struct Cancel(pub Arc<AtomicBool>);

        impl Cancel {
            pub fn has_ended(cancel: &Option<Cancel>) -> bool {
                cancel.as_ref().is_some_and(|cancel| cancel.0.load(Ordering::SeqCst))
            }
        }
    }

    pub mod jobs {
        use super::cancel::Cancel;

        #[derive(Debug, Default)]
        pub struct Job {
            pub rows: Vec<u32>,
            pub done: usize,
            pub cancel: Option<Cancel>,
        }

        #[derive(Debug)]
        pub struct ImageJob {
            pub number: u32,
            pub done: usize,
            pub cancel: Option<Cancel>,
        }

        #[derive(Debug)]
        pub enum Work {
            Text(Job),
            Image(ImageJob),
        }

        #[derive(Debug)]
        pub enum Turn {
            Text(Vec<(Job, usize)>),
            Image(ImageJob),
        }

        pub type JobOutput = u32;
    }

    pub mod sync {
        pub use loom::sync::{Mutex, MutexGuard};
        use std::sync::LockResult;
        use std::time::Duration;

        /// A condition whose waits that have an end have it at once.
        #[derive(Debug, Default)]
        pub struct Condvar(loom::sync::Condvar);

        pub struct TimedOut(bool);

        impl TimedOut {
            pub fn timed_out(&self) -> bool {
                self.0
            }
        }

        impl Condvar {
            pub fn wait<'a, T>(&self, guard: MutexGuard<'a, T>) -> LockResult<MutexGuard<'a, T>> {
                self.0.wait(guard)
            }

            pub fn notify_all(&self) {
                self.0.notify_all();
            }

            pub fn wait_timeout_while<'a, T>(
                &self,
                mut guard: MutexGuard<'a, T>,
                _: Duration,
                mut waits: impl FnMut(&mut T) -> bool,
            ) -> LockResult<(MutexGuard<'a, T>, TimedOut)> {
                let still = waits(&mut guard);
                Ok((guard, TimedOut(still)))
            }
        }
    }
}

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
use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use loom::thread::{self, JoinHandle};

use engine::cancel::Cancel;
use engine::jobs::{ImageJob, Job, Turn, Work};
use error::{Error, Result};
use queue::Queue;
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

/// A step that runs all rows of each job and one of two pieces of an image, alone; an outcome says whose it is.
fn step(running: &AtomicBool, turn: &mut Turn) -> Result<Vec<u32>> {
    assert!(!running.swap(true, Ordering::Relaxed), "two steps at a time");
    let outcomes = match turn {
        Turn::Text(parts) => {
            parts.iter().filter(|(job, n)| job.done + n == job.rows.len()).map(|(job, _)| job.rows[0]).collect()
        }
        Turn::Image(image) => {
            image.done += 1;
            if image.done == 2 { vec![image.number] } else { Vec::new() }
        }
    };
    running.store(false, Ordering::Relaxed);
    Ok(outcomes)
}

fn text(number: u32, rows: usize, cancel: Option<Cancel>) -> Work {
    Work::Text(Job { rows: vec![number; rows], done: 0, cancel })
}

fn image(number: u32) -> Work {
    Work::Image(ImageJob { number, done: 0, cancel: None })
}

/// Callers with their work, each on a thread of its own, the first on this one: each gets its own outcomes, and nothing stays.
fn callers(work: Vec<Vec<Work>>) {
    let shared = Arc::new((Queue::default(), AtomicBool::new(false)));
    let number = |work: &Work| match work {
        Work::Text(job) => job.rows[0],
        Work::Image(image) => image.number,
    };
    let mut all = work.into_iter().map(|work| {
        let shared = shared.clone();
        move || {
            let wanted: Vec<u32> = work.iter().map(number).collect();
            let (queue, running) = &*shared;
            let found: Result<Vec<u32>> = queue.run_all(work, (3, 2), |turn| step(running, turn)).into_iter().collect();
            assert_eq!(found.unwrap(), wanted);
        }
    });
    let mine = all.next().unwrap();
    let others: Vec<_> = all.map(thread::spawn).collect();
    mine();
    others.into_iter().for_each(|other| other.join().unwrap());
    assert!(shared.0.is_empty());
}

#[test]
fn every_caller_of_the_queue_gets_its_own_outcomes_whatever_the_order() {
    /// What each caller adds.
    type Added = fn() -> Vec<Vec<Work>>;
    let models: [(usize, Added); 4] = [
        (3, || vec![vec![text(1, 1, None)], vec![text(2, 1, None)]]),
        (2, || vec![vec![text(1, 5, None)], vec![text(2, 1, None), text(3, 1, None)]]),
        (2, || vec![vec![image(1)], vec![text(2, 1, None)]]),
        (1, || vec![vec![image(1)], vec![image(2)], vec![text(3, 4, None)]]),
    ];
    for (preemptions, work) in models {
        let found = orders(preemptions, move || callers(work()));
        println!("{} callers, {preemptions} preemptions: {found} orders", work().len());
        assert!(found > 50, "{found} orders");
    }
}

#[test]
fn a_step_that_panics_ends_the_waiting_of_all_whatever_the_order() {
    let found = orders(2, || {
        let queue = Arc::new(Queue::default());
        let run = |queue: Arc<Queue>, work: Work| {
            let step = |_: &mut Turn| -> Result<Vec<u32>> { std::panic::resume_unwind(Box::new("an op's mistake")) };
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.run_all([work], (3, 2), step)))
        };
        let other = queue.clone();
        let other = thread::spawn(move || run(other, image(1)));
        let ends = [run(queue.clone(), text(2, 1, None)), other.join().unwrap()];
        assert_eq!(ends.iter().filter(|end| end.is_err()).count(), 1, "callers that see the panic");
        for outcomes in ends.into_iter().flatten() {
            assert!(matches!(outcomes[..], [Err(Error::DeviceLost { .. })]), "{outcomes:?}");
        }
        assert!(queue.is_empty() && queue.check().is_err());
    });
    assert!(found > 10, "{found} orders");
}

#[test]
fn who_cancels_waits_no_longer_than_a_step_whatever_the_order() {
    let found = orders(2, || {
        let (queue, cancel) = (Arc::new(Queue::default()), Cancel(Arc::new(AtomicBool::new(false))));
        let other = (queue.clone(), cancel.clone());
        let other = thread::spawn(move || {
            let running = AtomicBool::new(false);
            other.0.run_all([text(1, 4, Some(other.1))], (3, 2), |turn| step(&running, turn)).remove(0)
        });
        cancel.0.store(true, Ordering::SeqCst);
        let running = AtomicBool::new(false);
        let mine = queue.run_all([text(2, 1, None)], (3, 2), |turn| step(&running, turn)).remove(0);
        assert_eq!(mine.unwrap(), 2);
        assert!(matches!(other.join().unwrap(), Ok(1) | Err(Error::Cancelled(_))));
        assert!(queue.is_empty());
    });
    assert!(found > 50, "{found} orders");
}
