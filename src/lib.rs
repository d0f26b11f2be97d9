//! An inference engine for ternary and 1-bit (BitNet b1.58) language and vision-language models, on any GPU through wgpu
//! and on the CPU.
//!
//! ```
//! use ternion::{Engine, GenerateOptions, Image, Options};
//!
//! # #[cfg(feature = "demo")] {
//! # std::env::set_current_dir(env!("CARGO_MANIFEST_DIR"))?;
//! let engine = Engine::demo(Options::default())?;
//! let mut session = engine.session()?;
//! session.push_image(&Image::open("examples/shapes/samples/spatial_scene_100000.png")?)?;
//! session.push_question("What color is the circle?")?;
//! for token in session.generate(GenerateOptions::default())? {
//!     print!("{}", token?.text);
//! }
//! # }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! `Engine::demo` opens a small model that is built in and knows drawn scenes; [`Engine::open`] opens any other.
//!
//! [`Engine`] is `Send + Sync`: clone it or share it, one [`Session`] for each conversation. Calls block, and there is
//! no async runtime. [`Engine::generate_all`] generates in several sessions from one thread.
//!
//! * **Stream**: a [`Stream`] is an iterator of tokens; dropping it ends the generation. A [`Generation`] owns its session, to be
//!   kept in a struct.
//! * **Cancel**: a [`Cancel`] handle ends loading ([`Options::cancel`]) or what a session does ([`Session::cancel_with`]) from
//!   any thread; callbacks of progress end what they are told of where they break.
//! * **Keep**: [`Session::save`] writes a conversation to a file and [`Session::load`] goes on with it; [`Session::fork`] makes a
//!   second one that goes on from here; [`Session::undo`] takes the last question back.
//! * **Memory**: [`Engine::estimate`] says what a model needs before it is loaded, [`Options::max_memory`] bounds it.
//! * **Devices**: [`Options::device`]; an application's own wgpu device through [`gpu::Device::from_wgpu`].
//! * **Files**: a path, or bytes ([`ModelFiles::from_bytes`]).
//! * **Errors**: [`Error`] has variants to act on, with numbers; messages name the object, what was expected and found.
//! * **Silence**: nothing is written to stdout, stderr or the user's folders; messages go to the `log` crate.
//!
//! # Versions
//! Until 1.0 a minor version may break what it must. Outputs, events, errors and what may get another choice are `non_exhaustive`.
//! Options are written with `..Default::default()`, since they get new fields. [`unstable`] has the floors below the engine, for
//! ops, backends and models of one's own: they may change in every version. [`architecture`] is for who changes Ternion itself.
//!
//! # Features
//! * `cli` (on by default): the program `ternion` and the crates that only it needs. Disable it to embed the library
//!   (`default-features = false`).
//! * `demo` (on by default): the demo model, 3 MB, a small EmberNet that answers questions about drawn scenes, for
//!   `Engine::demo` and for commands without `--model`.
//!
//! Vulkan, Metal, DX12 and GL need no feature: they are found at run time.

mod alloc;
pub mod apps;
pub mod architecture;
mod bounds;
pub mod engine;
pub mod error;
pub mod files;
pub mod gpu;
pub mod tools;

/// What lies below the engine: ops, plans, backends, weights and models. It may change in every version.
// Its files lie in `src/` beside the others.
#[path = "."]
pub mod unstable {
    pub mod cpu;
    pub mod cpu_level;
    pub mod models;
    pub mod ops;
    pub mod plan;
    pub mod quant;
    pub mod tensor;
    pub mod threads;
}

pub use apps::bitgen::BitGen;
pub use apps::picture_index::PictureIndex;
pub use apps::robots::RobotModel;
pub use engine::{Cancel, Engine, GenerateOptions, Generation, Options, Session, Stream, Token};
pub use error::{Error, Result};
pub use files::{Image, ModelFiles};
/// The version of wgpu whose devices [`gpu::Device::from_wgpu`] takes.
pub use wgpu;

use plan::{params, shader};
use unstable::{cpu, cpu_level, models, ops, plan, quant, tensor, threads};
