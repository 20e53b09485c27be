"""Where a prompt's K and V are written once: memory that the sidecar can read."""

from __future__ import annotations

import math

import torch

import dkv

from .place import DevicePlace, HostPlace, give_back

_PAGE_BYTES = 4096


def tensor_over(arena: dkv.Arena, dtype: torch.dtype) -> torch.Tensor:
    """All of an arena as one flat tensor, writable in whatever autograd mode comes later."""
    if isinstance(arena, dkv.cuda.DeviceArena):
        return arena.tensor(dtype)
    with torch.inference_mode(False):
        return torch.frombuffer(arena.buffer, dtype=dtype, count=arena.bytes // dtype.itemsize)


class Storage:
    """`layers` blocks of keys [Hkv, tokens_max, D] and values the same, each head on its own pages.

    On the host all layers are one arena, sparse: pages exist once they were written, so tokens_max may be far
    more than the prompt. On a device each layer has an arena of its own, and all of it exists.
    """

    def __init__(
        self,
        layers: int,
        kv_heads: int,
        head_dim: int,
        tokens_max: int,
        dtype: torch.dtype,
        place: HostPlace | DevicePlace | None = None,
    ):
        place = place or HostPlace()
        row_bytes = head_dim * dtype.itemsize
        step = _PAGE_BYTES // math.gcd(_PAGE_BYTES, row_bytes)
        self.layers, self.kv_heads, self.head_dim, self.dtype, self.place = layers, kv_heads, head_dim, dtype, place
        self.tokens_max = -(-tokens_max // step) * step
        self._half_bytes = kv_heads * self.tokens_max * row_bytes
        self.layer_bytes = 2 * self._half_bytes
        per_arena = layers if place.sparse else 1
        self.arenas = [place.arena(per_arena * self.layer_bytes) for _ in range(layers // per_arena)]
        self._per_arena = per_arena
        shape = (per_arena, 2, 1, kv_heads, self.tokens_max, head_dim)
        count = math.prod(shape)
        self._tensors = [tensor_over(arena, dtype)[:count].view(shape) for arena in self.arenas]

    def layer(self, ordinal: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, [1, Hkv, tokens_max, D]."""
        which, at = divmod(ordinal, self._per_arena)
        return self._tensors[which][at, 0], self._tensors[which][at, 1]

    def rows(self, ordinal: int, tokens: int) -> tuple[dkv.Rows, dkv.Rows]:
        """The same for the sidecar, `tokens` of them."""
        which, at = divmod(ordinal, self._per_arena)
        begin = at * self.layer_bytes
        arena = self.arenas[which]
        return self._rows(arena, begin, tokens), self._rows(arena, begin + self._half_bytes, tokens)

    def release(self, ordinal: int) -> int:
        """Gives a layer's memory back to the system. Returns the bytes it took."""
        which, at = divmod(ordinal, self._per_arena)
        arena = self.arenas[which]
        before = arena.allocated_bytes
        give_back(arena, at * self.layer_bytes, self.layer_bytes)
        return before - arena.allocated_bytes

    def discard(self) -> None:
        """Gives all of it back."""
        for arena in self.arenas:
            give_back(arena)

    def allocated_bytes(self) -> int:
        return sum(arena.allocated_bytes for arena in self.arenas)

    def _rows(self, arena: dkv.Arena, offset: int, tokens: int) -> dkv.Rows:
        return dkv.Rows(
            arena=arena,
            offset=offset,
            dtype=self.dtype,
            heads=self.kv_heads,
            tokens=tokens,
            head_dim=self.head_dim,
            head_stride=self.tokens_max * self.head_dim,
            token_stride=self.head_dim,
        )


class QueryWindow:
    """The last `rows` of a prompt's `tokens` queries of every layer, [Hq, rows, D], for the sidecar to score with.

    Whole prompts' queries (h2o) are as large as the keys of a model without GQA. Sparse: of a layer that has
    not come there is nothing, and release() gives back what is not read any more; only a prefill in chunks
    holds all layers' at once. On a device all of it exists, until discard().
    """

    def __init__(
        self,
        layers: int,
        q_heads: int,
        head_dim: int,
        rows: int,
        tokens: int,
        dtype: torch.dtype,
        place: HostPlace | DevicePlace | None = None,
    ):
        self.rows_wanted, self._before = rows, tokens - rows
        self._layer_bytes = -(-q_heads * rows * head_dim * dtype.itemsize // _PAGE_BYTES) * _PAGE_BYTES
        self._seen = [0] * layers
        self._slots: list[torch.Tensor] = []
        if rows == 0:  # A policy that ranks without queries.
            return
        self.arena = (place or HostPlace()).arena(layers * self._layer_bytes)
        whole = tensor_over(self.arena, dtype)
        stride = self._layer_bytes // dtype.itemsize
        self._slots = [
            whole[index * stride :][: q_heads * rows * head_dim].view(q_heads, rows, head_dim)
            for index in range(layers)
        ]

    def push(self, ordinal: int, query: torch.Tensor) -> None:
        """Takes a chunk's queries, [1, Hq, q, D]: those that are among the last go to their place."""
        begin = self._seen[ordinal] - self._before
        end = begin + query.shape[2]
        self._seen[ordinal] += query.shape[2]
        if end <= 0 or not self._slots:
            return
        first = max(0, begin)
        self._slots[ordinal][:, first:end].copy_(query[0, :, first - begin :].detach())

    def rows(self, ordinal: int) -> dkv.Rows | None:
        if not self._slots:
            return None
        slot = self._slots[ordinal]
        return dkv.Rows(
            arena=self.arena,
            offset=ordinal * self._layer_bytes,
            dtype=slot.dtype,
            heads=slot.shape[0],
            tokens=self.rows_wanted,
            head_dim=slot.shape[2],
            head_stride=slot.stride(0),
            token_stride=slot.stride(1),
        )

    def allocated_bytes(self) -> int:
        return self.arena.allocated_bytes if self._slots else 0

    def release(self, ordinal: int) -> None:
        """The layer's queries are not read again."""
        if self._slots:
            give_back(self.arena, ordinal * self._layer_bytes, self._layer_bytes)

    def discard(self) -> None:
        if self._slots:
            give_back(self.arena)
