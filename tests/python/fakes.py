"""A sidecar in this process, for what a real one does seldom: failing halfway, ragged heads.

Stands where a dkv.Engine stands: Cache(model, engine=FakeEngine(...)).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import SimpleNamespace

import torch

import dkv

Keep = Callable[[int, int, int], list[int]]  # (layer, kv head, prompt tokens) → positions, ascending


def last_and_every_third(layer: int, head: int, tokens: int) -> list[int]:
    """Other counts in other layers, the same in all heads of one."""
    return [t for t in range(tokens) if t % (3 + layer) == 0 or t >= tokens - 8]


def ragged(layer: int, head: int, tokens: int) -> list[int]:
    return [t for t in range(tokens) if t % (3 + layer + 2 * head) == head or t >= tokens - 8]


@dataclasses.dataclass
class FakeEngine:
    keep: Keep = last_and_every_third
    window: int | None = 8  # None: every query of the prompt, as h2o wants them.
    compress: bool = True
    open_error: dkv.DkvError | None = None
    fail_at_layer: int | None = None  # layer_ready of this layer fails, as when the sidecar dies.
    fail_at_finish: bool = False
    release_after: int | None = 1  # Layers behind the newest one are released; None: none before the end.
    sessions: list["FakeSession"] = dataclasses.field(default_factory=list)

    def open_session(self, prompt_tokens: int, policy=None, progressive: bool = True) -> "FakeSession":
        if self.open_error is not None:
            raise self.open_error
        self.sessions.append(FakeSession(self, prompt_tokens, policy))
        return self.sessions[-1]


class FakeSession:
    def __init__(self, engine: FakeEngine, tokens: int, policy):
        self.engine, self.tokens, self.policy = engine, tokens, policy
        self.plan = SimpleNamespace(compress=engine.compress, window=tokens if engine.window is None else engine.window, policy="fake", capacity=0)
        self.queries: dict[int, torch.Tensor] = {}
        self.scales: list[float] = []
        self.sinks: list[list[float] | None] = []
        self.closed_with: list[str | None] = []
        self.adopted_with = None
        self._rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._events: list = []
        self._released: set[int] = set()
        self._failed = False
        self._views: dict[int, SimpleNamespace] = {}
        self._arenas = {form: dkv.Arena(1 << 24) for form in (dkv.LayerForm.STAGED, dkv.LayerForm.PACKED)}

    def layer_ready(self, layer, keys, values, queries=None, scale=0.0, softcap=0.0, sink_logits=None) -> None:
        assert layer == len(self._rows), "layers come in order"
        if self.engine.fail_at_layer == layer:
            self._failed = True
        if self._failed:
            raise dkv.DkvError(dkv.Status.UNAVAILABLE, "the fake sidecar went away")
        self._rows[layer] = _copy(keys), _copy(values)
        self.queries[layer] = None if queries is None else _copy(queries)
        self.scales.append(scale)
        self.sinks.append(sink_logits)
        behind = self.engine.release_after
        if behind is not None and layer >= behind:
            self._released.add(layer - behind)
            self._events.append(SimpleNamespace(kind=dkv.EventKind.RELEASE, layer=layer - behind))

    def poll(self, timeout_s: float = 0):
        return self._events.pop(0) if self._events else SimpleNamespace(kind=dkv.EventKind.NONE, layer=0)

    def finish(self, timeout_s: float):
        if self._failed or self.engine.fail_at_finish:
            self._failed = True
            self._pack(sorted(self._released), dkv.LayerForm.STAGED)
            raise dkv.DkvError(dkv.Status.DEADLINE_EXCEEDED, "the fake sidecar did not finish")
        self._pack(sorted(self._rows), dkv.LayerForm.PACKED)
        return SimpleNamespace(committed=True, bytes_full=0, bytes_kept=0, bytes_block_table=0, busy_ns=5)

    def layer(self, layer: int):
        if not self._views and self._released:
            self._pack(sorted(self._released), dkv.LayerForm.STAGED)
        return self._views.get(layer, SimpleNamespace(form=dkv.LayerForm.FULL))

    def take_arena(self, form) -> dkv.Arena:
        return self._arenas[form]

    id = "0x0000000000000007"

    def adopted(self, *numbers) -> None:
        self.adopted_with = numbers

    def close(self, reason: str | None = None) -> None:
        self.closed_with.append(reason)

    def _pack(self, layers: list[int], form) -> None:
        if not layers:
            return
        dtype = self._rows[layers[0]][0].dtype
        arena = self._arenas[form]
        memory = torch.frombuffer(arena.buffer, dtype=dtype)
        begin = 0
        for layer in layers:
            keys, values = self._rows[layer]
            kept = [self.engine.keep(layer, head, self.tokens) for head in range(keys.shape[0])]
            lengths = [len(positions) for positions in kept]
            total = sum(lengths) * keys.shape[2]
            for offset, source in ((begin, keys), (begin + total, values)):
                rows = torch.cat([source[head, positions] for head, positions in enumerate(kept)])
                memory[offset : offset + total] = rows.flatten()
            row_bytes = keys.shape[2] * dtype.itemsize
            self._views[layer] = SimpleNamespace(
                form=form,
                keys=arena.base + begin * dtype.itemsize,
                values=arena.base + (begin + total) * dtype.itemsize,
                lengths=lengths,
                head_offset=[sum(lengths[:head]) * row_bytes for head in range(len(lengths))],
                positions=kept if form == dkv.LayerForm.PACKED else None,
                mass_kept=0.5,
            )
            begin += 2 * total


def _copy(rows) -> torch.Tensor:
    memory = torch.frombuffer(rows.arena.buffer, dtype=rows.dtype)
    return memory.as_strided(
        (rows.heads, rows.tokens, rows.head_dim),
        (rows.head_stride, rows.token_stride, 1),
        rows.offset // rows.dtype.itemsize,
    ).clone()
