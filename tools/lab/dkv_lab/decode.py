"""Greedy decoding under every variant at once, token by token: for metrics that need the text itself.

What a variant keeps is gathered once per layer; its own tokens are appended as they come.
"""

from __future__ import annotations

import torch

from dkv.hf.interface import Call

from .probe import Layer, Probe, Prompt, Rankings, Variant, cap, check_variants, softmax


@torch.inference_mode()
def greedy(
    probe: Probe, prompt: Prompt, variants: list[Variant], rankings: Rankings, tokens: int, ends: set[int]
) -> list[list[int]]:
    """Per variant at most `tokens` tokens, up to the first of `ends`, which is left out.

    The first token comes from the prefill and is the same for all.
    """
    check_variants(prompt, variants, rankings)
    decoder = _Decoder(prompt, variants, rankings)
    out = prompt.logits.argmax().expand(len(variants), 1)
    while out.shape[1] < tokens and not all(_ended(row, ends) for row in out.tolist()):
        logits = probe._forward(out[:, -1:], prompt.tokens + out.shape[1] - 1, decoder)
        out = torch.cat([out, logits[:, -1:].float().argmax(-1)], dim=1)
    return [_cut(row, ends) for row in out.tolist()]


def ends_of(model) -> set[int]:
    """Tokens with which this model ends a text."""
    known = [model.generation_config.eos_token_id, model.config.get_text_config().eos_token_id]
    return {token for ends in known if ends is not None for token in (ends if isinstance(ends, list) else [ends])}


def _ended(row: list[int], ends: set[int]) -> bool:
    return any(token in ends for token in row)


def _cut(row: list[int], ends: set[int]) -> list[int]:
    first = next((index for index, token in enumerate(row) if token in ends), len(row))
    return row[:first]


class _Kept:
    """One variant's rows of one layer, padded to its longest head."""

    def __init__(self, layer: Layer, chosen: list[torch.Tensor] | None):
        self.hidden = None
        if chosen is None:
            self.keys, self.values = layer.keys, layer.values
            return
        longest = max(ids.numel() for ids in chosen)
        ids = torch.stack([torch.nn.functional.pad(head, (0, longest - head.numel())) for head in chosen])
        index = ids[..., None].expand(-1, -1, layer.keys.shape[-1])
        self.keys, self.values = layer.keys.gather(1, index), layer.values.gather(1, index)
        lengths = torch.tensor([head.numel() for head in chosen], device=ids.device)
        if int(lengths.min()) < longest:
            self.hidden = (torch.arange(longest, device=ids.device)[None] >= lengths[:, None])[:, None]


class _Decoder:
    """The probe's pass: one new token per variant and forward."""

    def __init__(self, prompt: Prompt, variants: list[Variant], rankings: Rankings):
        self.prompt = prompt
        self.tails: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        ordinals = {index: ordinal for ordinal, index in enumerate(prompt.compressed)}
        self.kept = []
        for index, layer in enumerate(prompt.layers):
            if layer.sliding is None:
                read = [(layer if one.layers is None else one.layers[index], one) for one in variants]
                self.kept.append([_Kept(own, self._chosen(ordinals[index], one, rankings)) for own, one in read])
            else:
                self.kept.append([_Kept(layer, None)] * len(variants))

    def _chosen(self, ordinal: int, variant: Variant, rankings: Rankings) -> list[torch.Tensor] | None:
        prompt, budgets = self.prompt, variant.budgets[ordinal].tolist()
        if min(budgets) == prompt.prefix:
            return None
        window = torch.arange(prompt.prefix, prompt.tokens, device=prompt.logits.device)
        everything = torch.arange(prompt.prefix, device=prompt.logits.device)
        orders = rankings.orders[variant.ranking][ordinal]
        return [
            torch.cat([window, everything if budget == prompt.prefix else orders[head, :budget]])
            for head, budget in enumerate(budgets)
        ]

    def attend(self, index: int, call: Call) -> torch.Tensor:
        layer, query, key, value = self.prompt.layers[index], call.query, call.key, call.value
        if index in self.tails:
            key = torch.cat([self.tails[index][0], key], dim=2)
            value = torch.cat([self.tails[index][1], value], dim=2)
        if layer.sliding is not None:
            key, value = key[:, :, -layer.sliding :], value[:, :, -layer.sliding :]
        self.tails[index] = (key, value)
        heads = layer.keys.shape[0]
        rows = (query * layer.scale).reshape(query.shape[0], heads, layer.group, -1)
        out = torch.empty(*rows.shape[:3], value.shape[-1], dtype=value.dtype, device=value.device)
        for number, kept in enumerate(self.kept[index]):
            out[number] = self._one(layer, kept, rows[number], key[number], value[number])
        return out.reshape(query.shape[0], 1, heads * layer.group, -1)

    def _one(self, layer: Layer, kept: _Kept, rows, key, value) -> torch.Tensor:
        """[heads, group, D] of one variant."""
        keys, values = kept.keys, kept.values
        if layer.sliding is not None:
            begin = max(0, keys.shape[1] + key.shape[1] - layer.sliding)
            keys, values = keys[:, begin:], values[:, begin:]
        shared = keys.shape[1]
        logits = rows.new_empty(*rows.shape[:2], shared + key.shape[1], dtype=torch.float32)
        logits[..., :shared] = rows @ keys.transpose(1, 2)
        logits[..., shared:] = rows @ key.transpose(1, 2)
        logits = cap(logits, layer.softcap)
        if kept.hidden is not None:
            logits[..., :shared].masked_fill_(kept.hidden, float("-inf"))
        weights = softmax(logits, layer.row_sinks(1)).to(rows.dtype)
        return weights[..., :shared] @ values + weights[..., shared:] @ value
