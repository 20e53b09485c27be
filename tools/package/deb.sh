#!/usr/bin/env bash
# Makes dist/dkv_VERSION-1_ARCHITECTURE.deb, without CUDA, for the Debian release that this machine runs.
#
#   tools/package/deb.sh
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly built=build/deb
if [[ -e .git ]]; then
    SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct)}  # The same sources make the same package.
    export SOURCE_DATE_EPOCH
fi
cmake --preset release -B "$built" --log-level=WARNING -DDKV_CUDA=OFF -DDKV_TESTS=OFF -DDKV_BENCH=OFF
cmake --build "$built" --target programs
rm -rf "$built/package"
cpack --config "$built/CPackConfig.cmake" -B "$built/package"
mkdir -p dist
cp "$built"/package/*.deb dist/
