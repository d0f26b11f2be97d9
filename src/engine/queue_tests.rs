//! Tests of the queue, apart from it: `tests/schedules.rs` has its file as well.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::jobs::{ImageJob, Job, JobOutput, Turn, Work};
use super::programs::Program;
use super::queue::{Queue, Share, Waiting, next_batch};
use crate::error::{Error, Result};
use crate::ops::Row;
use crate::plan::ProgramId;

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
        let run = |work| std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| queue.run_all([work], (7, 3), step)));
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
    assert!(queue.is_empty(), "{queue:?}");
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
