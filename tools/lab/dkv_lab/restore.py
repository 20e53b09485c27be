"""What each layer or head lacks where everybody is cut.

Cutting one at a time finds who matters when everybody else is whole. A head that backs another up does
not show there. So on top of the budgets that the first profile gives, one at a time gets `step` tokens
more, and what that takes off the loss is read off. Both measurements are brought to one scale with the
law that the budgets themselves follow, loss ~ size / tokens^p with p = 1/alpha - 1, and mixed.
"""

from __future__ import annotations

import torch

from dkv.hf.profile_file import Profile

from . import budgets, scores
from .needles import Row
from .probe import Probe, Variant
from .store import PrefillStore

_GAIN_SHARE = 0.1  # Chosen on the tuning part: 0.25 is as good on needles and worse on text.
_LEAST = 8  # Tokens.


def measure(probe: Probe, store: PrefillStore, row: Row, first: Profile, capacity: int, step: int, forced: int) -> dict:
    """Budgets, and what `step` more takes off this prompt's loss: KL for text, -log p for a needle."""
    is_text = not row.answer
    prompt, greedy = store.prefill(row.tokens, greedy=forced + 1 if is_text else 0)
    rankings = scores.prompt_rankings(prompt, scores.prompt_scores(prompt, first.kernel))
    shape = budgets.Shape(len(prompt.compressed), prompt.kv_heads, prompt.prefix, capacity - prompt.window)
    base = budgets.by_weights(shape, first.tensor(), first.alpha, first.floor)
    variants = [Variant("base", base)]
    for layer, weights in enumerate(first.weights):
        for head in range(len(weights)) if first.granularity == "head" else [slice(None)]:
            more = base.clone()
            more[layer, head] = (more[layer, head] + step).clamp(max=prompt.prefix)
            variants.append(Variant(f"{layer}.{head}", more))
    answer = greedy if is_text else torch.tensor(row.answer)
    outcome = probe.force(prompt, answer, variants, rankings, compare=is_text)
    losses = outcome.kl[:, 1:].mean(1) if is_text else -outcome.logprob.sum(1)
    return {
        "key": row.key,
        "task": row.task,
        "loss": round(float(losses[0]), 7),
        "gain": [round(value, 7) for value in (losses[0] - losses[1:]).tolist()],
        "budgets": base[:, : len(first.weights[0])].reshape(-1).tolist(),
        "more": [int(v.budgets[i // len(first.weights[0]), i % len(first.weights[0])]) for i, v in enumerate(variants[1:])],
    }


def mean_gains(records: list[dict], shape: tuple[int, int]) -> dict[str, dict]:
    """Per task: mean gain, and the budgets before and after."""
    out = {}
    for task in sorted({record["task"] for record in records}):
        part = [record for record in records if record["task"] == task]
        means = {
            name: torch.tensor([record[name] for record in part], dtype=torch.float64).mean(0).view(shape)
            for name in ("gain", "budgets", "more")
        }
        out[task] = means | {"prompts": len(part), "loss": sum(record["loss"] for record in part) / len(part)}
    return out


def sizes(damage: torch.Tensor, gains: dict, cut: int, window: int, alpha: float) -> torch.Tensor:
    """The size of each head's loss under the law, by both measurements, in the task's own unit."""
    power = 1 / alpha - 1
    law = lambda tokens: (torch.as_tensor(tokens, dtype=torch.float64) + window) ** -power
    cut_size = damage.clamp_min(0) / law(cut)
    drop = law(gains["budgets"]) - law(gains["more"])
    known = gains["more"] > gains["budgets"] + _LEAST  # A head that is (nearly) whole already has nothing to gain.
    gain_size = gains["gain"].clamp_min(0) / drop.clamp_min(1e-12)
    return torch.where(known, (1 - _GAIN_SHARE) * cut_size + _GAIN_SHARE * gain_size, cut_size)
