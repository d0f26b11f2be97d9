//! What drives a model that goes on with a text: the engine that keeps it resident, sessions with their part of the KV
//! cache, the queue that batches their rows, sampling.
//!
//! Order: `sampler`, `generation`, `options`, `device`, `programs`, `open`, `cache`, `jobs`, `queue`, `text_program`,
//! `ladder`, `runner`, `hook`, `conversation`, `resident`, `session`, `generate`, `routing`, `log_probs`, `batch`.
//!
//! `autotune/` chooses kernel variants by timing them. `open` is the way of every model onto a device, whatever its family; the
//! applications use it too. What follows is for models that go on with a text.
//!
//! # The way of a token
//! Each line calls the next.
//! 1. `main`, in `main.rs`.
//! 2. `cli::main` takes the arguments apart.
//! 3. `Run::main` opens files and pictures. A program that embeds the library begins behind it.
//! 4. `Run::answer` opens an [`Engine`] and a [`Session`], and pushes pictures and the question.
//! 5. `output::stream` asks for a [`Stream`] ([`Session::generate`]) and prints what comes.
//! 6. [`Stream::next`] makes a [`jobs::Job`] of the rows that the session has pushed and the model has not read.
//! 7. `Resident::run` gives it to the queue.
//! 8. [`queue::Queue::run_all`]: whoever waits and finds nobody running runs the next batch, of jobs of all threads.
//! 9. `Runner::run` puts the rows together and takes the smallest program of the `Ladder` that holds them.
//! 10. `TextProgram::run` writes the rows into the program's inputs.
//! 11. [`Backend::repeat`](crate::plan::Backend::repeat), for one step or for several that choose their tokens without the
//!     host: on a GPU one submission, on the CPU one op after the other.
//!
//! On the way back `TextProgram::outputs` reads token ids, and the queue hands each job its [`jobs::JobOutput`].
//! [`Stream`] decodes the ids to text, looks for stop strings and the end, and yields a [`Token`], which `output::stream`
//! prints.
//!
//! [`Batch`] does 6 to 11 for several sessions from one thread. An image is a [`jobs::ImageJob`] of the same queue: a piece
//! of its encoder runs, then a batch of text, in turns.

pub(crate) mod autotune;
mod batch;
pub(crate) mod cache;
pub(crate) mod conversation;
pub(crate) mod device;
pub(crate) mod generate;
pub(crate) mod generation;
mod hook;
pub mod jobs;
mod ladder;
pub(crate) mod log_probs;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod programs;
pub mod queue;
pub(crate) mod resident;
mod routing;
pub(crate) mod runner;
pub mod sampler;
pub(crate) mod session;
mod text_program;

pub use batch::Batch;
pub use device::choose as choose_device;
pub use generate::{Stats, Stream, Token};
pub use generation::StopReason;
pub use hook::LogitsHook;
pub use open::{LoadReport, Progress};
pub use options::{DeviceChoice, DeviceOptions, GenerateOptions, LmHead, NamedValues, Options, Precision};
pub use routing::Routing;
pub use sampler::Sampling;
pub use session::Session;

use std::sync::Arc;

use crate::error::Result;
use crate::files::chat_template::ChatTemplate;
use crate::files::{ModelFiles, Tokenizer};
use crate::models::{ModelInfo, Prompt};
use resident::Resident;

/// A model on a device. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Resident>);

impl Engine {
    /// Opens a model: `files` is the path of a checkpoint or of a directory with one, or [`ModelFiles`] in memory.
    ///
    /// The checkpoint is mapped, not copied: while the model is open it must not be changed or cut short (see
    /// [`crate::files::Checkpoint`]). Renaming another file over it is safe.
    ///
    /// # Errors
    /// See [`Error`](crate::Error): the file, its configuration or its tokenizer is broken, a tensor is missing or misshapen, the
    /// device is absent, or the model does not fit on it.
    pub fn open(files: impl Into<ModelFiles>, options: Options) -> Result<Self> {
        Self::open_with(files, options, |_| {})
    }

    /// Opens the demo model, which is built in: a small EmberNet that answers questions about drawn scenes.
    ///
    /// # Errors
    /// As [`Engine::open`], as far as they concern the device and the options.
    #[cfg(feature = "demo")]
    pub fn demo(options: Options) -> Result<Self> {
        Self::open(ModelFiles::demo()?, options)
    }

    /// [`Engine::open`] with a callback before each weight is loaded.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_with(files: impl Into<ModelFiles>, options: Options, progress: impl FnMut(Progress)) -> Result<Self> {
        Ok(Engine(Arc::new(Resident::open(files.into(), &options, progress)?)))
    }

    /// The model's sizes.
    pub fn info(&self) -> &ModelInfo {
        self.0.model.info()
    }

    /// What was loaded, on which device, and how long it took.
    pub fn report(&self) -> &LoadReport {
        &self.0.report
    }

    /// The tokenizer, if there is one.
    pub fn tokenizer(&self) -> Option<&Tokenizer> {
        self.0.tokenizer.as_ref()
    }

    /// A sentence for the user where the model's files have no chat template that works, and a built-in one stands in.
    pub fn prompt_note(&self) -> Option<&str> {
        self.0.prompt.as_ref().and_then(|opened| opened.note.as_deref())
    }

    /// The chat template by which conversations become text; none for a family with a form of its own.
    pub fn chat_template(&self) -> Option<&ChatTemplate> {
        match &self.0.prompt.as_ref()?.prompt {
            Prompt::Template(template) => Some(template),
            Prompt::Turns(_) => None,
        }
    }

    /// Maximum number of tokens of a session.
    pub fn context(&self) -> usize {
        self.0.states.context()
    }

    /// Whether it runs on the CPU, where steps run at once.
    pub fn runs_on_cpu(&self) -> bool {
        self.0.runs_on_cpu()
    }

    pub(crate) fn resident(&self) -> &Arc<Resident> {
        &self.0
    }

    /// Generates text in several sessions at once, decoded together from one thread: each step costs little more than one
    /// session's. Pairs of a session's number in `sessions` and its next token come as they are generated; dropping the
    /// batch ends all generations.
    ///
    /// # Errors
    /// [`Error::Argument`](crate::Error::Argument) unless each session is of this engine and has its own options; those of [`Session::generate`].
    pub fn generate_all<'a>(
        &self,
        sessions: &'a mut [Session],
        options: impl IntoIterator<Item = GenerateOptions>,
    ) -> Result<Batch<'a>> {
        Batch::new(&self.0, sessions, options)
    }

    /// A new conversation.
    ///
    /// # Errors
    /// [`Error::Limit`](crate::Error::Limit) if as many sessions are open as the engine was opened for.
    pub fn session(&self) -> Result<Session> {
        Session::new(self.0.clone())
    }
}
