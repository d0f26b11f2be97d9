//! Text programs for few rows and for many, and which of them a step takes.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::engine::open::Loaded;
use crate::engine::programs::Program;
use crate::engine::text_program::TextProgram;
use crate::error::{Error, Result};
use crate::models::TextShape;
use crate::plan::{Backend, Plan};

/// Which programs there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rungs {
    /// For few rows and for many.
    All,
    /// The largest alone: all steps take it, and their kernels add in one order.
    Largest,
}

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
    /// Which there are.
    kind: Rungs,
    /// Layers of the model.
    layers: usize,
}

#[derive(Debug)]
struct Rung {
    shape: TextShape,
    plan: Arc<Plan>,
    program: Option<TextProgram>,
}

/// The shapes of the programs for steps of up to `whole`, by rising rows.
fn shapes(whole: TextShape, kind: Rungs) -> Vec<TextShape> {
    let mut shapes: Vec<TextShape> = Vec::new();
    let below = if kind == Rungs::All { &RUNGS[..] } else { &[] };
    for rows in below.iter().map(|&rows| rows.min(whole.sessions)) {
        let shape = TextShape { max_rows: rows, max_outputs: rows, images: false, ..whole };
        if shape != whole && shapes.last().is_none_or(|below| below.max_rows < rows) {
            shapes.push(shape);
        }
    }
    shapes.push(whole);
    shapes
}

/// Whether a program of this shape holds a step of this many rows and outputs, with image rows or without.
fn holds(shape: &TextShape, [rows, outputs]: [usize; 2], images: bool) -> bool {
    rows <= shape.max_rows && outputs <= shape.max_outputs && (shape.images || !images)
}

impl Ladder {
    /// Rows and outputs of a program that is for many: more than any kernel for few takes.
    pub const MANY: usize = 64;

    /// Records plans for steps of up to `whole`. The largest takes image rows and pieces of prompts; those below hold
    /// the tokens that 1 to `whole.sessions` sessions decode.
    ///
    /// # Errors
    /// Those of `record`.
    pub fn record(
        whole: TextShape,
        (kind, layers): (Rungs, usize),
        record: impl Fn(&TextShape) -> Result<Arc<Plan>>,
    ) -> Result<Self> {
        let rung = |shape| Ok(Rung { shape, plan: record(&shape)?, program: None });
        Ok(Ladder { rungs: shapes(whole, kind).into_iter().map(rung).collect::<Result<_>>()?, kind, layers })
    }

    /// The same for other sizes, with no program prepared.
    ///
    /// # Errors
    /// Those of `record`.
    pub fn recorded_for(&self, whole: TextShape, record: impl Fn(&TextShape) -> Result<Arc<Plan>>) -> Result<Self> {
        Ladder::record(whole, (self.kind, self.layers), record)
    }

    /// All plans.
    pub fn plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.rungs.iter().map(|rung| &rung.plan)
    }

    /// The rungs whose programs are prepared when the model is opened: the smallest and the largest.
    fn first_rungs(&self) -> BTreeSet<usize> {
        [0, self.rungs.len() - 1].into()
    }

    /// The plans of the programs that [`Ladder::prepare`] prepares.
    pub fn first_plans(&self) -> impl Iterator<Item = &Arc<Plan>> {
        self.first_rungs().into_iter().map(|rung| &self.rungs[rung].plan)
    }

    /// Prepares the smallest program and the largest.
    ///
    /// # Errors
    /// Those of [`Backend::prepare`].
    pub fn prepare(&mut self, loaded: &mut Loaded) -> Result<()> {
        self.first_rungs().into_iter().try_for_each(|rung| self.program(loaded.backend.as_mut(), rung).map(|_| ()))
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
        let rung = self.rungs.iter().position(|rung| holds(&rung.shape, [rows, outputs], images));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::DType;

    fn whole(sessions: usize, images: bool) -> TextShape {
        let (max_rows, kv_dtype) = (64, DType::F16);
        TextShape { max_rows, max_outputs: sessions, kv_rows: 128 * sessions, context: 128, sessions, kv_dtype, images }
    }

    #[test]
    fn there_are_programs_for_one_session_and_up_to_all() {
        let rows = |whole| shapes(whole, Rungs::All).iter().map(|s| s.max_rows).collect::<Vec<_>>();
        assert_eq!(rows(whole(1, true)), [1, 64]);
        assert_eq!(rows(whole(4, true)), [1, 4, 64]);
        assert_eq!(rows(whole(16, true)), [1, 8, 16, 64]);
        assert_eq!(rows(whole(64, true)), [1, 8, 16, 64, 64], "64 tokens without image rows, and a piece with them");
        assert_eq!(rows(whole(64, false)), [1, 8, 16, 64]);
        assert_eq!(shapes(whole(16, true), Rungs::Largest), [whole(16, true)]);
    }

    #[test]
    fn a_step_takes_the_smallest_program_that_holds_it() {
        let shapes = shapes(whole(16, true), Rungs::All);
        let taken = |sizes, images| shapes.iter().position(|shape| holds(shape, sizes, images));
        assert_eq!([1, 2, 8, 9, 16, 17, 64].map(|n| taken([n, n.min(16)], false)), [0, 1, 1, 2, 2, 3, 3].map(Some));
        assert_eq!(taken([1, 1], true), Some(3), "only the largest has image rows");
        assert_eq!(taken([65, 1], false), None);
        assert_eq!(taken([17, 17], false), None, "more jobs end than there are sessions");
    }
}
