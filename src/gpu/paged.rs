//! Weights that are read page by page: the buffers of their arenas, and steps that wait for pages.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::error::Result;
use crate::gpu::Gpu;
use crate::gpu::buffer::{self, Region};
use crate::gpu::device::Device;
use crate::plan::{Moves, Paging, ProgramId, Slot, Step};

/// Bytes of pages that may wait in staging memory until the device has taken them.
const MAX_STAGED: u64 = 64 << 20;

/// Paged weights and the buffers of their arenas.
#[derive(Debug)]
pub(super) struct Pages {
    pub(super) paging: Paging,
    arenas: Vec<wgpu::Buffer>,
    /// A page on its way.
    page: Vec<u32>,
    /// Bytes written since the device was waited for.
    staged: u64,
}

impl Pages {
    /// With no page on the device.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] if the device has no memory for the arenas.
    pub(super) fn new(device: &Device, paging: Paging) -> Result<Self> {
        let mut arenas = Vec::with_capacity(paging.arenas().len());
        for (i, arena) in paging.arenas().iter().enumerate() {
            let (name, tables) = (format!("frames {i}"), arena.tables());
            let buffer = buffer::storage(device, &name, arena.words())?;
            let write = || device.queue.write_buffer(&buffer, 0, bytemuck::cast_slice(&tables));
            device.guarded(&name, 4 * tables.len() as u64, write)?;
            arenas.push(buffer);
        }
        Ok(Pages { paging, arenas, page: Vec::new(), staged: 0 })
    }

    /// Where a weight is, from its table on, if it is paged.
    pub(super) fn region(&self, name: &str) -> Option<Region> {
        let place = self.paging.find(name)?;
        Some(Region { buffer: self.arenas[place.arena].clone(), from: 4 * place.from as u64 })
    }

    /// Bytes of the arenas.
    pub(super) fn bytes(&self) -> u64 {
        self.arenas.iter().map(wgpu::Buffer::size).sum()
    }
}

impl Gpu {
    /// One run of nodes of a program that reads paged weights: a submission ends where a page is missing, and where the host has
    /// to know what a router has chosen.
    pub(super) fn submit_paged(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>) -> Result<()> {
        // They leave their place meanwhile, so that a submission can borrow the rest.
        let Some(mut pages) = self.pages.take() else { return self.submit(program, step, nodes, 1) };
        let done = self.submit_with(&mut pages, program, step, nodes);
        self.pages = Some(pages);
        done
    }

    fn submit_with(&mut self, pages: &mut Pages, program: ProgramId, step: &Step, nodes: Range<usize>) -> Result<()> {
        let plan = self.programs[program.0].plan.clone();
        let (mut from, mut known) = (nodes.start, None::<(Slot, Vec<u32>)>);
        for node in nodes.clone() {
            let inputs = self.programs[program.0].paged.get(node).cloned().unwrap_or_default();
            for input in inputs {
                // What a node has chosen itself is known once it has run.
                let end = node + usize::from(input.chosen_within());
                let wanted = input.ids(&plan, step);
                // Both halves of a layer's experts are chosen by the same words.
                if let Some((slot, words)) = wanted.filter(|(slot, _)| known.as_ref().is_none_or(|(at, _)| at != slot))
                {
                    self.submit_some(program, step, &mut from, end)?;
                    known = self.read_back(program, &[(slot, words)])?.pop().map(|ids| (slot, ids));
                }
                let moves = pages.paging.bring(&input, known.as_ref().map_or(&[], |(_, ids)| ids))?;
                if !moves.is_empty() {
                    self.submit_some(program, step, &mut from, node)?;
                    self.fill(pages, &moves)?;
                    // It has read a page that was not there.
                    from = from.min(node);
                }
            }
        }
        self.submit_some(program, step, &mut from, nodes.end)
    }

    /// Writes pages and their tables' entries, behind everything submitted before.
    fn fill(&mut self, pages: &mut Pages, moves: &Moves) -> Result<()> {
        let Pages { paging, arenas, page, staged } = pages;
        paging.fill(moves, &mut |arena, words, write| {
            page.resize(words.len(), 0);
            write(page)?;
            self.device.queue.write_buffer(&arenas[arena], 4 * words.start as u64, bytemuck::cast_slice(page));
            *staged += 4 * words.len() as u64;
            Ok(())
        })?;
        if *staged > MAX_STAGED {
            self.device.queue.submit([]);
            self.wait()?;
            *staged = 0;
        }
        Ok(())
    }

    /// Submits nodes from `from` up to `to`, if there are any, which moves on.
    fn submit_some(&mut self, program: ProgramId, step: &Step, from: &mut usize, to: usize) -> Result<()> {
        if *from < to {
            self.submit(program, step, *from..to, 1)?;
            *from = to;
        }
        Ok(())
    }

    /// The time of each node as the host sees it, with the pages that it waits for: the device's own clock does not see those.
    pub(super) fn profile_paged(&mut self, program: ProgramId, step: &Step) -> Result<Vec<Duration>> {
        let nodes = self.programs[program.0].plan.nodes.len();
        let timed = |node| {
            let start = Instant::now();
            self.submit_paged(program, step, node..node + 1)?;
            self.wait()?;
            Ok(start.elapsed())
        };
        (0..nodes).map(timed).collect()
    }
}
