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
from .rows import Unfit, check_tokens, layers_of, token_count_of
from .write import About, write

# Classes whose instances are data alone. Those that rows.py refuses are here to be refused by their own names.
_SAFE = (
    "DynamicCache", "DynamicLayer", "DynamicSlidingWindowLayer", "EncoderDecoderCache", "LinearAttentionLayer",
    "StaticCache", "StaticLayer", "StaticSlidingWindowLayer",
)  # fmt: skip


def convert(
    source,
    path: str | os.PathLike,
    *,
    model: torch.nn.Module | str | None = None,
    config=None,
    tokens: torch.Tensor | None = None,
    layout: str | None = None,
) -> int:
    """Writes all rows of `source`, without queries. Returns the file's bytes.

    source   a file of torch.save's, read with weights_only=True; or what is in one: a list of (K, V) per layer, each
             [1, Hkv, n, D] or [Hkv, n, D], a DynamicCache or a StaticCache (the rows it has filled); or a cache of dkv's
             own, compressed or not: the kept rows with their positions
    model    a model, or its name for people
    config   the model's config, where `model` is but a name: for its rope, and to check the rows against
    tokens   [n] or [1, n] ids of the text
    layout   of the tensors in a list: "HTD" (heads, tokens, dims), or "THD". None: found by config and tokens

    Raises DkvError, one line beginning with the path, and writes nothing: IO; CORRUPT_DATA for a file that torch.save
    did not write; UNSUPPORTED for a cache that has no place in a file (sliding windows, linear attention, quantised rows,
    MLA); INVALID_ARGUMENT for shapes that do not go together, with each other or with the config.
    """
    name = source if isinstance(source, (str, os.PathLike)) else "the cache"
    try:
        found = _read(Path(source)) if isinstance(source, (str, os.PathLike)) else source
        about = _about(model, config)
        config = model.config if isinstance(model, torch.nn.Module) else config
        layers = layers_of(found, config, layout, tokens.numel() if isinstance(tokens, torch.Tensor) else None)
        about.n_prompt = token_count_of(layers)
        about.tokens = check_tokens(tokens, about.n_prompt, config)
    except Unfit as wrong:
        raise DkvError(wrong.status, f"{name}: {wrong}") from None
    if isinstance(source, (str, os.PathLike)):
        about.provenance |= {"source": Path(source).name, "source_format": "torch.save"}
    return write(path, about, layers)


def _read(path: Path):
    """Tensors and transformers' own cache classes; anything else in the file is refused unread."""
    try:
        if not path.is_file():
            path.stat()
            raise Unfit("it is not a regular file", Status.IO)
        with path.open("rb") as file:
            zipped = file.read(4) == b"PK\x03\x04"
    except OSError as error:
        raise Unfit(error.strerror or str(error), Status.IO) from None
    try:
        safe = [getattr(cache_utils, name) for name in _SAFE if hasattr(cache_utils, name)]
        with torch.serialization.safe_globals(safe):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped or None)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            name = found.group(1)
            wanted = "whose rows are quantised" if "quant" in name.lower() else "which is not read"
            known = "lists of tensors, a DynamicCache and a StaticCache are"
            raise Unfit(f"it holds {name}, {wanted}: {known}", Status.UNSUPPORTED) from None
        raise Unfit("torch.save did not write it", Status.CORRUPT_DATA) from None
    except (RuntimeError, OSError, EOFError, ValueError, KeyError, AttributeError) as error:  # A file cut short, mostly.
        first = str(error).strip().split("\n")[0]
        raise Unfit(f"torch cannot read it: {first}", Status.CORRUPT_DATA) from None


def _about(model, config) -> About:
    if isinstance(model, torch.nn.Module):
        config = model.config
        model = os.path.basename(str(getattr(config, "_name_or_path", "")).rstrip("/")) or type(model).__name__
    return About(model=model or "", n_prompt=0, rope=Rope() if config is None else rope_of(config))
