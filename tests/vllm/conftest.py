"""Fixtures of the tests with a real vLLM: the model's folder, its reference, a real dkvd."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from processes import Sidecar  # noqa: E402

torch.set_num_threads(2)


@pytest.fixture(scope="session")
def model() -> str:
    """SmolLM2-135M as a Hugging Face folder."""
    from dkv.hf import weights

    return str(weights.smollm2_folder())


@pytest.fixture(scope="session")
def reference(model):
    from reference import Reference

    return Reference(model)


@pytest.fixture(scope="session")
def text(model):
    """`count` tokens of a text that the model can go on with; another `part` begins elsewhere."""
    from tokenizers import Tokenizer

    pages = "\n\n".join((ROOT / name).read_text() for name in ("LICENSE", "docs/ARCHITECTURE.md", "docs/POLICIES.md"))
    ids = Tokenizer.from_file(f"{model}/tokenizer.json").encode(pages).ids

    def tokens(count: int, part: int = 0) -> list[int]:
        begin = 777 * part
        assert len(ids) >= begin + count
        return ids[begin : begin + count]

    return tokens


@pytest.fixture(scope="module")
def sidecar(tmp_path_factory):
    """A running dkvd, dynamickv at 128, for the tests of one file."""
    folder = tmp_path_factory.mktemp("dkvd")
    folder.chmod(0o700)
    running = Sidecar(folder)
    yield running.start("--policy", "dynamickv", "--capacity", "128")
    running.stop()
