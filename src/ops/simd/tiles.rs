//! Tiles of some matrices, cut into the tasks of a call.
//!
//! Every thread of a call makes the list for itself: memory that another one has just written is far where the two have no
//! cache in common, and a tile of a decode step takes a microsecond.

use std::ops::Range;

/// Tasks per thread that what is left would make if it were cut into tasks of one size. Tasks are long at first and short in the
/// end: long ones cost less and read longer runs of memory, and short ones come out even, also where another program slows
/// down a thread.
const TASKS: usize = 3;

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
    firsts: Vec<usize>,
    /// The first tile of each task, and the end.
    starts: Vec<usize>,
}

impl Tiles {
    pub(super) fn new(runs: impl Iterator<Item = Run> + Clone, threads: usize) -> Self {
        let mut left: usize = runs.clone().map(|run| run.tiles * run.cost).sum();
        let share = |left: usize| left.div_ceil(TASKS * threads.max(1));
        let (mut firsts, mut starts) = (vec![0], vec![0]);
        let (mut n, mut missing) = (0, share(left));
        for Run { tiles, cost } in runs {
            let end = n + tiles;
            while n < end {
                let take = missing.div_ceil(cost.max(1)).clamp(1, end - n);
                (n, left, missing) = (n + take, left - take * cost, missing.saturating_sub(take * cost));
                if missing == 0 {
                    starts.push(n);
                    missing = share(left);
                }
            }
            firsts.push(end);
        }
        if starts.last() != Some(&n) {
            starts.push(n);
        }
        Tiles { firsts, starts }
    }

    /// Number of tasks.
    pub(super) fn tasks(&self) -> usize {
        self.starts.len() - 1
    }

    /// The tiles of a task.
    fn of_task(&self, task: usize) -> Range<usize> {
        self.starts[task]..self.starts[task + 1]
    }

    /// The tiles of the tasks that a thread takes, as [`ThreadPool::run_each`](crate::threads::ThreadPool::run_each) gives them:
    /// each with the one that the thread takes next.
    pub(super) fn of_tasks(
        &self,
        tasks: impl Iterator<Item = (usize, Option<usize>)>,
    ) -> impl Iterator<Item = (usize, Option<usize>)> {
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
    fn tasks_have_all_tiles_in_their_order_and_grow_no_longer() {
        let runs =
            |of: &[(usize, usize)]| -> Vec<Run> { of.iter().map(|&(tiles, cost)| Run { tiles, cost }).collect() };
        for (of, threads) in [
            (runs(&[(16, 3)]), 2),
            (runs(&[(96, 3)]), 2),
            (runs(&[(1200, 3)]), 16),
            (runs(&[(6, 20), (0, 5), (6, 3), (5, 3), (1, 3)]), 2),
            (runs(&[(1, 1), (3, 1)]), 8),
            (runs(&[]), 2),
        ] {
            let tiles = Tiles::new(of.iter().copied(), threads);
            let all: Vec<usize> = (0..tiles.tasks()).flat_map(|task| tiles.of_task(task)).collect();
            let number = of.iter().map(|run| run.tiles).sum::<usize>();
            assert_eq!(all, (0..number).collect::<Vec<_>>(), "{of:?}");
            let places = of.iter().enumerate().flat_map(|(i, run)| (0..run.tiles).map(move |tile| (i, tile)));
            assert!(all.iter().map(|&tile| tiles.place(tile)).eq(places), "{of:?}");
            let cost = |task: usize| tiles.of_task(task).map(|tile| of[tiles.place(tile).0].cost).sum::<usize>();
            let costs: Vec<usize> = (0..tiles.tasks()).map(cost).collect();
            let largest = of.iter().map(|run| run.cost).max().unwrap_or(0);
            assert!(costs.windows(2).all(|pair| pair[1] < pair[0] + largest), "{costs:?}");
            let (first, total) = (costs.first().copied().unwrap_or(0), costs.iter().sum::<usize>());
            assert!(first < total.div_ceil(TASKS * threads) + largest.max(1), "{costs:?}");
        }
        let decode = Tiles::new(runs(&[(96, 1)]).into_iter(), 2);
        assert_eq!([0, 1, 2, 3].map(|task| decode.of_task(task).len()), [16, 14, 11, 10]);
    }

    #[test]
    fn a_tile_comes_with_the_one_that_its_thread_takes_next() {
        let tiles = Tiles { firsts: vec![0, 6], starts: vec![0, 3, 5, 6] };
        let all: Vec<_> = tiles.of_tasks([(0, Some(2)), (2, None)].into_iter()).collect();
        assert_eq!(all, [(0, Some(1)), (1, Some(2)), (2, Some(5)), (5, None)]);
    }
}
