"""What a model said over each point's cache, summed up: means with intervals, and which number without a model ranks alike."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from statistics import correlation, fmean

from .means import Measure, Study, damage, error, mass
from .tables import bootstrap, mean
from .units import percent, thousands

_FEWEST_FILES = 5  # Below that, intervals are drawn over questions.
_FEWEST_RANKED = 3  # Variants at a size, whose order says something.


@dataclass(frozen=True)
class Row:
    variant: str
    capacity: int
    share: float  # Of the bytes.
    kl: float
    low: float
    high: float
    agree: float
    found: int  # Answers, of those that the whole cache finds, …
    asked: int  # … which are so many.
    questions: int
    is_best: bool


def _ranks(values: tuple[float, ...]) -> list[float]:
    """Equal ones share the mean of theirs."""
    ordered = sorted(values)
    return [ordered.index(value) + (ordered.count(value) - 1) / 2 for value in values]


class Judged:
    """Verdicts (dkv_lab.judge) of a study's points. Like with like: prompts that every variant has at a size."""

    def __init__(self, study: Study, verdicts: list):
        self._study = study
        self._of: dict = {}
        for verdict in verdicts:
            self._of.setdefault(verdict.point, []).append(verdict)

    @functools.cached_property
    def rows(self) -> list[Row]:
        """By capacity, the least KL first."""
        out = []
        for capacity in self._study.capacities:
            found = [self._row(variant, capacity) for variant in self._study.variants]
            found = sorted((row for row in found if row is not None), key=lambda row: row["kl"])
            out += [Row(**row, is_best=place == 0) for place, row in enumerate(found)]
        return out

    def summary(self) -> list[str]:
        best = [row for row in self.rows if row.is_best]
        told = "; ".join(
            f"{row.variant} at {thousands(row.capacity)} tokens ({percent(row.share)} of the bytes): {row.kl:.3f} [{row.low:.3f}, {row.high:.3f}]"
            for row in best
        )
        files = len(self._study.prompts)
        over = "prompts" if files >= _FEWEST_FILES else "questions"
        return [f"Least KL to the whole cache, with 95 % intervals over {over}: {told}.", *self._ranked()]

    def spearman(self, measure: Measure) -> float | None:
        """Of a number of the sweep with KL, over the variants at a size; the mean of the sizes. None: too few variants."""
        kl, found = self._means(lambda point: fmean(each.kl for each in self._of[point])), []
        known = self._means(measure)
        for capacity in self._study.capacities:
            pairs = [(value, known[key]) for key, value in kl.items() if key[1] == capacity and key in known]
            if len(pairs) >= _FEWEST_RANKED and all(len(set(column)) > 1 for column in zip(*pairs)):
                found.append(correlation(*map(_ranks, zip(*pairs))))
        return fmean(found) if found else None

    def _ranked(self) -> list[str]:
        losses: dict[str, Callable] = {"damage": damage, "error": error, "attention lost": lambda point: None if mass(point) is None else 1 - mass(point)}
        found = {name: self.spearman(measure) for name, measure in losses.items()}
        told = ", ".join(f"{name} {value:+.2f}" for name, value in found.items() if value is not None)
        return [f"How the numbers that need no model rank the policies of a size, beside KL (Spearman's rho, mean of the sizes): {told}."] if told else []

    def _means(self, measure: Measure) -> dict[tuple[str, int], float]:
        return {(each.variant, each.capacity): each.value for each in self._study.means(measure)}

    def _row(self, variant: str, capacity: int) -> dict | None:
        common = self._study.common(capacity)
        points = [point for prompt, point in self._study.at(variant, capacity).items() if prompt in common]
        verdicts = [verdict for point in points for verdict in self._of[point]]
        if not verdicts:
            return None
        kls = [each.kl for each in verdicts]
        if len(points) >= _FEWEST_FILES:
            by_prompt = [[each.kl for each in self._of[point]] for point in points]
            kl, low, high = bootstrap(lambda drawn: mean([value for values in drawn for value in values]), by_prompt)
        else:
            kl, low, high = bootstrap(mean, kls)
        counted = [each for each in verdicts if each.whole_found]
        return {
            "variant": variant,
            "capacity": capacity,
            "share": sum(point.bytes_kept for point in points) / sum(point.bytes_full for point in points),
            "kl": kl,
            "low": low,
            "high": high,
            "agree": mean([each.agree for each in verdicts]),
            "found": sum(each.found for each in counted),
            "asked": len(counted),
            "questions": len(verdicts),
        }
