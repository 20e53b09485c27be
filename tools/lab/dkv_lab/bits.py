"""Rows in fewer bits, as they are read back from a file of `dkv compact --bits`.

Every row of K, after RoPE, and of V by itself: a Hadamard matrix spreads large dims over the row, then each 32 elements
get a scale in f16, as in ggml's q8_0 and q4_0. mixed: every row in 4 bits, and of the best what that leaves off in 4 more.
POLICIES.md has what else was tried.
"""

from __future__ import annotations

import dataclasses

import torch

from dkv.hf.quantised import turned

from .probe import Layer, Prompt

BLOCK = 32
NAMES = ("16", "8", "4", "mixed")
_REFINED = 0.25  # mixed: this share of a head's rows, the best ones, is refined once every token is kept.


def bytes_of(bits: str, elements: int) -> float:
    """A row's K and V together; of mixed one that is not refined."""
    if bits == "16":
        return 2 * elements
    return elements * ((4 if bits == "mixed" else int(bits)) / 8 + 2 / BLOCK)


def in_the_bytes_of(capacity: int, bits: str, tokens: int, elements: int) -> tuple[int, float]:
    """Rows of a head, of a prompt of so many tokens, in the bytes of `capacity` rows of 16 bits; and the share that is refined."""
    kept = capacity * bytes_of("16", elements) / bytes_of(bits, elements) / tokens
    share = 0.0
    if bits == "mixed":
        # The fewer tokens are kept, the more is one more of them worth: a share s of n tokens is refined, s = _REFINED n.
        some = ((1 + 4 * _REFINED * kept) ** 0.5 - 1) / (2 * _REFINED)
        share = _REFINED * some if some < 1 else min(kept - 1, 1.0)
        kept = some
    return min(int(kept * tokens), tokens), share


def read_back(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """rows […, D]"""
    if bits == 16:
        return rows.bfloat16().to(rows.dtype)
    blocks = _turned(rows.float()).unflatten(-1, (-1, BLOCK))
    return _turned(_blocks(blocks, bits).flatten(-2)).to(rows.dtype)


def _turned(rows: torch.Tensor) -> torch.Tensor:
    """In runs as long as the largest power of two that divides a row. Its own inverse."""
    return turned(rows, rows.shape[-1] & -rows.shape[-1])


def layers_in(prompt: Prompt, bits: int) -> list[Layer]:
    """Sliding-window layers are no policy's and stay as they are."""
    made = list(prompt.layers)
    for index in prompt.compressed:
        layer = prompt.layers[index]
        made[index] = dataclasses.replace(layer, keys=read_back(layer.keys, bits), values=read_back(layer.values, bits))
    return made


def mixed(prompt: Prompt, four: list[Layer], orders: list[torch.Tensor], budgets: torch.Tensor, share: float) -> list[Layer]:
    """This share of each head's rows refined: by rank, then the newest. orders, budgets: as a Variant has them."""
    made = list(prompt.layers)
    newest = torch.arange(prompt.tokens - 1, prompt.prefix - 1, -1)
    for index, order, kept in zip(prompt.compressed, orders, budgets.tolist()):
        refined = torch.zeros(prompt.kv_heads, prompt.tokens, 1, dtype=torch.bool, device=order.device)
        for head, rows in enumerate(kept):
            best = torch.cat([order[head, :rows], newest.to(order.device)])
            refined[head, best[: int(share * len(best))]] = True
        whole, coarse = prompt.layers[index], four[index]
        made[index] = dataclasses.replace(
            coarse,
            keys=torch.where(refined, _refined(whole.keys, coarse.keys), coarse.keys),
            values=torch.where(refined, _refined(whole.values, coarse.values), coarse.values),
        )
    return made


def _refined(rows: torch.Tensor, coarse: torch.Tensor) -> torch.Tensor:
    return coarse + read_back(rows - coarse, 4)


def _blocks(blocks: torch.Tensor, bits: int) -> torch.Tensor:
    """[…, 32], each with its scale. The signed largest element of 4 bits is -8 times it, so that it is exact."""
    if bits == 8:
        largest, low, high = blocks.abs().amax(-1, keepdim=True), -127, 127
        scale = largest / 127
    else:
        largest, low, high = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True)), -8, 7
        scale = largest / -8
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    return (blocks * inverse).round().clamp(low, high) * scale.half().float()
