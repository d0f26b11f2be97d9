//! An inference engine for ternary and 1-bit (BitNet b1.58) language and vision-language models, on any GPU through wgpu
//! and on the CPU.
//!
//! A model records a [`plan::Plan`] of [`plan::Op`]s once; a backend freezes the plan into a program once; every step
//! only fills in rows and runs it again.
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
//! no async runtime. A [`Stream`] is an iterator; dropping it ends the generation. [`Engine::generate_all`] generates in
//! several sessions from one thread.
//!
//! # Map
//! A file uses only what stands above it in this list; `tests/floors.rs` checks it. [`architecture`] is a tour of the source.
//!
//! * **base** [`error`], [`tensor`] (shapes, dtypes, where a weight comes from), [`quant`] (packed weight formats),
//!   [`threads`] (the CPU's thread pool), `alloc` (memory for weights and caches), `bounds` (clamps that let NaN through).
//! * [`plan`]: `Op`, `Slot`, `Plan`, its builder, memory planning, the `Backend` trait. [`files`]: checkpoints, tokenizers,
//!   images; no file is trusted.
//! * [`ops`]: one file each, with shapes, CPU definition and kernel (its shader lies in `shaders/`). Beside them [`cpu`] and
//!   [`gpu`], the backends, which know plans and not the list of ops.
//! * [`models`]: a folder for each family; a forward pass reads in the order of the paper. Models never see a device.
//! * [`engine`]: opening a model, sessions, KV cache, queue, sampling: what a chat or a server needs.
//! * [`apps`]: BitGen with its memory, robots, the picture index, the refiner, attention rollout. Beside them [`tools`],
//!   around a model file: bench, check, convert, eval, inspect.
//! * this facade, and the command line in `main.rs` and `cli/`.
//!
//! # Words
//! *prefill*: the pass over a prompt; *decode*: one token after another; *step*: one run of a program over a *batch*
//! of *rows*, each a token at a position of a sequence. *Code*: −1, 0 or +1; *absmean*, *absmax*: how weights and
//! activations get their scale. *Slot*: a value of a plan; *program*: a plan frozen for a device; *caps*: what kernels
//! may use there. *Feature*: a vector by which texts and pictures are compared. *Expert*, *router*, *top-k*, *combine*: the parts of a mixture of experts.
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
pub mod cpu;
pub mod engine;
pub mod error;
pub mod files;
pub mod gpu;
pub mod models;
pub mod ops;
pub mod plan;
pub mod quant;
pub mod tensor;
pub mod threads;
pub mod tools;

pub use apps::bitgen::BitGen;
pub use apps::picture_index::PictureIndex;
pub use apps::robots::RobotModel;
pub use engine::{Engine, GenerateOptions, Options, Session, Stream, Token};
pub use error::{Error, Result};
pub use files::{Image, ModelFiles};
