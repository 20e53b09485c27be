#!/usr/bin/env bash
# build/debian-RELEASE.tar: a bare Debian of this machine's release, with systemd. Made once, then kept; prints its path.
set -euo pipefail
cd "$(dirname "$0")/../.."

. /etc/os-release
root=$PWD/build/debian-$VERSION_CODENAME.tar
if [[ ! -f $root ]]; then
    mkdir -p build
    mmdebstrap --quiet --format=tar --variant=minbase --include=systemd-sysv,dbus "$VERSION_CODENAME" "$root.part" >&2
    mv "$root.part" "$root"
fi
echo "$root"
