#!/usr/bin/env bash
# nvcc, its ptxas's remarks put into a file instead of on the screen; errors and warnings are shown.
#   tools/cmake/nvcc.sh REMARKS nvcc [argument …]
set -uo pipefail
readonly remarks="$1"
shift
"$@" 2>"$remarks"
status=$?
if ((status != 0)); then
    cat "$remarks" >&2
    rm -f "$remarks"  # What a later run would read is of no object.
    exit "$status"
fi
grep -v -E '^ptxas info|^ +[0-9]+ bytes stack frame' "$remarks" >&2 || true
