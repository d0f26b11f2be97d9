//! Arenas: which page of a stack lies in which frame, and which one leaves for another.
//!
//! An arena is one buffer: the tables of some stacks, and behind them frames for their pages. A stack's table says where
//! its matrices are, so kernels read a stack from its table on, wherever its pages lie.

use std::ops::Range;

use crate::error::{Error, Result};
use crate::quant::StackTable;
use crate::tensor::WeightRef;

/// Words of the smallest part of a buffer that a device can bind: tables and frames begin with one.
const ALIGN: usize = 64;

/// The share of the last step in the mean need of a page.
const NEWEST: f32 = 1.0 / 4.0;

/// A weight that is read page by page.
#[derive(Debug, Clone)]
pub struct PagedWeight {
    pub(super) weight: WeightRef,
    pub(super) table: StackTable,
    pub(super) pages: usize,
}

impl PagedWeight {
    /// The weight whose stack is `words`, in so many pages of equally many matrices.
    ///
    /// # Errors
    /// [`Error::Format`] for what is no stack, and for matrices that make no such pages.
    pub fn new(weight: &WeightRef, words: &[u32], pages: usize) -> Result<Self> {
        let table = StackTable::of(words, weight.pack.dtype()).filter(|t| pages > 0 && t.parts().is_multiple_of(pages));
        let table =
            table.ok_or_else(|| Error::format(format!("weight {weight}"), format!("does not make {pages} pages")))?;
        Ok(PagedWeight { weight: weight.clone(), table, pages })
    }

    /// Words of its largest page.
    pub fn page_words(&self) -> usize {
        (0..self.pages).map(|page| self.body(page).len()).max().unwrap_or(0)
    }

    /// Number of pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Words that its table takes in an arena.
    pub fn table_words(&self) -> usize {
        padded_words(self.table.words().len())
    }

    /// Bytes of the whole stack.
    pub(super) fn bytes(&self) -> u64 {
        4 * self.table.stack_words() as u64
    }

    /// The matrices of a page.
    pub(super) fn parts(&self, page: usize) -> Range<usize> {
        let n = self.table.parts() / self.pages;
        page * n..(page + 1) * n
    }

    /// Where the words of a page lie in the stack.
    pub(super) fn body(&self, page: usize) -> Range<usize> {
        self.table.body(self.parts(page))
    }
}

/// Words that the table of a stack takes in an arena, and a page of so many words.
pub fn padded_words(words: usize) -> usize {
    words.next_multiple_of(ALIGN)
}

/// A frame.
#[derive(Debug, Clone, Copy, Default)]
struct Frame {
    /// The number of a weight, and of its page.
    page: Option<(usize, usize)>,
    /// When a step last needed it.
    used: u64,
}

/// A buffer with the tables of some weights, and frames of one size for their pages.
#[derive(Debug)]
pub struct Arena {
    pub(super) weights: Vec<PagedWeight>,
    /// The first word of each one's table.
    pub(super) table_places: Vec<usize>,
    first_frame: usize,
    frame_words: usize,
    frames: Vec<Frame>,
    /// The frame of each page of each weight.
    places: Vec<Vec<Option<usize>>>,
    /// How often each page is needed of late: a mean of 1 where a step needs it and 0 where it does not, in which the last step
    /// counts [`NEWEST`].
    need: Vec<Vec<f32>>,
    clock: u64,
}

/// A page that has to be read into a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub page: usize,
    pub frame: usize,
}

impl Arena {
    /// An arena with `frames` empty frames for the pages of these weights; more than all pages need are left out.
    pub fn new(weights: Vec<PagedWeight>, frames: usize) -> Self {
        let mut first_frame = 0;
        let tables = weights.iter().map(|weight| {
            let at = first_frame;
            first_frame += weight.table_words();
            at
        });
        let table_places = tables.collect();
        let frame_words = padded_words(weights.iter().map(PagedWeight::page_words).max().unwrap_or(0));
        let places: Vec<Vec<_>> = weights.iter().map(|weight| vec![None; weight.pages]).collect();
        let frames = vec![Frame::default(); frames.min(places.iter().map(Vec::len).sum())];
        let need = weights.iter().map(|weight| vec![0.0; weight.pages]).collect();
        Arena { weights, table_places, first_frame, frame_words, frames, places, need, clock: 0 }
    }

    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// Words of its buffer.
    pub fn words(&self) -> usize {
        self.first_frame + self.frames.len() * self.frame_words
    }

    /// The tables of its weights, as the first words of its buffer.
    pub fn tables(&self) -> Vec<u32> {
        let mut words = vec![0; self.first_frame];
        for (weight, &at) in self.weights.iter().zip(&self.table_places) {
            let table = weight.table.words();
            words[at..at + table.len()].copy_from_slice(table);
            // A page that is nowhere is a part of the first frame, so that its entries lead nowhere else.
            for page in 0..weight.pages {
                let (entry, entries) = weight.table.moved(weight.parts(page), self.first_frame - at);
                words[at + entry..at + entry + entries.len()].copy_from_slice(&entries);
            }
        }
        words
    }

    /// The first word of a frame.
    pub(super) fn frame(&self, frame: usize) -> usize {
        self.first_frame + frame * self.frame_words
    }

    /// Gives frames to the pages of a weight that a step needs at once; those that were not there have to be read.
    ///
    /// The page that is needed least of late leaves. Layers follow each other in a circle: of pages that are needed about as often,
    /// the last one used is the one that is needed again last.
    pub(super) fn bring(&mut self, weight: usize, pages: &[usize]) -> Result<Vec<Move>> {
        self.clock += 1;
        self.need[weight].iter_mut().for_each(|need| *need -= NEWEST * *need);
        for &page in pages {
            self.need[weight][page] += NEWEST;
            if let Some(frame) = self.places[weight][page] {
                self.frames[frame].used = self.clock;
            }
        }
        let mut moves = Vec::new();
        for &page in pages {
            if self.places[weight][page].is_some() {
                continue;
            }
            let Some(frame) = self.frame_to_leave() else {
                moves.iter().for_each(|moved: &Move| self.forget(weight, moved.page));
                let found = format!("{} frames for {} pages at once", self.frames.len(), pages.len());
                return Err(Error::format(format!("weight {}", self.weights[weight].weight), found));
            };
            if let Some((weight, page)) = self.frames[frame].page {
                self.places[weight][page] = None;
            }
            self.frames[frame] = Frame { page: Some((weight, page)), used: self.clock };
            self.places[weight][page] = Some(frame);
            moves.push(Move { page, frame });
        }
        Ok(moves)
    }

    /// The frame whose page leaves first, if not all are needed now.
    fn frame_to_leave(&self) -> Option<usize> {
        let order = |frame: &Frame| match frame.page {
            None => (0, 0),
            Some((weight, page)) => (1 + (8.0 * self.need[weight][page]).round() as u32, u64::MAX - frame.used),
        };
        let free = self.frames.iter().enumerate().filter(|(_, frame)| frame.used < self.clock);
        Some(free.min_by_key(|(_, frame)| order(frame))?.0)
    }

    /// A page that could not be read is nowhere.
    pub(super) fn forget(&mut self, weight: usize, page: usize) {
        if let Some(frame) = self.places[weight][page].take() {
            self.frames[frame] = Frame::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Packed, WeightQuant, stack};
    use crate::tensor::{Pack, WeightPart};

    /// Weights with so many pages each, a matrix a page.
    fn arena(weights: usize, pages: usize, frames: usize) -> Arena {
        let words = stack(&vec![Packed::new(1, 4, &[1, 0, -1, 1], 1.0); pages]);
        let weight = |i: usize| {
            let parts = vec![WeightPart { name: i.to_string(), rows: 0..1, cols: 4 }; pages];
            PagedWeight::new(&WeightRef { parts, pack: Pack::Ternary(WeightQuant::SignMean) }, &words, pages).unwrap()
        };
        Arena::new((0..weights).map(weight).collect(), frames)
    }

    /// Which of these pages were missing.
    fn missing(arena: &mut Arena, weight: usize, pages: &[usize]) -> Vec<usize> {
        arena.bring(weight, pages).unwrap().iter().map(|moved| moved.page).collect()
    }

    #[test]
    fn needed_pages_always_have_frames_of_their_own() {
        let mut arena = arena(5, 6, 7);
        let mut seed = 1u32;
        for _ in 0..2000 {
            let mut next = || {
                seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                seed as usize >> 16
            };
            let (weight, choice) = (next() % 5, next());
            let pages: Vec<usize> = (0..6).filter(|page| choice >> page & 1 == 1).collect();
            missing(&mut arena, weight, &pages);
            for &page in &pages {
                let frame = arena.places[weight][page].unwrap();
                assert_eq!(arena.frames[frame].page, Some((weight, page)));
            }
            let placed = arena.places.iter().flatten().flatten().count();
            assert_eq!(placed, arena.frames.iter().filter(|frame| frame.page.is_some()).count());
        }
        assert!(arena.bring(0, &[0, 1, 2, 3, 4, 5]).is_ok());
    }

    #[test]
    fn more_pages_than_frames_are_an_error_and_nothing_is_thought_to_be_there() {
        let mut arena = arena(1, 4, 3);
        assert!(arena.bring(0, &[0, 1, 2, 3]).unwrap_err().to_string().contains("3 frames"));
        assert_eq!(missing(&mut arena, 0, &[1, 3]), [1, 3]);
    }

    #[test]
    fn what_is_needed_often_stays() {
        let mut arena = arena(1, 8, 4);
        for step in 0..100 {
            let found = missing(&mut arena, 0, &[0, 1, 2 + step % 6]);
            assert!(step < 8 || !found.contains(&0) && !found.contains(&1), "{step}: {found:?}");
        }
    }

    #[test]
    fn of_layers_in_a_circle_all_but_one_frame_keep_theirs() {
        let mut arena = arena(10, 1, 4);
        let mut round = || (0..10).map(|layer| missing(&mut arena, layer, &[0]).len()).sum::<usize>();
        // At first nobody knows how often a layer is needed.
        let misses: Vec<usize> = (0..40).map(|_| round()).collect();
        assert!(misses[..2] == [10, 7] && misses[12..].iter().all(|&n| n <= 7), "{misses:?}");
    }
}
