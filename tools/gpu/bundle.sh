#!/usr/bin/env bash
# build/gpu-bundle.tar: gpu_test.py and the programs it runs, for every architecture, with the
# libraries they need but C's and C++'s. A machine with a driver and Python runs it:
#   tar xf gpu-bundle.tar && gpu-bundle/gpu_test.py
#
#   tools/gpu/bundle.sh [-DNAME=VALUE …]            builds into build/gpu-bundle-programs
#   tools/gpu/bundle.sh --of FOLDER TAR             of programs that are built already
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly programs=(kernels_test primitives_test dkv_gpu_bench dkv_gpu_ipc)
tar=build/gpu-bundle.tar
built=build/gpu-bundle-programs/bin

if [[ ${1:-} == --of ]]; then
    built=$2 tar=$3
else
    # Not the folder of gpu_test.py, whose cache has one architecture. Asserted lines name files.
    map=-ffile-prefix-map=$PWD/=
    cmake --preset gpu -B "${built%/bin}" --log-level=WARNING -DCMAKE_CXX_FLAGS="$map" "$@"
    NVCC_APPEND_FLAGS="-Xcompiler=$map" cmake --build "${built%/bin}" --target "${programs[@]}"
fi

staged=$(mktemp -d)
trap 'rm -rf "$staged"' EXIT
readonly bundle=$staged/gpu-bundle
mkdir -p "$bundle/bin" "$bundle/lib"
for program in "${programs[@]}"; do
    strip -o "$bundle/bin/$program" "$built/$program"
    # Not the machine's own C library and loader, and not C++'s: ours wants a newer C library than
    # the programs do.
    ldd "$built/$program" | awk '$3 ~ /^\// { print $3 }' |
        { grep -v -E '/(libc|libm|libdl|librt|libpthread|libstdc\+\+|libgcc_s)\.so\.' || true; } | xargs -r -I{} cp -L {} "$bundle/lib/"
    if ! readelf -d "$bundle/bin/$program" | grep -q 'R\(UN\)\?PATH.*\[\$ORIGIN/\.\./lib'; then
        echo "bundle: $program does not look for its libraries in ../lib" >&2
        exit 1
    fi
done
cp tools/gpu/*.py "$bundle/"
git describe --always --dirty --abbrev=40 >"$bundle/COMMIT"
# The newest that anything in it wants: an older machine is told so.
objdump -T "$bundle"/bin/* "$bundle"/lib/* | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -1 | cut -d_ -f2 >"$bundle/GLIBC"
tar -C "$staged" --sort=name --owner=0 --group=0 --numeric-owner -cf "$tar" gpu-bundle
du -h "$tar"
