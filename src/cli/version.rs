//! What `-V` and `--version` say.

use std::env;
use std::sync::LazyLock;

use ternion::engine::CpuLevel;
use ternion::gpu::Adapters;

/// The version and its commit.
pub fn short() -> &'static str {
    // Every start of the program asks for it: nothing is read from the machine.
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let commit = option_env!("TERNION_COMMIT").map_or(String::new(), |commit| format!(" ({commit})"));
        format!("{}{commit}", env!("CARGO_PKG_VERSION"))
    });
    &TEXT
}

/// The same with what the program was built with.
pub fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let demo = if cfg!(feature = "demo") { "cli, demo" } else { "cli" };
        let (short, os, arch) = (short(), env::consts::OS, env::consts::ARCH);
        let backends = Adapters::interfaces().join(", ");
        format!("{short}\nfeatures: {demo}\nsystem: {os} {arch}\nbackends: CPU ({}), {backends}", CpuLevel::highest())
    });
    &TEXT
}
