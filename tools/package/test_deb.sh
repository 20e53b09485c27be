#!/usr/bin/env bash
# The newest package of dist/ on a Debian machine of its own: lintian, then tests/package. Needs root: containers.
#
#   tools/package/test_deb.sh BUILD    the build folder that has the engine in C
set -euo pipefail
cd "$(dirname "$0")/../.."

built=$(realpath "${1:?the build folder}")
deb=$(realpath "$(ls -t dist/dkv_*.deb | head -n 1)")
lintian --allow-root --fail-on error,warning "$deb"

# A bare Debian with systemd, kept: the tests unpack it anew each time.
. /etc/os-release
root=$PWD/build/debian-$VERSION_CODENAME.tar
if [[ ! -f $root ]]; then
    mmdebstrap --quiet --variant=minbase --include=systemd-sysv,dbus "$VERSION_CODENAME" "$root.part"
    mv "$root.part" "$root"
fi

DKV_DEB=$deb DKV_DEBIAN_ROOT=$root DKV_BIN_DIR=$built/bin DKV_REQUIRE_E2E=1 \
    .venv/bin/python -m pytest -q -p no:cacheprovider --tb=short -rf tests/package
