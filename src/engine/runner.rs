//! The device with its programs: a batch of rows in, tokens or logits out; images in, their vectors out.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::engine::cache::{Growth, StatePool};
use crate::engine::jobs::{ImageJob, JobOutput, Turn};
use crate::engine::ladder::Ladder;
use crate::engine::programs::{Program, floats};
use crate::engine::recorded::beyond;
use crate::engine::text_program::{Rows, TextProgram};
use crate::error::{Error, Result};
use crate::models::{ModelInfo, TextShape, slots};
use crate::plan::{Backend, Plan, ResizedState, Step};

/// Upper bound on the device time of steps that run without the host: 100 ms is barely visible in streamed text.
const BURST_TIME: Duration = Duration::from_millis(100);

/// Time of a piece of an image: as long as streams wait for it between two batches.
const PIECE_TIME: Duration = Duration::from_millis(25);

/// Pieces of the first image, while nobody knows how long a node takes.
const FIRST_PIECES: usize = 16;

/// The device and its programs; one thread at a time.
pub(crate) struct Runner {
    pub backend: Box<dyn Backend>,
    text: Ladder,
    bounds: TextShape,
    /// Time of a node in the last piece of an image.
    node_time: Option<Duration>,
    /// Bytes that the device may hold.
    max_memory: Option<u64>,
}

impl fmt::Debug for Runner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Runner").field("device", &self.backend.describe()).field("bounds", &self.bounds).finish()
    }
}

/// How many steps to run at once where the jobs allow `max`: as many as fit [`BURST_TIME`].
fn burst_len(backend: &dyn Backend, program: &TextProgram, max: usize) -> usize {
    let fit = program.last_step_time.map_or(1, |time| (BURST_TIME.as_nanos() / time.as_nanos().max(1)) as usize);
    max.min(backend.max_repeats()).min(fit).max(1)
}

/// The states by row of text programs, that `new` has in another size than `old`, and their bytes before and after.
fn resized(old: &Ladder, new: &Ladder, growth: &Growth) -> (Vec<ResizedState>, [u64; 2]) {
    let (mut states, mut bytes) = (Vec::new(), [0; 2]);
    let plans = old.plans().zip(new.plans()).next();
    for (name, new, old) in plans
        .iter()
        .flat_map(|(old, new)| new.states().filter_map(|(name, new)| Some((name, new, old.spec(old.state(name)?)))))
    {
        if new.shape != old.shape {
            states.push(ResizedState::of_rows(name, [old, new], &growth.moves));
            bytes = [bytes[0] + 4 * old.words() as u64, bytes[1] + 4 * new.words() as u64];
        }
    }
    (states, bytes)
}

/// The error of memory for a cache of so many rows, with its bytes before and after.
fn refused(error: Error, rows: usize, [old, new]: [u64; 2]) -> Error {
    match error {
        Error::OutOfMemory { available, device, .. } => Error::OutOfMemory {
            what: format!("the KV cache of {rows} rows, beside the {old} bytes that it has until they have moved,"),
            needed: new,
            available,
            device,
        },
        other => other,
    }
}

impl Runner {
    /// A runner of text programs.
    ///
    /// # Errors
    /// [`Error::Format`] without a text program.
    pub fn new(backend: Box<dyn Backend>, text: Ladder, max_memory: Option<u64>) -> Result<Self> {
        Ok(Runner { backend, bounds: text.whole()?, text, node_time: None, max_memory })
    }

    /// Bytes of the states.
    pub fn state_bytes(&self) -> u64 {
        self.text.plans().next().map_or(0, |plan| plan.states().map(|(_, spec)| 4 * spec.words() as u64).sum())
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

    /// Forgets what the programs' inputs hold, since someone else wrote to them.
    pub fn inputs_changed(&mut self) {
        self.text.prepared().for_each(TextProgram::inputs_changed);
    }

    /// Checks that the hidden vectors of these layers can be read.
    ///
    /// # Errors
    /// [`Error::Argument`] with the first layer that cannot; those of [`Ladder::fitting`].
    pub fn check_probed(&mut self, layers: &[usize]) -> Result<()> {
        self.smallest()?.check_probed(layers)
    }

    /// The text program for one row: slots and states are those of all.
    fn smallest(&mut self) -> Result<&mut TextProgram> {
        self.text.fitting(self.backend.as_mut(), [1, 1], false)
    }

    /// Words of states that text programs have.
    ///
    /// # Errors
    /// Those of [`Ladder::fitting`] and [`Backend::read`]; [`Error::Format`] for a state that they do not have.
    pub fn read_states(&mut self, wanted: &[(String, Range<usize>)]) -> Result<Vec<Vec<u32>>> {
        let program = self.smallest()?.program.clone();
        program.read_states(self.backend.as_mut(), wanted)
    }

    /// The states that have a row for each of the cache, and that a session needs to go on; of each the words of the rows, in parts.
    fn row_states(&mut self, rows: &Range<usize>) -> Result<Vec<(String, Vec<Range<usize>>)>> {
        let kv_rows = self.bounds.kv_rows;
        let words = |(at, n): (usize, usize)| at + rows.start * n..at + rows.end * n;
        let plan = self.smallest()?.program.plan.clone();
        // What was sampled is read in the same burst of steps only.
        let by_row = plan
            .states()
            .filter(|(name, spec)| spec.shape[0] == kv_rows && ![slots::ADJUSTMENTS, slots::SAMPLED].contains(name));
        Ok(by_row.map(|(name, spec)| (name.to_owned(), spec.row_words().into_iter().map(words).collect())).collect())
    }

    /// What some rows of the cache hold, by state: keys and values, and the experts that were chosen.
    ///
    /// # Errors
    /// As [`Runner::read_states`].
    pub fn rows(&mut self, rows: Range<usize>) -> Result<Vec<(String, Vec<u32>)>> {
        let states = self.row_states(&rows)?;
        // One state at a time: a device has no buffer for all of a long context.
        let read = |(name, parts): (String, Vec<Range<usize>>)| {
            let wanted: Vec<_> = parts.into_iter().map(|part| (name.clone(), part)).collect();
            self.read_states(&wanted).map(|words| (name, words.concat()))
        };
        states.into_iter().map(read).collect()
    }

    /// Writes what [`Runner::rows`] gave to as many rows.
    ///
    /// # Errors
    /// [`Error::Format`] for other states than there are, or of another size; those of [`Backend::write`].
    pub fn write_rows(&mut self, rows: Range<usize>, states: &[(String, Cow<[u32]>)]) -> Result<()> {
        let known = self.row_states(&rows)?;
        let size = |parts: &[Range<usize>]| parts.iter().map(Range::len).sum::<usize>();
        let sizes = |n: &str| known.iter().find(|(name, _)| name == n).map(|(_, parts)| size(parts));
        let wrong = states.iter().find(|(name, words)| sizes(name) != Some(words.len()));
        if states.len() != known.len() || wrong.is_some() {
            let found = wrong.map_or(format!("{} states", states.len()), |(name, words)| {
                format!("{} words of the state {name}", words.len())
            });
            let expected = wrong.and_then(|(name, _)| sizes(name));
            let expected = expected.map_or(format!("{} others", known.len()), |n| n.to_string());
            return Err(Error::format("rows of the KV cache", format!("{found}, expected {expected}")));
        }
        let program = self.smallest()?.program.clone();
        for (name, parts) in &known {
            let Some((_, words)) = states.iter().find(|(n, _)| n == name) else { continue };
            let mut words = &words[..];
            for part in parts {
                let (now, rest) = words.split_at(part.len());
                program.write_state(self.backend.as_mut(), name, part.start, now)?;
                words = rest;
            }
        }
        Ok(())
    }

    /// Gives the cache more rows. Plans are recorded anew, for sizes are part of them; their programs are prepared when a
    /// step needs them, of kernels that are compiled already.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] with the bytes where the device has no memory for the old rows and the new; those of
    /// [`Backend::resize_states`] and of `record`. Then nothing has changed.
    pub fn grow(&mut self, growth: &Growth, record: impl Fn(&TextShape) -> Result<Arc<Plan>>) -> Result<()> {
        let whole = TextShape { kv_rows: growth.rows, ..self.bounds };
        let text = self.text.recorded_for(whole, record)?;
        let (states, bytes) = resized(&self.text, &text, growth);
        // The old rows leave once they have moved.
        let needed = self.backend.memory() + bytes[1];
        if let Some(limit) = self.max_memory.filter(|&limit| needed > limit) {
            return Err(beyond(format!("the model with a KV cache of {} rows", growth.rows), needed, limit));
        }
        self.backend.resize_states(&states).map_err(|error| refused(error, growth.rows, bytes))?;
        log::info!("the KV cache has {} rows, {} bytes for {}", growth.rows, bytes[1], bytes[0]);
        (self.bounds, self.text) = (whole, text);
        Ok(())
    }

    /// Runs a turn of the queue, parts of jobs as one batch or a piece of an image; outputs of the jobs that end with it.
    ///
    /// A batch of nothing but tokens to decode runs several steps at once, as many as all its jobs allow.
    ///
    /// # Errors
    /// Those of [`Rows::new`], [`Ladder::fitting`] and [`Backend::run`].
    pub fn run(&mut self, turn: &mut Turn, info: &ModelInfo, states: &StatePool) -> Result<Vec<JobOutput>> {
        let parts = match turn {
            Turn::Text(parts) => parts,
            Turn::Image(image) => return Ok(self.encode(image)?.map(JobOutput::Image).into_iter().collect()),
        };
        let all = Rows::new(parts, info.image.map_or(0, |i| i.width), states)?;
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

    /// Runs the next piece of an image's program, about [`PIECE_TIME`] of it; the outputs asked for with the last one.
    fn encode(&mut self, image: &mut ImageJob) -> Result<Option<Vec<Vec<f32>>>> {
        let (backend, program) = (self.backend.as_mut(), &image.program);
        let left = program.plan.nodes.len() - image.done;
        let pieces = match self.node_time {
            Some(time) => (time * left as u32).as_nanos().div_ceil(PIECE_TIME.as_nanos()) as usize,
            None => FIRST_PIECES,
        };
        let nodes = left.div_ceil(pieces.max(1));
        let start = Instant::now();
        if image.done == 0 {
            program.write(backend, slots::PIXELS, bytemuck::cast_slice(&image.pixels))?;
        }
        program.run_nodes(backend, &Step::FULL, image.done..image.done + nodes)?;
        image.done += nodes;
        // What is read waits for the device. Until all has run, one word does: its value is not looked at.
        let max = if nodes == left { usize::MAX } else { 1 };
        let wanted: Vec<_> = image.outputs.iter().map(|(name, words)| (name.as_str(), max.min(*words))).collect();
        let outputs = program.read(backend, &wanted)?;
        self.node_time = Some(start.elapsed() / nodes.max(1) as u32);
        Ok((nodes == left).then(|| outputs.iter().map(|words| floats(words)).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::engine::ladder::Rungs;
    use crate::ops::UnaryKind;
    use crate::plan::{Plan, PlanBuilder};
    use crate::tensor::{DType, Spec};
    use std::sync::Arc;

    const NODES: usize = 40;

    /// Doubles a number [`NODES`] times.
    fn encoder() -> Plan {
        let p = PlanBuilder::new();
        let mut x = p.input(slots::PIXELS, Spec::fixed(&[1, 1], DType::F32));
        for _ in 0..NODES {
            x = p.unary(x, UnaryKind::Scale(2.0));
        }
        p.output(slots::IMAGE, x);
        p.finish().unwrap()
    }

    #[test]
    fn an_image_is_the_same_in_pieces_of_any_size() {
        let whole = TextShape {
            max_rows: 1,
            max_outputs: 1,
            kv_rows: 1,
            context: 1,
            sessions: 1,
            kv_dtype: DType::F32,
            images: false,
        };
        let mut runner = Runner::new(
            Box::new(Cpu::plain()),
            Ladder::record(whole, (Rungs::All, 0), |_| Ok(Arc::default())).unwrap(),
            None,
        )
        .unwrap();
        let program = Program::prepare(runner.backend.as_mut(), &Arc::new(encoder())).unwrap();
        // Nobody knows how long a node takes; far too long; no time; a tenth of a piece.
        for (node_time, first) in [
            (None, NODES.div_ceil(FIRST_PIECES)),
            (Some(10 * PIECE_TIME), 1),
            (Some(Duration::ZERO), NODES),
            (Some(PIECE_TIME / 10), NODES / 4),
        ] {
            let outputs = vec![(slots::IMAGE.to_string(), 1)];
            let mut image = ImageJob { program: program.clone(), pixels: vec![3.0], outputs, done: 0, cancel: None };
            runner.node_time = node_time;
            let mut read = runner.encode(&mut image).unwrap();
            assert_eq!(image.done, first, "{node_time:?}");
            for _ in 1..NODES {
                if read.is_none() {
                    read = runner.encode(&mut image).unwrap();
                }
            }
            assert_eq!(read, Some(vec![vec![3.0 * (1u64 << NODES) as f32]]), "{node_time:?}");
        }
    }
}
