"""vLLM's TRITON_ATTN, an attention for GPUs: on the CPU its kernels run in Triton's interpreter."""

from __future__ import annotations

import pytest
import torch
from conftest import random_model
from interpreted import RUNNER_V2, interpreted
from reference import Reference

TOLERANCE = 1e-4  # Of a logprob, float32.
KV_HEADS, BLOCK, WIDTH = 2, 16, 64  # Of a block's cache: WIDTH is a row of K and V.
HEAD_MAJOR = (KV_HEADS * BLOCK * WIDTH, BLOCK * WIDTH, WIDTH, 1)
TOKEN_MAJOR = (KV_HEADS * BLOCK * WIDTH, WIDTH, KV_HEADS * WIDTH, 1)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> str:
    """A layer takes seconds for a prompt here."""
    return random_model(tmp_path_factory.mktemp("small"), layers=2)


def attention() -> str:
    torch.cuda.get_device_capability = lambda *_: (9, 0)  # By which the host's code chooses a tile's size.
    return "dkv.vllm.cuda.DkvTritonBackend"


@pytest.mark.parametrize(
    "runner, scheduler, layout, strides",
    [
        pytest.param(1, "Scheduler", "HND", HEAD_MAJOR, id="runner-v1"),
        pytest.param(2, "AsyncScheduler", "NHD", TOKEN_MAJOR, id="as-on-a-gpu"),
    ],
)
def test_layers_keep_unequal_numbers_of_rows(
    monkeypatch, tmp_path, small, sidecar, noise, runner, scheduler, layout, strides
):
    monkeypatch.setenv("VLLM_KV_CACHE_LAYOUT", layout)
    prompt, other = noise(89, seed=1), noise(40)

    seen = interpreted(
        tmp_path,
        runner,
        [("kept", prompt, 9, {"granularity": "layer", "capacity": 56}), ("off", other, 5, "off")],
        model=small,
        endpoint=sidecar.endpoint,
        extra={"layers_per_group": 1},
        attention=attention,
        async_scheduling=scheduler == "AsyncScheduler",
        block_size=BLOCK,
        max_model_len=256,
        max_num_batched_tokens=64,
        num_gpu_blocks_override=60,
    )

    assert seen.attention == "dkv.vllm.cuda.DkvTritonImpl" and seen.strides == strides
    assert seen.in_place
    assert (RUNNER_V2 in seen.runner) == (runner == 2) and seen.scheduler == scheduler
    assert [len(addresses) for addresses in seen.read] == [1, 1]  # So a graph that was captured reads each step's.
    assert seen.free[0] == seen.free[-1] and seen.busy == 0
    answer, kept, reference = seen.answers["kept"], seen.kept["kept"], Reference(small)
    assert kept.lengths()[0] != kept.lengths()[1]
    assert reference.worst(prompt, answer, kept) < TOLERANCE
    assert reference.worst(prompt, answer) > 100 * TOLERANCE  # Against the full cache.
    assert reference.worst(other, seen.answers["off"]) < TOLERANCE
