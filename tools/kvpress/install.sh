#!/usr/bin/env bash
# Installs NVIDIA's kvpress, as PyPI has it, and the transformers that it needs into .venv-kvpress: what
# `make bench-quality` runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly folder=.venv-kvpress stamp=.venv-kvpress/.installed

if [[ -f $stamp && ! tools/kvpress/requirements.txt -nt $stamp && ! tools/kvpress/install.sh -nt $stamp ]]; then
    exit 0
fi
rm -rf "$folder"
python3 -m venv "$folder"
# torch and the model's weights are those of .venv.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/engines.pth"
"$folder/bin/python" -m pip install -q --disable-pip-version-check -r tools/kvpress/requirements.txt
touch "$stamp"
