"""Who gets how many tokens: the sidecar's budget rules in Python, to the token.

Every rule returns prefix tokens [layers, Hkv] that add up to exactly base · layers · Hkv (the window comes on top).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_UNIT = 1 << 32  # The largest profile weight as an integer: sums stay below 2^63.
_ROUNDING_SLACK = 1e-6  # As the sidecar's: 0.07 · 100 is a little more than 7, and that little is not a token.


@dataclass(frozen=True)
class Shape:
    """What a rule may know of a prompt before it sees a score."""

    layers: int
    kv_heads: int
    prefix: int  # N
    base: int  # Mean prefix tokens per layer and head.

    @property
    def total(self) -> int:
        return self.base * self.layers * self.kv_heads


def allocate(total: int, weights: list[int], lower: list[int], upper: list[int]) -> list[int]:
    """Shares of `total` in proportion to `weights`, each within its bounds, adding up exactly.

    Water-filling, then largest remainder with ties to the lower index: the definition is
    sidecar/policy/allocate.h, and these are the same numbers.
    """
    if not sum(lower) <= total <= sum(upper):
        raise ValueError(f"{total} tokens do not fit between bounds of {sum(lower)} and {sum(upper)}")
    shares = list(lower)
    weighted = [i for i, weight in enumerate(weights) if weight > 0]
    weightless = [i for i, weight in enumerate(weights) if weight == 0]
    weightless_lower = sum(lower[i] for i in weightless)
    weighted_upper = sum(upper[i] for i in weighted)
    if weighted_upper + weightless_lower >= total:
        _divide(total - weightless_lower, weighted, weights, lower, upper, shares)
    else:
        for i in weighted:
            shares[i] = upper[i]
        _divide(total - weighted_upper, weightless, [1] * len(weights), lower, upper, shares)
    return shares


def _divide(left: int, members: list[int], weights, lower, upper, shares) -> None:
    members = list(members)
    while True:
        total = sum(weights[i] for i in members)
        ideals = {i: left * weights[i] for i in members}
        overspent, clamped = 0, False
        for i in members:
            bounded = min(max(ideals[i], lower[i] * total), upper[i] * total)
            overspent += bounded - ideals[i]
            clamped = clamped or bounded != ideals[i]
        if not clamped:
            break
        rest = []
        for i in members:
            if overspent >= 0 and ideals[i] < lower[i] * total:
                shares[i] = lower[i]
            elif overspent <= 0 and ideals[i] > upper[i] * total:
                shares[i] = upper[i]
            else:
                rest.append(i)
                continue
            left -= shares[i]
        members = rest
    if not members:
        return
    for i in members:
        shares[i] = ideals[i] // total
    rest = left - sum(shares[i] for i in members)
    for i in sorted(members, key=lambda i: (-(ideals[i] % total), i))[:rest]:
        shares[i] += 1


def layer_min(base: int, share: float) -> int:
    return min(base, max(0, math.ceil(share * base - _ROUNDING_SLACK)))


# -------------------------------------------------------------------- published rules


def uniform(shape: Shape) -> torch.Tensor:
    """SnapKV, H2O, StreamingLLM."""
    return torch.full((shape.layers, shape.kv_heads), shape.base, dtype=torch.int64)


def pyramid(shape: Shape, beta: float = 20) -> torch.Tensor:
    """PyramidKV: falling linearly from the first layer to the last."""
    if shape.layers == 1:
        return uniform(shape)
    first = min(2 * shape.base - int(shape.base / beta), shape.prefix)
    last, steps = 2 * shape.base - first, shape.layers - 1
    weights = [first * (steps - layer) + last * layer for layer in range(shape.layers)]
    shares = allocate(shape.base * shape.layers, weights, [0] * shape.layers, [shape.prefix] * shape.layers)
    return _per_layer(shares, shape)


def tally(scores: list[torch.Tensor], total: int, by_head: bool = False) -> list[int]:
    """How many of the `total` largest scores fall in each layer, or head; ties to the lower layer, head, token."""
    flat = torch.cat([layer.reshape(-1) for layer in scores])
    chosen = torch.sort(flat, descending=True, stable=True).indices[:total]
    of_share = scores[0].shape[1] if by_head else scores[0].numel()
    return torch.bincount(chosen // of_share, minlength=flat.numel() // of_share).tolist()


def dynamickv(
    shape: Shape,
    scores: list[torch.Tensor],
    r_max: float = 10,
    r_min: float = 0.1,
    update_interval: int | None = 4,
) -> torch.Tensor:
    """The paper's rule: budgets follow the layers' counts in a global top. `update_interval` None: once, at the end."""
    return _per_layer(_by_counts(shape, scores, r_max, r_min, update_interval, 1, [0] * shape.layers), shape)


def by_threshold(shape: Shape, scores: list[torch.Tensor], expected: torch.Tensor | None = None) -> torch.Tensor:
    """One threshold for all heads of all layers; `expected` budgets [layers, Hkv] count as much as what was counted."""
    heads = shape.kv_heads
    beside = [0] * shape.layers * heads if expected is None else expected.reshape(-1).tolist()
    return torch.tensor(_by_counts(shape, scores, 10, 0.1, 4, heads, beside)).view(shape.layers, heads)


def _by_counts(
    shape: Shape, scores: list[torch.Tensor], r_max: float, r_min: float, update_interval: int | None, per_layer: int, beside: list[int]
) -> list[int]:
    """Of every share: a layer has one, or one for each head."""
    stage = min(math.floor(r_max * shape.base + _ROUNDING_SLACK), shape.prefix)
    stage = max(shape.base, stage)
    floor = layer_min(shape.base, r_min)
    budgets = [stage] * shape.layers * per_layer
    total = shape.base * len(budgets)
    for seen in range(1, shape.layers + 1):
        due = seen == shape.layers or (update_interval is not None and seen % update_interval == 0)
        shares = seen * per_layer
        if not due or stage == shape.base or sum(budgets[:shares]) <= total:
            continue
        counts = tally(scores[:seen], shape.base * shape.kv_heads * seen, per_layer > 1)
        counts = [count + more for count, more in zip(counts, beside)]
        upper = budgets[:shares]
        budgets[:shares] = allocate(total, counts, [min(floor, bound) for bound in upper], upper)
    return budgets


# -------------------------------------------------------------------- with a profile


def by_weights(shape: Shape, weights: torch.Tensor, alpha: float, floor: float) -> torch.Tensor:
    """Budgets ∝ weights^alpha, at least ceil(floor · base) each. weights [layers, Hkv], or [layers, 1] per layer."""
    powered = (weights.double() / weights.max().double()).clamp_min(0) ** alpha
    integers = [int(round(float(value) * _UNIT)) for value in powered.reshape(-1)]
    count = len(integers)
    total = shape.base * count
    lowest = layer_min(shape.base, floor)
    shares = allocate(total, integers, [lowest] * count, [shape.prefix] * count)
    return torch.tensor(shares).view(weights.shape).expand(shape.layers, shape.kv_heads).contiguous()


def _per_layer(shares: list[int], shape: Shape) -> torch.Tensor:
    return torch.tensor(shares, dtype=torch.int64)[:, None].expand(shape.layers, shape.kv_heads).contiguous()
