//! The threads that [`super::queue`] knows: the system's.

pub use std::sync::{Condvar, Mutex, MutexGuard};
