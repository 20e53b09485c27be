"""Where the sidecar reads K and V: in vLLM's own pages, or in copies where it cannot."""

from __future__ import annotations

import pytest
import torch
from engine import Engine

from dkv.vllm.rows import CopiedRows, PageRows

CHOICE = {"granularity": "layer-head", "capacity": 64}
PROMPTS = {"part of a block": 500, "whole blocks": 13 * 32}


def answered(engine, noise) -> dict:
    """Every prompt's positions, [layer][KV head]. Several at once, so that blocks are in no order."""
    for name, count in PROMPTS.items():
        engine.add(name, noise(count), 4, CHOICE)
    engine.run()
    return {name: engine.kept[name].planned for name in PROMPTS}


@pytest.fixture
def kinds(monkeypatch) -> set[type]:
    """Of the rows that prompts were given."""
    from dkv.vllm.worker import Worker

    seen, usual = set(), Worker._make_rows

    def make_rows(worker, tokens):
        rows = usual(worker, tokens)
        seen.add(type(rows))
        return rows

    monkeypatch.setattr(Worker, "_make_rows", make_rows)
    return seen


@pytest.fixture(scope="module")
def positions() -> dict:
    """What the first of these tests saw kept."""
    return {}


def test_rows_are_read_in_vllms_own_pages(tiny, sidecar, noise, kinds, positions):
    engine = Engine(tiny, sidecar.endpoint)

    positions.update(answered(engine, noise))

    assert kinds == {PageRows}
    pool = engine.worker.pool.arena
    layers = [layer.kv_cache for layer in engine.worker._layers.values()]
    assert all(0 <= each.data_ptr() - pool.base < pool.bytes for each in layers)
    assert not any(cache[0].any() for cache in layers)  # What was tried there, vLLM's null block, is gone.
    assert sidecar.process.poll() is None
    engine.close()


@pytest.mark.parametrize("why", ["no memfd", "packed pages"])
def test_where_pages_cannot_be_read_rows_are_copied_and_the_same_ones_kept(
    monkeypatch, tiny, sidecar, noise, kinds, positions, why
):
    if why == "no memfd":
        monkeypatch.setenv("DKV_ARENA", "posix_shm")
    else:
        from dkv.vllm.cpu import DkvCpuImpl
        from dkv.vllm.cuda import DkvTritonImpl

        # Keys would lie as on a GPU, which is not where CPU_ATTN writes them.
        monkeypatch.setattr(DkvCpuImpl, "rows_in", staticmethod(DkvTritonImpl.rows_in))
    engine = Engine(tiny, sidecar.endpoint)

    seen = answered(engine, noise)

    assert kinds == {CopiedRows}
    assert seen == positions
    engine.close()


def test_a_prompt_whose_pages_are_read_leaves_no_copy_of_it(tiny, sidecar, noise):
    """The arenas that a prompt makes are as large as its queries, not as its K and V."""
    import dkv

    made, usual = [], dkv.Arena.__init__

    def counted(arena, bytes, *arguments):
        made.append(bytes)
        usual(arena, bytes, *arguments)

    engine = Engine(tiny, sidecar.endpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dkv.Arena, "__init__", counted)
        engine.add("one", noise(500), 4, CHOICE)
        engine.run()

    shape = engine.worker._shape
    row = shape.head_dim * torch.float32.itemsize
    assert made and max(made) < 500 * shape.layers * shape.kv_heads * row
    engine.close()
