"""tests/llama/attached.py in a process of its own, and the dkvd that it is attached to."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from processes import Sidecar

OLDER = "DKV_ATTACH_PYTHON" in os.environ  # llama.cpp 0.4, whose states do not say how rows are rotated.


class Llama:
    """Every method is one of attached.py's Engine."""

    def __init__(self, model: str, endpoint: str):
        python = Path(os.environ.get("DKV_ATTACH_PYTHON", sys.executable))
        assert python.exists(), f"{python} is missing: make test-llama installs llama.cpp"
        self._process = subprocess.Popen(
            [python, ROOT / "tests" / "llama" / "attached.py", model, endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __getattr__(self, name: str):
        def call(**options) -> dict:
            self._process.stdin.write(json.dumps({"do": name, **options}) + "\n")
            self._process.stdin.flush()
            return json.loads(self._process.stdout.readline())

        return call

    def stop(self) -> None:
        self._process.stdin.close()
        assert self._process.wait(60) == 0


@pytest.fixture(scope="module")
def dkvd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dkvd")
    folder.chmod(0o700)
    running = Sidecar(folder).start()
    yield running
    running.stop()
