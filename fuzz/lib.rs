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

use std::panic;
use std::sync::Once;

use ternion::files::panic_is_contained;

/// Reads bytes as a file of the form `name`. The fuzzer stops at a panic, but not at one that becomes an error.
pub fn read(name: &str, bytes: &[u8]) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let stop = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !panic_is_contained() {
                stop(info);
            }
        }));
    });
    let target = hostile::TARGETS.iter().find(|target| target.name == name).expect("a form of file");
    (target.read)(bytes);
}
