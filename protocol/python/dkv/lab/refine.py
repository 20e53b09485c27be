"""Improves a profile by its own results: a small evolution (CMA-ES) started from it.

Searched are alpha, the floor, and one factor for each group of heads of like weight: the heaviest head
by itself, the next, and so on in groups that grow. What is minimised is the loss on tuning prompts at
several capacities, as a share of what equal budgets lose there; every task and capacity weighs the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import exp

import torch

from . import budgets, scores
from .needles import Row
from .probe import Probe, Variant
from .profile import Profile
from .store import PrefillStore

CAPACITIES = (64, 128, 256)
POPULATION = 8
_GROUPS = (1, 1, 1, 2, 3, 5, 9, 18)  # Heads per group, heaviest first; the rest is one more.
_SIGMA = 0.3  # Of the first generation's logarithms: a factor of 1.35.
_FLOORS = (0.02, 0.9)


class RefineError(RuntimeError):
    """The search cannot be made; the message says why."""


@dataclass
class Search:
    """Candidates around a profile: vectors of logarithms, zeros being the profile itself."""

    start: Profile

    def __post_init__(self):
        flat = self.start.tensor().reshape(-1)
        order = torch.argsort(flat, descending=True, stable=True)
        self.group = torch.empty_like(order)
        begin, number = 0, 0
        for number, size in enumerate([*_GROUPS, flat.numel()]):
            self.group[order[begin : begin + size]] = number
            begin += size
            if begin >= flat.numel():
                break
        self.groups = number + 1

    @property
    def dimensions(self) -> int:
        return self.groups + 2

    def profile(self, vector) -> Profile:
        """The profile at a point: factors on budgets, so they count in weights as their 1/alpha-th power."""
        alpha = min(2.0, self.start.alpha * exp(vector[0]))
        floor = min(_FLOORS[1], max(_FLOORS[0], self.start.floor * exp(vector[1])))
        factors = torch.tensor([exp(value / alpha) for value in vector[2:]], dtype=torch.float64)
        weights = self.start.tensor() * factors[self.group].view(self.start.tensor().shape)
        weights = weights / weights.sum()
        return replace(
            self.start,
            alpha=round(alpha, 6),
            floor=round(floor, 6),
            weights=[[round(value, 9) for value in row] for row in weights.tolist()],
        )


def losses(probe: Probe, store: PrefillStore, row: Row, candidates: list[Profile], forced: int) -> list[float]:
    """Per candidate: the mean over capacities of its loss divided by equal budgets' loss on this prompt's task scale.

    Returned undivided, capacity by capacity: first equal budgets', then the candidates', len = capacities · (1 + n).
    """
    is_text = not row.answer
    prompt, greedy = store.prefill(row.tokens, greedy=forced + 1 if is_text else 0)
    rankings = scores.prompt_rankings(prompt, scores.prompt_scores(prompt, candidates[0].kernel))
    variants = []
    for capacity in CAPACITIES:
        base = min(capacity - prompt.window, prompt.prefix)
        shape = budgets.Shape(len(prompt.compressed), prompt.kv_heads, prompt.prefix, base)
        variants.append(Variant(f"uniform@{capacity}", budgets.uniform(shape)))
        for number, each in enumerate(candidates):
            made = budgets.by_weights(shape, each.tensor(), each.alpha, each.floor)
            variants.append(Variant(f"{number}@{capacity}", made))
    answer = greedy if is_text else torch.tensor(row.answer)
    outcome = probe.force(prompt, answer, variants, rankings, compare=is_text)
    lost = outcome.kl[:, 1:].mean(1) if is_text else -outcome.logprob.sum(1)
    return [round(value, 6) for value in lost.tolist()]


def shares(records: list[dict], count: int) -> list[float]:
    """Per candidate the loss as a share of equal budgets', mean over tasks and capacities."""
    out = torch.zeros(count, dtype=torch.float64)
    tasks = sorted({record["task"] for record in records})
    for task in tasks:
        rows = torch.tensor([record["loss"] for record in records if record["task"] == task], dtype=torch.float64)
        sums = rows.sum(0).view(len(CAPACITIES), 1 + count)
        out += (sums[:, 1:] / sums[:, :1].clamp_min(1e-9)).mean(0)
    return (out / len(tasks)).tolist()


def key_of(generation: int, row: Row) -> str:
    """Under which the journal has what this generation's candidates lost on this prompt."""
    return f"generation {generation}/{row.key}"


def refine(
    probe: Probe,
    store: PrefillStore,
    rows: list[Row],
    start: Profile,
    generations: int,
    forced: int,
    journal,
    done: Callable[[Row], None],
    seed: int = 1,
) -> Profile:
    """The best mean of the last generation. What the journal holds is told to the search again, not measured again."""
    try:
        import cma
    except ImportError:
        raise RefineError("--refine needs the Python package cma: pip install cma") from None
    search = Search(start)
    options = {"popsize": POPULATION, "seed": seed, "verbose": -9, "maxiter": generations}
    strategy = cma.CMAEvolutionStrategy([0.0] * search.dimensions, _SIGMA, options)
    known = {record["key"]: record for record in journal.records}
    for generation in range(generations):
        vectors = strategy.ask()
        candidates = [search.profile(vector) for vector in vectors]
        for row in rows:
            key = key_of(generation, row)
            if key not in known:
                known[key] = {"key": key, "task": row.task, "loss": losses(probe, store, row, candidates, forced)}
                journal.append(known[key])
                done(row)
        part = [known[key_of(generation, row)] for row in rows]
        strategy.tell(vectors, shares(part, len(candidates)))
    return search.profile(strategy.mean)
