"""A prompt's cache in a file: what `dkv inspect`, `compact`, `sweep` and `diff` read, and load() takes up again.

    dkv.hf.save(model, tokens, "prompt.safetensors", queries=32)      # runs the prompt

    cache = dkv.hf.Capture(model)                                      # or: what a generate() has run
    model.generate(**inputs, past_key_values=cache)
    dkv.hf.save(cache, "prompt.safetensors")

The layout is in files.py. Layers that bound their own cache (sliding windows) are left out.
"""

from __future__ import annotations

import os

import torch

from .cache import Cache
from .capture import Capture
from .files import NEXT_TOKEN, rope_of
from .layer import DkvLayer
from .load import LoadedCache
from .write import About, LayerRows, write


def save(source, *arguments, **options) -> int:
    """save(model, tokens, path, queries=32), or save(cache, path, tokens=None). Returns the file's bytes.

    model     runs the prompt once, plainly
    tokens    [1, n] ids. With a cache only needed where generate() was not given the ids; a file without them can
              be compacted, and load() takes it up again, but asks for them
    queries   of how many of the last tokens; None: of all of them (h2o)
    cache     a Capture: its prompt, whole, with the queries. A Cache or one from load(): what is kept of its prompt,
              without queries

    The file appears under its name once it is complete.

    Raises ValueError for what cannot be saved, DkvError (IO, ALREADY_EXISTS) when the system refuses.
    """
    if isinstance(source, torch.nn.Module):
        return _save_prompt(source, *arguments, **options)
    if isinstance(source, Capture):
        return _save_captured(source, *arguments, **options)
    if isinstance(source, (Cache, LoadedCache)):
        return _save_kept(source, *arguments, **options)
    raise ValueError(
        f"a {type(source).__name__} has no queries and no model: save(model, tokens, path), a dkv.hf.Capture, "
        "or dkv.hf.convert() for what is to be compacted without queries"
    )


def _save_prompt(
    model: torch.nn.Module, tokens: torch.Tensor, path: str | os.PathLike, queries: int | None = 32
) -> int:
    if tokens.dim() != 2 or tokens.shape[0] != 1:
        raise ValueError(f"tokens are {list(tokens.shape)}, not [1, n]: one prompt is saved at a time")
    cache = Capture(model, queries, prompt_tokens=tokens.shape[1])
    if cache.refusal is not None:
        raise ValueError(f"{type(model).__name__} cannot be saved: {cache.refusal}")
    with torch.inference_mode():
        out = model(tokens, past_key_values=cache, logits_to_keep=1)
    cache.next_token = int(out.logits[0, -1].argmax())
    return _save_captured(cache, path, tokens)


def _save_captured(cache: Capture, path: str | os.PathLike, tokens: torch.Tensor | None = None) -> int:
    model, count = cache.model(), cache.n_prompt
    if model is None:
        raise ValueError("the model of this cache is gone: save while it lives")
    if cache.refusal is not None:
        raise ValueError(f"the prompt cannot be saved: {cache.refusal}")
    if not cache.captured:
        raise ValueError(f"no layer of {type(model).__name__} keeps the whole text: nothing to save")
    if not count or cache.captured[-1].get_seq_length() < count:
        raise ValueError("the prompt of this cache has not run yet")
    layers = [
        LayerRows(_cpu(layer.keys[0, :, :count]), _cpu(layer.values[0, :, :count]), _cpu(layer.queries))
        for layer in cache.captured
    ]
    first = cache.captured[0]
    about = _about(model, count, cache.tokens if tokens is None else tokens, cache.next_token)
    head_dim = first.keys.shape[-1]
    if first.scaling is not None and abs(first.scaling * head_dim**0.5 - 1) > 1e-6:
        about.scale = float(first.scaling)
    about.softcap = float(first.softcap) if first.softcap else None
    return write(path, about, layers)


def _save_kept(cache: Cache | LoadedCache, path: str | os.PathLike, tokens: torch.Tensor | None = None) -> int:
    model = cache._model()
    if model is None:
        raise ValueError("the model of this cache is gone: save while it lives")
    count = cache.n_prompt if isinstance(cache, LoadedCache) else cache.report().prompt_tokens
    layers = [layer for layer in cache.layers if isinstance(layer, DkvLayer)]
    if not count or not layers or layers[-1].get_seq_length() < count:
        raise ValueError("the prompt of this cache has not run yet")
    known = tokens if tokens is not None else getattr(cache, "tokens", None)
    about = _about(model, count, known, getattr(cache, "next_token", None))
    if isinstance(cache, LoadedCache):
        about.provenance = cache.provenance | about.provenance
    else:
        report = cache.report()
        about.provenance |= {"policy": report.policy, "capacity": str(report.capacity)} if report.compressed else {}
    return write(path, about, [_kept(layer, count) for layer in layers])


def _kept(layer: DkvLayer, count: int) -> LayerRows:
    prefix = layer.prefix
    if prefix is None:
        return LayerRows(_cpu(layer.keys[0, :, :count]), _cpu(layer.values[0, :, :count]))
    if layer.positions is None:
        raise ValueError(f"layer {layer.index} lost its sidecar half-way: which positions its rows are of is unknown")
    if prefix.uniform:
        return LayerRows(_cpu(prefix.keys), _cpu(prefix.values), positions=layer.positions)
    return LayerRows([_cpu(rows) for rows in prefix.keys], [_cpu(rows) for rows in prefix.values], positions=layer.positions)


def _about(model: torch.nn.Module, count: int, tokens: torch.Tensor | None, next_token: int | None) -> About:
    name = os.path.basename(str(getattr(model.config, "_name_or_path", "")).rstrip("/")) or type(model).__name__
    if tokens is not None and tokens.numel() != count:
        raise ValueError(f"tokens are {list(tokens.shape)}, and the prompt has {count}")
    return About(
        model=name,
        n_prompt=count,
        tokens=None if tokens is None else tokens.reshape(-1),
        rope=rope_of(model.config),
        provenance={} if next_token is None else {NEXT_TOKEN: str(next_token)},
    )


def _cpu(rows: torch.Tensor) -> torch.Tensor:
    return rows.detach().cpu()
