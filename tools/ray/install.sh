#!/usr/bin/env bash
# Installs Ray, as PyPI has it, and what the tests need into .venv-ray: what `make test-ray` runs.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly folder=.venv-ray stamp=.venv-ray/.installed

if [[ -f $stamp && ! tools/ray/requirements.txt -nt $stamp && ! tools/ray/install.sh -nt $stamp ]]; then
    exit 0
fi
rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/python" -m pip install -q --disable-pip-version-check -r tools/ray/requirements.txt
# The evaluation's engines are those of .venv.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/engines.pth"
touch "$stamp"
