"""Rows in fewer bits, as they are read back from a file of `dkv compact --bits`.

Every row of K, after RoPE, and of V by itself: a Hadamard matrix spreads large dims over the row, then each 32 elements
get a scale in f16, as in ggml's q8_0 and q4_0. POLICIES.md has what else was tried.
"""

from __future__ import annotations

import dataclasses

import torch

from dkv.hf.quantised import hadamard

from .probe import Layer, Prompt

BLOCK = 32
NAMES = ("16", "8", "4", "mixed")
_BETTER_SHARE = 0.25  # mixed: this share of a head's rows, the best ones, have 8 bits and the others 4.


def bytes_of(bits: str, elements: int) -> float:
    """A row's K and V together; of mixed the mean."""
    if bits == "16":
        return 2 * elements
    if bits == "mixed":
        return _BETTER_SHARE * bytes_of("8", elements) + (1 - _BETTER_SHARE) * bytes_of("4", elements)
    return elements * (int(bits) / 8 + 2 / BLOCK)


def read_back(rows: torch.Tensor, bits: int) -> torch.Tensor:
    """rows […, D]"""
    if bits == 16:
        return rows.bfloat16().to(rows.dtype)
    blocks = _turned(rows.float()).unflatten(-1, (-1, BLOCK))
    return _turned(_blocks(blocks, bits).flatten(-2)).to(rows.dtype)


def _turned(rows: torch.Tensor) -> torch.Tensor:
    """In runs as long as the largest power of two that divides a row. Its own inverse."""
    run = rows.shape[-1] & -rows.shape[-1]
    return (rows.unflatten(-1, (-1, run)) @ hadamard(run).to(rows.device)).flatten(-2)


def layers_in(prompt: Prompt, bits: int) -> list[Layer]:
    """Sliding-window layers are no policy's and stay as they are."""
    made = list(prompt.layers)
    for index in prompt.compressed:
        layer = prompt.layers[index]
        made[index] = dataclasses.replace(layer, keys=read_back(layer.keys, bits), values=read_back(layer.values, bits))
    return made


def mixed(prompt: Prompt, eight: list[Layer], four: list[Layer], orders: list[torch.Tensor], budgets: torch.Tensor) -> list[Layer]:
    """The best rows of each head in 8 bits, and the others in 4. orders, budgets: as a Variant has them."""
    made = list(prompt.layers)
    for index, order, kept in zip(prompt.compressed, orders, budgets.tolist()):
        better = torch.zeros(prompt.kv_heads, prompt.tokens, 1, dtype=torch.bool, device=order.device)
        for head, rows in enumerate(kept):
            better[head, order[head, : min(rows, round(_BETTER_SHARE * (rows + prompt.window)))]] = True
        a, b = eight[index], four[index]
        made[index] = dataclasses.replace(a, keys=torch.where(better, a.keys, b.keys), values=torch.where(better, a.values, b.values))
    return made


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
