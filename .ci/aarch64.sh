#!/bin/bash
# aarch64.sh: the CPU's kernels for aarch64, cross-built on x86-64 Debian 12 with Rust from rustup, and run under QEMU: on a processor
# with all levels of vector instructions, and on one without dotprod.
set -euo pipefail
cd "$(dirname "$0")/.."
target=aarch64-unknown-linux-gnu

if ! command -v qemu-aarch64 >/dev/null || ! command -v aarch64-linux-gnu-gcc >/dev/null; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    # A list that cannot be refreshed may still be good enough.
    "${sudo[@]}" apt-get update -q || true
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
        gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
fi
rustup target list --installed | grep -qx "$target" || rustup target add "$target"

export CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc TERNION_CACHE=
on() {
    local cpu=$1 level=$2
    shift 2
    # Dependencies are not what is tested, and compile sooner without optimisation.
    REQUIRE_CPU_LEVEL=$level CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_RUNNER="qemu-aarch64 -cpu $cpu -L /usr/aarch64-linux-gnu" \
        cargo test --release --no-default-features --target "$target" --lib --test op_parity \
        --config 'profile.release.package."*".opt-level = 0' -- "$@"
}
# What runs on the CPU; there is no adapter.
tests=(ops:: quant:: cpu_level cpu_matches float_ops ternary_matmul finite)
on max neoni8mm "${tests[@]}"
on cortex-a72 neon ops:: quant:: cpu_level every_level_of_the_cpu
