//! What runs a plan.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::plan::{Caps, Choices, Paging, PagingStatistics, Plan, Slot, Step};
use crate::tensor::Spec;

/// A prepared plan of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramId(pub usize);

/// A state of another size than before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResizedState {
    /// Its name.
    pub name: String,
    /// Its words.
    pub words: usize,
    /// Words that it had, and the first word that each range gets.
    pub moves: Vec<(Range<usize>, usize)>,
}

impl ResizedState {
    /// A state that gets the rows of `new` for those of `old`; `moves` are rows that it had, and the first row that each
    /// range gets.
    pub fn of_rows(name: &str, [old, new]: [&Spec; 2], moves: &[(Range<usize>, usize)]) -> Self {
        let parts = old.row_words().into_iter().zip(new.row_words());
        let words = parts.flat_map(|((old, n), (new, _))| {
            let moved =
                move |(from, to): &(Range<usize>, usize)| (old + from.start * n..old + from.end * n, new + to * n);
            moves.iter().map(moved)
        });
        ResizedState { name: name.to_owned(), words: new.words(), moves: words.collect() }
    }

    /// Checks that what moves is within the state, which had `old` words.
    ///
    /// # Errors
    /// [`Error::Argument`] with the state's name.
    pub fn check(&self, old: usize) -> Result<()> {
        let fits = |(from, to): &(Range<usize>, usize)| from.end <= old && to + from.len() <= self.words;
        match self.moves.iter().find(|moved| !fits(moved)) {
            None => Ok(()),
            Some((from, to)) => Err(Error::argument(
                &self.name,
                format!("has {old} words and gets {}; {from:?} cannot move to {to}", self.words),
            )),
        }
    }
}

/// A device by its parts, for those who compare measurements.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DeviceParts {
    /// The adapter's name; none on the CPU.
    pub adapter: Option<String>,
    /// Numbers of the adapter's vendor and of the adapter among the vendor's, as its interface gives them: on Vulkan and
    /// DX12 those of PCI, or 0.
    pub ids: Option<[u32; 2]>,
    /// The interface by which the adapter is reached: "vulkan", "metal", "dx12" or "gl".
    pub api: Option<String>,
    /// The driver and its version.
    pub driver: Option<String>,
    /// Threads that compute, on the CPU.
    pub threads: Option<usize>,
}

/// Runs plans: the CPU, or a GPU through wgpu. Weights and states are shared between its programs by name.
pub trait Backend: Send {
    /// One line: the device, its driver, its kind.
    fn describe(&self) -> String;

    /// What [`Backend::describe`] says, in parts.
    fn parts(&self) -> DeviceParts;

    /// What kernels may use here.
    fn caps(&self) -> Caps;

    /// Bytes of the weight of this name, if it is resident, wholly or page by page.
    fn weight_bytes(&self, name: &str) -> Option<u64>;

    /// Makes a weight resident under this name.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] if it does not fit, [`crate::Error::DeviceLost`] if the device is gone.
    fn load_weight(&mut self, name: &str, words: Vec<u32>) -> Result<()>;

    /// Takes weights that are read page by page, once, before any plan that reads them is prepared: makes their arenas.
    ///
    /// # Errors
    /// As [`Backend::load_weight`].
    fn load_paging(&mut self, paging: Paging) -> Result<()>;

    /// What moved of those weights; none without any.
    fn paging(&self) -> Option<PagingStatistics>;

    /// Freezes a plan: memory, pipelines, bindings. With `keep_temporaries`, every slot stays readable after a step.
    ///
    /// # Errors
    /// As [`Backend::load_weight`]; a weight that is not resident is an error.
    fn prepare(&mut self, plan: Arc<Plan>, keep_temporaries: bool) -> Result<ProgramId>;

    /// Chooses kernel variants for the programs that are prepared from now on. On the CPU it does nothing.
    fn choose(&mut self, _choices: Choices) {}

    /// The variants that [`Backend::choose`] got; none on the CPU.
    fn choices(&self) -> Option<&Choices> {
        None
    }

    /// Frees what belongs to a program alone: its temporaries and bindings. Weights, constants and states stay. A released
    /// program must not be used: it has no nodes, and its slots cannot be read or written.
    fn release(&mut self, program: ProgramId);

    /// Gives states other sizes: what moves keeps its values, the rest is zero. Programs that have one of them are
    /// released. The old memory and the new exist at once while values move.
    ///
    /// # Errors
    /// As [`Backend::load_weight`], and [`crate::Error::Argument`] for words outside of a state; then nothing has changed.
    fn resize_states(&mut self, states: &[ResizedState]) -> Result<()>;

    /// The plan of a program.
    fn plan(&self, program: ProgramId) -> Arc<Plan>;

    /// Overwrites words of a slot, from word `at` on.
    ///
    /// # Errors
    /// [`crate::Error::Argument`] if they do not fit in the slot.
    fn write(&mut self, program: ProgramId, slot: Slot, at: usize, words: &[u32]) -> Result<()>;

    /// Runs some of a program's nodes in order (all of them: `0..plan.nodes.len()`).
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`] if the device was lost.
    fn run(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>) -> Result<()>;

    /// Number of launches of a step of a program: dispatches on a GPU, nodes on the CPU.
    fn launches(&self, program: ProgramId, step: &Step) -> usize;

    /// Whether [`Backend::run`] returns after the step has run, rather than after it was submitted.
    fn runs_at_once(&self) -> bool {
        false
    }

    /// Runs some of a program's nodes this many times with the same step; each run reads what the one before left in inputs and
    /// states.
    ///
    /// # Errors
    /// As [`Backend::run`].
    fn repeat(&mut self, program: ProgramId, step: &Step, nodes: Range<usize>, times: usize) -> Result<()> {
        (0..times).try_for_each(|_| self.run(program, step, nodes.clone()))
    }

    /// Maximum number of repetitions from which [`Backend::repeat`] gains: 1 where the host itself computes.
    fn max_repeats(&self) -> usize {
        1
    }

    /// Runs a whole program node by node and returns the time of each node; nodes without work in this step take no time.
    ///
    /// # Errors
    /// As [`Backend::run`]; [`crate::Error::Unsupported`] on a GPU that cannot take times.
    fn profile(&mut self, program: ProgramId, step: &Step) -> Result<Vec<Duration>>;

    /// Words of slots, in one read, after everything submitted before has run.
    ///
    /// # Errors
    /// [`crate::Error::DeviceLost`] if the device was lost.
    fn read(&mut self, program: ProgramId, ranges: &[(Slot, Range<usize>)]) -> Result<Vec<Vec<u32>>>;

    /// Bytes of device memory in use: weights, states, temporaries.
    fn memory(&self) -> u64;
}

/// Checks that a state which an earlier plan made has the size that another plan gives it.
///
/// # Errors
/// [`Error::Shape`] with the state's name and both sizes.
pub fn state_fits(name: &str, words: usize, spec: &Spec) -> Result<()> {
    let wanted = spec.words();
    if words == wanted {
        return Ok(());
    }
    Err(Error::shape(
        format!("state {name}"),
        format!("{spec}, {wanted} words"),
        format!("{words} words in another plan"),
    ))
}
