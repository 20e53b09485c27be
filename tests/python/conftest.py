"""Fixtures shared by the Python tests: models, a real dkvd on an endpoint of its own."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
import transformers

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from processes import sidecar  # noqa: E402, F401

torch.set_num_threads(1)  # The tiny model is faster so; the real one asks for more.


def make_tiny_llama(seed: int = 0, kv_heads: int = 2, layers: int = 4, rope: dict | None = None, head_dim: int = 16):
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
        head_dim=head_dim,
        max_position_embeddings=8192,
        attn_implementation="sdpa",
        bos_token_id=1,
        eos_token_id=None,
        pad_token_id=0,
        initializer_range=0.12,
        **_rope_options(rope or {}),
    )
    return LlamaForCausalLM(config).eval()


def _rope_options(rope: dict) -> dict:
    if not rope:
        return {}
    if int(transformers.__version__.split(".")[0]) >= 5:
        return {"rope_parameters": rope}
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    return {"rope_theta": rope["rope_theta"], "rope_scaling": scaling}


@pytest.fixture
def tiny_llama():
    return make_tiny_llama()


@pytest.fixture
def smollm2(loaded_smollm2):
    """(model, tokenizer), on "sdpa" whatever the last test left it on."""
    loaded_smollm2[0].set_attn_implementation("sdpa")
    return loaded_smollm2


@pytest.fixture(scope="session")
def loaded_smollm2():
    """Once per process."""
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
