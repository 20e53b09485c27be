"""A prompt's cache in a file: what `dkv diff` and, later, other offline tools read.

    dkv.hf.save(model, tokens, "prompt.safetensors", queries=32)

The layout is sidecar/files/cache_file.h's: layers.{l}.keys and .values [Hkv, n, D], layers.{l}.q_window
[Hq, queries, D] after RoPE, and the metadata format, version, model, n_prompt (scale, softcap where the logits
have their own). Layers that bound their own cache (sliding windows) are left out.
"""

from __future__ import annotations

import os
from pathlib import Path

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from . import attention

_NAME = "dkv_capture"
_capture: "Capture | None" = None


class Capture:
    """The last queries of every layer of one prefill, and how its logits are made."""

    def __init__(self, rows: int):
        self.rows = rows
        self.queries: dict[int, torch.Tensor] = {}
        self.scaling: dict[int, tuple[float | None, float | None]] = {}

    def take(self, layer: int, query: torch.Tensor, scaling: float | None, softcap: float | None) -> None:
        self.queries[layer] = query[0, :, -self.rows :].detach().contiguous()
        self.scaling[layer] = (scaling, softcap)


def save(model: torch.nn.Module, tokens: torch.Tensor, path: str | os.PathLike, queries: int | None = 32) -> None:
    """Runs the prompt once, plainly, and writes its whole cache. tokens [1, n]; queries None: all of them (h2o).

    The file appears under its name once it is complete.
    """
    from safetensors.torch import save_file

    if tokens.dim() != 2 or tokens.shape[0] != 1:
        raise ValueError(f"tokens are {list(tokens.shape)}, not [1, n]: one prompt is saved at a time")
    count = tokens.shape[1]
    capture, cache = _prefill(model, tokens, count if queries is None else min(queries, count))
    whole = [index for index, layer in enumerate(cache.layers) if type(layer) is DynamicLayer]
    tensors = {}
    for ordinal, index in enumerate(whole):
        layer = cache.layers[index]
        tensors[f"layers.{ordinal}.keys"] = layer.keys[0].contiguous()
        tensors[f"layers.{ordinal}.values"] = layer.values[0].contiguous()
        tensors[f"layers.{ordinal}.q_window"] = capture.queries[index]
    name = os.path.basename(str(getattr(model.config, "_name_or_path", "")).rstrip("/")) or type(model).__name__
    metadata = {"format": "dkv", "version": "1", "model": name, "n_prompt": str(count)}
    scaling, softcap = capture.scaling[whole[0]]
    head_dim = tensors["layers.0.keys"].shape[-1]
    if scaling is not None and abs(scaling * head_dim**0.5 - 1) > 1e-6:
        metadata["scale"] = repr(float(scaling))
    if softcap:
        metadata["softcap"] = repr(float(softcap))
    partial = Path(f"{path}.{os.getpid()}.partial")
    try:
        save_file(tensors, partial, metadata=metadata)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _prefill(model: torch.nn.Module, tokens: torch.Tensor, rows: int) -> tuple[Capture, DynamicCache]:
    global _capture
    _register()
    cache = DynamicCache(config=model.config)
    before = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
    _capture = capture = Capture(rows)
    try:
        with torch.inference_mode():
            model(tokens, past_key_values=cache, logits_to_keep=1)
    finally:
        _capture = None
        model.set_attn_implementation(before)
    return capture, cache


def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(_NAME, _attention)
    AttentionMaskInterface.register(_NAME, sdpa_mask)


def _attention(module, query, key, value, attention_mask, scaling=None, softcap=None, **kwargs):
    if _capture is not None:
        _capture.take(module.layer_idx, query, scaling, softcap)
    return attention.plain_attention(module, query, key, value, attention_mask, scaling, softcap, **kwargs), None
