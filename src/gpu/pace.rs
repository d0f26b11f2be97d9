//! How much a submission holds: as many nodes as fit [`AIM`] by the times that a program's nodes have taken on this device. A
//! screen that the same device draws waits for a submission, and drivers reset a device that seems to hang.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Time of a submission that is aimed at.
const AIM: Duration = Duration::from_millis(50);

/// Nodes that have run in one submission, with so many rows, and their time.
#[derive(Debug, Clone)]
struct Measured {
    nodes: Range<usize>,
    rows: u32,
    time: Duration,
}

/// What is known of the speed of a program.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    /// Seconds of each node, 0 where nothing is known.
    nodes: Vec<f64>,
    /// Rows of the step that they are of.
    rows: u32,
    /// What has been measured since, when the device has called back.
    newest: Arc<Mutex<Option<Measured>>>,
    /// The longest submission since somebody asked.
    longest: Duration,
}

impl Pace {
    /// What is to be called when a submission of nodes has run: it keeps the time, multiplied by `factor`.
    pub fn clock(&self, nodes: Range<usize>, rows: u32, factor: u32) -> impl FnOnce() + Send + 'static {
        let (newest, start) = (self.newest.clone(), Instant::now());
        move || {
            let measured = Measured { nodes, rows, time: start.elapsed() * factor };
            *newest.lock().unwrap_or_else(PoisonError::into_inner) = Some(measured);
        }
    }

    /// The end of the next submission of a step with so many rows, which begins with node `nodes.start`: as many nodes as fit, one
    /// at least, and at most twice as many as were known before where nothing is known.
    pub fn next(&mut self, nodes: Range<usize>, rows: u32) -> usize {
        self.learn();
        let known = self.nodes.iter().filter(|&&time| time > 0.0).count();
        let mean = self.nodes.iter().sum::<f64>() / known.max(1) as f64;
        let of = |node: usize| self.nodes.get(node).copied().unwrap_or(0.0);
        // More rows take longer, fewer not always less.
        let more = (f64::from(rows) / f64::from(self.rows.max(1))).max(1.0);
        let (mut time, mut unknown) = (0.0, 0);
        for node in nodes.clone() {
            let is_known = of(node) > 0.0;
            time += more * if is_known { of(node) } else { mean };
            unknown += usize::from(!is_known);
            // What is added up may round up.
            if node > nodes.start && (time > 1.001 * AIM.as_secs_f64() || unknown > 2 * known) {
                return node;
            }
        }
        nodes.end
    }

    /// The longest submission since the last call.
    pub fn longest(&mut self) -> Duration {
        self.learn();
        std::mem::take(&mut self.longest)
    }

    /// Takes in what has been measured.
    fn learn(&mut self) {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(Measured { nodes, rows, time }) = newest else { return };
        self.longest = self.longest.max(time);
        self.nodes.resize(self.nodes.len().max(nodes.end), 0.0);
        let (all, time) = (&mut self.nodes[nodes.clone()], time.as_secs_f64().max(1e-9));
        let before: f64 = all.iter().sum();
        // A small step says little about a large one.
        if rows < self.rows && time <= before {
            return;
        }
        let even = time / nodes.len().max(1) as f64;
        let is_known = all.iter().all(|&one| one > 0.0);
        all.iter_mut().for_each(|one| *one = if is_known { *one * time / before } else { even });
        self.rows = rows;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn took(pace: &mut Pace, nodes: Range<usize>, rows: u32, ms: u64) {
        *pace.newest.lock().unwrap() = Some(Measured { nodes, rows, time: Duration::from_millis(ms) });
    }

    /// Runs nodes that take these milliseconds; the times of the submissions.
    fn submissions(pace: &mut Pace, times: &[u64], rows: u32) -> Vec<u64> {
        let (mut done, mut all) = (0, Vec::new());
        while done < times.len() {
            let end = pace.next(done..times.len(), rows);
            let time = times[done..end].iter().sum();
            took(pace, done..end, rows, time);
            (done, all) = (end, [all, vec![time]].concat());
        }
        all
    }

    #[test]
    fn submissions_grow_to_the_time_that_is_aimed_at() {
        let mut pace = Pace::default();
        assert_eq!(submissions(&mut pace, &[1; 100], 1), [1, 2, 6, 18, 50, 23]);
        let second = submissions(&mut pace, &[1; 100], 1);
        assert!(second.len() <= 3 && second.iter().all(|&time| time <= 51), "{second:?}");
        submissions(&mut pace, &[3; 100], 1);
        let slower = submissions(&mut pace, &[3; 100], 1);
        assert!(slower.iter().all(|&time| time <= 51), "{slower:?}");
    }

    #[test]
    fn nodes_that_differ_are_told_apart() {
        let times: Vec<u64> = (0..200).map(|i| if i % 9 == 0 { 40 } else { 2 }).collect();
        let mut pace = Pace::default();
        for _ in 0..4 {
            let all = submissions(&mut pace, &times, u32::MAX);
            assert!(all.iter().all(|&time| time <= 200), "{all:?}");
        }
        let last = submissions(&mut pace, &times, u32::MAX);
        assert!(last.iter().all(|&time| time <= 110), "{last:?}");
    }

    #[test]
    fn more_rows_are_expected_to_take_longer_and_fewer_as_long() {
        let mut pace = Pace::default();
        took(&mut pace, 0..100, 8, 50);
        assert_eq!(pace.next(0..100, 8), 100);
        assert_eq!(pace.next(0..100, 16), 50);
        assert_eq!(pace.next(0..100, 4), 100);
        took(&mut pace, 0..100, 1, 5);
        assert_eq!(pace.next(0..100, 8), 100, "a small step says little about a large one");
    }

    #[test]
    fn what_the_device_calls_back_counts() {
        let mut pace = Pace::default();
        let clock = pace.clock(0..1000, 1, 1);
        assert_eq!(pace.next(0..5000, 1), 1);
        clock();
        assert_eq!(pace.next(0..5000, 1), 3000, "it took next to no time, and nobody knows the others");
        pace.clock(0..1, 1, 1_000_000)();
        assert!(pace.longest() > Duration::ZERO);
    }
}
