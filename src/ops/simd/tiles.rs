//! Tiles of some matrices, cut into the tasks of a call.
//!
//! Every thread of a call makes the list for itself: memory that another one has just written is far where the two have no
//! cache in common, and a tile of a decode step takes a microsecond.

use std::ops::Range;

use smallvec::{SmallVec, smallvec};

use crate::threads::{Task, ThreadPool};

/// Of what is left of a thread's tiles, the part that its next task has: a half. Tasks are long at first and short in the end: long
/// ones cost less and read longer runs of memory, and short ones come out even, also where another program slows down a thread.
const PART: usize = 2;

/// The tiles of some matrices with the same cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    /// How many.
    pub tiles: usize,
    /// The cost of each, in any unit.
    pub cost: usize,
}

/// All tiles of some runs, one behind the other, and the tasks that they make.
#[derive(Debug)]
pub(super) struct Tiles {
    /// The first tile of each run, and the end.
    firsts: SmallVec<[usize; 16]>,
    /// The first tile of each task, and the end.
    starts: SmallVec<[usize; 64]>,
    /// The first task of each thread, and the end.
    lists: SmallVec<[usize; 16]>,
}

impl Tiles {
    pub(super) fn new(runs: impl Iterator<Item = Run> + Clone, threads: usize) -> Self {
        let threads = threads.max(1);
        let total: usize = runs.clone().map(|run| run.tiles * run.cost).sum();
        let (mut firsts, mut starts, mut lists) = (smallvec![0], smallvec![0], smallvec![0]);
        let end_of = |list: usize| (total * list).div_ceil(threads);
        let part = |done: usize, list: usize| end_of(list).saturating_sub(done).div_ceil(PART);
        let (mut n, mut done, mut missing) = (0, 0, part(0, 1));
        for Run { tiles, cost } in runs {
            let end = n + tiles;
            while n < end {
                let take = missing.div_ceil(cost.max(1)).clamp(1, end - n);
                (n, done, missing) = (n + take, done + take * cost, missing.saturating_sub(take * cost));
                if missing == 0 {
                    starts.push(n);
                    while lists.len() < threads && done >= end_of(lists.len()) {
                        lists.push(starts.len() - 1);
                    }
                    missing = part(done, lists.len());
                }
            }
            firsts.push(end);
        }
        if starts.last() != Some(&n) {
            starts.push(n);
        }
        lists.resize(threads + 1, starts.len() - 1);
        Tiles { firsts, starts, lists }
    }

    /// Calls `each` with the tasks that a thread takes, as [`ThreadPool::run_each`] does, or on the calling thread alone with all.
    /// `each` makes the list for itself.
    pub(super) fn share(self, threads: Option<&ThreadPool>, each: impl Fn(&mut dyn Iterator<Item = Task>) + Sync) {
        match threads {
            Some(threads) => threads.run_each(&self.lists, each),
            None => {
                let tasks = self.starts.len() - 1;
                each(&mut (0..tasks).map(|task| (task, Some(task + 1).filter(|&next| next < tasks))));
            }
        }
    }

    /// The tiles of a task.
    fn of_task(&self, task: usize) -> Range<usize> {
        self.starts[task]..self.starts[task + 1]
    }

    /// The tiles of the tasks that a thread takes, as [`ThreadPool::run_each`] gives them: each with the
    /// one that the thread will most likely take next.
    pub(super) fn of_tasks(&self, tasks: impl Iterator<Item = Task>) -> impl Iterator<Item = (usize, Option<usize>)> {
        tasks.flat_map(|(task, next)| {
            let (tiles, next) = (self.of_task(task), next.map(|next| self.starts[next]));
            let end = tiles.end;
            tiles.map(move |tile| (tile, Some(tile + 1).filter(|&after| after < end).or(next)))
        })
    }

    /// The run that a tile is of, and its number there.
    pub(super) fn place(&self, tile: usize) -> (usize, usize) {
        let run = self.firsts.partition_point(|&first| first <= tile) - 1;
        (run, tile - self.firsts[run])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tasks_have_all_tiles_in_their_order_and_those_of_a_thread_grow_no_longer() {
        let runs =
            |of: &[(usize, usize)]| -> Vec<Run> { of.iter().map(|&(tiles, cost)| Run { tiles, cost }).collect() };
        for (of, threads) in [
            (runs(&[(16, 3)]), 2),
            (runs(&[(96, 3)]), 2),
            (runs(&[(1200, 3)]), 16),
            (runs(&[(6, 20), (0, 5), (6, 3), (5, 3), (1, 3)]), 2),
            (runs(&[(1, 1), (3, 1)]), 8),
            (runs(&[(5, 0)]), 2),
            (runs(&[]), 2),
        ] {
            let tiles = Tiles::new(of.iter().copied(), threads);
            let tasks = tiles.starts.len() - 1;
            let all: Vec<usize> = (0..tasks).flat_map(|task| tiles.of_task(task)).collect();
            let number = of.iter().map(|run| run.tiles).sum::<usize>();
            assert_eq!(all, (0..number).collect::<Vec<_>>(), "{of:?}");
            let places = of.iter().enumerate().flat_map(|(i, run)| (0..run.tiles).map(move |tile| (i, tile)));
            assert!(all.iter().map(|&tile| tiles.place(tile)).eq(places), "{of:?}");
            let cost = |task: usize| tiles.of_task(task).map(|tile| of[tiles.place(tile).0].cost).sum::<usize>();
            let costs: Vec<usize> = (0..tasks).map(cost).collect();
            let largest = of.iter().map(|run| run.cost).max().unwrap_or(0);
            let lists = &tiles.lists;
            assert_eq!((lists.len(), lists[0], lists[threads]), (threads + 1, 0, tasks), "{of:?}");
            let share = costs.iter().sum::<usize>() / threads;
            for list in lists.windows(2).map(|ends| &costs[ends[0]..ends[1]]) {
                assert!(list.iter().sum::<usize>() <= share + 2 * largest, "{lists:?} of {costs:?}");
                assert!(list.windows(2).all(|pair| pair[1] < pair[0] + largest.max(1)), "{lists:?} of {costs:?}");
                assert!(list.iter().all(|&cost| cost <= share / PART + largest.max(1)), "{lists:?} of {costs:?}");
            }
        }
        let decode = Tiles::new(runs(&[(96, 1)]).into_iter(), 2);
        let tasks: Vec<usize> = (0..decode.lists[2]).map(|task| decode.of_task(task).len()).collect();
        assert_eq!((tasks, decode.lists[1]), ([[24, 12, 6, 3, 2, 1]; 2].concat(), 6));
    }

    #[test]
    fn a_thread_alone_takes_all_tasks_and_knows_the_next() {
        let seen = std::sync::Mutex::new(Vec::new());
        let tiles = Tiles::new([Run { tiles: 4, cost: 1 }].into_iter(), 1);
        tiles.share(None, |mine| seen.lock().unwrap().extend(mine));
        assert_eq!(seen.into_inner().unwrap(), [(0, Some(1)), (1, Some(2)), (2, None)]);
    }

    #[test]
    fn a_tile_comes_with_the_one_that_its_thread_takes_next() {
        let tiles = Tiles { firsts: smallvec![0, 6], starts: smallvec![0, 3, 5, 6], lists: smallvec![0, 3] };
        let all: Vec<_> = tiles.of_tasks([(0, Some(2)), (2, None)].into_iter()).collect();
        assert_eq!(all, [(0, Some(1)), (1, Some(2)), (2, Some(5)), (5, None)]);
    }
}
