"""`dkv profile`: the calibrated profiles that are found on this machine, in the order in which "auto" tries them."""

from __future__ import annotations

import sys

from dkv.hf import profiles

from . import profile


def main() -> int:
    for path in profiles.paths():
        try:
            made = profile.load(path)
            words = f"{made.model['name']}, per {made.granularity}, weights {made.model['weights']}"
        except profile.ProfileError as broken:
            words = str(broken)
        print(f"{path}: {words}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
