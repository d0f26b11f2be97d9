#!/bin/bash
# swiftshader.sh COMMAND...: runs COMMAND with SwiftShader as the only Vulkan driver: subgroups of 4, and no code of Mesa's. It comes
# out of Debian's package chromium-common, which is not installed.
set -euo pipefail
cache=${TMPDIR:-/tmp}/ternion-ci
root=$cache/chromium-common
dir=$root/usr/lib/chromium
if [ ! -e "$root" ]; then
    sudo=()
    [ "$(id -u)" = 0 ] || sudo=(sudo)
    mkdir -p "$cache"
    part=$(mktemp -d "$cache/chromium.XXXXXX")
    fetch() { (cd "$part" && apt-get -o APT::Sandbox::User="$(id -un)" download chromium-common >/dev/null); }
    fetch || { "${sudo[@]}" apt-get update -q && fetch; }
    dpkg -x "$part"/chromium-common_*.deb "$part/root"
    # The rest of the package is not needed.
    find "$part/root" -type f ! -name '*swiftshader*' ! -name 'libvulkan*' -delete
    mv "$part/root" "$root"
    rm -r "$part"
fi
export VK_DRIVER_FILES=$dir/vk_swiftshader_icd.json VK_ICD_FILENAMES=$dir/vk_swiftshader_icd.json
# Where the machine has no Vulkan loader, that of the package.
if ! ldconfig -p | grep -q 'libvulkan\.so\.1'; then
    export LD_LIBRARY_PATH=$dir${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
fi
exec "$@"
