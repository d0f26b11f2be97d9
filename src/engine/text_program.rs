//! A prepared plan of a step of text: rows of jobs in, tokens or logits out.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::engine::cache::StatePool;
use crate::engine::jobs::{Job, JobOutput};
use crate::engine::programs::{Program, floats, required};
use crate::error::{Error, Result};
use crate::models::{ModelInfo, slots};
use crate::ops::{Row, SAMPLE_PARAM_WORDS, TOKEN_IMAGE, adjustment_words};
use crate::plan::{Backend, Slot, Step};

/// Rows of one step, and the jobs that end with some of them.
pub(crate) struct Rows<'a> {
    pub rows: Vec<Row>,
    pub outputs: Vec<(usize, &'a Job)>,
    pub images: Vec<(usize, &'a [f32])>,
    /// How often the step can run without the host.
    pub max_repeats: usize,
}

impl<'a> Rows<'a> {
    /// The rows of parts of jobs, each with a number of its rows, where `states` have them. `width` is that of an image's
    /// vectors.
    ///
    /// # Errors
    /// [`Error::Format`] for a row beyond those of its job's slot.
    pub fn new(parts: &'a [(Job, usize)], width: usize, states: &StatePool) -> Result<Self> {
        let mut all = Rows { rows: Vec::new(), outputs: Vec::new(), images: Vec::new(), max_repeats: usize::MAX };
        for (job, n) in parts {
            let place = states.range(job.slot);
            for i in job.done..job.done + n {
                if job.rows[i].token & TOKEN_IMAGE != 0 {
                    all.max_repeats = 1;
                    all.images.push((all.rows.len(), &job.image[i * width..(i + 1) * width]));
                }
                all.rows.push(Row { seq_base: place.start as u32, ..job.rows[i] });
            }
            let left = place.len().checked_sub(all.rows.last().map_or(0, |row| row.pos as usize));
            let left =
                left.filter(|&left| left > 0).ok_or_else(|| Error::format("a job", "has more rows than its slot"))?;
            if job.done + n == job.rows.len() {
                all.outputs.push((all.rows.len() - 1, job));
            }
            let repeats = if job.rows.len() == 1 && !job.logits { job.max_tokens.min(left) } else { 1 };
            all.max_repeats = all.max_repeats.min(repeats);
        }
        Ok(all)
    }

    fn step(&self, times: usize) -> Step {
        let longest = self.rows.iter().map(|r| r.seq_len).max().unwrap_or(0);
        Step::new(self.rows.len(), self.outputs.len(), longest as usize + times - 1)
    }
}

/// A text plan's slots by what they are for.
#[derive(Debug)]
pub(crate) struct TextProgram {
    pub program: Program,
    rows: Slot,
    outputs: Slot,
    sample_params: Slot,
    image_rows: Option<Slot>,
    logits: Slot,
    sampled: Slot,
    adjustments: Slot,
    /// By layer, the slots of [`slots::hidden`] that can be read after a step, with the first word of the shared
    /// expert's vector in a row and the words of a row.
    hidden: BTreeMap<usize, (Slot, [usize; 2])>,
    /// What `outputs` and `sample_params` hold: from step to step it is mostly the same.
    written: [Vec<u32>; 2],
    /// Time of the last step that chose tokens.
    pub last_step_time: Option<Duration>,
}

fn not_probed(layer: usize) -> Error {
    let problem = format!("layer {layer} cannot be watched; open the engine with it in `probed_layers`");
    Error::argument("layers", problem)
}

impl TextProgram {
    /// The program of a text plan of a model with `layers` layers.
    pub fn new(program: Program, layers: usize) -> Result<Self> {
        let plan = program.plan.clone();
        let output = |name: &str| required(plan.outputs.get(name).copied(), name);
        let (input, state) = (|name: &str| required(plan.input(name), name), |name| required(plan.state(name), name));
        let hidden = |i: usize| {
            let slot = *plan.outputs.get(&slots::hidden(i))?;
            let [_, experts, width] = *plan.spec(slot).shape.as_slice() else { return None };
            Some((i, (slot, [(experts - 1) * width, experts * width])))
        };
        Ok(TextProgram {
            program,
            hidden: (0..layers).filter_map(hidden).collect(),
            rows: input(slots::ROWS)?,
            outputs: input(slots::OUTPUTS)?,
            sample_params: input(slots::SAMPLE_PARAMS)?,
            image_rows: plan.input(slots::IMAGE_ROWS),
            logits: output(slots::LOGITS)?,
            sampled: state(slots::SAMPLED)?,
            adjustments: state(slots::ADJUSTMENTS)?,
            written: Default::default(),
            last_step_time: None,
        })
    }

    /// Forgets what its inputs hold, since someone else wrote to them.
    pub fn inputs_changed(&mut self) {
        self.written = Default::default();
    }

    /// Checks that the hidden vectors of these layers can be read.
    pub fn check_probed(&self, layers: &[usize]) -> Result<()> {
        layers.iter().find(|i| !self.hidden.contains_key(i)).map_or(Ok(()), |&i| Err(not_probed(i)))
    }

    /// Writes what a step reads, and starts it, `times` times over.
    pub fn run(&mut self, backend: &mut dyn Backend, all: &Rows, times: usize, info: &ModelInfo) -> Result<()> {
        self.write(backend, all, info)?;
        backend.repeat(self.program.id, &all.step(times), 0..self.program.plan.nodes.len(), times)
    }

    fn write(&mut self, backend: &mut dyn Backend, all: &Rows, info: &ModelInfo) -> Result<()> {
        let id = self.program.id;
        backend.write(id, self.rows, 0, bytemuck::cast_slice(&all.rows))?;
        for &(row, vector) in &all.images {
            let slot = required(self.image_rows, slots::IMAGE_ROWS)?;
            backend.write(id, slot, row * vector.len(), bytemuck::cast_slice(vector))?;
        }
        let mut words =
            [Vec::with_capacity(all.outputs.len()), Vec::with_capacity(all.outputs.len() * SAMPLE_PARAM_WORDS)];
        for (row, job) in &all.outputs {
            words[0].push(*row as u32);
            words[1].extend_from_slice(bytemuck::cast_slice(&[job.sample]));
            if let (false, Some(number)) = (job.adjustments.is_empty(), job.sample.adjustment_row.checked_sub(1)) {
                let first = number as usize * adjustment_words(info.vocab);
                backend.write(id, self.adjustments, first, &job.adjustments)?;
            }
        }
        for ((slot, new), old) in [self.outputs, self.sample_params].into_iter().zip(words).zip(&mut self.written) {
            if !old.starts_with(&new) {
                backend.write(id, slot, 0, &new)?;
                *old = new;
            }
        }
        Ok(())
    }

    /// Reads what the jobs want after `times` steps.
    pub fn outputs(
        &self,
        backend: &mut dyn Backend,
        all: &Rows,
        times: usize,
        info: &ModelInfo,
    ) -> Result<Vec<JobOutput>> {
        let mut ranges = Vec::new();
        for (i, (row, job)) in all.outputs.iter().enumerate() {
            let Row { pos, seq_base, .. } = all.rows[*row];
            let place = (seq_base + pos) as usize;
            ranges.push(match job.logits {
                true => (self.logits, i * info.vocab..(i + 1) * info.vocab),
                false => (self.sampled, place..place + times),
            });
            for layer in &job.hidden {
                let (slot, [first, width]) = *self.hidden.get(layer).ok_or_else(|| not_probed(*layer))?;
                let start = row * width;
                ranges.push((slot, start + first..start + width));
            }
        }
        let mut read = backend.read(self.program.id, &ranges)?.into_iter();
        let output = |(_, job): &(usize, &Job)| {
            let words = read.next().unwrap_or_default();
            let hidden = job.hidden.iter().copied().zip(read.by_ref().map(|words| floats(&words))).collect();
            match job.logits {
                true => JobOutput::Logits(floats(&words), hidden),
                false => JobOutput::Tokens(words),
            }
        };
        Ok(all.outputs.iter().map(output).collect())
    }
}
