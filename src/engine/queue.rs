//! Which rows run next: the policy, and the queue that lets any waiting thread run a batch for all of them. Images are
//! encoded between batches of text, in pieces, so that texts go on meanwhile.
//!
//! What it knows of threads is in `sync`, in whose place `tests/schedules.rs` has one that tries every order of events.

use std::collections::BTreeMap;
use std::sync::PoisonError;
use std::time::Duration;

use crate::engine::cancel::Cancel;
use crate::engine::jobs::{ImageJob, Job, JobOutput, Turn, Work};
use crate::engine::sync::{Condvar, Mutex, MutexGuard};
use crate::error::{Error, Result};

/// How long a batch waits for the next of the sessions of the batch before: their threads are just waking up.
const GATHER: Duration = Duration::from_micros(200);

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
    /// Images that wait; none where a piece of it is running.
    images: BTreeMap<u64, Option<ImageJob>>,
    finished: BTreeMap<u64, Result<JobOutput>>,
    next_id: u64,
    running: bool,
    /// A step panicked: what it left on the device is not known.
    dead: bool,
    /// Jobs of the last batch of text.
    last: usize,
    /// Whether text has run since the last piece of an image.
    after_text: bool,
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
            let jobs = std::mem::take(&mut state.jobs).into_keys();
            let failed: Vec<u64> = jobs.chain(std::mem::take(&mut state.images).into_keys()).collect();
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
            state.images.remove(id);
            state.finished.remove(id);
        }
    }
}

/// The error of all jobs once a step has panicked.
pub(crate) fn dead() -> Error {
    Error::DeviceLost { device: "the engine's".into(), problem: "a step panicked".into() }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that steps still run.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] once a step has panicked.
    pub fn check(&self) -> Result<()> {
        if self.lock().dead { Err(dead()) } else { Ok(()) }
    }

    /// Adds work and returns its outputs in order. `step` runs a turn and returns the outputs of the jobs that it
    /// finishes, in order; it is called on some thread that waits, one at a time.
    ///
    /// `limits` are the maximum number of rows and of outputs of a batch of text.
    ///
    /// # Errors
    /// What `step` returns goes to every job of its turn. Once it has panicked, every job of every caller fails with
    /// [`Error::DeviceLost`].
    pub fn run_all(
        &self,
        work: impl IntoIterator<Item = Work>,
        limits: (usize, usize),
        step: impl Fn(&mut Turn) -> Result<Vec<JobOutput>>,
    ) -> Vec<Result<JobOutput>> {
        let mut state = self.lock();
        if state.dead {
            return work.into_iter().map(|_| Err(dead())).collect();
        }
        let ids: Vec<u64> = work.into_iter().map(|work| state.add(work)).collect();
        drop(state);
        let mine = Mine { queue: self, ids };
        let ids = &mine.ids;
        self.arrived.notify_all();
        let mut state = self.lock();
        loop {
            state.end_cancelled();
            if ids.iter().all(|id| state.finished.contains_key(id)) {
                let outputs = ids.iter().filter_map(|id| state.finished.remove(id)).collect();
                drop(state);
                return outputs;
            }
            if state.running {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            state.running = true;
            let mut guard = Running { queue: self, returned: false };
            if !state.image_is_next() {
                state = self.gather(state);
            }
            let (batch, mut turn) = state.take(limits);
            drop(state);
            let result = step(&mut turn);
            guard.returned = true;
            state = self.lock();
            state.put_back(&batch, turn);
            state.deliver(&batch, result);
            drop(state);
            drop(guard);
            state = self.lock();
        }
    }

    /// Whether nothing waits, and no outcome is kept for anyone.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.jobs.is_empty() && state.images.is_empty() && state.finished.is_empty()
    }

    /// Waits for as many jobs as the last batch had, while they come.
    fn gather<'a>(&self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        while state.jobs.len() < state.last {
            let waiting = state.jobs.len();
            let nobody_came = |state: &mut State| state.jobs.len() == waiting;
            let waited = self.arrived.wait_timeout_while(state, GATHER, nobody_came);
            let (now, end) = waited.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if end.timed_out() {
                break;
            }
        }
        state
    }
}

impl State {
    fn add(&mut self, work: Work) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        match work {
            Work::Text(job) => drop(self.jobs.insert(id, job)),
            Work::Image(job) => drop(self.images.insert(id, Some(job))),
        }
        id
    }

    /// Ends the work whose callers have cancelled it, but for what is running.
    fn end_cancelled(&mut self) {
        let jobs = self.jobs.iter().filter(|(_, job)| Cancel::has_ended(&job.cancel)).map(|(&id, _)| id);
        let images =
            self.images.iter().filter(|(_, image)| image.as_ref().is_some_and(|i| Cancel::has_ended(&i.cancel)));
        let ended: Vec<u64> = jobs.chain(images.map(|(&id, _)| id)).collect();
        for id in ended {
            self.jobs.remove(&id);
            self.images.remove(&id);
            self.finished.insert(id, Err(Error::Cancelled("a step".into())));
        }
    }

    /// Whether a piece of an image runs next where text waits too: they take turns.
    fn image_is_next(&self) -> bool {
        self.after_text && !self.images.is_empty()
    }

    /// What runs next, and whose it is. It is taken out while it runs, not copied: a prompt with its images is large, and
    /// runs in many batches.
    ///
    /// The oldest image runs to its end before the next begins, since both use the memory of one program.
    fn take(&mut self, limits: (usize, usize)) -> (Vec<Share>, Turn) {
        if (self.jobs.is_empty() || self.image_is_next())
            && let Some((&id, image)) = self.images.iter_mut().next()
            && let Some(image) = image.take()
        {
            self.after_text = false;
            self.last = self.last.min(self.jobs.len());
            return (vec![Share { id, rows: 0 }], Turn::Image(image));
        }
        let waiting: Vec<Waiting> =
            self.jobs.iter().map(|(&id, j)| Waiting { id, rows: j.rows.len() - j.done }).collect();
        let batch = next_batch(&waiting, limits.0, limits.1);
        let parts = batch.iter().filter_map(|s| Some((std::mem::take(self.jobs.get_mut(&s.id)?), s.rows))).collect();
        (self.last, self.after_text) = (batch.len(), true);
        (batch, Turn::Text(parts))
    }

    /// Puts back what was taken out.
    fn put_back(&mut self, batch: &[Share], turn: Turn) {
        match turn {
            Turn::Text(parts) => {
                for (share, (mut job, rows)) in batch.iter().zip(parts) {
                    job.done += rows;
                    self.jobs.insert(share.id, job);
                }
            }
            Turn::Image(image) => {
                self.images.extend(batch.first().map(|share| (share.id, Some(image))));
            }
        }
    }

    /// Hands the outputs of a turn to the jobs that it has finished, or its error to all.
    fn deliver(&mut self, batch: &[Share], result: Result<Vec<JobOutput>>) {
        let mut outputs = match result {
            Ok(outputs) => outputs.into_iter(),
            Err(error) => {
                for share in batch {
                    self.jobs.remove(&share.id);
                    self.images.remove(&share.id);
                    self.finished.insert(share.id, Err(error.clone()));
                }
                return;
            }
        };
        for share in batch {
            let finished = match self.jobs.get(&share.id) {
                Some(job) => job.done == job.rows.len(),
                None => outputs.len() > 0,
            };
            if finished {
                self.jobs.remove(&share.id);
                self.images.remove(&share.id);
                let none = || Err(Error::format("a step", "gave fewer outputs than jobs"));
                self.finished.insert(share.id, outputs.next().map_or_else(none, Ok));
            }
        }
    }
}
