"""vLLM's KV cache in memory that the sidecar maps, so that it reads prompts where they lie (docs/adr/0022)."""

from __future__ import annotations

import os

import torch
from torch.overrides import TorchFunctionMode
from vllm.logger import init_logger

import dkv
from dkv.hf.storage import tensor_over

from .rows import LayerPages

log = init_logger("vllm.dkv")


class SharedPool(TorchFunctionMode):
    """Around vLLM's allocation of its KV cache: answers the one torch.zeros(bytes, dtype=int8) with an arena."""

    def __init__(self, place, device: torch.device):
        super().__init__()
        self._place, self._device, self.arena = place, device, None

    def _is_the_caches(self, args, kwargs) -> bool:
        if self.arena is not None or len(args) != 1 or kwargs.get("dtype") != torch.int8:
            return False
        return torch.device(kwargs.get("device") or "cpu") == self._device

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.zeros and self._is_the_caches(args, kwargs):
            bytes = int(args[0])
            try:
                self.arena = self._place.arena(bytes)
                return tensor_over(self.arena, torch.int8)[:bytes]
            except dkv.DkvError as error:
                log.warning("dkv: the KV cache is not shared with the sidecar, which gets copies: %s", error)
        return func(*args, **kwargs)

    def pages_of(self, layer, group: int) -> LayerPages | None:
        """None: the layer's rows are not in the arena, or not where rows would be."""
        cache = layer.kv_cache
        if self.arena is None or not 0 <= cache.data_ptr() - self.arena.base < self.arena.bytes:
            return None
        if layer.attn_backend.forward_includes_kv_cache_update:
            return None  # Its pages are written behind the call in which dkv reports them.
        if cache.stride(0) < max(cache.stride()):
            return None  # A block of it lies apart, between other blocks.
        keys, values = layer.impl.rows_in(cache)
        return LayerPages(self.arena, group, keys, values) if _are_rows(layer, keys, values) else None


def shared_pool(config, place, device: torch.device) -> SharedPool | None:
    """None where vLLM must allocate by itself, or the sidecar could not map the memory."""
    if config.model_config.enable_sleep_mode:
        return None  # It frees and restores memory of an allocator of its own.
    if place.sparse and os.environ.get("DKV_ARENA") == "posix_shm":
        return None  # All of it would be taken at once, from a /dev/shm that is small.
    return SharedPool(place, device)


def _are_rows(layer, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether these views are what vLLM's kernels write: some of them pack pages in an order of their own. Tried in
    block 0, which belongs to no request."""
    _, heads, block, dim = keys.shape
    given = torch.randn(2, block, heads, dim, generator=torch.Generator().manual_seed(0))
    key, value = given.to(keys.device, keys.dtype)
    layer.impl.do_kv_cache_update(layer, key, value, layer.kv_cache, torch.arange(block, device=keys.device))
    same = torch.equal(keys[0].transpose(0, 1), key) and torch.equal(values[0].transpose(0, 1), value)
    layer.kv_cache[0].zero_()
    return same
