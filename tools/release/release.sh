#!/usr/bin/env bash
# Makes dist/VERSION: wheels, the Debian package, what is linked (CycloneDX), checksums and their signature.
#
#   tools/release/release.sh KEY     see seal.sh
set -euo pipefail
key=$(realpath "${1:?the key that signs (RELEASE_KEY)}")
cd "$(dirname "$0")/../.."

python3 tools/release/check.py
version=$(sed -n 's/^project(dkv VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
export SOURCE_DATE_EPOCH

out=dist/$version
rm -rf "$out" dist/*.whl dist/*.deb  # Other versions' folders stay.
tools/dev/wheel.sh cpu
lab=$(mktemp -d)  # setuptools writes beside the sources.
trap 'rm -rf "$lab"' EXIT
cp -r tools/lab "$lab"
.venv-wheel/bin/python -m build --wheel --outdir dist "$lab/lab"
tools/package/deb.sh
mkdir "$out"
mv dist/*.whl dist/*.deb "$out"
.venv-package/bin/python tools/release/sbom.py build/deb -o "$out/dkv-$version.cdx.json"
tools/release/seal.sh "$out" "$key"
ls -l "$out"
