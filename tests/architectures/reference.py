"""What a compressed cache must compute, without any of dkv's code: the model's own eager attention over a full cache.

After the prompt every query head has a mask of its own, which hides the prompt tokens that its KV head dropped. So
sinks, caps, experts and states are the model's.
"""

from __future__ import annotations

import functools
import sys
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache
from transformers.masking_utils import eager_mask

NAME = "masked_reference"

Positions = dict[int, list[list[int]]]  # Layer → per KV head the prompt positions kept.


class Reference:
    """One prompt through the model, whole, then further tokens one by one, with what was dropped hidden.

    weights   layer → [Hq, window, prompt], the attention of the prompt's last queries
    prefill   logits of the prompt's last token
    """

    def __init__(self, model: torch.nn.Module, prompt: torch.Tensor, window: int):
        self.model, self.count, self.window = model, prompt.shape[1], window
        self.weights: dict[int, torch.Tensor] = {}
        self.masked: set[int] = set()  # Layers whose mask was used: all that are to be, or the test compares nothing.
        self._kept: Positions = {}
        self._cache = DynamicCache(config=model.config)
        with self._attending():
            self.prefill = self._logits(prompt)

    def steps(self, tokens: torch.Tensor, kept: Positions) -> torch.Tensor:
        """Logits of every token after the prompt, [m, vocabulary]."""
        self._kept = kept
        with self._attending():
            return torch.stack([self._logits(tokens[:, at : at + 1]) for at in range(tokens.shape[1])])

    @torch.no_grad()
    def _logits(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model(tokens, past_key_values=self._cache).logits[0, -1]

    @contextmanager
    def _attending(self):
        global _running
        _register()
        before, _running = self.model.config._attn_implementation, self
        self.model.set_attn_implementation(NAME)
        try:
            yield
        finally:
            self.model.set_attn_implementation(before)
            _running = None

    def _attend(self, module, query, key, value, attention_mask, *args, **kwargs):
        eager = sys.modules[type(module).__module__].eager_attention_forward
        layer = self._layer_of(key)
        if layer in self._kept:
            attention_mask = self._hiding(layer, query, key, attention_mask)
        out, weights = eager(module, query, key, value, attention_mask, *args, **kwargs)
        if layer is not None and not self._kept:
            self.weights[layer] = weights[0, :, -self.window :].detach()
        return out, weights

    def _layer_of(self, key: torch.Tensor) -> int | None:
        """By the rows themselves: a module may fill several layers of a cache (HRM)."""
        layers = enumerate(self._cache.layers)
        return next((index for index, layer in layers if getattr(layer, "keys", None) is key), None)

    def _hiding(self, layer: int, query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """[1, Hq, 1, keys], added to the logits: the model's own mask, and what the heads of this layer dropped."""
        hidden = torch.zeros(1, query.shape[1], 1, key.shape[2])
        group = query.shape[1] // len(self._kept[layer])
        for head, positions in enumerate(self._kept[layer]):
            dropped = torch.ones(self.count, dtype=torch.bool)
            dropped[positions] = False
            rows = hidden[0, head * group : (head + 1) * group, 0, : self.count]
            rows.masked_fill_(dropped, torch.finfo(hidden.dtype).min)
        self.masked.add(layer)
        return hidden if mask is None else hidden + mask[..., : key.shape[2]]


_running: Reference | None = None


@functools.lru_cache(maxsize=1)
def _register() -> None:
    """One function for all references: a registry keeps what it is given, and a method would keep its model."""
    AttentionInterface.register(NAME, lambda *args, **kwargs: _running._attend(*args, **kwargs))
    AttentionMaskInterface.register(NAME, eager_mask)


def best_by_attention(weights: torch.Tensor, kv_heads: int, window: int) -> torch.Tensor:
    """SnapKV's scores without pooling, [Hkv, prefix]: means over the window's queries and a KV head's query heads."""
    prefix = weights.shape[-1] - window
    return weights.mean(1).view(kv_heads, -1, weights.shape[-1]).mean(1)[:, :prefix]
