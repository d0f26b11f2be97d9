//! Tools around a model file, each but `synthetic` and `tolerance` with a command; an application does not need them.
//!
//! * [`inspect`]: what a checkpoint holds, tensor by tensor.
//! * [`convert`]: a model in its packed form, quantised once.
//! * [`check`]: the CPU and a GPU compared, node by node.
//! * [`eval`]: how many answers are right, and what the original's training objectives say.
//! * [`mod@bench`]: tokens, images and texts per second, and what the device's memory allows.
//! * [`synthetic`]: models of random weights, for measuring.
//! * `tolerance`: how far a node's outputs may be off, for `check`.

pub mod bench;
pub mod check;
pub mod convert;
pub mod eval;
pub mod inspect;
pub mod synthetic;
mod tolerance;
