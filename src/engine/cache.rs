//! Who owns which rows of the KV cache.

use std::sync::{Arc, Mutex, PoisonError};

use crate::error::{Error, Result};

/// The rows of the cache, in ranges of one size, one for each session.
#[derive(Debug)]
pub struct KvPool {
    context: usize,
    free: Mutex<Vec<usize>>,
    sessions: usize,
}

/// A session's rows; they are free again when it is dropped.
#[derive(Debug)]
pub struct KvRange {
    pool: Arc<KvPool>,
    number: usize,
}

impl KvPool {
    /// `sessions` ranges of `context` rows.
    pub fn new(context: usize, sessions: usize) -> Arc<Self> {
        Arc::new(KvPool { context, free: Mutex::new((0..sessions).rev().collect()), sessions })
    }

    /// All rows.
    pub fn rows(&self) -> usize {
        self.context * self.sessions
    }

    /// Rows of one session.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Takes a range.
    ///
    /// # Errors
    /// [`Error::Limit`] if all are taken: nothing is evicted.
    pub fn take(self: &Arc<Self>) -> Result<KvRange> {
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let number = number.ok_or_else(|| Error::Limit {
            what: "a session".into(),
            wanted: format!("{} rows of the KV cache", self.context),
            available: format!("0 of {} sessions are", self.sessions),
            advice: "drop a session, or open the engine with more `sessions`".into(),
        })?;
        Ok(KvRange { pool: self.clone(), number })
    }
}

impl KvRange {
    /// Its number among the pool's ranges.
    pub fn number(&self) -> usize {
        self.number
    }

    /// First row.
    pub fn base(&self) -> usize {
        self.number * self.pool.context
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.pool.context
    }
}

impl Drop for KvRange {
    fn drop(&mut self) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dropped_ranges_are_free_again_and_ranges_never_overlap() {
        let pool = KvPool::new(8, 2);
        let (a, b) = (pool.take().unwrap(), pool.take().unwrap());
        assert_ne!(a.base(), b.base());
        assert!(matches!(pool.take(), Err(Error::Limit { .. })));
        let base = a.base();
        drop(a);
        assert_eq!(pool.take().unwrap().base(), base);
    }
}
