"""A prompt's cache in a file: what `dkv inspect`, `compact`, `sweep` and `diff` read, and load() takes up again.

    dkv.hf.save(model, tokens, "prompt.safetensors", queries=32)      # runs the prompt

    cache = dkv.hf.Capture(model)                                      # or: what a generate() has run
    model.generate(**inputs, past_key_values=cache)
    dkv.hf.save(cache, "prompt.safetensors")

The layout is in files.py. A model with layers that do not keep every token's row (sliding windows, linear attention)
is refused: load() could not go on from a file without them.
"""

from __future__ import annotations

import os

import torch

from . import profiles
from .cache import Cache
from .capture import Capture
from .files import FINGERPRINT, NEXT_TOKEN, rope_of
from .load import LoadedCache
from .rows import Unfit, captured_rows, check_layers, check_model, check_tokens, kept_rows, on_cpu
from .write import About, write


def save(source, *arguments, **options) -> int:
    """save(model, tokens, path, queries=32), or save(cache, path, tokens=None). Returns the file's bytes.

    model     runs the prompt once, plainly
    tokens    [1, n] ids. With a cache only needed where generate() was not given the ids; a file without them can
              be compacted, and load() takes it up again, but asks for them
    queries   of how many of the last tokens; None: of all of them (h2o)
    cache     a Capture: its prompt, whole, with the queries. A Cache or one from load(): what is kept of its prompt,
              without queries

    The file appears under its name once it is complete.

    Raises ValueError for what cannot be saved, DkvError (IO, ALREADY_EXISTS) when the system refuses, and
    INVALID_ARGUMENT for rows that are not finite. Then nothing is written.
    """
    try:
        if isinstance(source, torch.nn.Module):
            return _save_prompt(source, *arguments, **options)
        if isinstance(source, Capture):
            return _save_captured(source, *arguments, **options)
        if isinstance(source, (Cache, LoadedCache)):
            return _save_kept(source, *arguments, **options)
    except Unfit as unfit:
        raise ValueError(str(unfit)) from None
    raise ValueError(
        f"a {type(source).__name__} has no queries and no model: save(model, tokens, path), a dkv.hf.Capture, "
        "or dkv.hf.convert() for what is to be compacted without queries"
    )


def _save_prompt(
    model: torch.nn.Module, tokens: torch.Tensor, path: str | os.PathLike, queries: int | None = 32
) -> int:
    if not isinstance(tokens, torch.Tensor):
        raise Unfit(f"tokens are a {type(tokens).__name__}, not a tensor [1, n] of ids")
    if tokens.dim() != 2 or tokens.shape[0] != 1 or tokens.shape[1] == 0:
        raise Unfit(f"tokens are {list(tokens.shape)}, not [1, n]: one prompt is saved at a time")
    check_model(model)
    check_tokens(tokens, tokens.shape[1], model.config)
    cache = Capture(model, queries, prompt_tokens=tokens.shape[1])
    with torch.inference_mode():
        out = model(tokens.to(model.device), past_key_values=cache, logits_to_keep=1)
    if hasattr(out, "logits"):  # A model without a head has none.
        cache.next_token = int(out.logits[0, -1].argmax())
    return _save_captured(cache, path, tokens)


def _save_captured(cache: Capture, path: str | os.PathLike, tokens: torch.Tensor | None = None) -> int:
    model, count = _model_of(cache.model()), cache.n_prompt
    if not cache.layers:
        raise Unfit(f"the prompt cannot be saved: {cache.refusal}")
    check_layers(cache.layers, type(model).__name__)
    if not count or cache.captured[-1].get_seq_length() < count:
        raise Unfit("the prompt of this cache has not run yet")
    layers = captured_rows(cache, model)
    first = cache.captured[0]
    about = _about(model, count, cache.tokens if tokens is None else tokens, cache.next_token)
    head_dim = first.keys.shape[-1]
    if first.scaling is not None and abs(first.scaling * head_dim**0.5 - 1) > 1e-6:
        about.scale = float(first.scaling)
    about.softcap = float(first.softcap) if first.softcap else None
    return write(path, about, layers)


def _save_kept(cache: Cache | LoadedCache, path: str | os.PathLike, tokens: torch.Tensor | None = None) -> int:
    model = _model_of(cache._model())
    check_layers(cache.layers, type(model).__name__)
    count = cache.n_prompt if isinstance(cache, LoadedCache) else cache.report().prompt_tokens
    if not count or cache.layers[-1].get_seq_length() < count:
        raise Unfit("the prompt of this cache has not run yet")
    known = tokens if tokens is not None else getattr(cache, "tokens", None)
    about = _about(model, count, known, getattr(cache, "next_token", None))
    if isinstance(cache, LoadedCache):
        about.provenance = cache.provenance | about.provenance
    else:
        report = cache.report()
        about.provenance |= {"policy": report.policy, "capacity": str(report.capacity)} if report.compressed else {}
    return write(path, about, [on_cpu(kept_rows(layer, count)) for layer in cache.layers])


def _about(model: torch.nn.Module, count: int, tokens: torch.Tensor | None, next_token: int | None) -> About:
    name = os.path.basename(str(getattr(model.config, "_name_or_path", "")).rstrip("/")) or type(model).__name__
    tokens = check_tokens(tokens, count, model.config)
    return About(
        model=name,
        n_prompt=count,
        tokens=tokens,
        rope=rope_of(model.config),
        provenance=_fingerprint(model) | ({} if next_token is None else {NEXT_TOKEN: str(next_token)}),
    )


def _fingerprint(model: torch.nn.Module) -> dict[str, str]:
    """By which `dkv compact` and the others find the model's profile."""
    try:
        return {FINGERPRINT: profiles.describe(model)["weights"]}
    except Exception:  # As profiles.resolve(): configs refuse in many ways.
        return {}

def _model_of(model: torch.nn.Module | None) -> torch.nn.Module:
    if model is None:
        raise Unfit("the model of this cache is gone: save while it lives")
    return model
