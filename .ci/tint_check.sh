#!/bin/bash
# Every kernel through Tint, the WGSL compiler of Chrome, as the npm package webgpu brings it; no driver is needed. Fails if it
# refuses one that real GPUs get. Debian gets node where it is missing (with sudo if you are not root).
set -euo pipefail
cd "$(dirname "$0")/.."
cache=${TMPDIR:-/tmp}/ternion-ci
version=0.6.2

if ! command -v npm >/dev/null || ! command -v node >/dev/null; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    "${sudo[@]}" apt-get update -q || true
    "${sudo[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends nodejs npm
fi
package=$cache/webgpu-$version
if [ ! -e "$package" ]; then
    # Beside its place until it is whole.
    mkdir -p "$cache"
    part=$(mktemp -d "$cache/webgpu.XXXXXX")
    (cd "$part" && npm pack --silent "webgpu@$version" >/dev/null && tar -xzf webgpu-*.tgz)
    mv "$part/package" "$package"
    rm -r "$part"
fi
case $(uname -m) in
    aarch64) arch=arm64 ;;
    *) arch=x64 ;;
esac
dump=$(mktemp -d)
trap 'rm -r "$dump"' EXIT
cargo run --release --quiet --example dump_shaders -- "$dump"
DAWN_BACKEND=null node .ci/tint_check.mjs "$package/dist/linux-$arch/dawn.node" "$dump"
