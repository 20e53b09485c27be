#!/usr/bin/env bash
# Builds a real llama.cpp (libllama, llama-server, tools/llama/state.cc) from the source package
# that PyPI has of llama-cpp-python. Takes some ten minutes once, and nothing afterwards.
#   tools/llama/build.sh build/llama
set -euo pipefail
cd "$(dirname "$0")/../.."
readonly build="${1:?the build folder, for example build/llama}"
readonly package=llama_cpp_python version=0.3.36
readonly source="$build/$package-$version/vendor/llama.cpp"

mkdir -p "$build"
if [[ ! -d $source ]]; then
    .venv/bin/python -m pip download -q --disable-pip-version-check --no-deps \
        --no-binary llama-cpp-python -d "$build" "llama-cpp-python==$version"
    tar -xzf "$build/$package-$version.tar.gz" -C "$build"
fi
if [[ ! -x $build/out/bin/llama-server ]]; then
    cmake -S "$source" -B "$build/out" -G Ninja --log-level=WARNING -DCMAKE_BUILD_TYPE=Release \
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG" -DGGML_NATIVE=ON -DLLAMA_BUILD_TESTS=OFF \
        -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_CURL=OFF -DLLAMA_OPENSSL=OFF -DLLAMA_BUILD_UI=OFF \
        -DLLAMA_USE_PREBUILT_UI=OFF
    cmake --build "$build/out" --target llama llama-server
fi
if [[ tools/llama/state.cc -nt $build/llama_state ]]; then
    g++ -std=c++20 -O1 -Wall -Wextra -I "$source/include" -I "$source/ggml/include" \
        tools/llama/state.cc -o "$build/llama_state" \
        -L "$build/out/bin" -lllama -lggml -lggml-base "-Wl,-rpath,\$ORIGIN/out/bin"
fi
