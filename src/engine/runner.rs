//! The device with its programs: a batch of rows in, tokens or logits out.

use std::fmt;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::engine::ladder::Ladder;
use crate::engine::programs::{Program, floats};
use crate::engine::queue::{Job, JobOutput};
use crate::engine::text_program::{Rows, TextProgram};
use crate::error::{Error, Result};
use crate::models::{ModelInfo, TextShape, slots};
use crate::plan::{Backend, Step};

/// Upper bound on the device time of steps that run without the host: 100 ms is barely visible in streamed text.
const BURST_TIME: Duration = Duration::from_millis(100);

/// The device and its programs; one thread at a time.
pub(crate) struct Runner {
    pub backend: Box<dyn Backend>,
    text: Ladder,
    image: Option<Program>,
    bounds: TextShape,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("device", &self.backend.describe()).field("bounds", &self.bounds).finish()
    }
}

/// How many steps to run at once where the jobs allow `max`: as many as fit [`BURST_TIME`].
fn burst_len(backend: &dyn Backend, program: &TextProgram, max: usize) -> usize {
    let fit = program.last_step_time.map_or(1, |time| (BURST_TIME.as_nanos() / time.as_nanos().max(1)) as usize);
    max.min(backend.most_repeats()).min(fit).max(1)
}

impl Runner {
    /// A runner of text programs and, where the model reads images, of the image program.
    ///
    /// # Errors
    /// [`Error::Format`] without a text program.
    pub fn new(backend: Box<dyn Backend>, text: Ladder, image: Option<Program>) -> Result<Self> {
        Ok(Runner { backend, bounds: text.whole()?, text, image })
    }

    /// The bounds of a step, and the cache.
    pub fn bounds(&self) -> TextShape {
        self.bounds
    }

    /// The program of a step of this many rows of text, all of whose outputs are wanted, and how many of its steps run
    /// without the host where `max` are to come.
    ///
    /// # Errors
    /// Those of [`Ladder::fitting`].
    pub fn text_program(&mut self, [rows, outputs]: [usize; 2], max: usize) -> Result<(Program, usize)> {
        let backend = self.backend.as_mut();
        let program = self.text.fitting(backend, [rows, outputs], false)?;
        Ok((program.program.clone(), burst_len(backend, program, max)))
    }

    /// The program that encodes an image, if the model reads any.
    pub fn image_program(&self) -> Option<&Program> {
        self.image.as_ref()
    }

    /// Forgets what the programs' inputs hold, since someone else wrote to them.
    pub fn inputs_changed(&mut self) {
        self.text.prepared().for_each(TextProgram::inputs_changed);
    }

    /// Checks that the hidden vectors of these layers can be read.
    ///
    /// # Errors
    /// [`Error::Argument`] with the first layer that cannot.
    pub fn check_probed(&mut self, layers: &[usize]) -> Result<()> {
        self.text.prepared().next().map_or(Ok(()), |program| program.check_probed(layers))
    }

    /// Words of states that text programs have.
    ///
    /// # Errors
    /// Those of [`Backend::read`]; [`Error::Format`] for a state that they do not have.
    pub fn read_states(&mut self, wanted: &[(String, Range<usize>)]) -> Result<Vec<Vec<u32>>> {
        let program = self.text.prepared().next().map(|text| text.program.clone());
        let program = program.ok_or_else(|| Error::format("the engine", "has no text program"))?;
        program.read_states(self.backend.as_mut(), wanted)
    }

    /// Image tokens, `words` of them, from pixel values; none if the model reads no images.
    ///
    /// # Errors
    /// Those of [`Backend::run`].
    pub fn encode(&mut self, pixels: &[f32], words: usize) -> Result<Option<Vec<f32>>> {
        let Some(program) = &self.image else { return Ok(None) };
        let backend = self.backend.as_mut();
        program.write(backend, slots::PIXELS, bytemuck::cast_slice(pixels))?;
        program.run(backend, &Step::FULL)?;
        Ok(Some(floats(&program.read(backend, &[(slots::IMAGE, words)])?.concat())))
    }

    /// Runs parts of jobs (each with a number of its rows) as one batch; outputs of the jobs that end.
    ///
    /// A batch of nothing but tokens to decode runs several steps at once, as many as all its jobs allow.
    ///
    /// # Errors
    /// Those of [`Ladder::fitting`] and of [`Backend::run`].
    pub fn step(&mut self, parts: &[(Job, usize)], info: &ModelInfo) -> Result<Vec<JobOutput>> {
        let all = Rows::new(parts, info.image.map_or(0, |i| i.width));
        let backend = self.backend.as_mut();
        let program = self.text.fitting(backend, [all.rows.len(), all.outputs.len()], !all.images.is_empty())?;
        let times = burst_len(backend, program, all.max_repeats);
        let start = Instant::now();
        program.run(backend, &all, times, info)?;
        if all.outputs.is_empty() {
            return Ok(Vec::new());
        }
        let outputs = program.outputs(backend, &all, times, info)?;
        program.last_step_time = Some(start.elapsed() / times as u32);
        Ok(outputs)
    }
}
