#!/usr/bin/env bash
# Installs the oldest llama-server that dkv llama supports, as PyPI has it prebuilt, into .venv-llama: what
# `make test-llama` runs beside the newest, which is in .venv. Nothing is compiled.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly folder=.venv-llama stamp=.venv-llama/.installed version=2026.5.9294

if [[ -f $stamp && ! tools/llama/install.sh -nt $stamp ]]; then
    exit 0
fi
python3 -m venv --clear "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check "xllamacpp==$version"
touch "$stamp"
