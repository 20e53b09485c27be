#!/usr/bin/env bash
# Builds the image localhost/dkv:VERSION with podman, or docker, from the files under version control.
#
#   tools/package/container/image.sh [the builder's options …]
#   DEBIAN=IMAGE: another base than Docker Hub's debian:bookworm-slim
set -euo pipefail
cd "$(dirname "$0")/../../.."

builder=$(command -v podman || command -v docker) || {
    echo "image.sh: neither podman nor docker is installed" >&2
    exit 1
}
version=$(sed -n 's/^project(dkv VERSION \([0-9.]*\).*/\1/p' CMakeLists.txt)
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
git ls-files -z --cached -- ':!docs/eval' ':!tests' |
    tar --null --files-from - --ignore-failed-read -cf - | tar -xf - -C "$context"
"$builder" build ${DEBIAN:+--build-arg "DEBIAN=$DEBIAN"} "$@" \
    -t "localhost/dkv:$version" -f tools/package/container/Containerfile "$context"
