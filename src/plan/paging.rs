//! Weights that are not wholly in memory: their stacks of matrices are cut into pages, which move through the frames of arenas as
//! steps need them. A page is an expert's matrices, or those of a layer.

use std::collections::HashMap;
use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::Result;
use crate::plan::arena::{Arena, Move, PagedWeight};
use crate::plan::{Chosen, Ids, Node, Plan, Slot, SlotKind, Step};
use crate::tensor::WeightRef;

/// Gives the words of pages, whenever one is brought in.
pub trait PageSource: Send {
    /// Writes the words of some of a weight's matrices, which lie at `body` in the words of the whole stack, into `to`, which is
    /// as long.
    ///
    /// # Errors
    /// Those of reading the weight's file.
    fn read(&self, weight: &WeightRef, parts: Range<usize>, body: Range<usize>, to: &mut [u32]) -> Result<()>;
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
}

impl PagedInput {
    /// Whether the node itself chooses: then its pages are known once it has run, and it runs again if one was missing.
    pub fn chosen_within(&self) -> bool {
        self.chosen.is_some_and(|(chosen, _)| matches!(chosen.ids, Ids::Output(_)))
    }

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
            for (i, (weight, &from)) in all.weights.iter().zip(&all.table_places).enumerate() {
                by_name.insert(weight.weight.to_string(), PagedPlace { arena, from, weight: i });
            }
        }
        let weights = || arenas.iter().flat_map(|arena| &arena.weights);
        let statistics = PagingStatistics {
            pages: weights().map(|weight| weight.pages).sum(),
            frames: arenas.iter().map(|arena| arena.frames()).sum(),
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
        let of_node = |node: &Node| {
            let weight = |slot: &Slot| match &plan.slot(*slot).kind {
                SlotKind::Weight(weight) => self.find(&weight.to_string()),
                _ => None,
            };
            let input = |place: PagedPlace| {
                let chosen = node.op.chosen().filter(|chosen| chosen.all == self.weight(place).pages);
                let slot = |ids| match ids {
                    Ids::Input(i) => node.inputs[i],
                    Ids::Output(i) => node.outputs[i],
                };
                PagedInput { place, chosen: chosen.map(|chosen| (chosen, slot(chosen.ids))) }
            };
            node.inputs.iter().filter_map(weight).map(input).collect()
        };
        plan.nodes.iter().map(of_node).collect()
    }

    /// Gives frames to the pages that a node reads; `ids` are the words that choose them, if any do. The pages that [`Moves`] names
    /// have to be read with [`Paging::fill`] before the node runs, and before this is called again.
    ///
    /// # Errors
    /// [`crate::Error::Format`] if there are fewer frames.
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
