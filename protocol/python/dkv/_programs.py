"""The programs of an installed wheel: `dkv` and `dkvd` on the PATH become those in this package."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_FOLDER = Path(__file__).resolve().parent / "bin"


def _become(name: str) -> None:
    os.environ.setdefault("DKV_PYTHON", sys.executable)  # For `dkv eval` and the others that are written in Python.
    os.execv(_FOLDER / name, [name, *sys.argv[1:]])


def dkv() -> None:
    _become("dkv")


def dkvd() -> None:
    _become("dkvd")
