"""Tensors as dkv's own file, through libdkv: checksums of every tensor, whole under its name or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

import torch

from dkv import _abi
from dkv._abi import ffi
from dkv.words import DkvError, Dtype, Status

from .files import Rope

_Rows = torch.Tensor | list[torch.Tensor]


@dataclass
class LayerRows:
    """One layer's rows on the CPU, read while write() runs. Heads of unequal length: lists of [rows_h, D]."""

    keys: _Rows  # [Hkv, rows, D] after RoPE.
    values: _Rows
    queries: torch.Tensor | None = None  # [Hq, query rows, D] after RoPE, of the prompt's last tokens.
    positions: list[list[int]] | None = None  # Per KV head, ascending; None: every token's row is there.
    sink_logits: torch.Tensor | None = None  # [Hq] learned attention sinks; None: the layer has none.
    scores: torch.Tensor | None = None  # [Hkv, n_prompt] what the policy scores ranks by; in every layer or in none.


@dataclass
class About:
    """What a file says beside its rows."""

    model: str
    n_prompt: int
    tokens: torch.Tensor | None = None  # [n_prompt] ids
    scale: float | None = None  # None: 1/sqrt(head_dim).
    softcap: float | None = None
    rope: Rope = Rope()
    provenance: dict[str, str] = field(default_factory=dict)


def write(path: str | os.PathLike, about: About, layers: list[LayerRows]) -> int:
    """Returns the file's bytes. What stood under `path` stands there until the new file is whole.

    Raises DkvError: INVALID_ARGUMENT for shapes, dtypes or positions that do not go together and for values that are not
    finite, IO, ALREADY_EXISTS when `path` is a folder, FIFO or device.
    """
    first = layers[0]
    example = first.keys[0]
    queries = first.queries
    call = _Call(example.dtype)
    q_heads = _query_heads(layers)
    made = [call.layer(index, layer, q_heads) for index, layer in enumerate(layers)]
    rows = _abi.array("dkv_save_layer", [each[0] for each in made])
    written = _abi.array("uint64_t", 1)
    options = _abi.new(
        "dkv_save_options",
        geometry={
            "layers": len(layers),
            "q_heads": q_heads,
            "kv_heads": len(first.keys),
            "head_dim": example.shape[-1],
            "dtype": int(Dtype.of(example.dtype)),
        },
        model=_abi.text(about.model),
        prompt_tokens=about.n_prompt,
        tokens=call.integers(about.tokens, about.n_prompt),
        query_rows=0 if queries is None else queries.shape[1],
        scale=about.scale or 0.0,
        softcap=about.softcap or 0.0,
        rope_theta=about.rope.theta,
        rope_interleaved=int(about.rope.interleaved) + int(about.rope.interleaved and about.rope.model_interleaved),
        rope_dims=about.rope.dims,
        rope_scaling=_abi.text(about.rope.scaling or None),
        provenance=call.words(about.provenance),
    )
    _abi.call("dkv_save", os.fsencode(path), options, rows, written)
    return written[0]


def _query_heads(layers: list[LayerRows]) -> int:
    first = layers[0]
    if first.queries is not None:
        return first.queries.shape[0]
    return next((layer.sink_logits.numel() for layer in layers if layer.sink_logits is not None), len(first.keys))


class _Call:
    """Memory that the call reads, held until it is over."""

    def __init__(self, dtype: torch.dtype):
        self._dtype, self._held = dtype, []

    def layer(self, index: int, layer: LayerRows, q_heads: int):
        name = f"layers.{index}"
        lengths = [rows.shape[0] for rows in layer.keys]
        made = _abi.new(
            "dkv_save_layer",
            keys=self._rows(f"{name}.keys", layer.keys),
            values=self._rows(f"{name}.values", layer.values),
            lengths=self._hold(_abi.array("uint32_t", lengths)),
        )
        if [rows.shape for rows in layer.values] != [rows.shape for rows in layer.keys]:
            raise DkvError(Status.INVALID_ARGUMENT, f"{name}: values are shaped unlike the keys")
        if layer.queries is not None:
            made.queries = self._rows(f"{name}.queries", layer.queries)
        if layer.positions is not None:
            if [len(heads) for heads in layer.positions] != lengths:
                raise DkvError(Status.INVALID_ARGUMENT, f"{name}: there is not one position for each row")
            made.positions = self.integers(torch.tensor([each for heads in layer.positions for each in heads]))
        if layer.sink_logits is not None:
            made.sink_logits = self._floats(f"{name}.sink_logits", layer.sink_logits, (q_heads,), "one per query head")
        if layer.scores is not None:
            shape = (len(lengths), lengths[0])
            made.scores = self._floats(f"{name}.scores", layer.scores, shape, "one per KV head and token")
        return made

    def _floats(self, name: str, values: torch.Tensor, shape: tuple[int, ...], what: str):
        if tuple(values.shape) != shape:
            raise DkvError(Status.INVALID_ARGUMENT, f"{name} is {list(values.shape)}, not {list(shape)}: {what}")
        held = self._hold(values.detach().to("cpu", torch.float32).contiguous())
        return ffi.cast("float *", held.data_ptr())

    def integers(self, values: torch.Tensor | None, count: int | None = None):
        if values is None:
            return None
        if count is not None and values.numel() != count:
            raise DkvError(Status.INVALID_ARGUMENT, f"{values.numel()} token ids for {count} tokens")
        held = self._hold(values.detach().to("cpu", torch.int32).contiguous())
        return ffi.cast("int32_t *", held.data_ptr())

    def words(self, pairs: dict[str, str]):
        flat = [self._hold(_abi.text(part)) for pair in pairs.items() for part in pair]
        return self._hold(_abi.array("char const *", [*flat, _abi.NULL]))

    def _rows(self, name: str, rows: _Rows) -> dict:
        """What initialises a dkv_save_rows."""
        heads = list(rows) if isinstance(rows, list) else [rows]
        for tensor in heads:
            if tensor.dtype != self._dtype or tensor.device.type != "cpu":
                wrong = f"{tensor.dtype} on {tensor.device}, not {self._dtype} on the CPU"
                raise DkvError(Status.INVALID_ARGUMENT, f"{name} is {wrong}")
            _check_finite(name, tensor)
        if not isinstance(rows, list):
            held = self._hold(rows.detach())
            strides = dict(zip(("head_stride", "token_stride", "dim_stride"), held.stride()))
            return {"data": ffi.cast("void *", held.data_ptr()), **strides}
        held = [self._hold(tensor.detach().contiguous()) for tensor in heads]
        base = min((tensor.data_ptr() for tensor in held if tensor.numel()), default=0)
        offsets = self._hold(_abi.array("uint64_t", [max(0, tensor.data_ptr() - base) for tensor in held]))
        strides = {"head_stride": 0, "token_stride": held[0].shape[-1], "dim_stride": 1}
        return {"data": ffi.cast("void *", base), **strides, "head_offset": offsets}

    def _hold(self, value):
        self._held.append(value)
        return value


def _check_finite(name: str, rows: torch.Tensor) -> None:
    """Readers refuse such a file, and the prompt is gone by then."""
    wrong = (~torch.isfinite(rows)).nonzero()
    if wrong.numel():
        first = wrong[0].tolist()
        raise DkvError(Status.INVALID_ARGUMENT, f"{name} has {len(wrong)} values that are not finite, the first at {first}")
