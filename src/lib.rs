//! Ternion runs ternary and 1-bit (BitNet b1.58) language and vision-language models on any GPU, through wgpu, and on
//! the CPU.
//!
//! A model records a [`plan::Plan`] of [`plan::Op`]s once; a backend freezes the plan into a program once; every step
//! only fills in rows and replays.
//!
//! ```
//! use ternion::{Engine, GenerateOptions, Image, Options};
//!
//! # std::env::set_current_dir(env!("CARGO_MANIFEST_DIR"))?;
//! let tokenizer = Some("tests/golden/tokenizer.json".into());
//! let options = Options { device: "cpu".parse()?, tokenizer, ..Options::default() };
//! let engine = Engine::open("tests/golden/embernet/tiny", options)?;
//! let mut session = engine.session()?;
//! session.push_image(&Image::open("tests/golden/embernet/tiny/image_97x61.png")?)?;
//! session.push_question("What is this?")?;
//! let options = GenerateOptions { max_tokens: Some(8), ..GenerateOptions::default() };
//! for token in session.generate(options)? {
//!     print!("{}", token?.text);
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`Engine`] is `Send + Sync`: clone it or share it, one [`Session`] for each conversation. Calls block, and there is
//! no async runtime. A [`Stream`] is an iterator; dropping it ends the generation.
//!
//! # Map
//! Floors, from the bottom; a file uses only floors below its own.
//!
//! * **0** [`error`], [`tensor`] (shapes, dtypes, where a weight comes from), [`ternary`] (the packed weight format).
//! * **1** [`plan`]: `Op`, `Slot`, `Plan`, its builder, the sharing of memory, the `Backend` trait. [`files`]:
//!   checkpoints, tokenizers, prompts, images; nothing in them is trusted.
//! * **2** [`ops`]: one file each, with shapes, CPU definition and kernel (its shader lies in `shaders/`). Beside them
//!   [`cpu`] and [`gpu`], the backends, which know plans and not the list of ops.
//! * **3** [`models`]: EmberNet, recorded in the order of the paper; models never see a device.
//! * **4** [`runtime`]: engine, sessions, KV cache, scheduler, sampling, and the tools around a model file.
//! * **5** this facade, and the command line in `main.rs` and `cli/`.
//!
//! How to add an op is told in [`ops`], how to add a model in [`models`].
//!
//! # Words
//! *prefill*: the pass over a prompt; *decode*: one token after another; *step*: one run of a program over a *batch*
//! of *rows*, each a token at a position of a sequence. *Code*: −1, 0 or +1; *absmean*, *absmax*: how weights and
//! activations get their scale. *Slot*: a value of a plan; *program*: a plan frozen for a device; *caps*: what kernels
//! may use there. *Expert*, *router*, *top-k*, *combine*: the parts of a mixture of experts.
//!
//! # Features
//! None to choose: Vulkan, Metal, DX12 and GL are found at run time.

pub mod cpu;
pub mod error;
pub mod files;
pub mod gpu;
pub mod models;
pub mod ops;
pub mod plan;
pub mod runtime;
pub mod tensor;
pub mod ternary;

pub use error::{Error, Result};
pub use files::Image;
pub use runtime::{Engine, GenerateOptions, Options, Session, Stream, Token};
