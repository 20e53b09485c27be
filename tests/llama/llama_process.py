"""tests/llama/attached.py in a process of its own, the dkvd that it is attached to, and what it decodes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import short_model
from conftest import ROOT
from processes import Sidecar

from dkv.hf import weights

LAYERS, KV_HEADS = 6, 3  # Of SmolLM2's first layers.

OLDER = "DKV_ATTACH_PYTHON" in os.environ  # llama.cpp 0.4, whose states do not say how rows are rotated.


class Llama:
    """Every method is one of attached.py's Engine."""

    def __init__(self, model: str, endpoint: str, **environment: str):
        python = Path(os.environ.get("DKV_ATTACH_PYTHON", sys.executable))
        assert python.exists(), f"{python} is missing: make test-llama installs llama.cpp"
        self._process = subprocess.Popen(
            [python, ROOT / "tests" / "llama" / "attached.py", model, endpoint],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
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


def compressed(llama: Llama, prompt: list[int], policy: dict, chunk: int = 400, **options) -> dict:
    llama.prefill(tokens=prompt, chunk=chunk)
    return llama.compress(policy=policy, **options)


@pytest.fixture(scope="module")
def dkvd(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dkvd")
    folder.chmod(0o700)
    running = Sidecar(folder).start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory) -> str:
    source = str(weights.gguf_path()[0])
    return str(short_model.write(source, tmp_path_factory.mktemp("model") / "short.gguf", LAYERS))


@pytest.fixture(scope="module")
def llama(dkvd, gguf_file):
    running = Llama(gguf_file, dkvd.endpoint)
    yield running
    running.close()
    running.stop()


@pytest.fixture(scope="module")
def document(llama):
    text = "\n\n".join((ROOT / name).read_text() for name in ("docs/POLICIES.md", "LICENSE"))
    tokens = llama.tokens(text=text)["tokens"]

    def first(count: int) -> list[int]:
        assert len(tokens) >= count
        return tokens[:count]

    return first
