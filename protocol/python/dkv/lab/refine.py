"""Improves a profile where it is used: around its own budgets, not around the whole cache.

One cut at a time finds who matters when everybody else is whole; in a compressed cache everybody is
cut. Here every head's budget is doubled in turn, on top of the profile's budgets, and the gain is
read off. Budgets are best when a token more is worth the same everywhere, which is when a head's
budget is in proportion to what doubling it gains: so they move towards that, halfway per round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import nan

import torch

from . import budgets, scores
from .needles import Row
from .probe import Probe, Variant
from .profile import Profile
from .store import PrefillStore

CAPACITIES = (64, 128)  # Prompts take turns.
_STEP = 0.5  # On the logarithm of the budgets.
_LEAST_GAIN = 0.1  # Of the mean gain: noise must not take everything from a head.


def measure(probe: Probe, store: PrefillStore, row: Row, profile: Profile, capacity: int, forced: int) -> dict:
    """What doubling each layer's or head's budget takes off this prompt's loss: KL for text, -log p for a needle."""
    is_text = not row.answer
    prompt, greedy = store.prefill(row.tokens, greedy=forced + 1 if is_text else 0)
    rankings = scores.prompt_rankings(prompt, scores.prompt_scores(prompt))
    shape = budgets.Shape(len(prompt.compressed), prompt.kv_heads, prompt.prefix, capacity - prompt.window)
    base = budgets.by_weights(shape, profile.tensor(), profile.alpha, profile.floor)
    variants = [Variant("base", base)]
    for layer, weights in enumerate(profile.weights):
        for head in range(len(weights)) if profile.granularity == "head" else [slice(None)]:
            more = base.clone()
            more[layer, head] = (2 * more[layer, head]).clamp(max=prompt.prefix)
            variants.append(Variant(f"{layer}.{head}", more))
    answer = greedy if is_text else torch.tensor(row.answer)
    outcome = probe.force(prompt, answer, variants, rankings, compare=is_text)
    losses = outcome.kl[:, 1:].mean(1) if is_text else -outcome.logprob.sum(1)
    gains = [round(value, 7) for value in (losses[0] - losses[1:]).tolist()]
    for index, variant in enumerate(variants[1:]):
        if torch.equal(variant.budgets, base):
            gains[index] = None  # Whole already: nothing to learn.
    return {"key": row.key, "task": row.task, "capacity": capacity, "loss": float(losses[0]), "gain": gains}


def update(profile: Profile, records: list[dict]) -> Profile:
    """One step. Every task weighs the same, measured against its own mean loss."""
    weights = profile.tensor()
    shares = []
    for task in sorted({record["task"] for record in records}):
        part = [record for record in records if record["task"] == task]
        gain = torch.tensor([[nan if g is None else g for g in record["gain"]] for record in part], dtype=torch.float64)
        shares.append(gain.nanmean(0) / max(1e-9, sum(record["loss"] for record in part) / len(part)))
    gain = torch.stack(shares).nanmean(0).view(weights.shape)
    known = ~gain.isnan()
    gain = gain.nan_to_num().clamp_min(0)
    gain = gain.clamp_min(_LEAST_GAIN * float(gain[known].mean()))
    current = weights.clamp_min(1e-9) ** profile.alpha
    current, gain = current / current[known].sum(), gain / gain[known].sum()
    moved = torch.where(known, current ** (1 - _STEP) * gain**_STEP, current)
    made = (moved / moved.sum()) ** (1 / profile.alpha)
    made = made / made.sum()
    figures = dict(profile.figures) | {"refined": [[round(v, 7) for v in row] for row in gain.tolist()]}
    return replace(profile, weights=[[round(v, 9) for v in row] for row in made.tolist()], figures=figures)


def refine(
    probe: Probe,
    store: PrefillStore,
    rows: list[Row],
    profile: Profile,
    rounds: int,
    forced: int,
    journal,
    advance: Callable[[], None],
) -> Profile:
    """`rounds` steps. A round's records carry its number and are not measured twice."""
    for number in range(1, rounds + 1):
        for index, row in enumerate(rows):
            key = f"round {number}/{row.key}"
            if key not in journal:
                capacity = CAPACITIES[index % len(CAPACITIES)]
                journal.append(measure(probe, store, row, profile, capacity, forced) | {"key": key})
            advance()
        profile = update(profile, [r for r in journal.records if r["key"].startswith(f"round {number}/")])
    return profile
