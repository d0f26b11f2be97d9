//! Writing to the episodic memory, and the memory to a file.

use std::path::Path;

use crate::apps::bitgen::BitGen;
use crate::apps::bitgen::memory::{EpisodicMemory, MemoryNoise, MemoryWrite};
use crate::apps::bitgen::similarity::length;
use crate::error::{Error, Result};
use crate::files::Image;

impl BitGen {
    /// Reads a text, beside an image or not, as [`BitGen::encode`] without noise, and writes the memory query of
    /// each token, the longest vectors first ([`EpisodicMemory::write`]; alpha is the configuration's
    /// `memory_alpha`), as the original does while it is trained. The next pass reads the changed memory.
    ///
    /// # Errors
    /// As [`BitGen::encode`]; [`Error::Unsupported`] for a model whose configuration says `"direct_writing": false`.
    pub fn remember(&self, text: &[u32], image: Option<&Image>) -> Result<Vec<MemoryWrite>> {
        let config = self.config();
        if !config.direct_writing {
            let problem = "its config.json says \"direct_writing\": false; change the memory with \
                           EpisodicMemory::write and BitGen::set_memory";
            return Err(Error::Unsupported { object: "remembering".into(), problem: problem.into() });
        }
        let query = self.encode(text, image, &MemoryNoise::None)?.query;
        let mut memory = self.remembered();
        let importance: Vec<f32> = query.chunks(memory.width.max(1)).map(length).collect();
        memory.write(&query, Some(&importance), config.memory_alpha)
    }

    /// Takes another memory in place of the present one, for the passes from now on.
    ///
    /// # Errors
    /// [`Error::Argument`] for one of other sizes than the model's, or whose parts do not belong together.
    pub fn set_memory(&self, memory: EpisodicMemory) -> Result<()> {
        let [slots, width] = self.sizes().memory;
        let per_slot = [&memory.quality, &memory.read_count, &memory.write_count, &memory.age];
        if memory.width != width || memory.mean.len() != slots * width || per_slot.iter().any(|v| v.len() != slots) {
            let [n, w] = memory.sizes();
            return Err(Error::argument(
                "memory",
                format!("{n} slots of {w}, expected {slots} of {width} in all parts"),
            ));
        }
        *self.remembered() = memory;
        Ok(())
    }

    /// Writes the memory to a file (see [`EpisodicMemory::save`]). Where several programs change one file, each holds a
    /// [`crate::files::Lock`] of it from [`BitGen::open_memory`] until this is done.
    ///
    /// # Errors
    /// [`Error::Io`] for what cannot be written.
    pub fn save_memory(&self, file: impl AsRef<Path>) -> Result<()> {
        self.memory().save(file)
    }

    /// Takes the memory of a file (see [`EpisodicMemory::open`]) in place of the present one.
    ///
    /// # Errors
    /// As [`EpisodicMemory::open`]; then the memory stays as it was.
    pub fn open_memory(&self, file: impl AsRef<Path>) -> Result<()> {
        let memory = EpisodicMemory::open(file, self.sizes().memory)?;
        self.set_memory(memory)
    }
}
