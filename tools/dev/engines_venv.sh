#!/usr/bin/env bash
# An environment of its own whose torch, engines and weights are those of .venv: once, and again when FILE changes.
#   tools/dev/engines_venv.sh .venv-ray tools/ray/requirements.txt
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly folder=$1 file=$2

if cmp -s "$file" "$folder/.installed"; then exit 0; fi
rm -rf "$folder"
python3 -m venv "$folder"
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' >"$site/engines.pth"
"$folder/bin/python" -m pip install -q --disable-pip-version-check -r "$file"
cp "$file" "$folder/.installed"
