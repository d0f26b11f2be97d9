//! Where weights are: behind each other in a few large blocks of memory.

use std::collections::HashMap;
use std::ops::Range;

use super::words::Words;
use crate::alloc::CACHE_LINE;
use crate::error::Result;
use crate::threads::ThreadPool;

/// Words of the smallest and of the largest block that holds several weights: 2 and 64 MiB.
const BLOCK: Range<usize> = 1 << 19..1 << 24;
/// Words of the smallest weight that stays where it was made: beside a copy, a table of hundreds of megabytes would be twice in
/// memory while a model is loaded.
const KEPT: usize = BLOCK.end / 2;

/// Weights by their names. A matrix of a megabyte that has memory of its own lies on small pages, and reading all of those takes
/// half as long again: a block of many lies on large ones (see [`crate::alloc::zeros`]).
#[derive(Debug, Default)]
pub(super) struct Weights {
    blocks: Vec<Words>,
    /// The block that has room for more, and what of it is used.
    open: Option<(usize, usize)>,
    /// Words of all weights.
    words: usize,
    by_name: HashMap<String, Place>,
}

/// Where a weight is: the number of its block, and its first word and their number.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    block: usize,
    from: usize,
    len: usize,
}

impl Weights {
    /// Where a weight is, if it is resident.
    pub(super) fn find(&self, name: &str) -> Option<Place> {
        self.by_name.get(name).copied()
    }

    /// The words of a weight.
    pub(super) fn words(&self, place: Place) -> &[u32] {
        &self.blocks[place.block][place.from..][..place.len]
    }

    /// The same, to be laid out.
    pub(super) fn words_mut(&mut self, place: Place) -> &mut [u32] {
        &mut self.blocks[place.block][place.from..][..place.len]
    }

    /// Bytes of all weights.
    pub(super) fn bytes(&self) -> u64 {
        4 * self.words as u64
    }

    /// Bytes of a weight that is resident.
    pub(super) fn bytes_of(&self, name: &str) -> Option<u64> {
        self.find(name).map(|place| 4 * place.len as u64)
    }

    /// Takes the words of a weight; one that is there already stays as it is.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] if the system has no memory for a block.
    pub(super) fn put(&mut self, name: &str, words: Vec<u32>, threads: &ThreadPool) -> Result<()> {
        if self.by_name.contains_key(name) {
            return Ok(());
        }
        let place = if words.len() < KEPT {
            let place = self.reserve(name, words.len())?;
            threads.copy(&mut self.blocks[place.block][place.from..][..place.len], &words);
            place
        } else {
            let place = Place { block: self.blocks.len(), from: 0, len: words.len() };
            self.blocks.push(Words::of(name, words)?);
            place
        };
        self.words += place.len;
        self.by_name.insert(name.into(), place);
        Ok(())
    }

    /// Room for so many words, from a cache line on: in the open block, or in a new one, which stays open if there is more
    /// room left in it.
    fn reserve(&mut self, name: &str, len: usize) -> Result<Place> {
        let used = len.next_multiple_of(CACHE_LINE / size_of::<u32>());
        if let Some((block, from)) = self.open.filter(|(block, from)| from + used <= self.blocks[*block].len()) {
            self.open = Some((block, from + used));
            return Ok(Place { block, from, len });
        }
        // In proportion to what there is: a small model takes little.
        let size = used.max(self.words.clamp(BLOCK.start, BLOCK.end));
        let (block, room) = (self.blocks.len(), |(block, from): (usize, usize)| self.blocks[block].len() - from);
        if size - used > self.open.map_or(0, room) {
            self.open = Some((block, used));
        }
        self.blocks.push(Words::zeros(name, size)?);
        Ok(Place { block, from: 0, len })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_of_any_size_keep_their_words_in_lines_of_their_own() {
        let threads = ThreadPool::new(2);
        let mut all = Weights::default();
        let sizes = [0, 1, 17, BLOCK.start - 16, BLOCK.start, 3 * BLOCK.start + 5, KEPT + 3, 100, 2 * BLOCK.start, 33];
        let words = |i: usize| (0..sizes[i] as u32).map(|w| w.wrapping_mul(i as u32 + 1)).collect::<Vec<u32>>();
        for i in 0..sizes.len() {
            all.put(&i.to_string(), words(i), &threads).unwrap();
        }
        all.put("1", vec![7], &threads).unwrap();
        for (i, size) in sizes.iter().enumerate() {
            let found = all.words(all.find(&i.to_string()).unwrap());
            assert!(found == words(i) && found.as_ptr().addr() % CACHE_LINE == 0, "weight {i}");
            assert_eq!(all.bytes_of(&i.to_string()), Some(4 * *size as u64));
        }
        assert_eq!(all.bytes(), 4 * sizes.iter().sum::<usize>() as u64);
        assert!(all.find(&sizes.len().to_string()).is_none() && all.blocks.len() < sizes.len());
    }

    #[test]
    fn a_large_weight_stays_where_it_was_made() {
        let words = crate::alloc::zeros("a table", KEPT).unwrap();
        let made = words.as_ptr().addr();
        let mut all = Weights::default();
        all.put("a table", words, &ThreadPool::one()).unwrap();
        let now = all.words(all.find("a table").unwrap()).as_ptr().addr();
        assert!(now - made < CACHE_LINE, "from {made:x} to {now:x}");
    }

    #[test]
    fn memory_that_no_system_has_is_an_error_and_what_is_there_stays() {
        let mut all = Weights::default();
        all.put("a", vec![1, 2], &ThreadPool::one()).unwrap();
        assert!(matches!(all.reserve("b", 1 << 58), Err(crate::Error::OutOfMemory { .. })));
        all.put("c", vec![3], &ThreadPool::one()).unwrap();
        assert_eq!([all.words(all.find("a").unwrap()), all.words(all.find("c").unwrap())], [&[1, 2][..], &[3]]);
    }
}
