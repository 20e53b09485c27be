"""Fixtures of the tests with a real vLLM: its environment, the model's folder, its reference, a real dkvd."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_CPU_KVCACHE_SPACE="1",
    VLLM_ENABLE_V1_MULTIPROCESSING="0",
    VLLM_LOGGING_LEVEL="WARNING",
    OMP_NUM_THREADS="1",  # Two threads that meet at barriers take seconds for a token where the cores are busy.
    TORCHDYNAMO_DISABLE="1",  # Else the logprobs are counted by a function that is compiled for a minute.
)

import pytest  # noqa: E402
import torch  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))

from processes import Sidecar  # noqa: E402

torch.set_num_threads(1)


def transfer(**extra) -> dict:
    return dict(
        kv_connector="DkvConnector",
        kv_connector_module_path="dkv.vllm.connector",
        kv_role="kv_both",
        kv_connector_extra_config=extra,
    )


@pytest.fixture(scope="session")
def model() -> str:
    """SmolLM2-135M as a Hugging Face folder."""
    from dkv.hf import weights

    return str(weights.smollm2_folder())


@pytest.fixture(scope="session")
def reference(model):
    from reference import Reference

    return Reference(model)


def random_model(folder: Path, layers: int) -> str:
    """Writes a model of random weights: nonsense, of which every number can be checked, in no time."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=192,
        intermediate_size=256,
        num_hidden_layers=layers,
        num_attention_heads=6,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=4096,
        bos_token_id=1,
        eos_token_id=2,
        initializer_range=0.12,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    return random_model(tmp_path_factory.mktemp("tiny"), layers=6)


@pytest.fixture(scope="session")
def tiny_reference(tiny):
    from reference import Reference

    return Reference(tiny)


@pytest.fixture(scope="session")
def noise():
    """Tokens for the tiny model; the same for the same count and seed."""

    def tokens(count: int, seed: int = 7) -> list[int]:
        return torch.randint(3, 1024, (count,), generator=torch.Generator().manual_seed(seed)).tolist()

    return tokens


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
