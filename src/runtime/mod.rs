//! What drives a model: the engine that keeps it resident, sessions with their part of the KV cache, the scheduler that
//! batches their rows, sampling, and the tools around a model file.
//!
//! A token's way: [`Session::generate`] → a job of rows → [`scheduler`] puts jobs of all sessions into a batch → the
//! engine writes rows, runs a program that also chooses the next tokens, several times over where it can, and reads token
//! ids back → [`Stream`] decodes them and yields text. [`Batch`] does the same for several sessions.

mod autotune;
mod batch;
pub mod bench;
pub mod bitgen;
pub mod captions;
pub mod compare;
pub mod convert;
mod core;
mod device;
mod engine;
pub mod episodic;
pub mod eval;
mod feature_text;
mod fingerprint;
pub mod index;
pub mod inspect;
mod judge;
mod kv;
mod likelihood;
mod options;
mod programs;
pub mod refiner;
mod refiner_words;
mod remember;
mod robot_cache;
mod robot_keys;
mod robot_think;
pub mod robots;
pub mod sampler;
pub mod scheduler;
mod session;
mod similarities;
mod stream;
mod trace;

pub use batch::Batch;
pub use bitgen::{BitGen, BitGenOptions};
pub use captions::{Caption, CaptionOptions};
pub use device::choose as choose_device;
pub use engine::{Engine, LoadReport, Progress};
pub use episodic::{EpisodicMemory, MemoryNoise, MemoryStatistics};
pub use feature_text::FeatureText;
pub use index::PictureIndex;
pub use options::{DeviceChoice, GenerateOptions, Head, Options, Place, Precision};
pub use refiner::{Refiner, RefinerOptions};
pub use robot_cache::RobotCache;
pub use robot_keys::RobotAttention;
pub use robots::{RobotModel, RobotOptions};
pub use sampler::Sampling;
pub use session::Session;
pub use similarities::Similarities;
pub use stream::{Stats, StopReason, Stream, Token};
pub use trace::{Attention, ImageAttention, Routing};
