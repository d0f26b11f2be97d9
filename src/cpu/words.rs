//! Words in memory that begin where a cache line does, and many of them in large pages.

use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

/// A cache line, and the widest vector: one that begins elsewhere lies in two lines, and reading it takes twice as long.
const LINE: usize = 64;
/// Most words in front of the first one.
const SLACK: usize = LINE / size_of::<u32>() - 1;
/// A large page. Whoever reads gigabytes a second through small ones waits for their addresses, too.
const PAGE: usize = 2 << 20;

/// Words of a slot, from a whole cache line on.
#[derive(Debug)]
pub(super) enum Words {
    Vec { all: Vec<u32>, from: usize, len: usize },
    Pages { all: MmapMut, from: usize, len: usize },
}

impl Words {
    /// `len` zeros.
    pub(super) fn zeros(len: usize) -> Self {
        let all = vec![0; len + SLACK];
        let from = all.as_ptr().align_offset(LINE).min(SLACK);
        Words::Vec { all, from, len }
    }

    /// A copy in large pages; none where the system has no such pages, or too few words to fill them.
    #[cfg(target_os = "linux")]
    fn in_pages(words: &[u32]) -> Option<Self> {
        let bytes = size_of_val(words);
        let full = |last: usize| 4 * last >= 3 * PAGE;
        if bytes < PAGE && !full(bytes) {
            return None;
        }
        let whole = if full(bytes % PAGE) { bytes.next_multiple_of(PAGE) } else { bytes };
        let mut all = MmapMut::map_anon(whole + PAGE).ok()?;
        all.advise(memmap2::Advice::HugePage).ok()?;
        let from = all.as_ptr().align_offset(PAGE).min(PAGE);
        all[from..from + bytes].copy_from_slice(bytemuck::cast_slice(words));
        Some(Words::Pages { all, from, len: bytes })
    }

    #[cfg(not(target_os = "linux"))]
    fn in_pages(_: &[u32]) -> Option<Self> {
        None
    }
}

impl Default for Words {
    fn default() -> Self {
        Words::Vec { all: Vec::new(), from: 0, len: 0 }
    }
}

impl From<Vec<u32>> for Words {
    /// Copies many words into large pages, and moves few inside their own memory, which grows by less than a line.
    fn from(mut all: Vec<u32>) -> Self {
        if let Some(words) = Self::in_pages(&all) {
            return words;
        }
        let len = all.len();
        all.reserve_exact(SLACK);
        all.resize(len + SLACK, 0);
        let from = all.as_ptr().align_offset(LINE).min(SLACK);
        all.copy_within(..len, from);
        Words::Vec { all, from, len }
    }
}

impl Deref for Words {
    type Target = [u32];

    fn deref(&self) -> &[u32] {
        match self {
            Words::Vec { all, from, len } => &all[*from..][..*len],
            Words::Pages { all, from, len } => bytemuck::cast_slice(&all[*from..][..*len]),
        }
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u32] {
        match self {
            Words::Vec { all, from, len } => &mut all[*from..][..*len],
            Words::Pages { all, from, len } => bytemuck::cast_slice_mut(&mut all[*from..][..*len]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_with_a_line_and_keep_their_values() {
        for len in [0, 1, 15, 16, 17, 5000, PAGE / 4 - 1, PAGE / 4, PAGE / 4 + 77, PAGE - 5] {
            let want: Vec<u32> = (0..len as u32).collect();
            let mut words = Words::from(want.clone());
            assert_eq!((words.len(), words.as_ptr().addr() % LINE), (len, 0), "{len} words");
            assert!(words[..] == want[..], "{len} words");
            words.iter_mut().for_each(|w| *w += 1);
            assert!(words.iter().zip(&want).all(|(w, v)| *w == v + 1), "{len} words");
            let zeros = Words::zeros(len);
            assert_eq!((zeros.len(), zeros.as_ptr().addr() % LINE), (len, 0), "{len} zeros");
            assert!(zeros.iter().all(|&w| w == 0), "{len} zeros");
        }
    }
}
