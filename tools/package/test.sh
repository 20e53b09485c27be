#!/usr/bin/env bash
# Tries the newest package of dist/ as a user meets it. Needs root: containers.
#
#   tools/package/test.sh deb BUILD      lintian; a bare Debian with systemd: tests/package
#   tools/package/test.sh image BUILD    podman, compose, Kubernetes manifests: tests/image
#
# BUILD is the build folder that has the engine in C.
set -euo pipefail
cd "$(dirname "$0")/../.."

export DKV_REQUIRE_E2E=1 DKV_BIN_DIR DKV_DEB DKV_DEBIAN_ROOT
DKV_BIN_DIR=$(realpath "${2:?the build folder}")/bin
DKV_DEB=$(realpath "$(ls -t dist/dkv_*.deb | head -n 1)")
DKV_DEBIAN_ROOT=$(tools/package/debian_root.sh)
pytest=(-m pytest -q -p no:cacheprovider --tb=short -rf)
case "${1:?deb or image}" in
    deb)
        lintian --allow-root --fail-on error,warning "$DKV_DEB"
        .venv/bin/python "${pytest[@]}" tests/package
        ;;
    image) .venv-package/bin/python "${pytest[@]}" tests/image ;;
    *) echo "test.sh: unknown kind '$1'; expected deb or image" >&2 && exit 2 ;;
esac
