//! What a session owns of the states on the device: rows of the KV cache, and a slot.
//!
//! A session has few rows at first, and gets twice as many where it needs more: a long context takes memory once it is used.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::{Error, Result};

/// Rows that a session has at first where memory is taken at once, unless the caller wants others.
pub const FIRST_ROWS: usize = 512;

/// The states of all sessions: for each slot a range of rows of the cache.
#[derive(Debug)]
pub struct StatePool {
    context: usize,
    /// Rows that a session has at first.
    first: usize,
    layout: Mutex<Layout>,
}

#[derive(Debug, Clone)]
struct Layout {
    /// Rows of each slot; they lie behind those of the slots before it.
    rows: Vec<usize>,
    /// Slots without a session.
    free: Vec<usize>,
}

/// The states of one session; they are free again when it is dropped.
///
/// A state by row, as keys and values, lies in the rows [`StatePool::range`] of its slot of a plan. A state by sequence (the
/// tokens that occurred, and what a recurrent layer carries on, of which no model has one yet) lies in row `slot`.
#[derive(Debug)]
pub struct SessionState {
    pool: Arc<StatePool>,
    slot: usize,
}

/// A cache of more rows.
#[derive(Debug, PartialEq, Eq)]
pub struct Growth {
    /// Rows of all sessions together.
    pub rows: usize,
    /// Rows that sessions have, and the first row that each range gets.
    pub moves: Vec<(Range<usize>, usize)>,
}

impl Layout {
    fn all(&self) -> usize {
        self.rows.iter().sum()
    }

    fn range(&self, slot: usize) -> Range<usize> {
        let base = self.rows[..slot].iter().sum();
        base..base + self.rows[slot]
    }
}

impl StatePool {
    /// States of `sessions` sessions of up to `context` rows of the cache, `first` of them from the beginning.
    pub fn new(context: usize, first: usize, sessions: usize) -> Arc<Self> {
        let first = first.min(context);
        let layout = Layout { rows: vec![first; sessions], free: (0..sessions).rev().collect() };
        Arc::new(StatePool { context, first, layout: Mutex::new(layout) })
    }

    fn layout(&self) -> MutexGuard<'_, Layout> {
        self.layout.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rows of all sessions together.
    pub fn rows(&self) -> usize {
        self.layout().all()
    }

    /// Maximum number of rows of one session.
    pub fn context(&self) -> usize {
        self.context
    }

    /// The rows of a slot. They move when the cache grows, which the runner's lock keeps it from.
    pub fn range(&self, slot: usize) -> Range<usize> {
        self.layout().range(slot)
    }

    /// Takes the states of one more session.
    ///
    /// # Errors
    /// [`Error::SessionsFull`] if all are taken.
    pub fn take(self: &Arc<Self>) -> Result<SessionState> {
        let mut layout = self.layout();
        let max = layout.rows.len();
        let slot = layout.free.pop().ok_or(Error::SessionsFull { open: max, max })?;
        Ok(SessionState { pool: self.clone(), slot })
    }

    /// Whether each of these slots has as many rows.
    pub fn has(&self, wanted: &[(usize, usize)]) -> bool {
        let layout = self.layout();
        wanted.iter().all(|&(slot, rows)| rows <= layout.rows[slot])
    }

    /// Gives slots as many rows or more, by moving what sessions have into a cache of another size. Slots without a session have
    /// as many as at first again, unless the size would be the same.
    ///
    /// # Errors
    /// Those of `grow`; then all slots have what they had.
    pub fn reserve(&self, wanted: &[(usize, usize)], grow: impl FnOnce(&Growth) -> Result<()>) -> Result<()> {
        // Held until the rows have moved, so that no session takes a slot whose rows go.
        let mut old = self.layout();
        let mut new = old.clone();
        for &(slot, rows) in wanted {
            if new.rows[slot] < rows {
                new.rows[slot] = rows.next_power_of_two().min(self.context);
            }
        }
        let larger = new.clone();
        new.free.iter().for_each(|&slot| new.rows[slot] = self.first);
        if new.all() == old.all() {
            // States are told to have moved by their size.
            new = larger;
        }
        let taken = (0..old.rows.len()).filter(|slot| !old.free.contains(slot));
        let moves = taken.map(|slot| (old.range(slot), new.range(slot).start)).collect();
        grow(&Growth { rows: new.all(), moves })?;
        *old = new;
        Ok(())
    }
}

impl SessionState {
    /// Its row of a state by sequence.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// Maximum number of rows of the cache.
    pub fn context(&self) -> usize {
        self.pool.context
    }
}

impl Drop for SessionState {
    fn drop(&mut self) {
        self.pool.layout().free.push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_ranges_are_free_again_and_ranges_never_overlap() {
        let pool = StatePool::new(8, 8, 2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_eq!([&a, &b].map(|s| pool.range(s.slot())), [0..8, 8..16]);
        assert!(matches!(pool.take(), Err(Error::SessionsFull { open: 2, max: 2 })));
        let slot = a.slot();
        drop(a);
        assert_eq!(pool.take().unwrap().slot(), slot);
    }

    #[test]
    fn slots_get_twice_as_many_rows_and_what_sessions_have_moves() {
        let pool = StatePool::new(100, 4, 4);
        let sessions: Vec<SessionState> = (0..3).map(|_| pool.take().unwrap()).collect();
        assert!(pool.has(&[(0, 4), (2, 4)]) && !pool.has(&[(0, 4), (2, 5)]));
        let mut found = None;
        let mut grow = |wanted: &[(usize, usize)]| {
            pool.reserve(wanted, |growth| {
                found = Some((growth.rows, growth.moves.clone()));
                Ok(())
            })
            .unwrap();
            found.take().unwrap()
        };
        assert_eq!(grow(&[(0, 5), (2, 17)]), (8 + 4 + 32 + 4, vec![(0..4, 0), (4..8, 8), (8..12, 12)]));
        assert_eq!(grow(&[(1, 65)]), (8 + 100 + 32 + 4, vec![(0..8, 0), (8..12, 8), (12..44, 108)]));
        let refused = pool.reserve(&[(0, 100)], |_| Err(Error::argument("memory", "is short")));
        assert!(refused.is_err() && !pool.has(&[(0, 9)]) && pool.range(2) == (108..140));
        drop(sessions);
        assert_eq!(pool.take().unwrap().slot(), 2);
        let last = pool.take().unwrap();
        pool.reserve(&[(last.slot(), 40)], |growth| {
            assert_eq!((growth.rows, growth.moves.len()), (4 + 4 + 64 + 4, 1));
            Ok(())
        })
        .unwrap();
    }
    #[test]
    fn a_cache_whose_rows_move_has_another_size() {
        let pool = StatePool::new(100, 4, 2);
        let [first, second] = [0, 1].map(|_| pool.take().unwrap());
        let grow = |slot: &SessionState| {
            let mut found = None;
            pool.reserve(&[(slot.slot(), 8)], |growth| {
                found = Some((growth.rows, growth.moves.clone()));
                Ok(())
            })
            .unwrap();
            found.unwrap()
        };
        assert_eq!(grow(&first), (12, vec![(0..4, 0), (4..8, 8)]));
        drop(first);
        // With 4 rows of the free slot it would have 12 again.
        assert_eq!(grow(&second), (16, vec![(8..12, 8)]));
    }
}
