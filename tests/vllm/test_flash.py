"""vLLM's FLASH_ATTN without its CUDA kernels: stand-ins in torch, by what the kernels' arguments mean."""

from __future__ import annotations

import pytest
import torch
from conftest import random_model
from interpreted import RUNNER_V2, interpreted
from processes import Sidecar, program
from reference import Reference

TOLERANCE = 1e-4  # Of a logprob, float32.


def write(key, value, key_cache, value_cache, slots, *_):
    """reshape_and_cache_flash: caches are [blocks, block size, KV heads, head_dim]; padding has no slot."""
    block, rows = key_cache.shape[1], slots >= 0
    at = slots[rows] // block, slots[rows] % block
    key_cache[at], value_cache[at] = key[: len(slots)][rows], value[: len(slots)][rows]


def schedule(cache_seqlens, **_):
    """get_scheduler_metadata, of FlashAttention 3: it plans a step by its lengths, so those are the plan here."""
    return cache_seqlens.clone()


def attend(q, k, v, out, cu_seqlens_q, seqused_k, block_table, scheduler_metadata, softmax_scale, causal, **_):
    """flash_attn_varlen_func with a paged cache. The last query of a sequence sees all of its keys."""
    assert causal and torch.equal(scheduler_metadata[: len(seqused_k)], seqused_k)
    for row, length in enumerate(seqused_k.tolist()):
        begin, end = cu_seqlens_q[row : row + 2].tolist()
        blocks = block_table[row, : -(-length // k.shape[1])].long()
        keys, values = (each[blocks].flatten(0, 1)[:length].transpose(0, 1) for each in (k, v))
        queries = q[begin:end].transpose(0, 1)
        groups = queries.shape[0] // keys.shape[0]
        keys, values = keys.repeat_interleave(groups, 0), values.repeat_interleave(groups, 0)
        future = torch.ones(end - begin, length, dtype=torch.bool).triu(length - (end - begin) + 1)
        chances = (queries @ keys.mT * softmax_scale).masked_fill(future, float("-inf")).softmax(-1)
        out[begin:end] = (chances @ values).transpose(0, 1)


def attention() -> str:
    from vllm.v1.attention.backends import flash_attn

    flash_attn.get_flash_attn_version = lambda *_, **__: 3
    flash_attn.reshape_and_cache_flash = write
    flash_attn.get_scheduler_metadata = schedule
    flash_attn.flash_attn_varlen_func = attend
    return "dkv.vllm.cuda.DkvFlashBackend"


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A dkvd whose CUDA is the emulation, on which the engine's memory is a GPU's."""
    emulated = program("dkvd").parents[1] / "emulated"
    if not (emulated / "bin" / "dkvd").is_file():
        pytest.skip("the emulation of CUDA is not built")
    monkeypatch.setenv("DKV_DEVICE", "cuda")
    monkeypatch.setenv("DKV_CUDA_LIBRARY", str(emulated / "lib" / "libdkv_cuda.so"))
    running = Sidecar(tmp_path, dkvd=emulated / "bin" / "dkvd").start("--policy", "dynamickv", "--capacity", "128")
    yield running
    running.stop()


@pytest.mark.parametrize("memory", ["a CPU's", pytest.param("a GPU's", marks=pytest.mark.sample)])
def test_the_kernels_are_given_what_a_masked_model_sees(request, tmp_path, tmp_path_factory, sidecar, noise, memory):
    endpoint = request.getfixturevalue("gpu").endpoint if memory == "a GPU's" else sidecar.endpoint
    model = random_model(tmp_path_factory.mktemp("model"), layers=6)
    prompts = {"kept": noise(509), "other": noise(333), "off": noise(100)}
    wishes = [{"granularity": "layer", "capacity": 128}, {"capacity": 64}, "off"]

    seen = interpreted(
        tmp_path,
        2,
        [(name, prompt, 8, wish) for wish, (name, prompt) in zip(wishes, prompts.items())],
        model=model,
        endpoint=endpoint,
        extra={"layers_per_group": 1},
        attention=attention,
        async_scheduling=True,
        block_size=16,
        max_model_len=1024,
        max_num_batched_tokens=256,
        num_gpu_blocks_override=500,
    )

    assert RUNNER_V2 in seen.runner and seen.attention == "dkv.vllm.cuda.DkvFlashImpl"
    assert seen.in_place and seen.device.startswith("GPU-") == (memory == "a GPU's")
    assert [len(addresses) for addresses in seen.read] == [1] * 6  # So a graph that was captured reads each step's.
    assert seen.free[0] == seen.free[-1] and seen.busy == 0
    reference = Reference(model)
    assert len({layer[0] for layer in seen.kept["kept"].lengths()}) > 1 and "off" not in seen.kept
    for name, prompt in prompts.items():
        assert reference.worst(prompt, seen.answers[name], seen.kept.get(name)) < TOLERANCE, name
    assert reference.worst(prompts["kept"], seen.answers["kept"]) > 100 * TOLERANCE  # Against the full cache.
