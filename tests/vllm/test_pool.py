"""Where the sidecar reads K and V: in vLLM's own pages, or in copies where it cannot."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from engine import Engine

import dkv
from dkv.vllm.rows import CopiedRows, PageRows

CHOICE = {"granularity": "layer-head", "capacity": 64}
PROMPTS = {"part of a block": 500, "whole blocks": 13 * 32}


@dataclasses.dataclass
class Seen:
    kept: dict  # Of every prompt: positions, [layer][KV head].
    kinds: set[type]  # Of the rows that prompts were given.
    arenas: list[int]  # Bytes of those that were made while prompts were read.
    in_pool: list[bool]  # Of every layer: whether its cache lies in the shared pool.
    null: bool  # Whether something is in vLLM's null block.
    pool_ends: bool  # Whether the pool went with the engine.


def answered(model: str, endpoint: str, noise) -> Seen:
    """Several prompts at once, so that blocks are in no order."""
    engine = Engine(model, endpoint)
    worker, pool = engine.worker, engine.worker.pool
    kinds, arenas, make_rows, init = set(), [], worker._make_rows, dkv.Arena.__init__

    def noted_rows(tokens):
        rows = make_rows(tokens)
        kinds.add(type(rows))
        return rows

    def noted_arena(arena, bytes, *arguments):
        arenas.append(bytes)
        init(arena, bytes, *arguments)

    worker._make_rows = noted_rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dkv.Arena, "__init__", noted_arena)
        for name, count in PROMPTS.items():
            engine.add(name, noise(count), 4, CHOICE)
        engine.run()
    arena = None if pool is None else pool.arena
    caches = [layer.kv_cache for layer in worker._layers.values()]
    in_pool = [arena is not None and 0 <= each.data_ptr() - arena.base < arena.bytes for each in caches]
    null = any(bool(each[0].any()) for each in caches)
    kept = {name: engine.kept[name].planned for name in PROMPTS}
    engine.close()
    return Seen(kept, kinds, arenas, in_pool, null, worker.pool is None)


@pytest.fixture(scope="module")
def in_place(tiny, sidecar, noise) -> Seen:
    return answered(tiny, sidecar.endpoint, noise)


@pytest.mark.sample
def test_rows_are_read_in_vllms_own_pages_and_not_copied(in_place):
    assert in_place.kinds == {PageRows} and all(in_place.in_pool)
    keys_and_values = 2 * min(PROMPTS.values()) * 6 * 2 * 32 * torch.float32.itemsize
    assert in_place.arenas and max(in_place.arenas) < keys_and_values  # Of queries.


def test_what_was_tried_in_vllms_null_block_is_gone_and_the_pool_goes_with_the_engine(in_place):
    assert not in_place.null
    assert in_place.pool_ends


@pytest.mark.parametrize("why", ["no memfd", "packed pages"])
def test_where_pages_cannot_be_read_rows_are_copied_and_the_same_ones_kept(
    monkeypatch, tiny, sidecar, noise, in_place, why
):
    if why == "no memfd":
        monkeypatch.setenv("DKV_ARENA", "posix_shm")
    else:
        from dkv.vllm.cpu import DkvCpuImpl
        from dkv.vllm.cuda import DkvTritonImpl

        # Keys would lie as on a GPU, which is not where CPU_ATTN writes them.
        monkeypatch.setattr(DkvCpuImpl, "rows_in", staticmethod(DkvTritonImpl.rows_in))

    copied = answered(tiny, sidecar.endpoint, noise)

    assert copied.kinds == {CopiedRows}
    assert copied.kept == in_place.kept


def test_a_pool_answers_the_one_allocation_of_its_device():
    from dkv.hf.place import HostPlace
    from dkv.vllm.pool import SharedPool

    pool = SharedPool(HostPlace(), torch.device("cpu"))
    with pool:
        elsewhere = torch.zeros(64, dtype=torch.int8, device="meta")
        other = torch.zeros(64, dtype=torch.int32)
        assert pool.arena is None
        caches = torch.zeros(64, dtype=torch.int8, device=torch.device("cpu"))
        later = torch.zeros(64, dtype=torch.int8)
    assert elsewhere.is_meta and caches.data_ptr() == pool.arena.base and caches.shape == (64,)
    assert pool.arena.base not in (other.data_ptr(), later.data_ptr())
