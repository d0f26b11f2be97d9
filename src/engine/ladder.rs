//! Text programs for few rows and for many, and which of them a step takes.

use std::sync::Arc;

use crate::engine::open::Loaded;
use crate::engine::programs::Program;
use crate::engine::text_program::TextProgram;
use crate::error::{Error, Result};
use crate::models::TextShape;
use crate::plan::{Backend, Plan};

/// Maximum rows of the programs below the largest one: one session, a few, more, and as many as an engine may have.
const RUNGS: [usize; 4] = [1, 8, 16, 64];

/// Text programs that differ in their maximum number of rows. A step takes the smallest that holds it: kernels are chosen
/// for a program's rows, and those for many rows are slow with one.
///
/// Each program has its own temporaries; weights and states are those of all. The smallest and the largest are prepared
/// when the model is opened, the others when a step first needs them.
#[derive(Debug)]
pub(crate) struct Ladder {
    /// By rising rows.
    rungs: Vec<Rung>,
    /// Layers of the model.
    layers: usize,
}

#[derive(Debug)]
struct Rung {
    shape: TextShape,
    plan: Arc<Plan>,
    program: Option<TextProgram>,
}

impl Ladder {
    /// Records plans for steps of up to `whole`. The largest takes image rows and pieces of prompts; those below hold
    /// the tokens that 1 to `whole.sessions` sessions decode.
    ///
    /// # Errors
    /// Those of `record`.
    pub fn record(whole: TextShape, layers: usize, record: impl Fn(&TextShape) -> Result<Arc<Plan>>) -> Result<Self> {
        let mut shapes: Vec<TextShape> = Vec::new();
        for rows in RUNGS.map(|rows| rows.min(whole.sessions)) {
            let shape = TextShape { max_rows: rows, max_outputs: rows, images: false, ..whole };
            if shape != whole && shapes.last().is_none_or(|below| below.max_rows < rows) {
                shapes.push(shape);
            }
        }
        shapes.push(whole);
        let rung = |shape| Ok(Rung { shape, plan: record(&shape)?, program: None });
        Ok(Ladder { rungs: shapes.into_iter().map(rung).collect::<Result<_>>()?, layers })
    }

    /// All plans.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.rungs.iter().map(|rung| &rung.plan)
    }

    /// Prepares the smallest program and the largest.
    ///
    /// # Errors
    /// Those of [`Backend::prepare`].
    pub fn prepare(&mut self, loaded: &mut Loaded) -> Result<()> {
        let last = self.rungs.len() - 1;
        [0, last].into_iter().try_for_each(|rung| self.program(loaded.backend.as_mut(), rung).map(|_| ()))
    }

    /// The bounds of a step.
    pub fn whole(&self) -> Result<TextShape> {
        self.rungs.last().map(|rung| rung.shape).ok_or_else(|| Error::format("the engine", "has no text program"))
    }

    /// The program of a step of this many rows and outputs, with image rows or without.
    ///
    /// # Errors
    /// Those of [`Backend::prepare`], where no step has needed it before; [`Error::Format`] for more rows than the
    /// largest holds.
    pub fn fitting(
        &mut self,
        backend: &mut dyn Backend,
        [rows, outputs]: [usize; 2],
        images: bool,
    ) -> Result<&mut TextProgram> {
        let fits = |s: &TextShape| rows <= s.max_rows && outputs <= s.max_outputs && (s.images || !images);
        let rung = self.rungs.iter().position(|rung| fits(&rung.shape));
        let rung = rung.ok_or_else(|| Error::format("a step", format!("has {rows} rows, more than any program")))?;
        self.program(backend, rung)
    }

    fn program(&mut self, backend: &mut dyn Backend, rung: usize) -> Result<&mut TextProgram> {
        let rung = &mut self.rungs[rung];
        let program = match rung.program.take() {
            Some(program) => program,
            None => TextProgram::new(Program::prepare(backend, &rung.plan)?, self.layers)?,
        };
        Ok(rung.program.insert(program))
    }

    /// The programs that are prepared.
    pub fn prepared(&mut self) -> impl Iterator<Item = &mut TextProgram> {
        self.rungs.iter_mut().filter_map(|rung| rung.program.as_mut())
    }
}
