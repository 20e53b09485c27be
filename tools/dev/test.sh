#!/usr/bin/env bash
# ctest without a line for every test that passes: what failed, with its output, and the summary.
#   tools/dev/test.sh PRESET [ctest's options …]
set -uo pipefail
if [[ $1 == tsan ]]; then
    supp=$(cd "$(dirname "$0")" && pwd)/tsan.supp
    export TSAN_OPTIONS="suppressions=$supp ${TSAN_OPTIONS:-}"
fi
ctest --preset "$1" --parallel "$(nproc)" "${@:2}" | awk '
    /^ *Start +[0-9]+:/ { next }
    / Passed +[0-9.]+ sec *$/ { if (++passed % 100 == 0) { print "  … " passed " passed"; fflush() } next }
    { print; fflush() }'
