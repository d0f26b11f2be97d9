//! Words in memory, aligned to cache lines.

use std::ops::{Deref, DerefMut};

use crate::alloc::{ALIGN_SLACK, CACHE_LINE, zeros};
use crate::error::{Error, Result};

/// Words of a slot, from the beginning of a cache line on.
#[derive(Debug, Default)]
pub(super) struct Words {
    all: Vec<u32>,
    from: usize,
    len: usize,
}

impl Words {
    /// `len` zeros for the slot `name`.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] if the system has no such memory.
    pub(super) fn zeros(name: &str, len: usize) -> Result<Self> {
        let all = zeros(name, len.saturating_add(ALIGN_SLACK))?;
        let from = all.as_ptr().align_offset(CACHE_LINE).min(ALIGN_SLACK);
        Ok(Words { all, from, len })
    }

    /// Aligns words that were allocated elsewhere, by moving them inside their own memory, which grows by less than a line if it
    /// has no room.
    ///
    /// # Errors
    /// As [`Words::zeros`].
    pub(super) fn of(name: &str, mut all: Vec<u32>) -> Result<Self> {
        let len = all.len();
        all.try_reserve_exact(ALIGN_SLACK).map_err(|_| Error::memory(name, 4 * (len + ALIGN_SLACK)))?;
        all.resize(len + ALIGN_SLACK, 0);
        let from = all.as_ptr().align_offset(CACHE_LINE).min(ALIGN_SLACK);
        all.copy_within(..len, from);
        Ok(Words { all, from, len })
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        &self.all[self.from..][..self.len]
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        &mut self.all[self.from..][..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_with_a_line_and_keep_their_values() {
        for len in [0, 1, 15, 16, 17, 5000] {
            let want: Vec<u32> = (0..len as u32).collect();
            let mut words = Words::of("words", want.clone()).unwrap();
            assert_eq!((&words[..], words.as_ptr().addr() % CACHE_LINE), (&want[..], 0), "{len} words");
            words.iter_mut().for_each(|w| *w += 1);
            assert!(words.iter().zip(&want).all(|(w, v)| *w == v + 1));
            let zeros = Words::zeros("words", len).unwrap();
            assert_eq!((&zeros[..], zeros.as_ptr().addr() % CACHE_LINE), (&vec![0; len][..], 0), "{len} zeros");
        }
    }
}
