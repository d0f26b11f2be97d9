//! Weights that are read page by page: the memory of their arenas.

use super::words::Words;
use crate::error::Result;
use crate::plan::{PagedInput, PagedPlace, Paging};

/// Paged weights and their arenas.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) paging: Paging,
    arenas: Vec<Words>,
}

impl Pages {
    /// With no page in memory.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] if the system has no memory for the arenas.
    pub(super) fn new(paging: Paging) -> Result<Self> {
        let mut arenas = Vec::with_capacity(paging.arenas().len());
        for (i, arena) in paging.arenas().iter().enumerate() {
            let mut words = Words::zeros(&format!("frames {i}"), arena.words())?;
            let tables = arena.tables();
            words[..tables.len()].copy_from_slice(&tables);
            arenas.push(words);
        }
        Ok(Pages { paging, arenas })
    }

    /// The words of a weight, from its table on.
    pub(super) fn words(&self, place: PagedPlace) -> &[u32] {
        &self.arenas[place.arena][place.from..]
    }

    /// Bytes of the arenas.
    pub(super) fn bytes(&self) -> u64 {
        self.arenas.iter().map(|words| 4 * words.len() as u64).sum()
    }

    /// Brings in the pages of a weight that `ids` choose, or all; whether one was missing.
    ///
    /// # Errors
    /// Those of [`Paging::bring`] and [`Paging::fill`].
    pub(super) fn bring(&mut self, input: &PagedInput, ids: &[u32]) -> Result<bool> {
        let moves = self.paging.bring(input, ids)?;
        if moves.is_empty() {
            return Ok(false);
        }
        let arenas = &mut self.arenas;
        self.paging.fill(&moves, &mut |arena, words, write| write(&mut arenas[arena][words]))?;
        Ok(true)
    }
}
