//! The ops: one file each, with its builder method, shapes, CPU definition, and which kernel it uses; the WGSL lies in
//! `shaders/`.
//!
//! A file uses only files named before it (`tests/floors.rs` checks it).
//! Order: `sampling`, `chain`, `few_rows`, `embed`, `rms_norm`, `layer_norm`, `l2_norm`, `absmax`, `affine`, `unary`,
//! `swiglu`, `concat`, `select_rows`, `span_mean`, `quantise`, `patches`, `pixel_shuffle`, `pool`, `matmul`, `lstm_cell`,
//! `memory_read`, `bandwidth_probe`, `combine`, `norm_quantise`, `kv_cache`, `attention`, `attention_weights`,
//! `rope_kv_write`, `rope_attention`, `store_rows`, `router`, `route`, `group_rows`, `ternary_matmul`, `quantise_groups`,
//! `group_matmul`, `group_linear`, `bit_linear`, `route_swiglu`,
//! `bit_layers`, `sample`.
//!
//! ## What is in it
//! 1. Elements and rows: `layer_norm` (the shortest complete op), `rms_norm`, `l2_norm`, `affine`, `unary`, `swiglu`, `concat`;
//!    `embed`, `select_rows`, `store_rows`, `span_mean`.
//! 2. Full-precision products: `matmul`; `lstm_cell`. Images: `patches`, `pixel_shuffle`, `pool`.
//! 3. Ternary products: `absmax` and `quantise`, or `norm_quantise` (activation codes), then `ternary_matmul`; `bit_linear`
//!    fuses them for few rows. With scales by row and group of columns: `quantise_groups`, then `group_matmul`; models ask for
//!    `group_linear`, which fuses them for one row.
//! 4. Mixture of experts: `router`, `route` (the router with its norm, for few rows), `route_swiglu` (that and the first half of
//!    the experts, for one), `group_rows`, `combine`. Models ask for whole BitLinear layers with `bit_layers`, which chooses
//!    the ops.
//! 5. Attention: `rope_kv_write`, `attention`, both for one row in `rope_attention`, `attention_weights`; `memory_read` (a BitGen's episodic memory).
//! 6. Choosing a token: `sampling` (the arithmetic), `sample`.
//! 7. Shared by ops: `chain` (an op as a composition of others), `few_rows` (how kernels for few rows divide their work),
//!    `kv_cache` (how keys and values lie), `simd/` (the fast paths on the CPU). `bandwidth_probe` measures memory for the benchmark.
//!
//! ## Add an op
//! `layer_norm.rs` is the shortest op with all parts. `examples/custom_op.rs` is an op outside of this crate, with a plan that
//! runs it.
//! 1. `shaders/KIND/foo.wgsl`: the kernel. KIND is one of the folders there, except `shared/`. The header says purpose, grid
//!    and source; each buffer has a `#bind` line with its shape in a comment (`gpu/shader.rs` explains the directives).
//!    A kernel that imports `reduce` has a function `run(lane, group)` in place of `main`, and workgroups of `WG` threads
//!    (`shaders/shared/reduce.wgsl`). NaN must pass through: use the bounds and maxima of `shaders/shared/bounds.wgsl`,
//!    not `clamp`, `min` and `max` of floats (`tests/support/shader_rules/` checks this). An op with several kernels has a
//!    file each, named after op and variant.
//! 2. `src/ops/foo.rs`: the struct, a method on [`PlanBuilder`](crate::plan::PlanBuilder), and
//!    [`Op`](crate::plan::Op) for it. `cpu` is the definition: plain loops. `cpu_fast` only where time goes.
//!    An op whose kernel has several variants, all correct, names them in `variants`: autotuning times them.
//! 3. Here: `mod foo;`, its name in [`NAMES`] and its place in the order above; `pub use` for types that models name.
//! 4. `tests/support/op_cases/`: cases with awkward sizes (0, 1, odd, just above a tile), in the file whose first line fits
//!    the op. A test fails if a name has none. `OP=foo cargo test --release --test op_parity` runs them alone.
//!
//! Nothing in `cpu/` or `engine/` changes, and in `gpu/` only `SHARED` in `shader.rs`, for a new file in `shaders/shared/`.

mod absmax;
mod affine;
mod attention;
mod attention_weights;
mod bandwidth_probe;
mod bit_layers;
mod bit_linear;
mod chain;
mod combine;
mod concat;
mod embed;
mod few_rows;
mod group_linear;
mod group_matmul;
mod group_rows;
mod kv_cache;
mod l2_norm;
mod layer_norm;
mod lstm_cell;
mod matmul;
mod memory_read;
mod norm_quantise;
mod patches;
mod pixel_shuffle;
mod pool;
mod quantise;
mod quantise_groups;
mod rms_norm;
mod rope_attention;
mod rope_kv_write;
mod route;
mod route_swiglu;
mod router;
mod sample;
mod sampling;
mod select_rows;
mod simd;
mod span_mean;
mod store_rows;
mod swiglu;
mod ternary_matmul;
mod unary;

pub use attention::{AttentionShape, Columns, MASKED, MAX_HEAD};
pub use bandwidth_probe::PROBE_CHUNK;
pub use bit_layers::{BitStack, MoeInput, MoeSlots};
pub use bit_linear::BitInput;
pub use embed::{ROW_WORDS, Row, TOKEN_CLAMP, TOKEN_IMAGE};
pub use group_linear::GroupInput;
pub use group_matmul::GroupFactor;
pub use kv_cache::cache_spec;
pub use memory_read::MAX_MEMORY;
pub use norm_quantise::{ActQuant, Experts};
pub use patches::{Pixels, Window};
pub use pool::PoolKind;
pub use quantise_groups::{CodeScale, GroupQuant};
pub use rms_norm::{NormClamp, RmsNorm};
pub use rope_kv_write::{Pairing, QkNorm, Rotation};
pub use router::MAX_EXPERTS;
pub use sample::{MAX_CANDIDATES, SAMPLE_PARAM_WORDS, SampleParams, Sampled, adjustment_words, adjustments};
pub use sampling::{MAX_LOGIT_BIASES, Sampling, split_mix, uniform};
pub(crate) use sampling::{argmax, check_logits};
pub use swiglu::{Act, GateClamp};
pub use ternary_matmul::StackPiece;
pub use unary::UnaryKind;

use crate::error::{Error, Result};
use crate::tensor::{DType, Spec};
use chain::Composed;

/// Names of all ops; the tests check that each has parity rows.
pub const NAMES: &[&str] = &[
    "absmax",
    "affine",
    "attention",
    "attention_weights",
    "bandwidth_probe",
    "bit_linear",
    "combine",
    "concat",
    "embed",
    "group_linear",
    "group_matmul",
    "group_rows",
    "l2_norm",
    "layer_norm",
    "lstm_cell",
    "matmul",
    "memory_read",
    "norm_quantise",
    "patches",
    "pixel_shuffle",
    "pool",
    "quantise",
    "quantise_groups",
    "rms_norm",
    "rope_attention",
    "rope_kv_write",
    "route",
    "route_swiglu",
    "router",
    "sample",
    "select_rows",
    "span_mean",
    "store_rows",
    "swiglu",
    "ternary_matmul",
    "unary",
];

/// Checks an input's shape and dtype; `what` names it in the error.
fn expect(what: &str, found: &Spec, shape: &[usize], dtypes: &[DType]) -> Result<()> {
    if found.shape == shape && dtypes.contains(&found.dtype) {
        return Ok(());
    }
    let names: Vec<String> = dtypes.iter().map(|d| format!("{d:?}")).collect();
    Err(Error::shape(what, format!("{shape:?} {}", names.join(" or ")), found))
}

/// Checks a condition on an input's shape.
fn require(what: &str, found: &Spec, holds: bool, expected: &str) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::shape(what, expected, found)) }
}
