#!/usr/bin/env bash
# Refuses code that clang-format would change. `make format` mends it.
set -euo pipefail
cd "$(dirname "$0")/../.."
find cli kernels protocol sidecar tests tools \
    \( -name '*.h' -o -name '*.cc' -o -name '*.c' -o -name '*.cu' \) -print0 |
    xargs -0 clang-format --dry-run --Werror
