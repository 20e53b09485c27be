"""Where the sidecar reads a prompt's K and V: in vLLM's own pages, or in a copy where it cannot read those."""

from __future__ import annotations

import dataclasses

import torch

import dkv
from dkv.hf.storage import Storage


class CopiedRows:
    """A prompt's K and V, copied during its prefill to memory that the sidecar maps."""

    def __init__(self, storage: Storage, tokens: int):
        self._storage, self._tokens = storage, tokens

    def take(self, layer: int, begin: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """A chunk from token `begin` on, [tokens, heads, D]."""
        keys, values = self._storage.layer(layer)
        end = begin + key.shape[0]
        keys[0, :, begin:end].copy_(key.transpose(0, 1))
        values[0, :, begin:end].copy_(value.transpose(0, 1))

    def ready(self, layer: int, blocks: list[list[int]]) -> dict:
        """Of Session.layer_ready()."""
        keys, values = self._storage.rows(layer, self._tokens)
        return {"keys": keys, "values": values}

    def gather(self, layer: int, head: int, positions: torch.Tensor, blocks: list[list[int]]) -> tuple:
        """Keys and values, [positions, D] each."""
        keys, values = self._storage.layer(layer)
        at = positions.to(keys.device)
        return keys[0, head, at], values[0, head, at]


@dataclasses.dataclass(frozen=True)
class LayerPages:
    """A layer's part of vLLM's KV cache, in an arena."""

    arena: dkv.Arena
    group: int  # In vLLM's list: whose block table it goes by.
    keys: torch.Tensor  # [blocks, heads, block, D], a view.
    values: torch.Tensor  # The same.

    def rows(self, pages: torch.Tensor) -> dkv.Rows:
        """Those of block 0."""
        _, heads, block, dim = pages.shape
        _, head_stride, token_stride, dim_stride = pages.stride()
        return dkv.Rows(
            arena=self.arena,
            offset=pages.data_ptr() - self.arena.base,
            dtype=pages.dtype,
            heads=heads,
            tokens=block,
            head_dim=dim,
            head_stride=head_stride,
            token_stride=token_stride,
            dim_stride=dim_stride,
        )


class PageRows:
    """A prompt's K and V where vLLM keeps them. They stay there, whole, until its plan is carried out or it is gone."""

    def __init__(self, layers: list[LayerPages], tokens: int):
        self._layers, self._tokens = layers, tokens
        self._tables: dict[int, torch.Tensor] = {}  # Of a group, once it is gathered from.

    def take(self, layer: int, begin: int, key: torch.Tensor, value: torch.Tensor) -> None:
        """Nothing to do: vLLM wrote them before its attention was called."""

    def ready(self, layer: int, blocks: list[list[int]]) -> dict:
        """Of Session.layer_ready(). `blocks`: of the prompt, in each group."""
        pages = self._layers[layer]
        count = -(-self._tokens // pages.keys.shape[2])
        return {
            "keys": pages.rows(pages.keys),
            "values": pages.rows(pages.values),
            "blocks": dkv.Blocks(blocks[pages.group][:count], pages.keys.stride(0)),
        }

    def gather(self, layer: int, head: int, positions: torch.Tensor, blocks: list[list[int]]) -> tuple:
        """Keys and values, [positions, D] each."""
        pages = self._layers[layer]
        block = pages.keys.shape[2]
        if pages.group not in self._tables:
            self._tables[pages.group] = torch.tensor(blocks[pages.group], dtype=torch.long)
        where = self._tables[pages.group][positions // block]
        at = where.to(pages.keys.device), head, (positions % block).to(pages.keys.device)
        return pages.keys[at], pages.values[at]
