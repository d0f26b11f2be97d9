//! Which rows run next: the policy, and the queue that lets any waiting thread run a batch for all of them.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::ops::{Draw, Row};

/// How long a batch waits for the next of the sessions of the batch before: their threads are just waking up.
const GATHER: Duration = Duration::from_micros(200);

/// Rows of one sequence that are to run, in order; the token after the last one is wanted.
#[derive(Debug, Clone, Default)]
pub struct Job {
    /// What to run.
    pub rows: Vec<Row>,
    /// Vectors of the first rows, where they come from images: `[n, width]`.
    pub image: Vec<f32>,
    /// Whether the logits are wanted instead of the token.
    pub logits: bool,
    /// How the token is chosen.
    pub draw: Draw,
    /// Where the draw asks for a penalty, the tokens that occurred, a bit each; empty if the device knows them already.
    pub seen: Vec<u32>,
    /// How many tokens one after the other may be chosen before the host sees them, where there is one row; 0 counts as 1.
    pub max_tokens: usize,
    /// Layers whose shared expert's hidden vector is wanted with the logits, of those that the engine was opened for.
    pub hidden: Vec<usize>,
    /// Rows that have run.
    pub done: usize,
}

/// What a finished job gives.
#[derive(Debug, Clone, PartialEq)]
pub enum JobOutput {
    /// The tokens chosen one after the other, at least one; `u32::MAX` where logits were not finite.
    Tokens(Vec<u32>),
    /// All logits, and the hidden vectors asked for, by layer.
    Logits(Vec<f32>, Vec<(usize, Vec<f32>)>),
}

/// What the policy needs to know of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Number in order of arrival.
    pub id: u64,
    /// Rows left.
    pub rows: usize,
}

/// Rows of one job in a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// The job.
    pub id: u64,
    /// How many of its rows.
    pub rows: usize,
}

/// One row from every job that has only one left, oldest first, then chunks of the oldest prefills, up to `max_rows` rows
/// and `max_outputs` finished jobs. Nobody starves: every job is oldest after finitely many batches.
pub fn next_batch(waiting: &[Waiting], max_rows: usize, max_outputs: usize) -> Vec<Share> {
    let (mut room, mut outputs, mut batch) = (max_rows, max_outputs, Vec::new());
    for job in waiting.iter().filter(|j| j.rows == 1) {
        if room > 0 && outputs > 0 {
            batch.push(Share { id: job.id, rows: 1 });
            room -= 1;
            outputs -= 1;
        }
    }
    // A step full of decoding rows must not hold up a prompt forever: the oldest job always moves.
    if let Some(oldest) = waiting.first()
        && oldest.rows > 1
        && room == 0
        && max_rows > 0
    {
        batch.pop();
        (room, outputs) = (1, outputs + 1);
    }
    for job in waiting.iter().filter(|j| j.rows > 1) {
        let rows = job.rows.min(room);
        if rows == 0 || (rows == job.rows && outputs == 0) {
            continue;
        }
        outputs -= usize::from(rows == job.rows);
        room -= rows;
        batch.push(Share { id: job.id, rows });
    }
    batch
}

/// Jobs of all threads. Whoever waits and finds nobody running runs the next batch for everyone.
#[derive(Debug, Default)]
pub struct Queue {
    state: Mutex<State>,
    changed: Condvar,
    arrived: Condvar,
}

#[derive(Debug, Default)]
struct State {
    jobs: BTreeMap<u64, Job>,
    finished: BTreeMap<u64, Result<JobOutput>>,
    next_id: u64,
    running: bool,
    /// A step panicked: what it left on the device is not known.
    dead: bool,
    /// Jobs of the last batch.
    last: usize,
}

/// Lets the next thread run when the runner stops. After a panic of its step, all jobs fail.
struct Running<'a> {
    queue: &'a Queue,
    returned: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        state.running = false;
        if !self.returned {
            state.dead = true;
            let failed: Vec<u64> = std::mem::take(&mut state.jobs).into_keys().collect();
            state.finished.extend(failed.into_iter().map(|id| (id, Err(dead()))));
        }
        self.queue.changed.notify_all();
    }
}

/// Takes a caller's jobs out of the queue when it leaves, even by a panic: their sessions go with it, and their rows of
/// the cache to others.
struct Mine<'a> {
    queue: &'a Queue,
    ids: Vec<u64>,
}

impl Drop for Mine<'_> {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        for id in &self.ids {
            state.jobs.remove(id);
            state.finished.remove(id);
        }
    }
}

/// The error of all jobs once a step has panicked.
fn dead() -> Error {
    Error::Device { device: "the engine's".into(), problem: "a step panicked; open the engine again".into() }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that steps still run.
    ///
    /// # Errors
    /// [`Error::Device`] once a step has panicked.
    pub fn check(&self) -> Result<()> {
        if self.lock().dead { Err(dead()) } else { Ok(()) }
    }

    /// Adds jobs and returns their outcomes in order. `step` runs a batch of parts of jobs and returns the outcomes of those that it
    /// finishes, in order; it is called on some thread that waits, one at a time.
    ///
    /// # Errors
    /// What `step` returns goes to every job of its batch. Once it has panicked, every job of every caller fails with
    /// [`Error::Device`].
    pub fn run_all(
        &self,
        jobs: Vec<Job>,
        limits: (usize, usize),
        step: impl Fn(&[(Job, usize)]) -> Result<Vec<JobOutput>>,
    ) -> Vec<Result<JobOutput>> {
        let mut state = self.lock();
        if state.dead {
            return jobs.iter().map(|_| Err(dead())).collect();
        }
        let ids: Vec<u64> = jobs.into_iter().map(|job| state.add(job)).collect();
        drop(state);
        let mine = Mine { queue: self, ids };
        let ids = &mine.ids;
        self.arrived.notify_all();
        let mut state = self.lock();
        loop {
            if ids.iter().all(|id| state.finished.contains_key(id)) {
                let outcomes = ids.iter().filter_map(|id| state.finished.remove(id)).collect();
                drop(state);
                return outcomes;
            }
            if state.running {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            let mut guard = Running { queue: self, returned: false };
            state = self.gather(state);
            let waiting: Vec<Waiting> =
                state.jobs.iter().map(|(&id, j)| Waiting { id, rows: j.rows.len() - j.done }).collect();
            let batch = next_batch(&waiting, limits.0, limits.1);
            // Taken out while they run, not copied: a prompt with its images is large, and runs in many batches.
            let parts: Vec<(Job, usize)> =
                batch.iter().filter_map(|s| Some((std::mem::take(state.jobs.get_mut(&s.id)?), s.rows))).collect();
            state.last = batch.len();
            drop(state);
            let result = step(&parts);
            guard.returned = true;
            state = self.lock();
            for (share, (job, _)) in batch.iter().zip(parts) {
                state.jobs.insert(share.id, job);
            }
            state.deliver(&batch, result);
            drop(state);
            drop(guard);
            state = self.lock();
        }
    }

    /// Waits for as many jobs as the last batch had, while they come.
    fn gather<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let (mut waiting, mut end) = (state.jobs.len(), Instant::now() + GATHER);
        while state.jobs.len() < state.last {
            if state.jobs.len() > waiting {
                (waiting, end) = (state.jobs.len(), Instant::now() + GATHER);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            state = self.arrived.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        state
    }
}

impl State {
    fn add(&mut self, job: Job) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.jobs.insert(id, job);
        id
    }

    fn deliver(&mut self, batch: &[Share], result: Result<Vec<JobOutput>>) {
        let mut outcomes = match result {
            Ok(outcomes) => outcomes.into_iter(),
            Err(error) => {
                let message = error.to_string();
                let mut first = Some(error);
                for share in batch {
                    self.jobs.remove(&share.id);
                    let copy = || Error::Device { device: "the batch's".into(), problem: message.clone() };
                    self.finished.insert(share.id, Err(first.take().unwrap_or_else(copy)));
                }
                return;
            }
        };
        for share in batch {
            let Some(job) = self.jobs.get_mut(&share.id) else { continue };
            job.done += share.rows;
            if job.done == job.rows.len() {
                self.jobs.remove(&share.id);
                let none = || Err(Error::format("a step", "gave fewer outcomes than jobs"));
                self.finished.insert(share.id, outcomes.next().map_or_else(none, Ok));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waiting(rows: &[usize]) -> Vec<Waiting> {
        rows.iter().enumerate().map(|(id, &rows)| Waiting { id: id as u64, rows }).collect()
    }

    #[test]
    fn decoding_rows_come_first_and_prefill_fills_the_rest() {
        let batch = next_batch(&waiting(&[100, 1, 1, 50]), 16, 4);
        assert_eq!(batch, [(1, 1), (2, 1), (0, 14)].map(|(id, rows)| Share { id, rows }));
    }

    #[test]
    fn a_prompt_moves_even_among_many_decoding_sessions() {
        let batch = next_batch(&waiting(&[100, 1, 1, 1]), 3, 3);
        assert_eq!(batch, [(1, 1), (2, 1), (0, 1)].map(|(id, rows)| Share { id, rows }));
    }

    #[test]
    fn no_more_jobs_finish_than_there_are_outputs() {
        let batch = next_batch(&waiting(&[2, 2, 2]), 16, 2);
        assert_eq!(batch, [(0, 2), (1, 2)].map(|(id, rows)| Share { id, rows }));
    }

    #[test]
    fn threads_share_batches_and_each_gets_its_own_outcome() {
        let queue = Queue::default();
        let step = |parts: &[(Job, usize)]| {
            std::thread::sleep(std::time::Duration::from_millis(1));
            let finished = parts.iter().filter(|(j, n)| j.done + n == j.rows.len());
            Ok(finished.map(|(j, _)| JobOutput::Tokens(vec![j.rows[0].token])).collect())
        };
        std::thread::scope(|s| {
            for t in 0..8 {
                let queue = &queue;
                s.spawn(move || {
                    for n in 1..20 {
                        let row = Row { token: t * 100 + n, pos: 0, seq_base: 0, seq_len: 1 };
                        let job = Job { rows: vec![row; n as usize], ..Job::default() };
                        let outcomes = queue.run_all(vec![job.clone(), job], (7, 3), step);
                        let tokens: Vec<JobOutput> = outcomes.into_iter().map(|o| o.unwrap()).collect();
                        assert_eq!(tokens, vec![JobOutput::Tokens(vec![row.token]); 2]);
                    }
                });
            }
        });
    }

    #[test]
    fn a_step_that_panics_fails_the_jobs_of_all_and_leaves_none() {
        let queue = Queue::default();
        let job = || Job { rows: vec![Row { token: 1, pos: 0, seq_base: 0, seq_len: 1 }], ..Job::default() };
        let steps = std::sync::atomic::AtomicUsize::new(0);
        let step = |_: &[(Job, usize)]| -> Result<Vec<JobOutput>> {
            steps.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            // Others come to wait meanwhile.
            std::thread::sleep(Duration::from_millis(50));
            panic!("an op's mistake")
        };
        let ends: Vec<_> = std::thread::scope(|s| {
            let run =
                || std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.run_all(vec![job()], (7, 3), step)));
            let all: Vec<_> = (0..4).map(|_| s.spawn(run)).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(steps.into_inner(), 1, "steps after a panic");
        assert_eq!(ends.iter().filter(|end| end.is_err()).count(), 1, "callers that see the panic");
        for outcomes in ends.into_iter().flatten() {
            assert!(matches!(outcomes[..], [Err(Error::Device { .. })]), "{outcomes:?}");
        }
        let later = queue.run_all(vec![job(), job()], (7, 3), |_| Ok(Vec::new()));
        assert!(matches!(later[..], [Err(Error::Device { .. }), Err(Error::Device { .. })]), "{later:?}");
        let state = queue.lock();
        assert!(state.jobs.is_empty() && state.finished.is_empty(), "{state:?}");
    }

    #[test]
    fn a_prompt_in_many_batches_is_not_copied() {
        let row = Row { token: 1, pos: 0, seq_base: 0, seq_len: 1 };
        let job = Job { rows: vec![row; 9], image: vec![1.0; 64], ..Job::default() };
        let (rows, image) = (job.rows.as_ptr(), job.image.as_ptr());
        let outcomes = Queue::default().run_all(vec![job], (4, 1), |parts| {
            let (job, n) = &parts[0];
            assert_eq!((job.rows.as_ptr(), job.image.as_ptr()), (rows, image));
            Ok(if job.done + n == 9 { vec![JobOutput::Tokens(vec![5])] } else { Vec::new() })
        });
        assert_eq!(outcomes[0].as_ref().unwrap(), &JobOutput::Tokens(vec![5]));
    }
}
