//! Weights that are not wholly in memory: their stacks of matrices are cut into pages, which move through the frames of arenas as
//! steps need them. A page is an expert's matrices, or those of a layer.
//!
//! An arena is one buffer: the tables of some stacks, and behind them frames for their pages. A stack's table says where
//! its matrices are, so kernels read a stack from its table on, wherever its pages lie.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Error, Result};
use crate::plan::{Chosen, Ids, Plan, Slot, SlotKind, Step};
use crate::quant::StackTable;
use crate::tensor::WeightRef;

/// Words of the smallest part of a buffer that a device can bind: tables and frames begin with one.
const ALIGN: usize = 64;

/// The share of the last step in the mean need of a page.
const NEWEST: f32 = 1.0 / 4.0;

/// Gives the words of pages, whenever one is brought in.
pub trait PageSource: Send {
    /// Writes the words of some of a weight's matrices, which lie at `body` in the words of the whole stack, into `to`, which is
    /// as long.
    ///
    /// # Errors
    /// Those of reading the weight's file.
    fn read(&self, weight: &WeightRef, parts: Range<usize>, body: Range<usize>, to: &mut [u32]) -> Result<()>;
}

/// A weight that is read page by page.
#[derive(Debug, Clone)]
pub struct PagedWeight {
    weight: WeightRef,
    table: StackTable,
    pages: usize,
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

    /// Bytes of the whole stack.
    fn bytes(&self) -> u64 {
        4 * self.table.stack_words() as u64
    }

    /// The matrices of a page.
    fn parts(&self, page: usize) -> Range<usize> {
        let n = self.table.parts() / self.pages;
        page * n..(page + 1) * n
    }

    /// Where the words of a page lie in the stack.
    fn body(&self, page: usize) -> Range<usize> {
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
    weights: Vec<PagedWeight>,
    /// The first word of each one's table.
    tables: Vec<usize>,
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
struct Move {
    page: usize,
    frame: usize,
}

impl Arena {
    /// An arena with `frames` empty frames for the pages of these weights; more than all pages need are left out.
    pub fn new(weights: Vec<PagedWeight>, frames: usize) -> Self {
        let mut first_frame = 0;
        let tables = weights.iter().map(|weight| {
            let at = first_frame;
            first_frame += padded_words(weight.table.words().len());
            at
        });
        let tables = tables.collect();
        let frame_words = padded_words(weights.iter().map(PagedWeight::page_words).max().unwrap_or(0));
        let places: Vec<Vec<_>> = weights.iter().map(|weight| vec![None; weight.pages]).collect();
        let frames = vec![Frame::default(); frames.min(places.iter().map(Vec::len).sum())];
        let need = weights.iter().map(|weight| vec![0.0; weight.pages]).collect();
        Arena { weights, tables, first_frame, frame_words, frames, places, need, clock: 0 }
    }

    /// Words of its buffer.
    pub fn words(&self) -> usize {
        self.first_frame + self.frames.len() * self.frame_words
    }

    /// The tables of its weights, as the first words of its buffer.
    pub fn tables(&self) -> Vec<u32> {
        let mut words = vec![0; self.first_frame];
        for (weight, &at) in self.weights.iter().zip(&self.tables) {
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

    fn frame(&self, frame: usize) -> usize {
        self.first_frame + frame * self.frame_words
    }

    /// Gives frames to the pages of a weight that a step needs at once; those that were not there have to be read.
    ///
    /// The page that is needed least of late leaves. Layers follow each other in a circle: of pages that are needed about as often,
    /// the last one used is the one that is needed again last.
    fn bring(&mut self, weight: usize, pages: &[usize]) -> Result<Vec<Move>> {
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
    fn forget(&mut self, weight: usize, page: usize) {
        if let Some(frame) = self.places[weight][page].take() {
            self.frames[frame] = Frame::default();
        }
    }
}

/// What moved, since the model was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PagingStatistics {
    /// Pages that weights were cut into.
    pub pages: usize,
    /// Pages that there is room for.
    pub frames: usize,
    /// Bytes of all pages, and their tables.
    pub page_bytes: u64,
    /// Bytes of the frames, and the tables in front of them.
    pub frame_bytes: u64,
    /// Pages that were in memory when a step needed them.
    pub hits: u64,
    /// Pages that were not.
    pub misses: u64,
    /// Bytes that moved.
    pub moved_bytes: u64,
    /// Time in which steps waited for them.
    pub stalled: Duration,
}

impl PagingStatistics {
    /// What moved after `before`.
    pub fn since(&self, before: &Self) -> Self {
        PagingStatistics {
            hits: self.hits - before.hits,
            misses: self.misses - before.misses,
            moved_bytes: self.moved_bytes - before.moved_bytes,
            stalled: self.stalled - before.stalled,
            ..*self
        }
    }

    /// Of the pages that steps needed, the share that was in memory; 1 if none was needed.
    pub fn hit_rate(&self) -> f64 {
        let all = self.hits + self.misses;
        if all == 0 { 1.0 } else { self.hits as f64 / all as f64 }
    }
}

/// The weights that are read page by page, in their arenas.
pub struct Paging {
    arenas: Vec<Arena>,
    by_name: HashMap<String, PagedPlace>,
    source: Box<dyn PageSource>,
    statistics: PagingStatistics,
}

impl fmt::Debug for Paging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Paging").field("statistics", &self.statistics).finish_non_exhaustive()
    }
}

/// Where a paged weight is: its arena, and its number there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PagedPlace {
    /// Number of the arena.
    pub arena: usize,
    /// The word of the arena with which its table begins.
    pub from: usize,
    weight: usize,
}

/// A paged weight that a node reads.
#[derive(Debug, Clone, Copy)]
pub struct PagedInput {
    place: PagedPlace,
    /// What chooses its pages, and its slot; none: the node reads all of them.
    chosen: Option<(Chosen, Slot)>,
    /// Whether the node itself chooses: then its pages are known once it has run, and it runs again if one was missing.
    pub chosen_within: bool,
}

impl PagedInput {
    /// The slot whose leading words choose the pages of a step of a plan, and how many words; none if nothing does.
    pub fn ids(&self, plan: &Plan, step: &Step) -> Option<(Slot, Range<usize>)> {
        let (_, slot) = self.chosen?;
        let spec = plan.spec(slot);
        Some((slot, 0..step.rows_in_use(spec) * spec.width()))
    }
}

/// Pages to be read into the frames that they have been given.
#[derive(Debug)]
#[must_use]
pub struct Moves {
    place: PagedPlace,
    moves: Vec<Move>,
}

impl Moves {
    /// Whether all pages are there.
    pub fn is_empty(&self) -> bool {
        self.moves.is_empty()
    }
}

/// Where words of an arena go: its number, the first word, how many, and what writes them.
pub type Fill<'a> = dyn FnMut(usize, Range<usize>, &mut dyn FnMut(&mut [u32]) -> Result<()>) -> Result<()> + 'a;

impl Paging {
    /// Weights in arenas, whose pages come from `source`.
    pub fn new(arenas: Vec<Arena>, source: Box<dyn PageSource>) -> Self {
        let mut by_name = HashMap::new();
        for (arena, all) in arenas.iter().enumerate() {
            for (i, (weight, &from)) in all.weights.iter().zip(&all.tables).enumerate() {
                by_name.insert(weight.weight.to_string(), PagedPlace { arena, from, weight: i });
            }
        }
        let weights = || arenas.iter().flat_map(|arena| &arena.weights);
        let statistics = PagingStatistics {
            pages: weights().map(|weight| weight.pages).sum(),
            frames: arenas.iter().map(|arena| arena.frames.len()).sum(),
            page_bytes: weights().map(PagedWeight::bytes).sum(),
            frame_bytes: arenas.iter().map(|arena| 4 * arena.words() as u64).sum(),
            ..PagingStatistics::default()
        };
        Paging { arenas, by_name, source, statistics }
    }

    /// The arenas.
    pub fn arenas(&self) -> &[Arena] {
        &self.arenas
    }

    /// Where a weight of this name is, if it is paged.
    pub fn find(&self, name: &str) -> Option<PagedPlace> {
        self.by_name.get(name).copied()
    }

    /// Bytes of a weight, if it is paged.
    pub fn bytes_of(&self, name: &str) -> Option<u64> {
        self.find(name).map(|place| self.weight(place).bytes())
    }

    /// What moved.
    pub fn statistics(&self) -> PagingStatistics {
        self.statistics
    }

    fn weight(&self, place: PagedPlace) -> &PagedWeight {
        &self.arenas[place.arena].weights[place.weight]
    }

    /// The paged weights that each node of a plan reads.
    pub fn inputs(&self, plan: &Plan) -> Vec<Vec<PagedInput>> {
        let of_node = |node: &crate::plan::Node| {
            let weight = |slot: &Slot| match &plan.slot(*slot).kind {
                SlotKind::Weight(weight) => self.find(&weight.to_string()),
                _ => None,
            };
            let input = |place: PagedPlace| {
                let chosen = node.op.chosen().filter(|chosen| chosen.all == self.weight(place).pages);
                let (chosen, chosen_within) = match chosen.map(|chosen| (chosen, chosen.ids)) {
                    Some((chosen, Ids::Input(i))) => (Some((chosen, node.inputs[i])), false),
                    Some((chosen, Ids::Output(i))) => (Some((chosen, node.outputs[i])), true),
                    None => (None, false),
                };
                PagedInput { place, chosen, chosen_within }
            };
            node.inputs.iter().filter_map(weight).map(input).collect()
        };
        plan.nodes.iter().map(of_node).collect()
    }

    /// Gives frames to the pages that a node reads; `ids` are the words that choose them, if any do. The pages that [`Moves`] names
    /// have to be read with [`Paging::fill`] before the node runs, and before this is called again.
    ///
    /// # Errors
    /// [`Error::Format`] if there are fewer frames.
    pub fn bring(&mut self, input: &PagedInput, ids: &[u32]) -> Result<Moves> {
        let place = input.place;
        let pages: Vec<usize> = match input.chosen {
            Some((Chosen { among, all, .. }, _)) => {
                let mut needed = vec![false; all];
                needed[among..].fill(true);
                ids.iter().filter(|&&id| (id as usize) < among).for_each(|&id| needed[id as usize] = true);
                (0..all).filter(|&page| needed[page]).collect()
            }
            None => (0..self.weight(place).pages).collect(),
        };
        let moves = self.arenas[place.arena].bring(place.weight, &pages)?;
        self.statistics.hits += (pages.len() - moves.len()) as u64;
        self.statistics.misses += moves.len() as u64;
        Ok(Moves { place, moves })
    }

    /// Reads pages into their frames, and writes where they are into their weight's table.
    ///
    /// # Errors
    /// Those of the source and of `fill`; then the pages that were not read have no frame.
    pub fn fill(&mut self, moves: &Moves, fill: &mut Fill) -> Result<()> {
        let start = Instant::now();
        let Moves { place, moves } = moves;
        let done = moves.iter().try_for_each(|&Move { page, frame }| {
            let arena = &self.arenas[place.arena];
            let weight = &arena.weights[place.weight];
            let (parts, body, at) = (weight.parts(page), weight.body(page), arena.frame(frame));
            let words = body.len();
            fill(place.arena, at..at + words, &mut |to| {
                self.source.read(&weight.weight, parts.clone(), body.clone(), to)
            })?;
            let (entry, entries) = weight.table.moved(parts.clone(), at - place.from);
            let entry = place.from + entry;
            fill(place.arena, entry..entry + entries.len(), &mut |to| {
                to.copy_from_slice(&entries);
                Ok(())
            })?;
            self.statistics.moved_bytes += 4 * words as u64;
            Ok(())
        });
        if done.is_err() {
            moves.iter().for_each(|moved| self.arenas[place.arena].forget(place.weight, moved.page));
        }
        self.statistics.stalled += start.elapsed();
        done
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
