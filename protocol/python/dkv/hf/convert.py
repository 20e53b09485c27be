"""What torch.save wrote of a cache, as dkv's own file: so that `dkv inspect`, `compact` and `sweep` can read it.

    dkv.hf.convert("cache.pt", "cache.safetensors", model="SmolLM2-135M-Instruct")

No queries are in such an export: `dkv capture` recomputes them, or a policy that needs none compacts the file.
"""

from __future__ import annotations

import os
import pickle
import re
from pathlib import Path

import torch
from transformers import cache_utils

from dkv.words import DkvError, Status

from .files import Rope, rope_of
from .write import About, LayerRows, write

_SAFE = ("DynamicCache", "DynamicLayer", "DynamicSlidingWindowLayer")


def convert(
    source,
    path: str | os.PathLike,
    *,
    model: torch.nn.Module | str | None = None,
    config=None,
    tokens: torch.Tensor | None = None,
) -> int:
    """Writes the rows of `source`, whole, without queries. Returns the file's bytes.

    source   a file of torch.save's, read with weights_only=True; or what is in one: a list of (K, V) per layer, each
             [1, Hkv, n, D] or [Hkv, n, D], or a DynamicCache. Layers of a sliding window in it are left out
    model    a model, or its name for people
    config   the model's config, for its rope, where `model` is but a name
    tokens   [n] or [1, n] ids of the prompt

    Raises DkvError, one line beginning with the path: IO; CORRUPT_DATA for a file that is none of torch.save's;
    UNSUPPORTED for one that holds something else; INVALID_ARGUMENT for shapes that do not go together.
    """
    name = source if isinstance(source, (str, os.PathLike)) else "the cache"
    try:
        pairs = _pairs(_read(Path(source)) if isinstance(source, (str, os.PathLike)) else source)
        layers = [LayerRows(_rows(index, "K", keys), _rows(index, "V", values)) for index, (keys, values) in enumerate(pairs)]
        count = _tokens_of(layers)
        if tokens is not None and tokens.numel() != count:
            raise _Wrong(f"{tokens.numel()} token ids came with {count} tokens")
        about = _about(model, config)
        about.n_prompt, about.tokens = count, None if tokens is None else tokens.reshape(-1)
    except _Wrong as wrong:
        raise DkvError(wrong.status, f"{name}: {wrong}") from None
    if isinstance(source, (str, os.PathLike)):
        about.provenance |= {"source": Path(source).name, "source_format": "torch.save"}
    return write(path, about, layers)


class _Wrong(Exception):
    def __init__(self, message: str, status: Status = Status.INVALID_ARGUMENT):
        super().__init__(message)
        self.status = status


def _read(path: Path):
    """Tensors and transformers' own cache classes; anything else in the file is refused unread."""
    try:
        if not path.is_file():
            path.stat()
            raise _Wrong("it is no regular file", Status.IO)
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise _Wrong(error.strerror or str(error), Status.IO) from None
    try:
        safe = [getattr(cache_utils, name) for name in _SAFE if hasattr(cache_utils, name)]
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            wanted = f"it holds {found.group(1)}, and only tensors, lists and a DynamicCache are read"
            raise _Wrong(wanted, Status.UNSUPPORTED) from None
        raise _Wrong("torch.save did not write it", Status.CORRUPT_DATA) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:  # A file cut short, mostly.
        first = str(error).strip().split("\n")[0]
        raise _Wrong(f"torch cannot read it: {first}", Status.CORRUPT_DATA) from None


def _pairs(found) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(K, V) of every layer that keeps the whole text."""
    if hasattr(found, "layers"):  # A DynamicCache.
        pairs = [
            (layer.keys, layer.values)
            for layer in found.layers
            if not getattr(layer, "is_sliding", False) and getattr(layer, "keys", None) is not None
        ]
    elif hasattr(found, "key_cache"):  # One of transformers before 4.54.
        pairs = list(zip(found.key_cache, found.value_cache))
    elif isinstance(found, (list, tuple)):
        pairs = list(found)
    else:
        raise _Wrong(f"it holds a {type(found).__name__}, no list of (K, V) and no DynamicCache", Status.UNSUPPORTED)
    good = [
        isinstance(pair, (list, tuple)) and len(pair) >= 2 and all(isinstance(rows, torch.Tensor) for rows in pair[:2])
        for pair in pairs
    ]
    if not pairs or not all(good):
        where = "it has no layers" if not pairs else f"layer {good.index(False)} is no pair of tensors"
        raise _Wrong(where, Status.UNSUPPORTED)
    return [(pair[0], pair[1]) for pair in pairs]


def _rows(index: int, what: str, rows: torch.Tensor) -> torch.Tensor:
    if rows.dim() == 4 and rows.shape[0] == 1:
        rows = rows[0]
    if rows.dim() != 3 or 0 in rows.shape:
        raise _Wrong(f"{what} of layer {index} is {list(rows.shape)}, not [1, heads, tokens, head_dim]")
    return rows.detach().cpu()


def _tokens_of(layers: list[LayerRows]) -> int:
    first = layers[0].keys
    for index, layer in enumerate(layers):
        for what, rows in (("K", layer.keys), ("V", layer.values)):
            if rows.shape != first.shape or rows.dtype != first.dtype:
                raise _Wrong(
                    f"{what} of layer {index} is {rows.dtype} {list(rows.shape)}, and K of layer 0 is "
                    f"{first.dtype} {list(first.shape)}"
                )
    return first.shape[1]


def _about(model, config) -> About:
    if isinstance(model, torch.nn.Module):
        config = model.config
        model = os.path.basename(str(getattr(config, "_name_or_path", "")).rstrip("/")) or type(model).__name__
    return About(model=model or "", n_prompt=0, rope=Rope() if config is None else rope_of(config))
