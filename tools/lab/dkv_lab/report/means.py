"""Points of one model, named and compared like with like."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

from .sweep import Point

_ORDER = ("dynamickv", "snapkv", "pyramidkv", "h2o", "streamingllm", "knorm", "keydiff", "fullkv")
Measure = Callable[[Point], float | None]


@dataclass(frozen=True)
class Mean:
    """Of a measure over the prompts that every variant has at this capacity."""

    variant: str
    capacity: int
    value: float
    low: float  # The smallest of a prompt …
    high: float  # … and the largest.
    prompts: int
    bytes_kept: float
    share: float  # bytes_kept / bytes_full


@dataclass
class Study:
    """All points of one model. A variant is a policy with those parameters that the sweep varied."""

    model: str
    points: list[Point]
    variants: list[str] = field(default_factory=list)
    _of: dict[tuple[str, int], dict[str, Point]] = field(default_factory=dict)

    def __post_init__(self):
        varied = _varied(self.points)
        names = {}
        for point in self.points:
            name = _variant(point, varied)
            names.setdefault(name, point.policy)
            self._of.setdefault((name, point.capacity), {})[point.prompt] = point
        rank = {policy: place for place, policy in enumerate(_ORDER)}
        self.variants = sorted(names, key=lambda name: (rank.get(names[name], len(rank)), name))

    @property
    def capacities(self) -> list[int]:
        return sorted({point.capacity for point in self.points})

    @property
    def prompts(self) -> list[str]:
        return list(dict.fromkeys(point.prompt for point in self.points))

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(point.task for point in self.points if point.task))

    def at(self, variant: str, capacity: int) -> dict[str, Point]:
        """Per prompt."""
        return self._of.get((variant, capacity), {})

    def common(self, capacity: int) -> set[str]:
        """The prompts that every variant has which has any at this capacity."""
        sets = [set(points) for (_, at), points in self._of.items() if at == capacity]
        return set.intersection(*sets) if sets else set()

    def means(self, measure: Measure) -> list[Mean]:
        """By capacity, then in the order of `variants`. What has no common prompt is left out."""
        out = []
        for capacity in self.capacities:
            common = self.common(capacity)
            for variant in self.variants:
                found = [point for prompt, point in self.at(variant, capacity).items() if prompt in common]
                values = [measure(point) for point in found]
                if not values or any(value is None for value in values):
                    continue
                out.append(
                    Mean(
                        variant=variant,
                        capacity=capacity,
                        value=fmean(values),
                        low=min(values),
                        high=max(values),
                        prompts=len(values),
                        bytes_kept=fmean(point.bytes_kept for point in found),
                        share=sum(point.bytes_kept for point in found) / sum(point.bytes_full for point in found),
                    )
                )
        return out

    def rows_of_heat(self, variant: str, capacity: int) -> dict[str, list[float]]:
        """Budgets per layer: a row per task where there are tasks, else per prompt."""
        rows = defaultdict(list)
        labels = self.labels()
        for prompt, point in self.at(variant, capacity).items():
            rows[point.task if self.tasks else labels[prompt]].append(point.budgets)
        return {
            row: [fmean(column) for column in zip(*budgets)]
            for row, budgets in rows.items()
            if len({len(each) for each in budgets}) == 1
        }

    def labels(self) -> dict[str, str]:
        """Short names of the prompts: of their files, with as much of the path as tells them apart."""
        parts = {prompt: os.path.splitext(prompt)[0].split("/") for prompt in self.prompts}
        for depth in range(1, 1 + max(map(len, parts.values()))):
            short = {prompt: "/".join(part[-depth:]) for prompt, part in parts.items()}
            if len(set(short.values())) == len(short):
                return short
        return {prompt: prompt for prompt in parts}


def _varied(points: list[Point]) -> dict[str, set[str]]:
    """Per policy the parameters that it was tried with in more than one value at one capacity over one prompt."""
    seen = defaultdict(lambda: defaultdict(set))
    for point in points:
        for key, value in point.params:
            seen[point.policy, point.prompt, point.capacity][key].add(value)
    varied = defaultdict(set)
    for (policy, _, _), params in seen.items():
        varied[policy] |= {key for key, values in params.items() if len(values) > 1}
    return varied


def _variant(point: Point, varied: dict[str, set[str]]) -> str:
    told = [f"{key}={value}" for key, value in point.params if key in varied[point.policy]]
    return " ".join([point.policy, *told])


def damage(point: Point) -> float | None:
    return point.mean_damage


def mass(point: Point) -> float | None:
    return point.mean_mass


def error(point: Point) -> float | None:
    return point.mean_error
