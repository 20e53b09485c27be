"""The sidecar's scores in torch (docs/POLICIES.md, "Scores"): what ranks a head's prefix tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from .probe import Layer, Prompt, Rankings, softmax


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


def window_peaks(layer: Layer) -> torch.Tensor:
    """The most that a query of the window attends to each prefix token, over the group. [Hkv, N] f32"""
    heads, tokens, _ = layer.keys.shape
    return window_weights(layer)[..., : tokens - layer.queries.shape[1]].amax(1)


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


def joined(peaks: torch.Tensor, foreseen: torch.Tensor) -> torch.Tensor:
    """The larger of what was seen and what the surrogate foresees, as logarithms. Both [Hkv, N]"""
    return torch.maximum(peaks.clamp_min(2.0**-20).log(), foreseen)


def rank_by_position(prompt: Prompt, sinks: int = 4) -> torch.Tensor:
    """StreamingLLM: the sinks, then the latest first. [Hkv, N]"""
    sinks = min(sinks, prompt.prefix)
    order = torch.cat([torch.arange(sinks), torch.arange(sinks, prompt.prefix).flip(0)])
    return order.expand(prompt.kv_heads, -1)


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
