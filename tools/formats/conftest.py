"""The environment of the real programs, and dkv's own ones."""

from __future__ import annotations

import os
import pathlib
import subprocess

ROOT = pathlib.Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv-formats/bin/python"
OLDER = ROOT / ".venv-formats/older"  # An mlx-lm of before 0.32.


def dkv(*arguments: object) -> str:
    program = pathlib.Path(os.environ["DKV_BIN_DIR"]) / "dkv"
    done = subprocess.run([program, *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
