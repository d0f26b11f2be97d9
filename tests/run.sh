#!/bin/bash
# The whole test suite. Kernels need an adapter: where there is none, Debian and Ubuntu get the software Vulkan driver
# (with sudo if you are not root); elsewhere this says what to install and the GPU tests are skipped.
# REQUIRE_GPU=1 makes a missing adapter a failure. Arguments go to `cargo test --release`.
set -euo pipefail
cd "$(dirname "$0")/.."

# Vulkan drivers complain on stderr without it.
export XDG_RUNTIME_DIR=${XDG_RUNTIME_DIR:-$(mktemp -d)}
# Nothing is written into the user's folders.
export TERNION_CACHE=

# Runs a small kernel on the best adapter; GL alone does not count, it is a last resort.
adapter() {
    local said
    said=$(WGPU_BACKEND=${WGPU_BACKEND:-vulkan,metal,dx12} cargo run --release --quiet --example custom_op 2>&1) || return 1
    ! grep -q '^no adapter' <<<"$said"
}

install_driver() {
    command -v apt-get >/dev/null || return 1
    local sudo=()
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || return 1
        sudo=(sudo)
    fi
    echo "no adapter: installing mesa-vulkan-drivers (the software Vulkan driver) and libvulkan1"
    # A list that cannot be refreshed may still be good enough.
    "${sudo[@]}" apt-get update -q || true
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q mesa-vulkan-drivers libvulkan1
}

cargo build --release --examples
missing=
if ! adapter; then
    install_driver || echo "the driver could not be installed here"
    adapter || missing=1
fi
advise() {
    echo "NO ADAPTER: the kernels are NOT tested. Install a Vulkan driver (Debian, Ubuntu: mesa-vulkan-drivers and" >&2
    echo "libvulkan1; Fedora: mesa-vulkan-drivers and vulkan-loader; Arch: vulkan-swrast; Windows and macOS: the" >&2
    echo "graphics driver brings DX12 or Metal) and run this again." >&2
}
if [ "$missing" ]; then advise; fi
status=0
cargo test --release --no-fail-fast "$@" || status=$?
if [ "$missing" ]; then advise; fi
exit $status
