"""Fixtures shared by the Python tests: models, a real dkvd on an endpoint of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
torch.set_num_threads(1)  # The tiny model is faster so; the real one asks for more.


def make_tiny_llama(seed: int = 0, kv_heads: int = 2, layers: int = 4):
    """Random weights: every answer is nonsense, every number is checkable, and it takes no time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=96,
        intermediate_size=128,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=kv_heads,
        head_dim=16,
        max_position_embeddings=8192,
        attn_implementation="sdpa",
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.12,
    )
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def tiny_llama():
    return make_tiny_llama()


@pytest.fixture(scope="session")
def smollm2():
    """(model, tokenizer), once per process. Tests leave it on "dkv" or "sdpa" as they like."""
    from dkv.hf import weights

    try:
        return weights.load_smollm2()
    except weights.WeightsNotFound as missing:
        if os.environ.get("DKV_REQUIRE_E2E") == "1":
            raise
        pytest.skip(str(missing))


@pytest.fixture
def prompt():
    """Tokens for the tiny model; the same for the same count."""

    def tokens(count: int, seed: int = 7) -> torch.Tensor:
        return torch.randint(2, 512, (1, count), generator=torch.Generator().manual_seed(seed))

    return tokens


def program(name: str) -> Path:
    """A program that was built; without it the test is skipped, or fails under DKV_REQUIRE_E2E=1."""
    folder = Path(os.environ.get("DKV_BIN_DIR", ROOT / "build" / "dev" / "bin"))
    path = folder / name
    if not path.is_file():
        message = f"{path} is not built (DKV_BIN_DIR chooses another folder)"
        if os.environ.get("DKV_REQUIRE_E2E") == "1":
            pytest.fail(message)
        pytest.skip(message)
    return path


class Sidecar:
    """A dkvd of one test's own. start() again after kill() is what an operator's restart is."""

    def __init__(self, folder: Path):
        self.endpoint = f"ipc://{folder}/dkvd.sock"
        self.log = folder / "dkvd.log"
        self._dkvd, self._dkv = program("dkvd"), program("dkv")
        self.process: subprocess.Popen | None = None

    def start(self, *flags: str) -> "Sidecar":
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [self._dkvd, "--endpoint", self.endpoint, *flags], stdout=log, stderr=log
            )
        deadline = time.monotonic() + 20
        while self.dkv("status", check=False).returncode != 0:
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dkvd did not start: {self.log.read_text()}")
        return self

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
                raise

    def dkv(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(
            [self._dkv, "--endpoint", self.endpoint, *arguments],
            capture_output=True,
            text=True,
            check=check,
            timeout=30,
        )


@pytest.fixture
def sidecar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dkvd")
    folder.chmod(0o700)
    running = Sidecar(folder)
    yield running.start()
    running.stop()
    shutil.rmtree(folder, ignore_errors=True)
