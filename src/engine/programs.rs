//! Prepared plans, addressed by the names of their inputs, outputs and states.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::models::slots;
use crate::ops::Row;
use crate::plan::{Backend, Plan, ProgramId, Slot, Step};

/// A slot that every plan of its kind has.
///
/// # Errors
/// [`Error::Format`] with its name if there is none.
pub(crate) fn required(slot: Option<Slot>, name: &str) -> Result<Slot> {
    slot.ok_or_else(|| Error::format("the model's plan", format!("has no {name}")))
}

/// Words of an F32 slot as numbers.
pub(crate) fn floats(words: &[u32]) -> Vec<f32> {
    bytemuck::cast_slice(words).to_vec()
}

/// A prepared plan.
#[derive(Debug, Clone)]
pub struct Program {
    /// Its number on the device.
    pub id: ProgramId,
    /// The plan.
    pub plan: Arc<Plan>,
}

impl Program {
    /// Prepares a plan whose weights are resident.
    pub fn prepare(backend: &mut dyn Backend, plan: &Arc<Plan>) -> Result<Self> {
        Ok(Program { id: backend.prepare(plan.clone(), false)?, plan: plan.clone() })
    }

    /// Overwrites the first words of an input.
    pub fn write(&self, backend: &mut dyn Backend, input: &str, words: &[u32]) -> Result<()> {
        backend.write(self.id, required(self.plan.input(input), input)?, 0, words)
    }

    /// Overwrites words of a state, from word `at` on.
    pub fn write_state(&self, backend: &mut dyn Backend, state: &str, at: usize, words: &[u32]) -> Result<()> {
        backend.write(self.id, required(self.plan.state(state), state)?, at, words)
    }

    /// Runs all nodes.
    pub fn run(&self, backend: &mut dyn Backend, step: &Step) -> Result<()> {
        self.run_nodes(backend, step, 0..self.plan.nodes.len())
    }

    /// Runs some nodes.
    pub fn run_nodes(&self, backend: &mut dyn Backend, step: &Step, nodes: Range<usize>) -> Result<()> {
        backend.run(self.id, step, nodes)
    }

    /// The number behind the last node that writes a state.
    pub fn behind(&self, state: &str) -> Result<usize> {
        let slot = required(self.plan.state(state), state)?;
        Ok(self.plan.producer(slot).map_or(0, |node| node + 1))
    }

    /// The first words of outputs.
    pub fn read(&self, backend: &mut dyn Backend, wanted: &[(&str, usize)]) -> Result<Vec<Vec<u32>>> {
        let range = |&(name, n): &(&str, usize)| Ok((required(self.plan.outputs.get(name).copied(), name)?, 0..n));
        let ranges = wanted.iter().map(range).collect::<Result<Vec<_>>>()?;
        backend.read(self.id, &ranges)
    }

    /// Words of states.
    pub fn read_states(&self, backend: &mut dyn Backend, wanted: &[(String, Range<usize>)]) -> Result<Vec<Vec<u32>>> {
        let range =
            |(name, range): &(String, Range<usize>)| Ok((required(self.plan.state(name), name)?, range.clone()));
        let ranges = wanted.iter().map(range).collect::<Result<Vec<_>>>()?;
        backend.read(self.id, &ranges)
    }

    /// Logits `[rows, vocab]` behind some of `tokens`, of a text decoder whose input `name` is `context` `[d]` beside each
    /// token. They depend on all tokens: the decoder's activations have one scale over all rows.
    ///
    /// # Errors
    /// [`Error::Argument`] for a context of another width, and for rows that are not there.
    pub fn decoder_logits(
        &self,
        backend: &mut dyn Backend,
        tokens: &[u32],
        (name, context): (&str, &[f32]),
        rows: Range<usize>,
    ) -> Result<Vec<f32>> {
        let shape = |slot| &self.plan.spec(slot).shape;
        let (n, width) = (tokens.len(), self.plan.spec(required(self.plan.input(name), name)?).width());
        if rows.end > n {
            return Err(Error::argument("rows", format!("end at {}, there are {n} tokens", rows.end)));
        }
        if context.len() != width {
            return Err(Error::argument("context", format!("{} values, expected {width}", context.len())));
        }
        let max_outputs = shape(required(self.plan.input(slots::OUTPUTS), slots::OUTPUTS)?)[0];
        let logits = required(self.plan.outputs.get(slots::LOGITS).copied(), slots::LOGITS)?;
        let vocab = self.plan.spec(logits).width();
        self.write(backend, slots::ROWS, bytemuck::cast_slice(&text_rows(tokens, |pos| pos + 1)))?;
        self.write(backend, name, bytemuck::cast_slice(&context.repeat(n)))?;
        let (rows, mut all): (Vec<u32>, _) = (rows.map(|row| row as u32).collect(), Vec::new());
        for rows in rows.chunks(max_outputs.max(1)) {
            self.write(backend, slots::OUTPUTS, rows)?;
            self.run(backend, &Step::new(n, rows.len(), n))?;
            all.extend(floats(&self.read(backend, &[(slots::LOGITS, rows.len() * vocab)])?.concat()));
        }
        Ok(all)
    }
}

/// Rows of one text, each of which attends to the first `seq_len(pos)` of them.
pub fn text_rows(text: &[u32], seq_len: impl Fn(usize) -> usize) -> Vec<Row> {
    let row = |(pos, &token): (usize, &u32)| Row { token, pos: pos as u32, seq_base: 0, seq_len: seq_len(pos) as u32 };
    text.iter().enumerate().map(row).collect()
}

/// Checks a text given as tokens.
///
/// # Errors
/// [`Error::Argument`] for none, for more than `max`, and for one that is not below `vocab`.
pub fn check_text(text: &[u32], max: usize, vocab: usize) -> Result<()> {
    if text.is_empty() || text.len() > max {
        return Err(Error::argument("text", format!("{} tokens, expected 1..={max}", text.len())));
    }
    match text.iter().find(|&&token| token as usize >= vocab) {
        Some(token) => Err(Error::argument("text", format!("token {token}, expected 0..{vocab}"))),
        None => Ok(()),
    }
}
