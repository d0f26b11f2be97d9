//! A tour of one hour through the source, and where new things go. This module holds no code.
//!
//! # In which order to read
//! The crate's front page has the map and the words. Then, with the files open beside this page:
//!
//! | minutes | read | and know |
//! |---|---|---|
//! | 5 | `examples/generate.rs`, `examples/inspect_plan.rs` | the library from outside, and what a plan looks like |
//! | 5 | [`tensor`](crate::tensor), [`error`](crate::error) | [`Spec`](crate::tensor::Spec): shape, dtype, and what counts the rows in use |
//! | 10 | [`plan`](crate::plan): `op.rs`, `builder.rs`, `backend.rs` | the trait [`Op`](crate::plan::Op), recording, the trait [`Backend`](crate::plan::Backend) |
//! | 10 | [`ops`](crate::ops): `rms_norm.rs` with `shaders/norm/rms_norm.wgsl`, then `ternary_matmul.rs` | an op: shapes, definition, kernel |
//! | 5 | [`cpu`](crate::cpu) `mod.rs`, [`gpu`](crate::gpu) `program.rs` | how a backend runs a plan without a list of ops |
//! | 10 | [`models`](crate::models): `mod.rs`, `embernet/mod.rs`, `decoder/mod.rs` | a forward pass, in the order of the paper |
//! | 10 | [`engine`](crate::engine): `mod.rs`, then the files in the order that it gives | sessions, queue, programs, sampling |
//! | 5 | `src/main.rs`; `src/cli/`: `mod.rs`, `run.rs`, `args.rs` (opening), `output.rs` (streaming) | a command, from arguments to the printed text |
//!
//! Each folder's `mod.rs` begins with what is in it. The engine is longer than its ten minutes: read its page, and of its
//! files what the steps name.
//!
//! # The way of a token
//! `src/cli/run.rs` opens an [`Engine`](crate::Engine) (in `args.rs`) and a [`Session`](crate::Session), pushes pictures and
//! a question, and prints the tokens of a [`Stream`](crate::Stream) (in `output.rs`). The stream hands rows to the [`queue`](crate::engine::queue). The queue puts
//! the rows of all sessions into one batch; the runner writes them into a program, runs it, and reads token ids back. The
//! [`engine`](crate::engine) page lists the steps.
//!
//! # The way of a weight
//! 1. [`Checkpoint::open`](crate::files::Checkpoint::open) maps the file and reads its header only. [`Weights`](crate::files::Weights)
//!    adds Ternion's packed format.
//! 2. The model asks for its tensors by name and shape (`src/models/load.rs`). All missing tensors, or else all
//!    misshapen ones, are named in one error. Each answer is a [`WeightRef`](crate::tensor::WeightRef): names, rows, and a
//!    [`Pack`](crate::tensor::Pack). No bytes move.
//! 3. Recording turns it into a slot ([`PlanBuilder::weight`](crate::plan::PlanBuilder::weight)). Equal references are one slot,
//!    so that all plans of a model share their weights.
//! 4. The engine loads each weight of its plans once. [`Weights::load`](crate::files::Weights::load) converts, quantises and packs
//!    it into `u32` words ([`quant`](crate::quant)) and releases the file's pages;
//!    [`Backend::load_weight`](crate::plan::Backend::load_weight) moves the words to the device.
//! 5. An op reads the words: on the CPU through [`Io`](crate::plan::Io), on a GPU in its shader.
//!
//! # Where to add
//! **An op.** [`ops`](crate::ops) has the recipe. It touches `shaders/`, `src/ops/` and `tests/support/op_cases/`; never a
//! backend, a model's file format, or the engine. Which kernel an op uses, for which rows and which device, is decided in its
//! own file.
//!
//! **A weight format.** A file in `src/quant/` with packing, unpacking and a test that the way there and back loses nothing (or
//! how much); a variant of [`Pack`](crate::tensor::Pack) and of [`DType`](crate::tensor::DType); its line in
//! [`Weights::load`](crate::files::Weights::load). Then the ops that read it: the dtype in `infer`, the CPU definition, a define
//! in the shader, rows in `tests/support/op_cases/`. `quant/int8.rs` is the smallest example: look for
//! `Int8` ([`Io::floats`](crate::plan::Io::floats), the method of `TensorScope` in `src/models/load.rs`, and the tools that
//! list dtypes); where a match lacks the new dtype, the compiler says so. A packing with several scales a matrix needs a
//! place for them in [`Packed`](crate::quant::Packed) as well. A format of *blocks* in files is a file in
//! `src/quant/formats/` and a line of its list; what reads codes or integers from blocks needs no change. A new *file* format is a reader in `src/files/checkpoint/`
//! that fills `Contents`, with its line in `FileFormat` and `recognise` (`bytes.rs`) and in `mod.rs` and `sharded.rs` there.
//!
//! **A model.** [`models`](crate::models) has the recipe: a file or folder in `src/models/`, a [`Family`](crate::models::Family) in the
//! registry, golden numbers in `tests/golden/` and a test. A model records ops and reads names. It never sees a device, a
//! number of rows at which kernels change, or another family: what two families share is in a folder of its own, as
//! `models/bitgen/` is.
//!
//! **A command.** A file in `src/cli/` with a `clap` struct and `main`, and in `src/cli/mod.rs` its module, its place in
//! the order, a variant of `Command` and its arm in `main`. It uses the library
//! from outside: what it needs is public, in [`tools`](crate::tools), [`apps`](crate::apps) or [`engine`](crate::engine).
//! Options that several commands share are in `cli/args.rs`, tables and streamed text in `cli/output.rs`. Crates that only
//! the command line needs are optional, and listed in the feature `cli`.
//!
//! **A tool around model files** goes to [`tools`](crate::tools), **an application of models** to [`apps`](crate::apps). Both use
//! the engine's pieces. Applications do not use each other, and the engine uses neither.
//!
//! # What a file may use
//! `tests/floors.rs` holds the map of edges and fails on a breach:
//!
//! | room | may use | never |
//! |---|---|---|
//! | `error`, `tensor`, `quant`, `threads`, `alloc`, `bounds` | each other | anything above |
//! | [`plan`](crate::plan), [`files`](crate::files) | the row above | each other |
//! | [`ops`](crate::ops), [`cpu`](crate::cpu), [`gpu`](crate::gpu) | `plan` | each other: backends do not know the list of ops |
//! | [`models`](crate::models) | `ops`, `files` | a device, `wgpu`, a choice of kernels |
//! | [`engine`](crate::engine) | `models`, `cpu`, `gpu` | applications and tools |
//! | [`apps`](crate::apps) | `engine` | another application, but for the picture index (BitGen) |
//! | [`tools`](crate::tools) | `engine`, BitGen and robots of `apps` | the command line |
//! | `cli`, `main` | everything public | private items |
//!
//! It also keeps files to 500 lines and functions to 60. A folder with more than 12 files gives the inner order of its files
//! in its `mod.rs`; the test checks that too.
//!
//! # Tests that catch a mistake
//! `op_parity` (an op on every backend and under every subset of capabilities), `op_golden` and `models` (the original code's
//! numbers), `shaders` (every shader with every set of defines, without a GPU), `floors` (this map), `bad_files` and
//! `mutations` (broken input). `cargo test --release --test NAME` runs one of them.
