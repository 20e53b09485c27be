"""Lists the calibrated profiles on this machine, in the order in which profile="auto" tries them."""

from __future__ import annotations

import argparse
import os
import sys

from dkv.hf import profiles

from . import profile


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog=os.environ.get("DKV_COMMAND", "python -m dkv.lab.known"), description=__doc__)
    parser.add_argument("command", nargs="?", choices=["list"], help="may be left out")
    parser.parse_args(arguments)
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
