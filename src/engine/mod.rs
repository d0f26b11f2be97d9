//! What drives a model that goes on with a text: the engine that keeps it resident, sessions with their part of the KV
//! cache, the queue that batches their rows, sampling.
//!
//! A token's way: [`Session::generate`] → a job of rows → [`queue`] puts jobs of all sessions into a batch → the
//! engine writes rows, runs a program that also chooses the next tokens, several times over where it can, and reads token
//! ids back → [`Stream`] decodes them and yields text. [`Batch`] does the same for several sessions.

mod autotune;
mod batch;
pub(crate) mod cache;
pub(crate) mod device;
pub(crate) mod generate;
pub(crate) mod log_probs;
pub(crate) mod open;
pub(crate) mod options;
pub(crate) mod programs;
pub mod queue;
pub(crate) mod runner;
pub mod sampler;
pub(crate) mod session;

pub use batch::Batch;
pub use device::choose as choose_device;
pub use generate::{Stats, StopReason, Stream, Token};
pub use open::{Engine, LoadReport, Progress};
pub use options::{DeviceChoice, GenerateOptions, Head, Options, Place, Precision};
pub use sampler::Sampling;
pub use session::Session;
