#!/usr/bin/env bash
# build/gpu-bundle.tar: gpu_test.py and the programs it runs, for every architecture, with the
# libraries they need but glibc. A machine with a driver and Python runs it:
#   tar xf gpu-bundle.tar && gpu-bundle/gpu_test.py --binaries gpu-bundle/bin
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly bundle=build/gpu-bundle
readonly programs=(kernels_test primitives_test dkv_gpu_bench dkv_gpu_ipc)

cmake --preset gpu --log-level=WARNING "$@"
cmake --build --preset gpu --target "${programs[@]}"
rm -rf "$bundle"
mkdir -p "$bundle/bin" "$bundle/lib"
for program in "${programs[@]}"; do
    cp "build/gpu/bin/$program" "$bundle/bin/"
    strip "$bundle/bin/$program"
    # Everything but what belongs to the machine's C library and its loader.
    ldd "build/gpu/bin/$program" | awk '$3 ~ /^\// { print $3 }' |
        { grep -v -E '/(libc|libm|libdl|librt|libpthread)\.so\.' || true; } | xargs -r -I{} cp -L {} "$bundle/lib/"
done
cp tools/gpu/*.py "$bundle/"
git describe --always --dirty --abbrev=40 >"$bundle/COMMIT"
tar -C build -cf "$bundle.tar" gpu-bundle
du -h "$bundle.tar"
