//! What a session owns of the states on the device: rows of the KV cache, and a slot.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// The states of all sessions: the rows of the cache in ranges of one size, and as many slots.
#[derive(Debug)]
pub struct StatePool {
    context: usize,
    free: Mutex<Vec<usize>>,
    sessions: usize,
}

/// The states of one session; they are free again when it is dropped.
///
/// A state by row, as keys and values, lies in rows `base..base + len` of its slot of a plan. A state by sequence (the
/// tokens that occurred, and what a recurrent layer carries on, of which no model has one yet) lies in row `slot`.
#[derive(Debug)]
pub struct SessionState {
    pool: Arc<StatePool>,
    slot: usize,
}

impl StatePool {
    /// States of `sessions` sessions, `context` rows of the cache each.
    pub fn new(context: usize, sessions: usize) -> Arc<Self> {
        Arc::new(StatePool { context, free: Mutex::new((0..sessions).rev().collect()), sessions })
    }

    /// All rows.
    pub fn rows(&self) -> usize {
        self.context * self.sessions
    }

    /// Rows of one session.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Takes the states of one more session.
    ///
    /// # Errors
    /// [`Error::Limit`] if all are taken: nothing is evicted.
    pub fn take(self: &Arc<Self>) -> Result<SessionState> {
        let slot = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let slot = slot.ok_or_else(|| Error::Limit {
            what: "a session".into(),
            wanted: format!("{} rows of the KV cache", self.context),
            available: format!("0 of {} sessions are", self.sessions),
            advice: "drop a session, or open the engine with more `sessions`".into(),
        })?;
        Ok(SessionState { pool: self.clone(), slot })
    }
}

impl SessionState {
    /// Its row of a state by sequence.
    pub fn slot(&self) -> usize {
        self.slot
    }

    /// First row of the cache.
    pub fn base(&self) -> usize {
        self.slot * self.pool.context
    }

    /// Number of rows of the cache.
    pub fn len(&self) -> usize {
        self.pool.context
    }
}

impl Drop for SessionState {
    fn drop(&mut self) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_ranges_are_free_again_and_ranges_never_overlap() {
        let pool = StatePool::new(8, 2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_ne!(a.base(), b.base());
        assert!(matches!(pool.take(), Err(Error::Limit { .. })));
        let base = a.base();
        drop(a);
        assert_eq!(pool.take().unwrap().base(), base);
    }
}
