#!/usr/bin/env bash
# Writes FOLDER/SHA256SUMS over what is in FOLDER, and SHA256SUMS.sig.
#
#   tools/release/seal.sh FOLDER KEY      KEY: a private key of OpenSSH, or a public one whose private half an agent has
#
# ssh-keygen signs, not gpg or minisign: OpenSSH is installed wherever git is used, and a key is one line of text.
# docs/OPERATING.md says how a signature is verified.
set -euo pipefail

folder=${1:?the folder} key=$(realpath "${2:?the key}")
cd "$folder"
rm -f SHA256SUMS SHA256SUMS.sig
sums=$(find . -maxdepth 1 -type f -printf '%P\0' | LC_ALL=C sort -z | xargs -0 sha256sum)
echo "$sums" >SHA256SUMS
ssh-keygen -q -Y sign -n dkv-release -f "$key" SHA256SUMS
