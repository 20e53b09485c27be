"""One prompt on its way through the sidecar. vLLM's own pages stay whole meanwhile."""

from __future__ import annotations

import dataclasses
import enum

import torch

import dkv
from dkv.hf.storage import QueryWindow

from .messages import Prefill
from .rows import CopiedRows, PageRows


class State(enum.Enum):
    PREFILL = enum.auto()  # Or its plan is awaited.
    PLANNED = enum.auto()  # `kept` is final.
    WHOLE = enum.auto()  # It will not be compressed; `reason` and `detail` say why.


@dataclasses.dataclass(frozen=True)
class Shape:
    """Of the layers that can be compressed, on this rank."""

    layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    def geometry(self) -> dkv.Geometry:
        return dkv.Geometry(self.layers, self.q_heads, self.kv_heads, self.head_dim, self.dtype)


class Prompt:
    """Written by the engine's thread; `state`, `kept` and `reason` by the sidecar's, in that order of reading."""

    def __init__(self, prefill: Prefill, shape: Shape, queries: int, rows: CopiedRows | PageRows, place):
        self.key, self.tokens, self.choice, self.first = prefill.key, prefill.tokens, prefill.choice, prefill.first
        self.done: int | None = None  # Tokens before this step's chunk; None: this step has none of it.
        self.blocks: list[list[int]] | None = None  # In each group, once its prefill has ended.
        self.rows = rows
        self.query_rows = min(queries, self.tokens)
        self.queries = QueryWindow(
            shape.layers, shape.q_heads, shape.head_dim, self.query_rows, self.tokens, shape.dtype, place
        )
        self.session: dkv.Session | None = None
        self.session_id: str | None = None  # Once it is open, and after it.
        self.steps = 0  # Engine steps since its prefill ended.
        self.asked = False  # The other ranks, once its plan has come.
        self.agreed: list[int] | None = None  # How many of its blocks every rank keeps, in each group.
        self.abandoned = False  # Its request ended, or was preempted.
        self.state, self.reason, self.detail = State.PREFILL, "", ""
        self.kept: list[list[list[int]]] = []  # Per layer and KV head: positions, ascending.
        self._seen = [0] * shape.layers

    def take(self, layer: int, begin: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> bool:
        """A chunk that starts at token `begin`, [tokens, heads, D]. Returns whether the layer is complete."""
        if self._seen[layer] != begin:
            return False  # An earlier chunk did not pass here; complete() will say so.
        end = self._seen[layer] = begin + key.shape[0]
        self.rows.take(layer, begin, key, value)
        self.queries.push(layer, query.transpose(0, 1)[None])
        return end == self.tokens

    def complete(self) -> bool:
        return all(seen == self.tokens for seen in self._seen)

    def leave_whole(self, reason: str, detail: str = "") -> None:
        """reason: one of few, to be counted by. detail: for the log."""
        self.reason, self.detail, self.state = reason, detail, State.WHOLE

    def query_window(self, layer: int, rows: int) -> dkv.Rows | None:
        """The last `rows` of the queries that were copied."""
        have = self.queries.rows(layer)
        if have is None or rows == have.tokens:
            return have
        skipped = (have.tokens - rows) * have.token_stride * have.dtype.itemsize
        return dataclasses.replace(have, offset=have.offset + skipped, tokens=rows)
