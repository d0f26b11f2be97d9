//! Which rows run next: the policy, and the queue that lets any waiting thread run a batch for all of them. Images are
//! encoded between batches of text, in pieces, so that texts go on meanwhile.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::engine::cancel::Cancel;
use crate::engine::jobs::{ImageJob, Job, JobOutput, Turn, Work};
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::programs::Program;
    use crate::ops::Row;
    use crate::plan::ProgramId;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const ROW: Row = Row { token: 1, pos: 0, seq_base: 0, seq_len: 1 };

    fn token() -> Work {
        Work::Text(Job { rows: vec![ROW], ..Job::default() })
    }

    fn image(value: f32) -> Work {
        let program = Program { id: ProgramId(0), plan: Arc::default() };
        Work::Image(ImageJob { program, pixels: vec![value], outputs: Vec::new(), done: 0, cancel: None })
    }

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
        let step = |turn: &mut Turn| {
            std::thread::sleep(Duration::from_millis(1));
            let Turn::Text(parts) = turn else { return Ok(Vec::new()) };
            let finished = parts.iter().filter(|(j, n)| j.done + n == j.rows.len());
            Ok(finished.map(|(j, _)| JobOutput::Tokens(vec![j.rows[0].token])).collect())
        };
        std::thread::scope(|s| {
            for t in 0..8 {
                let queue = &queue;
                s.spawn(move || {
                    for n in 1..20 {
                        let row = Row { token: t * 100 + n, pos: 0, seq_base: 0, seq_len: 1 };
                        let job = || Work::Text(Job { rows: vec![row; n as usize], ..Job::default() });
                        let outcomes = queue.run_all([job(), job()], (7, 3), step);
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
        let steps = AtomicUsize::new(0);
        let step = |_: &mut Turn| -> Result<Vec<JobOutput>> {
            steps.fetch_add(1, Ordering::SeqCst);
            // Others come to wait meanwhile.
            std::thread::sleep(Duration::from_millis(50));
            panic!("an op's mistake")
        };
        let ends: Vec<_> = std::thread::scope(|s| {
            let run =
                |work| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.run_all([work], (7, 3), step)));
            let all = [token(), image(0.0), token(), image(1.0)];
            let all: Vec<_> = all.into_iter().map(|work| s.spawn(move || run(work))).collect();
            all.into_iter().map(|t| t.join().unwrap()).collect()
        });
        assert_eq!(steps.into_inner(), 1, "steps after a panic");
        assert_eq!(ends.iter().filter(|end| end.is_err()).count(), 1, "callers that see the panic");
        for outcomes in ends.into_iter().flatten() {
            assert!(matches!(outcomes[..], [Err(Error::DeviceLost { .. })]), "{outcomes:?}");
        }
        assert!(matches!(queue.check(), Err(Error::DeviceLost { .. })));
        let later = queue.run_all([token(), image(2.0)], (7, 3), |_| Ok(Vec::new()));
        assert!(matches!(later[..], [Err(Error::DeviceLost { .. }), Err(Error::DeviceLost { .. })]), "{later:?}");
        let state = queue.lock();
        assert!(state.jobs.is_empty() && state.images.is_empty() && state.finished.is_empty(), "{state:?}");
    }

    #[test]
    fn a_prompt_in_many_batches_is_not_copied() {
        let job = Job { rows: vec![ROW; 9], image: vec![1.0; 64], ..Job::default() };
        let (rows, image) = (job.rows.as_ptr(), job.image.as_ptr());
        let outcomes = Queue::default().run_all([Work::Text(job)], (4, 1), |turn| {
            let Turn::Text(parts) = turn else { panic!("an image") };
            let (job, n) = &parts[0];
            assert_eq!((job.rows.as_ptr(), job.image.as_ptr()), (rows, image));
            Ok(if job.done + n == 9 { vec![JobOutput::Tokens(vec![5])] } else { Vec::new() })
        });
        assert_eq!(outcomes[0].as_ref().unwrap(), &JobOutput::Tokens(vec![5]));
    }

    /// Images of `pieces` pieces and tokens, with the turns that ran: an image's value, or none for text.
    fn turns(queue: &Queue, pieces: usize, work: Vec<Work>, turns: &Mutex<Vec<Option<f32>>>) -> Vec<Result<JobOutput>> {
        queue.run_all(work, (7, 3), |turn| match turn {
            Turn::Text(parts) => {
                turns.lock().unwrap().push(None);
                Ok(parts.iter().map(|_| JobOutput::Tokens(vec![1])).collect())
            }
            Turn::Image(image) => {
                turns.lock().unwrap().push(Some(image.pixels[0]));
                image.done += 1;
                let outputs = || JobOutput::Image(vec![image.pixels.clone()]);
                Ok((image.done == pieces).then(outputs).into_iter().collect())
            }
        })
    }

    #[test]
    fn an_image_takes_turns_with_text_and_images_come_one_after_the_other() {
        let (queue, ran) = (Queue::default(), Mutex::new(Vec::new()));
        let outputs = turns(&queue, 2, vec![image(5.0), token(), image(6.0)], &ran);
        assert_eq!(ran.into_inner().unwrap(), [None, Some(5.0), Some(5.0), Some(6.0), Some(6.0)]);
        let image = |v| JobOutput::Image(vec![vec![v]]);
        let outputs: Vec<JobOutput> = outputs.into_iter().map(|o| o.unwrap()).collect();
        assert_eq!(outputs, [image(5.0), JobOutput::Tokens(vec![1]), image(6.0)]);
    }

    #[test]
    fn a_stream_goes_on_while_another_thread_encodes_an_image() {
        const TOKENS: usize = 5;
        let (queue, ran) = (Queue::default(), Mutex::new(Vec::new()));
        let (tokens, pieces) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let step = |turn: &mut Turn| {
            let Turn::Image(_) = turn else {
                ran.lock().unwrap().push("text");
                return Ok(vec![JobOutput::Tokens(vec![1])]);
            };
            ran.lock().unwrap().push("image");
            pieces.fetch_add(1, Ordering::SeqCst);
            // As long as the stream needs to come again.
            std::thread::sleep(Duration::from_millis(5));
            // The image ends when the stream has ended: were the stream to wait for it, neither would.
            let ended = tokens.load(Ordering::SeqCst) == TOKENS || pieces.load(Ordering::SeqCst) == 1000;
            Ok(ended.then(|| JobOutput::Image(Vec::new())).into_iter().collect())
        };
        std::thread::scope(|s| {
            s.spawn(|| queue.run_all([image(0.0)], (7, 3), step)[0].as_ref().unwrap().clone());
            while pieces.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            for _ in 0..TOKENS {
                queue.run_all([token()], (7, 3), step)[0].as_ref().unwrap();
                tokens.fetch_add(1, Ordering::SeqCst);
            }
        });
        let ran = ran.into_inner().unwrap();
        assert_eq!(ran.iter().filter(|&&turn| turn == "text").count(), TOKENS);
        assert!(ran.len() < 500, "the stream waited for {} pieces", ran.len());
        assert!(!ran.windows(2).any(|two| two == ["text"; 2]), "the image waited for two batches: {ran:?}");
    }
}
