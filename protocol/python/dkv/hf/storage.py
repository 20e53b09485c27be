"""Where a prompt's K and V are written once: shared memory that the sidecar can read."""

from __future__ import annotations

import math

import torch

import dkv

_PAGE_BYTES = 4096


def tensor_over(arena: dkv.Arena, dtype: torch.dtype) -> torch.Tensor:
    """All of an arena as one flat tensor, writable in whatever autograd mode comes later."""
    with torch.inference_mode(False):
        return torch.frombuffer(arena.buffer, dtype=dtype, count=arena.bytes // dtype.itemsize)


class Storage:
    """`layers` blocks of keys [Hkv, tokens_max, D] and values the same, each head on its own pages.

    Sparse: pages exist once they were written, so tokens_max may be far more than the prompt.
    """

    def __init__(self, layers: int, kv_heads: int, head_dim: int, tokens_max: int, dtype: torch.dtype):
        row_bytes = head_dim * dtype.itemsize
        step = _PAGE_BYTES // math.gcd(_PAGE_BYTES, row_bytes)
        self.layers, self.kv_heads, self.head_dim, self.dtype = layers, kv_heads, head_dim, dtype
        self.tokens_max = -(-tokens_max // step) * step
        self._half_bytes = kv_heads * self.tokens_max * row_bytes
        self.layer_bytes = 2 * self._half_bytes
        self.arena = dkv.Arena(layers * self.layer_bytes)
        self._tensor = tensor_over(self.arena, dtype).view(layers, 2, 1, kv_heads, self.tokens_max, head_dim)

    def layer(self, ordinal: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values, [1, Hkv, tokens_max, D]."""
        return self._tensor[ordinal, 0], self._tensor[ordinal, 1]

    def rows(self, ordinal: int, tokens: int) -> tuple[dkv.Rows, dkv.Rows]:
        """The same for the sidecar, `tokens` of them."""
        begin = ordinal * self.layer_bytes
        return self._rows(begin, tokens), self._rows(begin + self._half_bytes, tokens)

    def release(self, ordinal: int) -> int:
        """Gives a layer's pages back to the system. Returns the bytes it took."""
        before = self.allocated_bytes()
        self.arena.release(ordinal * self.layer_bytes, self.layer_bytes)
        return before - self.allocated_bytes()

    def allocated_bytes(self) -> int:
        return self.arena.allocated_bytes

    def _rows(self, offset: int, tokens: int) -> dkv.Rows:
        return dkv.Rows(
            arena=self.arena,
            offset=offset,
            dtype=self.dtype,
            heads=self.kv_heads,
            tokens=tokens,
            head_dim=self.head_dim,
            head_stride=self.tokens_max * self.head_dim,
            token_stride=self.head_dim,
        )


class QueryWindow:
    """The last `rows` queries of every layer, [Hq, rows, D], for the sidecar to score with."""

    def __init__(self, layers: int, q_heads: int, head_dim: int, rows: int, dtype: torch.dtype):
        self.rows_wanted = rows
        self._layer_bytes = -(-q_heads * rows * head_dim * dtype.itemsize // 64) * 64
        self.arena = dkv.Arena(layers * self._layer_bytes)
        whole = tensor_over(self.arena, dtype)
        stride = self._layer_bytes // dtype.itemsize
        self._slots = [
            whole[index * stride :][: q_heads * rows * head_dim].view(q_heads, rows, head_dim)
            for index in range(layers)
        ]
        self._filled = [0] * layers

    def push(self, ordinal: int, query: torch.Tensor) -> None:
        """Adds a chunk's queries, [1, Hq, q, D]; the oldest fall out. Rows end at the slot's end."""
        slot, count = self._slots[ordinal], min(query.shape[2], self.rows_wanted)
        stay = self.rows_wanted - count
        if stay and self._filled[ordinal]:
            slot[:, :stay].copy_(slot[:, count:].clone())
        slot[:, stay:].copy_(query[0, :, query.shape[2] - count :].detach())
        self._filled[ordinal] = min(self.rows_wanted, self._filled[ordinal] + count)

    def rows(self, ordinal: int) -> dkv.Rows:
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
        return self.arena.allocated_bytes

    def discard(self) -> None:
        self.arena.release(0, self.arena.bytes)
