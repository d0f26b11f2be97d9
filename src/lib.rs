//! Ternion runs ternary and 1-bit (BitNet b1.58) language and vision-language models on any GPU, through wgpu, and on
//! the CPU.
//!
//! A model records a [`plan::Plan`] of [`plan::Op`]s once; a backend freezes the plan into a program once; every step
//! only fills in rows and replays.
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
//! `Engine::demo` opens a small model of drawn scenes that is built in, [`Engine::open`] any other.
//!
//! [`Engine`] is `Send + Sync`: clone it or share it, one [`Session`] for each conversation. Calls block, and there is
//! no async runtime. A [`Stream`] is an iterator; dropping it ends the generation. [`Engine::generate_all`] generates in
//! several sessions from one thread.
//!
//! # Map
//! From the bottom; a file uses only what stands above it in this list, and `tests/floors.rs` checks it.
//!
//! * **base** [`error`], [`tensor`] (shapes, dtypes, where a weight comes from), [`quant`] (packed weight formats),
//!   [`threads`] (what runs an op's tasks on the CPU), `alloc` (memory for weights and caches), `bounds` (that NaN comes
//!   through).
//! * [`plan`]: `Op`, `Slot`, `Plan`, its builder, the sharing of memory, the `Backend` trait. [`files`]: checkpoints,
//!   tokenizers, images; nothing in them is trusted.
//! * [`ops`]: one file each, with shapes, CPU definition and kernel (its shader lies in `shaders/`). Beside them
//!   [`cpu`] and [`gpu`], the backends, which know plans and not the list of ops.
//! * [`models`]: a folder a family, recorded in the order of the papers; models never see a device.
//! * [`engine`]: sessions, KV cache, queue, sampling: what a chat or a server needs.
//! * [`apps`]: BitGen with its memory, robots, an index of pictures, attention to look at. Beside them [`tools`], around a
//!   model file: bench, check, convert, eval, inspect.
//! * this facade, and the command line in `main.rs` and `cli/`.
//!
//! How to add an op is told in [`ops`], how to add a model in [`models`].
//!
//! # Words
//! *prefill*: the pass over a prompt; *decode*: one token after another; *step*: one run of a program over a *batch*
//! of *rows*, each a token at a position of a sequence. *Code*: −1, 0 or +1; *absmean*, *absmax*: how weights and
//! activations get their scale. *Slot*: a value of a plan; *program*: a plan frozen for a device; *caps*: what kernels
//! may use there. *Feature*: a vector by which texts and pictures are compared. *Expert*, *router*, *top-k*, *combine*: the parts of a mixture of experts.
//!
//! # Features
//! * `cli` (on by default) is the program `ternion` and what only it needs: a library in another program is compiled
//!   without (`default-features = false`).
//! * `demo` (on by default) builds the demo model in, 3 MB: a small EmberNet that answers questions about drawn scenes,
//!   for `Engine::demo` and for commands without `--model`.
//!
//! Vulkan, Metal, DX12 and GL need none: they are found at run time.

mod alloc;
pub mod apps;
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
