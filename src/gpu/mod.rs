//! The GPU backend, through wgpu: [`device`] finds and opens adapters, [`shader`] expands kernels, and [`Gpu`] runs
//! plans that are frozen once and encoded anew every step.
//!
//! In reading order: `faults` (errors for tests), `device`, `buffer` (memory, uploads, reading back), `shader`, `pipeline` (compiled kernels),
//! `program` (a frozen plan), `pace` (how much a submission holds), this file, `paged` (weights that are read
//! page by page), `profile` (times by node).

mod buffer;
pub mod device;
mod faults;
mod pace;
mod paged;
mod pipeline;
mod profile;
mod program;
pub mod shader;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use buffer::{Readback, Region};
pub use device::{AdapterKind, AdapterSummary, Adapters, Device};
pub use faults::{Fault, Faults};
use pace::Pace;
use paged::Pages;
use pipeline::Pipelines;
use program::Program;

use crate::error::{Error, Result};
use crate::plan::{
    Backend, BufferId, Caps, Choices, DeviceParts, MemoryPlan, Paging, PagingStatistics, Plan, ProgramId, ResizedState,
    Slot, SlotKind, Step, state_fits,
};
use crate::tensor::Spec;

/// Maximum number of decode steps per burst; at 16 the cost of a readback is negligible.
const MAX_REPEATS: usize = 16;

/// Up to this many runs are encoded in one submit: a caller that asks for so few has slow steps, beside which the time for
/// encoding is irrelevant.
const MAX_RUNS_PER_SUBMIT: usize = 4;

/// Runs plans on an adapter.
#[derive(Debug)]
pub struct Gpu {
    device: Device,
    choices: Choices,
    pipelines: Pipelines,
    /// Weights, constants and states, shared between programs.
    shared_buffers: HashMap<String, wgpu::Buffer>,
    /// Weights that are read page by page, if there are any.
    pages: Option<Pages>,
    step: wgpu::Buffer,
    programs: Vec<Program>,
    /// The speed of each of them.
    paces: Vec<Pace>,
    /// What measured times are multiplied by.
    slowness: u32,
    readback: Readback,
}

impl Gpu {
    /// A backend on an open device. `caps` may be less than the device's, to run other kernel variants.
    ///
    /// # Errors
    /// [`Error::Device`] or [`Error::OutOfMemory`] if the device cannot even hold the step's uniform.
    pub fn new(mut device: Device, caps: Caps) -> Result<Self> {
        device.caps = caps;
        let desc = wgpu::BufferDescriptor {
            label: Some("step"),
            size: size_of::<Step>() as u64,
            usage: wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST,
            mapped_at_creation: false,
        };
        let step = device.guarded("step", desc.size, || device.device.create_buffer(&desc))?;
        Ok(Gpu {
            device,
            choices: Choices::default(),
            pipelines: Pipelines::default(),
            shared_buffers: HashMap::new(),
            pages: None,
            step,
            programs: Vec::new(),
            paces: Vec::new(),
            slowness: 1,
            readback: Readback::default(),
        })
    }

    /// Takes the device for slower by a factor: times that decide how much a submission holds are multiplied by it. For tests.
    pub fn pretend_slower(&mut self, factor: u32) {
        self.slowness = factor.max(1);
    }

    /// The longest time of a submission of a program since the last call, as far as its end has been seen: by a read, or by the
    /// next submission.
    pub fn longest_submission(&mut self, program: ProgramId) -> Duration {
        self.paces[program.0].longest()
    }

    /// Runs nodes of a program, `times` times, in submissions as short as [`pace`] says. Where a run is several, each one is waited
    /// for, since its time decides what the next one holds.
    ///
    /// The first of many short runs is submitted alone, then as many as have been submitted before, so that the device works
    /// while the next ones are encoded.
    fn submit(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>, times: usize) -> Result<()> {
        self.device.check()?;
        self.device.queue.write_buffer(&self.step, 0, bytemuck::bytes_of(step));
        let mut done = 0;
        while done < times {
            let end = self.paces[program.0].next(nodes.clone(), step.rows);
            if end < nodes.end {
                self.submit_pieces(program, step, nodes.clone(), end)?;
                done += 1;
                continue;
            }
            let now = if times <= MAX_RUNS_PER_SUBMIT { times - done } else { done.clamp(1, times - done) };
            self.submit_piece(program, step, nodes.clone(), now)?;
            done += now;
        }
        self.device.check()
    }

    /// One run in pieces, the first of which ends with node `end`.
    fn submit_pieces(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>, mut end: usize) -> Result<()> {
        let mut done = nodes.start;
        while done < nodes.end {
            self.submit_piece(program, step, done..end, 1)?;
            if end < nodes.end {
                self.wait()?;
            }
            done = end;
            end = self.paces[program.0].next(done..nodes.end, step.rows);
        }
        Ok(())
    }

    /// Nodes as one submission, several times over. The time of one that runs once is kept.
    fn submit_piece(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>, times: usize) -> Result<()> {
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        self.programs[program.0].encode(&mut encoder, &self.pipelines, step, nodes.clone(), times, None)?;
        self.device.queue.submit([encoder.finish()]);
        if times == 1 && !nodes.is_empty() {
            let clock = self.paces[program.0].clock(nodes, step.rows, self.slowness);
            self.device.queue.on_submitted_work_done(clock);
        }
        Ok(())
    }

    /// Words of slots, after everything submitted before has run.
    fn read_back(&mut self, program: ProgramId, ranges: &[(Slot, Range<usize>)]) -> Result<Vec<Vec<u32>>> {
        let found = ranges.iter().map(|(s, r)| self.slot_words(program, *s, r.clone()).map(|(b, r)| (b.clone(), r)));
        let found = found.collect::<Result<Vec<_>>>()?;
        let list: Vec<_> = found.iter().map(|(b, r)| (b, r.clone())).collect();
        self.readback.read(&self.device, &list)
    }

    /// Waits until everything submitted has run.
    fn wait(&self) -> Result<()> {
        let waited = self.device.device.poll(wgpu::PollType::wait_indefinitely());
        waited.map_err(|e| self.device.failure(e.to_string()))?;
        self.device.check()
    }

    /// Destroys the device, as a driver reset would: every later call returns [`Error::DeviceLost`].
    pub fn destroy(&self) {
        self.device.device.destroy();
        let _ = self.device.device.poll(wgpu::PollType::Poll);
    }

    /// The memory of a slot that outlives programs.
    fn own_region(&mut self, kind: &SlotKind, spec: &Spec) -> Result<Option<Region>> {
        if let (SlotKind::Weight(weight), Some(pages)) = (kind, &self.pages)
            && let Some(region) = pages.region(&weight.to_string())
        {
            return Ok(Some(region));
        }
        Ok(self.own_buffer(kind, spec)?.map(Region::whole))
    }

    /// The buffer of a slot that has one of its own, and outlives programs.
    fn own_buffer(&mut self, kind: &SlotKind, spec: &Spec) -> Result<Option<wgpu::Buffer>> {
        let key = match kind {
            SlotKind::Weight(w) => weight_key(&w.to_string()),
            SlotKind::Constant(name, _) => format!("constant {name}"),
            SlotKind::State(name) => state_key(name),
            SlotKind::Temp | SlotKind::Input(_) => return Ok(None),
        };
        if let Some(buffer) = self.shared_buffers.get(&key) {
            if let (SlotKind::State(name), true) = (kind, buffer.size() != buffer::bytes(spec.words())) {
                state_fits(name, buffer.size() as usize / 4, spec)?;
            }
            return Ok(Some(buffer.clone()));
        }
        let buffer = match kind {
            SlotKind::Constant(_, words) => buffer::upload(&self.device, &key, &words.words())?,
            SlotKind::State(_) => buffer::storage(&self.device, &key, spec.words())?,
            _ => return Err(Error::format(&key, "is not resident")),
        };
        self.shared_buffers.insert(key, buffer.clone());
        Ok(Some(buffer))
    }

    /// The buffer of a slot, and where in it a range of the slot's words is.
    fn slot_words(&self, program: ProgramId, slot: Slot, range: Range<usize>) -> Result<(&wgpu::Buffer, Range<usize>)> {
        let region = self.programs[program.0].regions.get(slot.0).and_then(Option::as_ref);
        let fits = |r: &&Region| range.start <= range.end && range.end as u64 <= r.size() / 4;
        let problem = || format!("words {range:?} of slot %{} are out of bounds", slot.0);
        let region = region.filter(fits).ok_or_else(|| Error::argument("slot", problem()))?;
        let from = region.from as usize / 4;
        Ok((&region.buffer, from + range.start..from + range.end))
    }
}

fn weight_key(name: &str) -> String {
    format!("weight {name}")
}

fn state_key(name: &str) -> String {
    format!("state {name}")
}

impl Backend for Gpu {
    fn describe(&self) -> String {
        self.device.label.clone()
    }

    fn parts(&self) -> DeviceParts {
        device::parts(&self.device.device.adapter_info())
    }

    fn caps(&self) -> Caps {
        self.device.caps
    }

    fn weight_bytes(&self, name: &str) -> Option<u64> {
        let buffer = self.shared_buffers.get(&weight_key(name));
        buffer.map(wgpu::Buffer::size).or_else(|| self.pages.as_ref()?.paging.bytes_of(name))
    }

    fn load_weight(&mut self, name: &str, words: Vec<u32>) -> Result<()> {
        let key = weight_key(name);
        if !self.shared_buffers.contains_key(&key) {
            let buffer = buffer::upload(&self.device, &key, &words)?;
            self.shared_buffers.insert(key, buffer);
        }
        Ok(())
    }

    fn load_paging(&mut self, paging: Paging) -> Result<()> {
        self.pages = Some(Pages::new(&self.device, paging)?);
        Ok(())
    }

    fn paging(&self) -> Option<PagingStatistics> {
        self.pages.as_ref().map(|pages| pages.paging.statistics())
    }

    fn prepare(&mut self, plan: Arc<Plan>, keep_temporaries: bool) -> Result<ProgramId> {
        self.device.check()?;
        let memory = MemoryPlan::assign(&plan, keep_temporaries);
        let mut pool = Vec::with_capacity(memory.sizes.len());
        for (i, &words) in memory.sizes.iter().enumerate() {
            let buffer = buffer::storage(&self.device, &format!("temporaries {i}"), words)?;
            pool.push(buffer);
        }
        let mut regions = Vec::with_capacity(plan.slots.len());
        for (slot, place) in plan.slots.iter().zip(&memory.places) {
            regions.push(match place {
                BufferId::Pooled(i) => Some(Region::whole(pool[*i].clone())),
                BufferId::Own => self.own_region(&slot.kind, &slot.spec)?,
            });
        }
        let paged = self.pages.as_ref().map_or(Vec::new(), |pages| pages.paging.inputs(&plan));
        let mut program = Program::new((&self.device, &self.choices), &mut self.pipelines, &self.step, plan, regions)?;
        program.paged = paged;
        program.pooled = pool.iter().map(wgpu::Buffer::size).sum();
        self.programs.push(program);
        self.paces.push(Pace::default());
        Ok(ProgramId(self.programs.len() - 1))
    }

    fn release(&mut self, program: ProgramId) {
        self.programs[program.0] = Program::default();
    }

    fn resize_states(&mut self, states: &[ResizedState]) -> Result<()> {
        self.device.check()?;
        let mut encoder = self.device.device.create_command_encoder(&Default::default());
        let mut resized = Vec::with_capacity(states.len());
        for state in states {
            let key = state_key(&state.name);
            let old = self.shared_buffers.get(&key).ok_or_else(|| Error::argument(&key, "is not resident"))?;
            state.check(old.size() as usize / 4)?;
            let new = buffer::storage(&self.device, &key, state.words)?;
            for (from, to) in state.moves.iter().filter(|(from, _)| !from.is_empty()) {
                let [from, to, bytes] = [from.start, *to, from.len()].map(|words| 4 * words as u64);
                encoder.copy_buffer_to_buffer(old, from, &new, to, bytes);
            }
            resized.push((key, new));
        }
        let moved = || self.device.queue.submit([encoder.finish()]);
        self.device.guarded("states of another size", 0, moved)?;
        for program in self.programs.iter_mut().filter(|p| p.plan.has_state_of(states)) {
            *program = Program::default();
        }
        self.shared_buffers.extend(resized);
        // The old memory is free for what comes next once it has been read.
        self.wait()
    }

    fn plan(&self, program: ProgramId) -> Arc<Plan> {
        self.programs[program.0].plan.clone()
    }

    fn write(&mut self, program: ProgramId, slot: Slot, at: usize, words: &[u32]) -> Result<()> {
        self.device.check()?;
        let (buffer, place) = self.slot_words(program, slot, at..at.saturating_add(words.len()))?;
        let bytes = bytemuck::cast_slice(words);
        self.device.caught("an input", || {
            self.device.queue.write_buffer(buffer, 4 * place.start as u64, bytes);
            Ok(())
        })
    }

    fn run(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>) -> Result<()> {
        self.repeat(program, step, nodes, 1)
    }

    fn repeat(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>, times: usize) -> Result<()> {
        let device = self.device.clone();
        device.caught("a step", || match self.programs[program.0].is_paged() {
            true => (0..times).try_for_each(|_| self.submit_paged(program, step, nodes.clone())),
            false => self.submit(program, step, nodes, times),
        })
    }

    fn max_repeats(&self) -> usize {
        MAX_REPEATS
    }

    fn choose(&mut self, choices: Choices) {
        self.choices = choices;
    }

    fn choices(&self) -> Option<&Choices> {
        Some(&self.choices)
    }

    fn launches(&self, program: ProgramId, step: &Step) -> usize {
        self.programs[program.0].launches(step)
    }

    fn profile(&mut self, program: ProgramId, step: &Step) -> Result<Vec<Duration>> {
        self.device.check()?;
        let device = self.device.clone();
        if self.programs[program.0].is_paged() {
            return device.caught("a profile", || self.profile_paged(program, step));
        }
        device.caught("a profile", || {
            self.device.queue.write_buffer(&self.step, 0, bytemuck::bytes_of(step));
            profile::profile(&self.device, &self.pipelines, &self.programs[program.0], step)
        })
    }

    fn read(&mut self, program: ProgramId, ranges: &[(Slot, Range<usize>)]) -> Result<Vec<Vec<u32>>> {
        self.device.check()?;
        let device = self.device.clone();
        device.caught("reading back", || self.read_back(program, ranges))
    }

    fn memory(&self) -> u64 {
        let paged = self.pages.as_ref().map_or(0, Pages::bytes);
        let shared = self.shared_buffers.values().map(wgpu::Buffer::size);
        paged + shared.chain(self.programs.iter().map(|p| p.pooled)).sum::<u64>()
    }
}
