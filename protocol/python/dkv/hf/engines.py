"""One engine for all caches of a model: it says hello to the sidecar once."""

from __future__ import annotations

import os
import weakref

import torch
import transformers

import dkv

_engines: "weakref.WeakKeyDictionary[torch.nn.Module, dict[tuple, dkv.Engine]]" = weakref.WeakKeyDictionary()


def engine_of(model: torch.nn.Module, endpoint: str | None, device: str, *geometry) -> dkv.Engine:
    """Closed with the model. `geometry` is that of dkv.Geometry. Raises DkvError."""
    key = (os.getpid(), endpoint or os.environ.get("DKV_ENDPOINT"), device, *geometry)
    known = _engines.setdefault(model, {})
    if key not in known:
        name = getattr(model.config, "_name_or_path", "") or type(model).__name__
        known[key] = dkv.Engine(
            dkv.Geometry(*geometry),
            endpoint=endpoint,
            engine=f"transformers {transformers.__version__}",
            model=os.path.basename(str(name).rstrip("/")),
            device=device,
        )
        weakref.finalize(model, known[key].close)
    return known[key]
