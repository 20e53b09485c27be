#!/usr/bin/env bash
# Installs an older llama.cpp that dkv attaches to, as PyPI has it prebuilt, into .venv-attach: what `make test-llama`
# runs beside the newest, which is in .venv. Library and C declarations are of one build, or nearly.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly folder=.venv-attach stamp=.venv-attach/.installed

if [[ -f $stamp && ! tools/llama/attach.sh -nt $stamp ]]; then
    exit 0
fi
python3 -m venv --clear "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check cffi==2.1.1 numpy==2.4.6 pyyaml \
    xllamacpp==2026.9.11063 llama-cpp-py-sync==0.11067
touch "$stamp"
