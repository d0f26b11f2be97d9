//! The map of the source, a tour of one hour through it, and where new things go. This module holds no code.
//!
//! # The map
//! A room is a file or a folder of `src/`. It uses only what the last column names, and what those rooms may use;
//! `tests/floors.rs` holds these edges as its `MAP` and fails on a breach. From outside, the lower rooms are in [`unstable`](crate::unstable).
//!
//! | room | what is in it | may use |
//! |---|---|---|
//! | [`error`](crate::error), [`tensor`](crate::tensor), [`quant`](crate::quant), [`threads`](crate::threads), [`cpu_level`](crate::cpu_level), `alloc`, `bounds` | typed errors; shapes, dtypes and where a weight comes from; packed weights; the CPU's thread pool and vector instructions; memory for weights and caches; clamps that let NaN through | each other |
//! | [`plan`](crate::plan) | ops on slots as data, and the backend trait | the row above |
//! | [`files`](crate::files) | checkpoints, tokenizers, chat templates, images; no file is trusted | the first row |
//! | [`ops`](crate::ops) | one file per op: shapes, definition, which kernel (the WGSL lies in `shaders/`) | `plan` |
//! | [`cpu`](crate::cpu), [`gpu`](crate::gpu) | the two backends, which do not know the list of ops | `plan`, not each other |
//! | [`models`](crate::models), its shared files | traits, loading, layers, registry; never a device or a choice of kernels | `ops`, `files` |
//! | `models/decoder/`, `models/vision/` | decoders described by data; image encoders | the shared files of `models` |
//! | a family: any other file or folder of `models/` | configuration, names of tensors, the forward pass | `models/decoder/`, `models/vision/`; never another family. BitGen and the robots share `models/bitgen/` |
//! | [`engine`](crate::engine) | opening a model, sessions, KV cache, queue, sampling | `models`, `cpu`, `gpu` |
//! | [`apps`](crate::apps) | BitGen with its memory, robots, picture index, refiner, attention rollout | `engine`; of applications only the picture index uses one, BitGen |
//! | [`tools`](crate::tools) | around a model file: bench, check, convert, eval, inspect | `engine`, and of `apps` BitGen and robots |
//! | `cli`, `main` | the command line (feature `cli`) | everything public |
//!
//! The same test keeps files to 500 lines and functions to 60. A folder with more than 12 files lists them in its `mod.rs`
//! behind the word `Order:`; each of them uses only files named before it, which the test checks too.
//!
//! # Words
//! A model records a [`plan::Plan`](crate::plan::Plan) of [`plan::Op`](crate::plan::Op)s once; a backend freezes the plan into a
//! program once; every step only fills in rows and runs it again.
//!
//! *prefill*: the pass over a prompt; *decode*: one token after another; *step*: one run of a program over a *batch*
//! of *rows*, each a token at a position of a sequence. *Code*: −1, 0 or +1; *absmean*, *absmax*: how weights and
//! activations get their scale. *Slot*: a value of a plan; *program*: a plan frozen for a device; *caps*: what kernels
//! may use there. *Feature*: a vector by which texts and pictures are compared. *Expert*, *router*,
//! *top-k*, *combine*: the parts of a mixture of experts. *Room*: a file or folder of `src/` in the map.
//!
//! # In which order to read
//! With the files open beside this page:
//!
//! | minutes | read | and know |
//! |---|---|---|
//! | 5 | `examples/generate.rs`, `examples/inspect_plan.rs` | the library from outside, and what a plan looks like |
//! | 5 | [`tensor`](crate::tensor), [`error`](crate::error) | [`Spec`](crate::tensor::Spec): shape, dtype, and what counts the rows in use |
//! | 10 | [`plan`](crate::plan): `op.rs`, `builder.rs`, `backend.rs` | the trait [`Op`](crate::plan::Op), recording, the trait [`Backend`](crate::plan::Backend) |
//! | 10 | [`ops`](crate::ops): `layer_norm.rs` with `shaders/norm/layer_norm.wgsl`, then `ternary_matmul.rs` | an op: shapes, definition, kernel |
//! | 5 | [`cpu`](crate::cpu) `mod.rs`, [`gpu`](crate::gpu) `program.rs` | how a backend runs a plan without a list of ops |
//! | 10 | [`models`](crate::models): `mod.rs`, `embernet/mod.rs`, `decoder/mod.rs` | a forward pass, in the order of the paper |
//! | 10 | [`engine`](crate::engine): `mod.rs`, then the functions that its steps name | sessions, queue, programs, sampling |
//! | 5 | `src/main.rs`; `src/cli/`: `mod.rs`, `run.rs`, `args.rs` (opening), `output.rs` (streaming) | a command, from arguments to the printed text |
//!
//! Each folder's `mod.rs` begins with what is in it.
//!
//! # The way of a token
//! `src/cli/run.rs` opens an [`Engine`](crate::Engine) (in `args.rs`) and a [`Session`](crate::Session), pushes pictures and
//! a question, and prints the tokens of a [`Stream`](crate::Stream) (in `output.rs`). The stream hands rows to the
//! [`queue`](crate::engine::queue). The queue chooses which rows of which sessions run next. The runner puts them into one
//! batch, writes it into a program, runs it, and reads token ids back. The [`engine`](crate::engine) page lists the steps.
//!
//! # The way of a weight
//! 1. [`Checkpoint::open`](crate::files::Checkpoint::open) maps the file and reads its header only. [`Weights`](crate::files::Weights)
//!    adds Ternion's packed format.
//! 2. The model asks for its tensors by name and shape (`src/models/load.rs`). One error lists the missing ones (the first
//!    50), or else those of another shape (the first 8). If the file cannot give one, or puts a prefix in front of all
//!    names, the error says that instead. Each answer is a [`Tensor`](crate::models::Tensor): a shape, and a
//!    [`WeightRef`](crate::tensor::WeightRef) of names, rows, and a [`Pack`](crate::tensor::Pack). No bytes move.
//! 3. Recording turns it into a slot ([`PlanBuilder::weight`](crate::plan::PlanBuilder::weight)). Equal references with equal
//!    shapes are one slot of a plan. Backends find weights by their reference, so that all plans of a model share them.
//! 4. The engine loads each weight of its plans once. [`Weights::load`](crate::files::Weights::load) converts, quantises and packs
//!    it into `u32` words ([`quant`](crate::quant)) and releases the file's pages;
//!    [`Backend::load_weight`](crate::plan::Backend::load_weight) moves the words to the device.
//! 5. An op reads the words: on the CPU through [`Io`](crate::plan::Io), on a GPU in its shader.
//!
//! # Where to add
//! **An op.** [`ops`](crate::ops) has the recipe. It touches `shaders/`, `src/ops/` and `tests/support/op_cases/`; no model's
//! file format, not the engine, and of the backends only `gpu/shader.rs`, for a new file in `shaders/shared/`. Which kernel
//! an op uses, for which rows and which device, is decided in its own file.
//!
//! **A packing: how the words of a weight lie on the device.** `src/quant/int8.rs` is the smallest one: look for `Int8`.
//! A packing with several scales per matrix has a type of its own beside [`Packed`](crate::quant::Packed), as
//! [`GroupPacked`](crate::quant::groups::GroupPacked) is: look for `Groups`.
//! 1. A file in `src/quant/`: packing, unpacking, and a test that the way there and back loses nothing, or how much.
//! 2. In `src/tensor.rs` a variant of [`Pack`](crate::tensor::Pack) and of [`DType`](crate::tensor::DType), and an arm in
//!    [`Weights::load`](crate::files::Weights::load).
//! 3. What asks for it: a method of [`TensorScope`](crate::models::TensorScope), as `ternary` and `dense` are. The methods
//!    `dense` and `head` take what [`LoadOptions`](crate::models::LoadOptions) says; [`Precision`](crate::engine::Precision)
//!    and [`LmHead`](crate::engine::LmHead) in `engine/options.rs` make those.
//! 4. The ops that read it: the dtype in `infer`, the CPU definition, a define in the shader, cases in
//!    `tests/support/op_cases/`. [`Io::floats`](crate::plan::Io::floats) gives full-precision numbers to CPU definitions.
//! 5. What lists dtypes: `tools/` (`check`, `convert`, `inspect`, `synthetic`, `tolerance`), `examples/inspect_plan.rs`,
//!    `tests/bench.rs`, `tests/support/recording.rs`. The compiler finds a `match` that lacks the new one, but no `expect`,
//!    `==` or `if let`.
//!
//! **A block format: how a tensor's elements lie in a file**, as the types of GGUF do.
//! [`quant::formats`](crate::quant::formats) has the recipe; what reads codes or integers from blocks needs no change.
//!
//! **A container: a file that holds named tensors.** A reader in `src/files/checkpoint/` that fills `Contents`, with its
//! line in `FileFormat` and `recognise` (`bytes.rs`) and in `mod.rs` and `sharded.rs` there.
//!
//! **A model.** [`models`](crate::models) has the recipe: a file or folder in `src/models/`, a [`Family`](crate::models::Family) in the
//! registry, golden numbers in `tests/golden/` and a test. A model records ops and reads names. It never sees a device, a
//! number of rows at which kernels change, or another family: what two families share is in a folder of its own, as
//! `models/bitgen/` is.
//!
//! **A command.** `src/cli/devices.rs` is the shortest.
//! 1. A file in `src/cli/` with a `clap` struct and `main`. Output goes to a locked stdout with `writeln!`, all else to
//!    stderr with `say!`: `print!` and `println!` panic where a stream is closed, so `tests/floors.rs` refuses them.
//! 2. In `src/cli/mod.rs` its module, its place in the order, a variant of `Command` and its arm in `main`. One that
//!    computes has the options of `DeviceArgs`, or at least of `ThreadArgs`, and sizes the pool with them.
//! 3. A row in the README's table, and a test in `tests/cli.rs`.
//!
//! It uses the library from outside: what it needs is public, in [`tools`](crate::tools), [`apps`](crate::apps) or
//! [`engine`](crate::engine). Options that several commands share are in `cli/args.rs`, tables and streamed text in
//! `cli/output.rs`. Crates that only the command line needs are optional, and listed in the feature `cli`.
//!
//! **A tool around model files** goes to [`tools`](crate::tools), **an application of models** to [`apps`](crate::apps). Both use
//! the engine's pieces. Applications do not use each other, except the picture index (BitGen). Tools may use BitGen and
//! robots. The engine uses neither.
//!
//! # Tests that catch a mistake
//! `op_parity` (an op on every backend and under every subset of capabilities; `OP=name` runs one op's cases), `op_golden` and
//! `models` (the original code's numbers), `shaders` (every shader with every set of defines, without a GPU), `floors` (the
//! map), `bad_files` and `mutations` (broken input). `cargo test --release --test NAME` runs one of them.
