"""transformers in float32, where each KV head sees chosen tokens of a prompt: the numbers llama.cpp is held to."""

from __future__ import annotations

import numpy
import torch
from transformers import AttentionInterface


class Masked:
    def __init__(self, model):
        self.model = model.eval()
        self._kept, self._prompt = None, 0
        AttentionInterface.register("dkv_test_masked", self._attend)

    def _attend(self, module, query, key, value, attention_mask, scaling=None, dropout=0.0, **kwargs):
        groups = query.shape[1] // key.shape[1]
        keys, values = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        rows, width = query.shape[2], key.shape[2]
        logits = (query @ keys.transpose(2, 3)) * scaling
        at = (width - rows + torch.arange(rows))[:, None]  # Of each query, in this layer's own cache.
        gone = torch.arange(width)[None, :] > at
        if kwargs.get("sliding_window"):
            gone |= torch.arange(width)[None, :] <= at - kwargs["sliding_window"]
        logits = logits.masked_fill(gone, float("-inf"))
        for head, kept in enumerate((self._kept or {}).get(module.layer_idx, [])):
            gone = torch.ones(width, dtype=torch.bool)
            gone[self._prompt :] = False
            gone[kept] = False
            logits[:, head * groups : (head + 1) * groups, :, gone] = float("-inf")
        return (logits.softmax(-1) @ values).transpose(1, 2).contiguous(), None

    @torch.no_grad()
    def __call__(self, prompt: list[int], tokens: list[int], kept: dict[int, list[list[int]]] | None) -> numpy.ndarray:
        """The logits behind `tokens` that follow a prompt of which each KV head of these layers sees `kept`."""
        self.model.set_attn_implementation("dkv_test_masked")
        self._kept, self._prompt = None, len(prompt)
        seen = self.model(torch.tensor([prompt]), use_cache=True, logits_to_keep=1)
        self._kept = kept
        out = self.model(torch.tensor([tokens]), past_key_values=seen.past_key_values, logits_to_keep=1)
        return out.logits[0, -1].numpy()


def distance(mine, theirs) -> float:
    """Root mean square over the logits."""
    return float(numpy.sqrt(numpy.mean((numpy.asarray(mine) - theirs) ** 2)))
