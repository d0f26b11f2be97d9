//! What `-V` and `--version` say.

use std::env;
use std::sync::LazyLock;

use ternion::engine::CpuLevel;
use ternion::gpu::Adapters;
use ternion::tools::bench::Machine;

/// The version and its commit.
pub fn short() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| Machine::this().program().replacen("ternion ", "", 1));
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
