//! The CPU backend: memory for every slot, and each op's own function in order.
//!
//! In reading order: `words` (aligned memory of a slot), `weights` (where weights are), `pages` (those that are
//! read page by page), this file.

mod pages;
mod weights;
mod words;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::cpu_level;
use crate::error::{Error, Result};
use crate::plan::{
    Backend, BufferId, Caps, DeviceParts, Io, MemoryPlan, Node, PagedInput, PagedPlace, Paging, PagingStatistics, Plan,
    ProgramId, ResizedState, Slot, SlotKind, Step, state_fits,
};
use crate::threads::{self, ThreadPool};
use pages::Pages;
use weights::{Place, Weights};
use words::Words;

/// Runs plans on the CPU: by the plain definitions, or with SIMD and threads where an op has them.
#[derive(Debug)]
pub struct Cpu {
    plain: bool,
    threads: Arc<ThreadPool>,
    weights: Weights,
    /// Weights that are read page by page, if there are any.
    pages: Option<Pages>,
    /// Constants and states, shared between programs.
    own: Vec<Words>,
    by_name: HashMap<String, usize>,
    programs: Vec<Program>,
    /// An op is running, or has panicked: its outputs are then lost.
    broken: bool,
}

/// A prepared plan; a released one is empty.
#[derive(Debug, Default)]
struct Program {
    plan: Arc<Plan>,
    places: Vec<At>,
    pool: Vec<Words>,
    /// The paged weights that each node reads, if there are any.
    paged: Vec<Vec<PagedInput>>,
}

/// Where a slot's words are.
#[derive(Debug, Clone, Copy)]
enum At {
    Pool(usize),
    Own(usize),
    Weight(Place),
    Page(PagedPlace),
}

impl Default for Cpu {
    fn default() -> Self {
        Self::new()
    }
}

impl Cpu {
    /// With SIMD and a thread for each physical core that this process may use ([`ThreadPool::all`]).
    pub fn new() -> Self {
        Self::with(false, threads::shared())
    }

    /// With SIMD and this many threads.
    pub fn with_threads(count: usize) -> Self {
        Self::with(false, threads::pool_of(count))
    }

    /// By the plain definitions alone: the reference.
    pub fn plain() -> Self {
        Self::with(true, Arc::new(ThreadPool::one()))
    }

    fn with(plain: bool, threads: Arc<ThreadPool>) -> Self {
        let (own, by_name) = (Vec::new(), HashMap::new());
        Cpu {
            plain,
            threads,
            weights: Weights::default(),
            pages: None,
            own,
            by_name,
            programs: Vec::new(),
            broken: false,
        }
    }

    fn own(&mut self, name: String, words: impl FnOnce(&str) -> Result<Words>) -> Result<usize> {
        if let Some(&i) = self.by_name.get(&name) {
            return Ok(i);
        }
        self.own.push(words(&name)?);
        let i = self.own.len() - 1;
        self.by_name.insert(name, i);
        Ok(i)
    }

    /// Lays the weights of a plan out as its ops read them.
    fn lay_out(&mut self, plan: &Plan, places: &[At]) {
        for node in &plan.nodes {
            for &slot in &node.inputs {
                if let At::Weight(place) = places[slot.0] {
                    node.op.lay_out(plan.spec(slot), self.weights.words_mut(place), &self.threads);
                }
            }
        }
    }

    fn usable(&self) -> Result<()> {
        let problem = || "an op panicked in a step".into();
        if self.broken { Err(Error::DeviceLost { device: self.describe(), problem: problem() }) } else { Ok(()) }
    }

    /// The words of a slot, if they can be written: those of weights stay as they are.
    fn words_mut(&mut self, program: ProgramId, slot: Slot) -> Option<&mut Words> {
        let p = &mut self.programs[program.0];
        match p.places[slot.0] {
            At::Pool(i) => Some(&mut p.pool[i]),
            At::Own(i) => Some(&mut self.own[i]),
            At::Weight(_) | At::Page(_) => None,
        }
    }

    /// Where the slot is that a caller names.
    fn place(&self, program: ProgramId, slot: Slot) -> Result<At> {
        let places = self.programs.get(program.0).map_or(&[][..], |p| &p.places);
        let missing = || Error::argument("slot", format!("is %{}; the program has {}", slot.0, places.len()));
        places.get(slot.0).copied().ok_or_else(missing)
    }

    /// Brings in the pages that a node reads, before it runs or, where it has chosen them itself, `behind` it; whether one was
    /// missing.
    fn bring(&mut self, program: ProgramId, (plan, node): (&Plan, usize), step: &Step, behind: bool) -> Result<bool> {
        let Some(inputs) = self.programs[program.0].paged.get(node).cloned() else { return Ok(false) };
        let mut missing = false;
        for input in inputs.into_iter().filter(|input| input.chosen_within() == behind) {
            let ids = match input.ids(plan, step) {
                Some((slot, words)) => self.words(program, self.place(program, slot)?)[words].to_vec(),
                None => Vec::new(),
            };
            if let Some(pages) = &mut self.pages {
                missing |= pages.bring(&input, &ids)?;
            }
        }
        Ok(missing)
    }

    /// Runs a node whose pages are there.
    fn run_node(&mut self, program: ProgramId, step: &Step, plan: &Plan, node: &Node) {
        self.broken = true;
        // Outputs are taken out while the op runs; no node reads what it writes, which the plan's builder checks.
        let take = |&s: &Slot| self.words_mut(program, s).map(std::mem::take).unwrap_or_default();
        let mut taken: Vec<Words> = node.outputs.iter().map(take).collect();
        let places = &self.programs[program.0].places;
        let read = |slot: &Slot| (plan.spec(*slot), self.words(program, places[slot.0]));
        let outputs = node.outputs.iter().zip(&mut taken).map(|(&s, w)| (plan.spec(s), &mut w[..])).collect();
        let inputs = node.inputs.iter().map(read).collect();
        let mut io = Io { inputs, outputs, threads: &self.threads };
        if self.plain {
            node.op.cpu(step, &mut io);
        } else {
            node.op.cpu_fast(step, &mut io);
        }
        for (&slot, words) in node.outputs.iter().zip(taken) {
            if let Some(to) = self.words_mut(program, slot) {
                *to = words;
            }
        }
        self.broken = false;
    }

    fn words(&self, program: ProgramId, at: At) -> &[u32] {
        match at {
            At::Pool(i) => &self.programs[program.0].pool[i],
            At::Own(i) => &self.own[i],
            At::Weight(place) => self.weights.words(place),
            At::Page(place) => self.pages.as_ref().map_or(&[], |pages| pages.words(place)),
        }
    }
}

fn state_key(name: &str) -> String {
    format!("state {name}")
}

impl Backend for Cpu {
    fn describe(&self) -> String {
        let (n, plain) = (self.threads.count(), self.plain);
        let kind = if plain { "plain definitions".into() } else { format!("{} kernels", cpu_level::level()) };
        format!("CPU, {n} thread{}, {kind}", if n == 1 { "" } else { "s" })
    }

    fn parts(&self) -> DeviceParts {
        DeviceParts { threads: Some(self.threads.count()), ..DeviceParts::default() }
    }

    fn caps(&self) -> Caps {
        Caps { cpu_driver: true, ..Caps::PLAIN }
    }

    fn weight_bytes(&self, name: &str) -> Option<u64> {
        self.weights.bytes_of(name).or_else(|| self.pages.as_ref()?.paging.bytes_of(name))
    }

    fn load_weight(&mut self, name: &str, words: Vec<u32>) -> Result<()> {
        self.weights.put(name, words, &self.threads)
    }

    fn load_paging(&mut self, paging: Paging) -> Result<()> {
        self.pages = Some(Pages::new(paging)?);
        Ok(())
    }

    fn paging(&self) -> Option<PagingStatistics> {
        self.pages.as_ref().map(|pages| pages.paging.statistics())
    }

    fn prepare(&mut self, plan: Arc<Plan>, keep_temporaries: bool) -> Result<ProgramId> {
        let memory = MemoryPlan::assign(&plan, keep_temporaries);
        let mut places = Vec::with_capacity(plan.slots.len());
        for (slot, place) in plan.slots.iter().zip(&memory.places) {
            places.push(match (&slot.kind, place) {
                (_, BufferId::Pooled(i)) => At::Pool(*i),
                (SlotKind::Weight(w), _) => {
                    let name = w.to_string();
                    let missing = || Error::format(format!("weight {name}"), "is not resident");
                    let paged = self.pages.as_ref().and_then(|pages| pages.paging.find(&name)).map(At::Page);
                    paged.or_else(|| self.weights.find(&name).map(At::Weight)).ok_or_else(missing)?
                }
                (SlotKind::Constant(name, words), _) => {
                    At::Own(self.own(format!("constant {name}"), |name| Words::of(name, words.words()))?)
                }
                (SlotKind::State(name), _) => {
                    let i = self.own(state_key(name), |name| Words::zeros(name, slot.spec.words()))?;
                    state_fits(name, self.own[i].len(), &slot.spec)?;
                    At::Own(i)
                }
                // Nothing reads or writes a temporary that no node mentions.
                (SlotKind::Temp | SlotKind::Input(_), BufferId::Own) => {
                    At::Own(self.own("unused".into(), |_| Ok(Words::default()))?)
                }
            });
        }
        if !self.plain {
            self.lay_out(&plan, &places);
        }
        let temporaries = |(i, &n): (usize, &usize)| Words::zeros(&format!("temporaries {i}"), n);
        let pool = memory.sizes.iter().enumerate().map(temporaries).collect::<Result<_>>()?;
        let paged = self.pages.as_ref().map_or(Vec::new(), |pages| pages.paging.inputs(&plan));
        self.programs.push(Program { plan, places, pool, paged });
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn release(&mut self, program: ProgramId) {
        self.programs[program.0] = Program::default();
    }

    fn resize_states(&mut self, states: &[ResizedState]) -> Result<()> {
        self.usable()?;
        let mut resized = Vec::with_capacity(states.len());
        for state in states {
            let key = state_key(&state.name);
            let i = *self.by_name.get(&key).ok_or_else(|| Error::argument(&key, "is not resident"))?;
            let old = &self.own[i];
            state.check(old.len())?;
            let mut new = Words::zeros(&key, state.words)?;
            for (from, to) in &state.moves {
                new[*to..*to + from.len()].copy_from_slice(&old[from.clone()]);
            }
            resized.push((i, new));
        }
        for program in self.programs.iter_mut().filter(|p| p.plan.has_state_of(states)) {
            *program = Program::default();
        }
        resized.into_iter().for_each(|(i, new)| self.own[i] = new);
        Ok(())
    }

    fn plan(&self, program: ProgramId) -> Arc<Plan> {
        self.programs[program.0].plan.clone()
    }

    fn write(&mut self, program: ProgramId, slot: Slot, at: usize, words: &[u32]) -> Result<()> {
        let n = words.len();
        let _ = self.place(program, slot)?;
        let target = self.words_mut(program, slot).and_then(|to| to.get_mut(at..at.saturating_add(n)));
        target.ok_or_else(|| Error::argument("write", format!("{n} words at {at} do not fit")))?.copy_from_slice(words);
        Ok(())
    }

    fn run(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>) -> Result<()> {
        self.usable()?;
        let plan = self.programs[program.0].plan.clone();
        let outside = || Error::argument("nodes", format!("are {nodes:?}; the program has {}", plan.nodes.len()));
        let some = plan.nodes.get(nodes.clone()).ok_or_else(outside)?;
        for (i, node) in (nodes.start..).zip(some) {
            self.bring(program, (&plan, i), step, false)?;
            self.run_node(program, step, &plan, node);
            if self.bring(program, (&plan, i), step, true)? {
                self.run_node(program, step, &plan, node);
            }
        }
        Ok(())
    }

    fn launches(&self, program: ProgramId, _: &Step) -> usize {
        self.programs[program.0].plan.nodes.len()
    }

    fn runs_at_once(&self) -> bool {
        true
    }

    fn profile(&mut self, program: ProgramId, step: &Step) -> Result<Vec<Duration>> {
        let nodes = self.programs[program.0].plan.nodes.len();
        let timed = |node| {
            let start = Instant::now();
            self.run(program, step, node..node + 1).map(|()| start.elapsed())
        };
        (0..nodes).map(timed).collect()
    }

    fn read(&mut self, program: ProgramId, ranges: &[(Slot, Range<usize>)]) -> Result<Vec<Vec<u32>>> {
        self.usable()?;
        let mut all = Vec::new();
        for (slot, range) in ranges {
            let words = self.words(program, self.place(program, *slot)?).get(range.clone());
            all.push(words.ok_or_else(|| Error::argument("read", format!("{range:?} is out of bounds")))?.to_vec());
        }
        Ok(all)
    }

    fn memory(&self) -> u64 {
        let pools = self.programs.iter().flat_map(|p| &p.pool);
        let paged = self.pages.as_ref().map_or(0, Pages::bytes);
        self.weights.bytes() + paged + self.own.iter().chain(pools).map(|w| 4 * w.len() as u64).sum::<u64>()
    }
}
