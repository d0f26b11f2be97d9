//! Words in memory that begin where a cache line does.

use std::ops::{Deref, DerefMut};

use crate::pages::{LINE, SLACK, zeros};

/// Words of a slot, from a whole cache line on.
#[derive(Debug, Default)]
pub(super) struct Words {
    all: Vec<u32>,
    from: usize,
    len: usize,
}

impl Words {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let all = zeros(len + SLACK);
        let from = all.as_ptr().align_offset(LINE).min(SLACK);
        Words { all, from, len }
    }
}

impl From<Vec<u32>> for Words {
    /// Moves the words inside their own memory, which grows by less than a line where it has no room for that.
    fn from(mut all: Vec<u32>) -> Self {
        let len = all.len();
        all.reserve_exact(SLACK);
        all.resize(len + SLACK, 0);
        let from = all.as_ptr().align_offset(LINE).min(SLACK);
        all.copy_within(..len, from);
        Words { all, from, len }
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
            let mut words = Words::from(want.clone());
            assert_eq!((&words[..], words.as_ptr().addr() % LINE), (&want[..], 0), "{len} words");
            words.iter_mut().for_each(|w| *w += 1);
            assert!(words.iter().zip(&want).all(|(w, v)| *w == v + 1));
            let zeros = Words::zeros(len);
            assert_eq!((&zeros[..], zeros.as_ptr().addr() % LINE), (&vec![0; len][..], 0), "{len} zeros");
        }
    }
}
