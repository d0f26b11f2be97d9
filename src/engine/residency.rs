//! Which weights stay in a device's memory, and which move through it page by page, where an option bounds the memory.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::Weights;
use crate::plan::{Arena, PageSource, PagedWeight, Paging, Plan, SlotKind, padded_words};
use crate::tensor::{DType, WeightRef};
use crate::threads;

/// Fewer matrices of one shape than this are no layers: they stay.
const MIN_LAYERS: usize = 2;

/// Weights of one shape, that share frames.
type Class = (Vec<usize>, DType, usize);

/// A weight that may move.
#[derive(Debug, Clone)]
struct Candidate {
    weight: WeightRef,
    class: Class,
    /// Its pages: one for each expert, or one.
    pages: usize,
    /// Bytes that it takes, at most.
    most_bytes: u64,
}

/// The weights that move, by name, and the memory that they have.
#[derive(Debug, Default)]
pub(crate) struct Residency {
    candidates: BTreeMap<String, Candidate>,
    /// Bytes of the device's memory that everything may take.
    limit: u64,
    /// Bytes of what is not there yet when weights are loaded: constants, states, temporaries.
    rest: u64,
    /// Those that were loaded, by class in the order of the plans.
    loaded: Vec<(Class, Vec<PagedWeight>)>,
    /// The words of those whose files do not hold them, where a device has memory of its own.
    kept: HashMap<String, Vec<u32>>,
}

impl Residency {
    /// The experts of plans, or with `layers` also the matrices of layers, for a device that may hold `limit` bytes. What has a
    /// row for each of `vocab` tokens stays: a step reads one row of a table, and all of a head.
    ///
    /// # Errors
    /// Those of [`Weights::most_bytes`].
    pub fn of(plans: &[Arc<Plan>], weights: &Weights, (layers, vocab): (bool, usize), limit: u64) -> Result<Self> {
        let mut candidates = BTreeMap::<String, Candidate>::new();
        for (plan, node) in plans.iter().flat_map(|plan| plan.nodes.iter().map(move |node| (plan, node))) {
            let pages = node.op.chosen().map_or(1, |chosen| chosen.all);
            for slot in node.inputs.iter().map(|&slot| plan.slot(slot)) {
                let (SlotKind::Weight(weight), spec) = (&slot.kind, &slot.spec) else { continue };
                let is_stack = matches!(spec.dtype, DType::Ternary | DType::Groups { .. });
                let stays = |name: &str| weights.shape(name).is_some_and(|shape| shape.first() == Some(&vocab));
                if !is_stack || (pages == 1 && !layers) || weight.parts.iter().any(|part| stays(&part.name)) {
                    continue;
                }
                // What one node reads by experts, another may read as a whole.
                let name = weight.to_string();
                let (pages, most_bytes) = match candidates.get(&name) {
                    Some(known) => (known.pages.max(pages), known.most_bytes),
                    None => (pages, weights.most_bytes(weight)?),
                };
                let class = (spec.shape.clone(), spec.dtype, pages);
                candidates.insert(name, Candidate { weight: weight.clone(), class, pages, most_bytes });
            }
        }
        let mut members = HashMap::<Class, usize>::new();
        candidates.values().for_each(|c| *members.entry(c.class.clone()).or_default() += 1);
        candidates.retain(|_, c| c.pages > 1 || members[&c.class] >= MIN_LAYERS);
        Ok(Residency { candidates, limit, ..Residency::default() })
    }

    /// Bytes of the weights that move, at most.
    pub fn most_bytes(&self) -> u64 {
        self.candidates.values().map(|c| c.most_bytes).sum()
    }

    /// Bytes of the fewest frames with which steps run, at most, and of all tables.
    pub fn least_bytes(&self) -> u64 {
        let mut frames = HashMap::<&Class, u64>::new();
        for Candidate { class, most_bytes, .. } in self.candidates.values() {
            let least = frames.entry(class).or_default();
            *least = (*least).max(*most_bytes);
        }
        let table = |c: &Candidate| 4 * padded_words(16 + 8 * c.weight.parts.len()) as u64;
        let padding = |c: &Candidate| 4 * padded_words(1) as u64 * c.pages as u64;
        frames.values().sum::<u64>() + self.candidates.values().map(|c| table(c) + padding(c)).sum::<u64>()
    }

    /// Says what is not there yet when weights are loaded, in bytes.
    pub fn with_rest(self, rest: u64) -> Self {
        Residency { rest, ..self }
    }

    /// Whether a weight moves.
    pub fn has(&self, name: &str) -> bool {
        self.candidates.contains_key(name)
    }

    /// Takes the words of a weight that moves. With `keeps`, they stay in the host's memory unless the file has them as they are.
    ///
    /// # Errors
    /// Those of [`PagedWeight::new`].
    pub fn take(&mut self, name: &str, words: Vec<u32>, weights: &Weights, keeps: bool) -> Result<()> {
        let Some(Candidate { weight, class, pages, .. }) = self.candidates.get(name) else { return Ok(()) };
        let paged = PagedWeight::new(weight, &words, *pages)?;
        if !weights.holds_packed(weight) {
            if keeps {
                self.kept.insert(name.to_owned(), words);
            } else if self.loaded.is_empty() {
                log::warn!(
                    "{}: matrices move through memory, and are quantised again whenever they do; `convert` writes a file \
                     that has them packed",
                    weights.path().display()
                );
            }
        }
        match self.loaded.iter_mut().find(|(of, _)| of == class) {
            Some((_, all)) => all.push(paged),
            None => self.loaded.push((class.clone(), vec![paged])),
        }
        Ok(())
    }

    /// The weights in arenas of at most `max_binding` bytes, in what `taken` bytes leave of the memory.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where that holds no step's pages.
    pub fn arenas(self, weights: Weights, taken: u64, max_binding: u64) -> Result<Paging> {
        let of = |all: &Vec<PagedWeight>| {
            let page = padded_words(all.iter().map(PagedWeight::page_words).max().unwrap_or(0)) as u64;
            let table = all.iter().map(PagedWeight::table_words).sum::<usize>() as u64;
            let least = all.iter().map(PagedWeight::pages).max().unwrap_or(0) as u64;
            [4 * page, 4 * table, least, all.iter().map(|weight| weight.pages() as u64).sum::<u64>()]
        };
        let sizes: Vec<[u64; 4]> = self.loaded.iter().map(|(_, all)| of(all)).collect();
        let least: u64 = sizes.iter().map(|[page, table, least, _]| table + page * least).sum();
        let more: u64 = sizes.iter().map(|[page, _, least, all]| page * (all - least)).sum();
        let taken = taken + self.rest;
        let free = self.limit.saturating_sub(taken);
        let free = free.checked_sub(least).ok_or_else(|| too_little(taken + least, self.limit))?;
        let share = if more == 0 { 1.0 } else { (free as f64 / more as f64).min(1.0) };
        let even = |[_, _, least, pages]: &[u64; 4]| least + (share * (pages - least) as f64) as u64;
        let mut frames: Vec<u64> = sizes.iter().map(even).collect();
        let mut left =
            free.saturating_sub(sizes.iter().zip(&frames).map(|([page, _, least, _], n)| page * (n - least)).sum());
        // What is left by rounding is enough for another frame of some.
        for ([page, _, _, pages], n) in sizes.iter().zip(&mut frames) {
            if *n < *pages && *page <= left {
                (*n, left) = (*n + 1, left - page);
            }
        }
        let mut arenas = Vec::new();
        for (((_, all), [page, _, least, _]), frames) in self.loaded.into_iter().zip(sizes).zip(frames) {
            arenas.extend(cut(all, [frames, least], page, max_binding));
        }
        let paging = Paging::new(arenas, Box::new(Source { weights, kept: self.kept }));
        let s = paging.statistics();
        log::info!(
            "{} of {} pages of experts and layers have a place in memory, {} bytes",
            s.frames,
            s.pages,
            s.frame_bytes
        );
        Ok(paging)
    }
}

/// The error of a limit in which no step has its pages.
pub(crate) fn too_little(needed: u64, limit: u64) -> Error {
    Error::OutOfMemory {
        what: "the model with its whole context, and those experts and layers that a step needs at once,".into(),
        needed,
        available: Some(limit),
        device: "the option `max_memory`".into(),
    }
}

/// Weights in as few arenas of at most `max_binding` bytes as there can be, with `frames` frames in all of `page` bytes, and
/// `least` or more in each.
fn cut(all: Vec<PagedWeight>, [frames, least]: [u64; 2], page: u64, max_binding: u64) -> Vec<Arena> {
    let tables = 4 * all.iter().map(PagedWeight::table_words).sum::<usize>() as u64;
    let room = max_binding.saturating_sub(tables).max(1);
    let count = (frames * page).div_ceil(room).clamp(1, (frames / least.max(1)).max(1)).min(all.len() as u64);
    let weights = all.len().div_ceil(count as usize);
    let mut left = frames;
    let chunks = all.chunks(weights.max(1));
    let count = chunks.len() as u64;
    let arena = |(i, some): (usize, &[PagedWeight])| {
        let share = left.div_ceil(count - i as u64);
        left -= share;
        Arena::new(some.to_vec(), share as usize)
    };
    chunks.enumerate().map(arena).collect()
}

/// Where pages come from: the host's memory, or the file.
struct Source {
    weights: Weights,
    kept: HashMap<String, Vec<u32>>,
}

impl PageSource for Source {
    fn read(&self, weight: &WeightRef, parts: Range<usize>, body: Range<usize>, to: &mut [u32]) -> Result<()> {
        let Some(words) = self.kept.get(&weight.to_string()) else { return self.weights.load_parts(weight, parts, to) };
        threads::shared().copy(to, &words[body]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::{Packed, WeightQuant, stack};
    use crate::tensor::{Pack, WeightPart};

    #[test]
    fn arenas_keep_to_a_binding_and_have_all_frames() {
        let words = stack(&vec![Packed::new(1, 4, &[1, 0, -1, 1], 1.0); 6]);
        let weight = |i: usize| {
            let parts = vec![WeightPart { name: i.to_string(), rows: 0..1, cols: 4 }; 6];
            PagedWeight::new(&WeightRef { parts, pack: Pack::Ternary(WeightQuant::SignMean) }, &words, 6).unwrap()
        };
        let all: Vec<PagedWeight> = (0..10).map(weight).collect();
        let (page, tables) = (4 * padded_words(all[0].page_words()) as u64, 4 * all[0].table_words() as u64);
        for (frames, max, arenas) in
            [(30, u64::MAX, 1), (30, 10 * tables + 20 * page, 2), (30, 10 * tables + 6 * page, 5)]
        {
            let found = cut(all.clone(), [frames, 6], page, max);
            assert_eq!((found.len(), found.iter().map(Arena::frames).sum::<usize>()), (arenas, frames as usize));
            assert!(found.iter().all(|arena| 4 * arena.words() as u64 <= max && arena.frames() >= 6), "at most {max}");
        }
        // What no step can do with less of comes before a binding's limit.
        assert_eq!(cut(all, [12, 6], page, 1).iter().map(Arena::frames).collect::<Vec<_>>(), [6, 6]);
    }
}
