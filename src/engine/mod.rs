//! Runs models that generate text: the engine that keeps a model resident, sessions with their part of the KV cache, the
//! queue that batches their rows, sampling.
//!
//! A file uses only files named before it (`tests/floors.rs` checks it).
//! Order: `cancel`, `sampler`, `repetition`, `generated_text`, `options`, `device`, `programs`, `residency`, `open`, `cache`,
//! `jobs`, `sync`, `queue`, `queue_tests`, `text_program`, `ladder`, `recorded`, `runner`, `hook`, `conversation`, `context_shift`, `resident`, `session`, `decoding`, `generate`,
//! `routing`, `log_probs`, `batch`, `builder`.
//!
//! `autotune/` chooses kernel variants by timing them. `open` puts any model on a device; the applications use it too.
//!
//! # The way of a token
//! Each line calls the next.
//! 1. `main`, in `main.rs`.
//! 2. `cli::main` parses the arguments.
//! 3. `Run::main` reads the prompt, the pictures and the publisher's recommendations for sampling, and recognises the
//!    family by the model's files. A BitGen goes to `Run::describe` instead of the next line.
//! 4. `Run::answer` opens an [`Engine`] (`ModelArgs::open_chat`) and a [`Session`], and pushes pictures and the question
//!    (`ConversationArgs::ask`), which a chat template turns into text and the tokenizer into tokens
//!    ([`Session::push_message`]). A program that embeds the library starts here.
//! 5. `output::stream` gets a [`Stream`] from [`Session::generate`] and takes its tokens.
//! 6. [`Stream::next`], if no token is ready, makes a [`jobs::Job`] of the rows that the session has and the model has not
//!    read (`Decoding::request`, `Session::pending`).
//! 7. `Resident::run` gives it to the queue, once the session has rows of the KV cache for it: a cache that is too small
//!    grows first (`Resident::reserve`, `Runner::grow`).
//! 8. [`queue::Queue::run_all`]: a waiting thread runs the next batch for all threads, if no other thread is running one. The
//!    queue chooses the rows, and calls the closure of `Resident::turn`, which locks the runner and calls the next line.
//! 9. `Runner::run` puts the rows together, each with its session's place in the cache, and takes the smallest program of the `Ladder` that holds them.
//! 10. `TextProgram::run` writes the rows into the program's inputs.
//! 11. [`Backend::repeat`](crate::plan::Backend::repeat) runs the program: on the CPU one op after the other, on a GPU as
//!     commands in one submission, or in several for more than four steps.
//!
//! One call of line 8 may run many batches: pieces of its own prompt, and jobs of other threads. Before a batch it waits for
//! the sessions of the last one, at most 200 µs for each. Line 11 runs several steps only on a GPU, and only if every
//! job of the batch is a single row that wants no logits and more than one token.
//!
//! And back:
//! 1. `TextProgram::outputs` reads token ids with [`Backend::read`](crate::plan::Backend::read); logits instead where a hook
//!    looks at them, or top k is not 1 to 64. A batch that ends no job reads nothing.
//! 2. The queue hands each finished job its [`jobs::JobOutput`] (`State::deliver`), and `run_all` returns it.
//! 3. `Decoding::receive` takes it. From logits it chooses a token itself (`Decoding::sample`).
//! 4. `Decoding::take_ready` takes the next id; `GeneratedText::accept` decodes it and looks for stop strings and the end.
//! 5. [`Stream::next`] yields the [`Token`]. `output::stream` splits thoughts off, which go to stderr, and prints the rest.
//!
//! [`Batch`] replaces 6 and 7 for several sessions of one thread: `Decoding::request` for each of them, then
//! `Resident::run_all`, `Decoding::receive` and `Decoding::take_ready`. An image is a [`jobs::ImageJob`] of the same queue: a
//! piece of its encoder runs, then a batch of text, in turns.

pub(crate) mod autotune;
mod batch;
mod builder;
pub(crate) mod cache;
pub(crate) mod cancel;
mod context_shift;
pub(crate) mod conversation;
pub(crate) mod decoding;
pub(crate) mod device;
pub(crate) mod generate;
pub(crate) mod generated_text;
mod hook;
pub mod jobs;
mod ladder;
pub(crate) mod log_probs;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod programs;
pub mod queue;
#[cfg(test)]
mod queue_tests;
pub(crate) mod recorded;
mod repetition;
mod residency;
pub(crate) mod resident;
mod routing;
pub(crate) mod runner;
pub mod sampler;
pub(crate) mod session;
mod sync;
mod text_program;

pub use crate::cpu_level::CpuLevel;
pub use crate::models::{Activations, HiddenAct};
pub use crate::plan::PagingStatistics;
pub use autotune::user_cache;
pub use batch::Batch;
pub use builder::EngineBuilder;
pub use cancel::Cancel;
pub use context_shift::ContextShift;
pub use decoding::{Stats, Token};
pub use device::choose as choose_device;
pub use generate::{Generation, NotStarted, Stream};
pub use generated_text::StopReason;
pub use hook::LogitsHook;
pub use open::{LoadReport, Progress};
pub use options::{
    DeviceChoice, DeviceOptions, GenerateOptions, KvPrecision, LmHead, ModelOptions, NamedValues, Options, Precision,
};
pub use recorded::Estimate;
pub use routing::Routing;
pub use sampler::Sampling;
pub use session::Session;

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::files::chat_template::ChatTemplate;
use crate::files::{ModelFiles, Tokenizer};
use crate::models::{ModelInfo, Prompt};
use recorded::Recorded;
use resident::Resident;

/// A model on a device. Cheap to clone; clones share everything.
#[derive(Clone, Debug)]
pub struct Engine(Arc<Resident>);

impl Engine {
    /// Options one by one, then [`EngineBuilder::open`].
    pub fn builder() -> EngineBuilder<'static> {
        EngineBuilder::default()
    }

    /// What a model would need of the memory of its device, without loading a weight.
    ///
    /// # Errors
    /// As [`Engine::open`], but for those of loading.
    pub fn estimate(files: impl Into<ModelFiles>, options: &Options) -> Result<Estimate> {
        Recorded::new(files.into(), options)?.estimate()
    }

    /// Opens a model: `files` is the path of a checkpoint or of a directory with one, or [`ModelFiles`] in memory.
    ///
    /// The checkpoint is mapped, not copied: while the model is open it must not be changed or cut short (see
    /// [`crate::files::Checkpoint`]). Renaming another file over it is safe.
    ///
    /// # Errors
    /// See [`Error`]: the file, its configuration or its tokenizer is broken, a tensor is missing or misshapen, the
    /// device is absent, or the model does not fit on it.
    pub fn open(files: impl Into<ModelFiles>, options: Options) -> Result<Self> {
        Self::open_with(files, options, Progress::ignore)
    }

    /// Opens the demo model, which is built in: a small EmberNet that answers questions about drawn scenes.
    ///
    /// # Errors
    /// As [`Engine::open`], as far as they concern the device and the options.
    #[cfg(feature = "demo")]
    pub fn demo(options: Options) -> Result<Self> {
        Self::open(ModelFiles::demo()?, options)
    }

    /// [`Engine::open`] with a callback before each weight is loaded and each kernel is timed, which ends the opening where it breaks.
    ///
    /// # Errors
    /// As [`Engine::open`]; [`Error::Cancelled`].
    pub fn open_with(
        files: impl Into<ModelFiles>,
        options: Options,
        progress: impl FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Self> {
        Ok(Engine(Arc::new(Resident::open(files.into(), &options, progress)?)))
    }

    /// Opens the same model again, with the same options: after [`Error::DeviceLost`], when this engine
    /// can do nothing more. [`Session::on`] takes its sessions over. A device that the application opened must be opened anew
    /// by it, and the model with [`Engine::open`].
    ///
    /// # Errors
    /// As [`Engine::open`]; [`Error::Argument`] for files that were given as bytes, which an engine does
    /// not keep.
    pub fn reopen(&self) -> Result<Self> {
        let (files, options) = &self.0.opened;
        let given = || Error::argument("files", "were given as bytes, which are not kept; open them with Engine::open");
        Self::open(files.as_ref().ok_or_else(given)?, options.clone())
    }

    /// The model's sizes.
    pub fn info(&self) -> &ModelInfo {
        self.0.model.info()
    }

    /// What was loaded, on which device, and how long it took.
    pub fn report(&self) -> &LoadReport {
        &self.0.report
    }

    /// Bytes in use on the device now: more than [`LoadReport::memory_bytes`] once the KV cache has grown.
    ///
    /// # Errors
    /// [`Error::DeviceLost`] once a step has panicked.
    pub fn memory_bytes(&self) -> Result<u64> {
        Ok(self.0.runner()?.backend.memory())
    }

    /// What of the weights moved through the device's memory since the model was opened; none where all of them stay in it
    /// ([`Options::max_memory`]).
    ///
    /// # Errors
    /// [`Error::DeviceLost`] once a step has panicked.
    pub fn paging(&self) -> Result<Option<PagingStatistics>> {
        Ok(self.0.runner()?.backend.paging())
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
    /// [`Error::Argument`] unless each session is of this engine and has its own options; those of [`Session::generate`].
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
    /// [`Error::SessionsFull`] if as many sessions are open as the engine was opened for.
    pub fn session(&self) -> Result<Session> {
        Session::new(self.0.clone())
    }
}
