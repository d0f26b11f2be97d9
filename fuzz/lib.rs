//! Fuzzers of every form of file that Ternion reads; what they run is `tests/support/hostile.rs`.
//!
//! ```text
//! cargo install cargo-fuzz
//! cargo run --release --bin write_seeds            # here, in fuzz/
//! cargo +nightly fuzz run gguf -- -rss_limit_mb=2048 -max_total_time=600
//! ```
//! What makes one stop is kept in `failed/NAME/`, where the tests of each day run it.

#[path = "../tests/support/hostile.rs"]
pub mod hostile;
