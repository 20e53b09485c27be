"""The sidecar's scores in torch (docs/POLICIES.md, "Scores"): what ranks a head's prefix tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .probe import Layer, Prompt, Rankings, softmax

_TOKEN_BLOCK = 8192  # Bounds the logits when a prompt is long.


def window_scores(layer: Layer, reduce: str = "mean") -> torch.Tensor:
    """Attention of the window's queries on each prefix token, one number per KV head. [Hkv, N] f32"""
    heads, tokens, _ = layer.keys.shape
    window = layer.queries.shape[1]
    weights = window_weights(layer).view(heads, layer.group, window, tokens)[..., : tokens - window]
    means = weights.mean(dim=2)
    if reduce == "mean":
        return means.sum(1) / layer.group
    if reduce == "sum":
        return means.sum(1)
    if reduce == "max":
        return means.amax(1)
    raise ValueError(f"reduce is {reduce}, not mean, max or sum")


def window_weights(layer: Layer) -> torch.Tensor:
    """softmax(scale · q·k) over all tokens and the sinks, causal inside the window. [Hkv, group * window, n] f32"""
    heads, tokens, head_dim = layer.keys.shape
    window = layer.queries.shape[1]
    rows = layer.queries.float().reshape(heads, layer.group * window, head_dim) * layer.scale
    logits = rows @ layer.keys.float().transpose(1, 2)
    if layer.softcap is not None:
        logits = layer.softcap * torch.tanh(logits / layer.softcap)
    finite = torch.finfo(torch.float32)
    logits = torch.nan_to_num(logits, nan=finite.min, posinf=finite.max, neginf=finite.min)
    future = ~torch.ones(window, window, dtype=torch.bool, device=rows.device).tril()
    logits[..., tokens - window :].masked_fill_(future.repeat(layer.group, 1), float("-inf"))
    return softmax(logits, layer.row_sinks(window))


def pool(scores: torch.Tensor, kernel: int = 7, kind: str = "max") -> torch.Tensor:
    """Smooths along tokens, stride 1. Outside: nothing for max, zeros for avg, which divides by the kernel."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel}: it must be odd")
    if kind == "max":
        return F.max_pool1d(scores[None], kernel, 1, kernel // 2)[0]
    if kind == "avg":
        return F.avg_pool1d(scores[None], kernel, 1, kernel // 2)[0]
    raise ValueError(f"pool is {kind}, not max or avg")


def rank(scores: torch.Tensor) -> torch.Tensor:
    """Positions, best first; equal scores: the lower position first. [Hkv, N] i64"""
    return torch.sort(torch.nan_to_num(scores, nan=-torch.inf), dim=-1, descending=True, stable=True).indices


def rank_by_position(prompt: Prompt, sinks: int = 4) -> torch.Tensor:
    """StreamingLLM: the sinks, then the latest first. [Hkv, N]"""
    sinks = min(sinks, prompt.prefix)
    order = torch.cat([torch.arange(sinks), torch.arange(sinks, prompt.prefix).flip(0)])
    return order.expand(prompt.kv_heads, -1)


def kept_positions(order: torch.Tensor, budgets: torch.Tensor, tokens: int, window: int) -> list[torch.Tensor]:
    """What each head of a layer keeps, in order of position, window last."""
    tail = torch.arange(tokens - window, tokens)
    return [torch.cat([order[head, :budget].sort().values, tail]) for head, budget in enumerate(budgets.tolist())]


def prompt_scores(prompt: Prompt, kernel: int = 7, kind: str = "max", reduce: str = "mean") -> list[torch.Tensor]:
    """Pooled scores of every compressed layer."""
    return [pool(window_scores(prompt.layers[index], reduce), kernel, kind) for index in prompt.compressed]


def prompt_rankings(prompt: Prompt, scores: list[torch.Tensor], sinks: int = 4) -> Rankings:
    """Every selection the evaluation compares: by scores, by position, and H2O's where its sums were taken."""
    orders = {
        "scores": [rank(layer) for layer in scores],
        "positions": [rank_by_position(prompt, sinks) for _ in scores],
    }
    sums = [prompt.layers[index].accumulated for index in prompt.compressed]
    if all(layer is not None for layer in sums):
        orders["h2o"] = [rank(layer[:, : prompt.prefix]) for layer in sums]
    return Rankings(orders)


def error_curves(prompt: Prompt, orders: list[torch.Tensor], grid: list[int]) -> torch.Tensor:
    """E(b) = ‖o - o_b‖² / ‖o‖² over the window's queries: [compressed layers, Hkv, len(grid)].

    o_b is the head's attention output with its best b prefix tokens and the window alone.
    """
    return torch.stack([_layer_errors(prompt.layers[i], order, grid) for i, order in zip(prompt.compressed, orders)])


def mass_curves(prompt: Prompt, orders: list[torch.Tensor], grid: list[int]) -> torch.Tensor:
    """Share of the window's attention outside the best b prefix tokens and the window. As error_curves."""
    curves = []
    for index, order in zip(prompt.compressed, orders):
        layer = prompt.layers[index]
        mass = window_weights(layer).mean(1)[:, : prompt.prefix].gather(1, order)
        sums = torch.cat([mass.new_zeros(mass.shape[0], 1), mass.cumsum(1)], 1)
        curves.append(sums[:, -1:] - sums[:, [min(b, prompt.prefix) for b in grid]])
    return torch.stack(curves).clamp_min(0)


def _layer_errors(layer: Layer, order: torch.Tensor, grid: list[int]) -> torch.Tensor:
    heads, tokens, _ = layer.keys.shape
    prefix = tokens - layer.queries.shape[1]
    weights = window_weights(layer)  # [Hkv, rows, n]: exact shares of the full softmax
    values = layer.values.float()
    whole = weights @ values
    norm = whole.square().sum((1, 2)).clamp_min(1e-30)
    ranked = weights.gather(2, order[:, None].expand(-1, weights.shape[1], -1))
    ranked_values = values.gather(1, order[..., None].expand(-1, -1, values.shape[-1]))
    share = weights[..., prefix:].sum(-1, keepdim=True)
    if layer.sinks is not None:  # They are never dropped.
        share = share + 1 - weights.sum(-1, keepdim=True)
    mixed = weights[..., prefix:] @ values[:, prefix:]
    errors, begin = [], 0
    for end in [min(b, prefix) for b in grid]:
        if end > begin:
            mixed = mixed + ranked[..., begin:end] @ ranked_values[:, begin:end]
            share = share + ranked[..., begin:end].sum(-1, keepdim=True)
            begin = end
        errors.append((whole - mixed / share.clamp_min(1e-30)).square().sum((1, 2)) / norm)
    return torch.stack(errors, dim=1)
