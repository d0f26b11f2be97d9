//! The device with its programs: a batch of rows in, tokens or logits out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::apps::attention_rollout::Traces;
use crate::engine::queue::{Job, Outcome};
use crate::error::{Error, Result};
use crate::models::{ModelInfo, TextShape, slots};
use crate::ops::{DRAW_WORDS, Row, TOKEN_IMAGE, seen_words};
use crate::plan::{Backend, Plan, ProgramId, Slot, Step};

/// Device time of the steps that run without the host, at most: a reader hardly sees a delay of a tenth of a second.
const BURST_TIME: Duration = Duration::from_millis(100);

/// The device and its programs; one thread at a time.
pub(crate) struct Core {
    pub backend: Box<dyn Backend>,
    decode: TextProgram,
    prefill: TextProgram,
    pub image: Option<ImageProgram>,
    pub traces: Traces,
    /// Time of the last decoding step.
    pace: Option<Duration>,
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Core").field("device", &self.backend.describe()).field("pace", &self.pace).finish()
    }
}

/// A text plan's slots by what they are for.
#[derive(Debug)]
struct TextProgram {
    id: ProgramId,
    nodes: usize,
    shape: TextShape,
    rows: Slot,
    outputs: Slot,
    draws: Slot,
    image_rows: Option<Slot>,
    logits: Slot,
    sampled: Slot,
    seen: Slot,
    /// By layer, the slots of [`slots::hidden`] that can be read after a step, with the first word of the shared
    /// expert's vector in a row and the words of a row.
    hidden: BTreeMap<usize, (Slot, [usize; 2])>,
    /// What `outputs` and `draws` hold: from step to step it is mostly the same.
    written: [Vec<u32>; 2],
}

/// An image plan's slots.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ImageProgram {
    id: ProgramId,
    nodes: usize,
    pixels: Slot,
    image: Slot,
}

/// A slot that every plan of its kind has.
pub(crate) fn required(slot: Option<Slot>, name: &str) -> Result<Slot> {
    slot.ok_or_else(|| Error::format("the model's plan", format!("has no {name}")))
}

/// Words of an F32 slot as numbers.
pub(crate) fn floats(words: &[u32]) -> Vec<f32> {
    bytemuck::cast_slice(words).to_vec()
}

fn unwatched(layer: usize) -> Error {
    let problem = format!("layer {layer} cannot be watched; open the engine with it in `refiner_layers`");
    Error::argument("refiner.layers", problem)
}

/// Rows of one step, and the jobs that end with some of them.
struct Rows<'a> {
    rows: Vec<Row>,
    outputs: Vec<(usize, &'a Job)>,
    images: Vec<(usize, &'a [f32])>,
    /// How often the step can run without the host.
    most: usize,
}

impl<'a> Rows<'a> {
    /// `width` is that of an image's vectors.
    fn new(parts: &'a [(Job, usize)], width: usize) -> Self {
        let mut all = Rows { rows: Vec::new(), outputs: Vec::new(), images: Vec::new(), most: usize::MAX };
        for (job, n) in parts {
            for i in job.done..job.done + n {
                if job.rows[i].token & TOKEN_IMAGE != 0 {
                    all.images.push((all.rows.len(), &job.image[i * width..(i + 1) * width]));
                }
                all.rows.push(job.rows[i]);
            }
            if job.done + n == job.rows.len() {
                all.outputs.push((all.rows.len() - 1, job));
            }
            all.most = all.most.min(if job.rows.len() == 1 && !job.logits { job.most } else { 1 });
        }
        all
    }

    fn step(&self, times: usize) -> Step {
        let longest = self.rows.iter().map(|r| r.seq_len).max().unwrap_or(0);
        let (rows, outputs) = (self.rows.len() as u32, self.outputs.len() as u32);
        Step { rows, outputs, context: longest + times as u32 - 1, reserved: 0 }
    }
}

impl TextProgram {
    fn new(backend: &mut dyn Backend, (plan, shape): (Arc<Plan>, TextShape), layers: usize) -> Result<Self> {
        let output = |name: &str| required(plan.outputs.get(name).copied(), name);
        let (input, state) = (|name: &str| required(plan.input(name), name), |name| required(plan.state(name), name));
        let hidden = |i: usize| {
            let slot = *plan.outputs.get(&slots::hidden(i))?;
            let [_, experts, width] = *plan.spec(slot).shape.as_slice() else { return None };
            Some((i, (slot, [(experts - 1) * width, experts * width])))
        };
        Ok(TextProgram {
            hidden: (0..layers).filter_map(hidden).collect(),
            nodes: plan.nodes.len(),
            shape,
            rows: input(slots::ROWS)?,
            outputs: input(slots::OUTPUTS)?,
            draws: input(slots::DRAWS)?,
            image_rows: plan.input(slots::IMAGE_ROWS),
            logits: output(slots::LOGITS)?,
            sampled: state(slots::SAMPLED)?,
            seen: state(slots::SEEN)?,
            written: Default::default(),
            id: backend.prepare(plan, false)?,
        })
    }

    /// Writes what a step reads.
    fn write(&mut self, backend: &mut dyn Backend, all: &Rows, info: &ModelInfo) -> Result<()> {
        backend.write(self.id, self.rows, 0, bytemuck::cast_slice(&all.rows))?;
        for &(row, vector) in &all.images {
            let slot = required(self.image_rows, slots::IMAGE_ROWS)?;
            backend.write(self.id, slot, row * vector.len(), bytemuck::cast_slice(vector))?;
        }
        let mut words = [Vec::with_capacity(all.outputs.len()), Vec::with_capacity(all.outputs.len() * DRAW_WORDS)];
        for (row, job) in &all.outputs {
            words[0].push(*row as u32);
            words[1].extend_from_slice(bytemuck::cast_slice(&[job.draw]));
            if let (false, Some(number)) = (job.seen.is_empty(), job.draw.seen.checked_sub(1)) {
                backend.write(self.id, self.seen, number as usize * seen_words(info.vocab), &job.seen)?;
            }
        }
        for ((slot, new), old) in [self.outputs, self.draws].into_iter().zip(words).zip(&mut self.written) {
            if !old.starts_with(&new) {
                backend.write(self.id, slot, 0, &new)?;
                *old = new;
            }
        }
        Ok(())
    }

    /// Reads what the jobs want after `times` steps.
    fn outcomes(&self, backend: &mut dyn Backend, all: &Rows, times: usize, info: &ModelInfo) -> Result<Vec<Outcome>> {
        let mut ranges = Vec::new();
        for (i, (row, job)) in all.outputs.iter().enumerate() {
            let Row { pos, seq_base, .. } = all.rows[*row];
            let place = (seq_base + pos) as usize;
            ranges.push(match job.logits {
                true => (self.logits, i * info.vocab..(i + 1) * info.vocab),
                false => (self.sampled, place..place + times),
            });
            for layer in &job.hidden {
                let (slot, [first, width]) = *self.hidden.get(layer).ok_or_else(|| unwatched(*layer))?;
                let start = row * width;
                ranges.push((slot, start + first..start + width));
            }
        }
        let mut read = backend.read(self.id, &ranges)?.into_iter();
        let outcome = |(_, job): &(usize, &Job)| {
            let words = read.next().unwrap_or_default();
            let hidden = job.hidden.iter().copied().zip(read.by_ref().map(|words| floats(&words))).collect();
            match job.logits {
                true => Outcome::Logits(floats(&words), hidden),
                false => Outcome::Tokens(words),
            }
        };
        Ok(all.outputs.iter().map(outcome).collect())
    }
}

impl ImageProgram {
    fn new(backend: &mut dyn Backend, plan: Arc<Plan>) -> Result<Self> {
        Ok(ImageProgram {
            nodes: plan.nodes.len(),
            pixels: required(plan.input(slots::PIXELS), slots::PIXELS)?,
            image: required(plan.outputs.get(slots::IMAGE).copied(), slots::IMAGE)?,
            id: backend.prepare(plan, false)?,
        })
    }
}

impl Core {
    /// Prepares the plans of decoding and of prefill, and the image plan.
    pub fn new(
        mut backend: Box<dyn Backend>,
        [decode, prefill]: [(Arc<Plan>, TextShape); 2],
        image: Option<Arc<Plan>>,
        layers: usize,
    ) -> Result<Self> {
        Ok(Core {
            decode: TextProgram::new(backend.as_mut(), decode, layers)?,
            prefill: TextProgram::new(backend.as_mut(), prefill, layers)?,
            image: image.map(|plan| ImageProgram::new(backend.as_mut(), plan)).transpose()?,
            traces: Traces::default(),
            pace: None,
            backend,
        })
    }

    /// The bounds of a decode step, and the cache.
    pub fn text_shape(&self) -> TextShape {
        self.decode.shape
    }

    /// Most rows and outputs of a batch.
    pub fn limits(&self) -> (usize, usize) {
        (self.prefill.shape.max_rows, self.prefill.shape.max_outputs)
    }

    /// The program of decoding, which has all states.
    pub fn decode_program(&self) -> ProgramId {
        self.decode.id
    }

    /// The program of a step of this many rows of text.
    pub fn text_program(&self, rows: usize) -> ProgramId {
        if rows <= self.decode.shape.max_rows { self.decode.id } else { self.prefill.id }
    }

    /// The program that encodes an image, if the model reads any.
    pub fn image_program(&self) -> Option<ProgramId> {
        self.image.map(|image| image.id)
    }

    /// Forgets what the programs' inputs hold, since someone else wrote to them.
    pub fn inputs_changed(&mut self) {
        self.decode.written = Default::default();
        self.prefill.written = Default::default();
    }

    /// Checks that the hidden vectors of these layers can be read.
    pub fn check_watched(&self, layers: &[usize]) -> Result<()> {
        layers.iter().find(|i| !self.decode.hidden.contains_key(i)).map_or(Ok(()), |&i| Err(unwatched(i)))
    }

    /// Image tokens, `words` of them, from pixel values.
    pub fn encode(&mut self, program: ImageProgram, pixels: &[f32], words: usize) -> Result<Vec<f32>> {
        self.backend.write(program.id, program.pixels, 0, bytemuck::cast_slice(pixels))?;
        self.backend.run(program.id, &Step::FULL, 0..program.nodes)?;
        let read = self.backend.read(program.id, &[(program.image, 0..words)])?;
        Ok(floats(&read.concat()))
    }

    /// Runs parts of jobs (each with a number of its rows) as one batch; outcomes of the jobs that end.
    ///
    /// A batch of nothing but tokens to decode runs several steps at once, as many as all its jobs allow.
    pub fn step(&mut self, parts: &[(Job, usize)], info: &ModelInfo) -> Result<Vec<Outcome>> {
        let all = Rows::new(parts, info.image.map_or(0, |i| i.width));
        let decoding = all.rows.len() <= self.decode.shape.max_rows && all.images.is_empty();
        let times = if decoding { self.times(all.most) } else { 1 };
        let (backend, program) = (self.backend.as_mut(), if decoding { &mut self.decode } else { &mut self.prefill });
        program.write(backend, &all, info)?;
        let start = Instant::now();
        match times {
            1 => backend.run(program.id, &all.step(1), 0..program.nodes)?,
            _ => backend.repeat(program.id, &all.step(times), times)?,
        }
        if all.outputs.is_empty() {
            return Ok(Vec::new());
        }
        let outcomes = program.outcomes(backend, &all, times, info)?;
        if decoding {
            self.pace = Some(start.elapsed() / times as u32);
        }
        Ok(outcomes)
    }

    /// How many steps to run at once where the jobs allow `most`.
    pub fn times(&self, most: usize) -> usize {
        let fit = self.pace.map_or(1, |pace| (BURST_TIME.as_nanos() / pace.as_nanos().max(1)) as usize);
        most.min(self.backend.most_repeats()).min(fit).max(1)
    }
}
