#!/usr/bin/env bash
# Holds protocol/schema/dkv.fbs against every released version: fields may only be added.
set -euo pipefail
cd "$(dirname "$0")/../.."
for released in protocol/schema/released/*.fbs; do
    flatc --conform "$released" protocol/schema/dkv.fbs
    echo "schema_check: conforms to $(basename "$released" .fbs)"
done
