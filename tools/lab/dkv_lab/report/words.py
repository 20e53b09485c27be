"""The findings in sentences and tables."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

from .means import Mean, Study, damage, error, mass
from .sweep import Missing
from .units import bytes_words, percent, thousands

_ERRORS = (0.05, 0.02, 0.01)  # Of which it is said what they cost.


@dataclass(frozen=True)
class Best:
    """The policy to take at one size: by damage; where none is known by error, else by mass."""

    capacity: int
    share: float
    bytes_kept: float
    variant: str
    damage: float | None
    mass: float | None
    error: float | None
    second: str  # "" when there is no other.
    lead: str  # Over the second, in words.
    prompts: int


def best_by_size(study: Study) -> list[Best]:
    found = {
        name: {(mean.variant, mean.capacity): mean for mean in study.means(measure)}
        for name, measure in (("damage", damage), ("error", error), ("mass", mass))
    }
    by = next((name for name, means in found.items() if means), None)
    out = []
    for capacity in sorted({capacity for _, capacity in found[by]}) if by else []:
        rows = [mean for (_, at), mean in found[by].items() if at == capacity]
        rows.sort(key=lambda mean: -mean.value if by == "mass" else mean.value)
        first = rows[0]
        key = (first.variant, capacity)
        out.append(
            Best(
                capacity=capacity,
                share=first.share,
                bytes_kept=first.bytes_kept,
                variant=first.variant,
                second=rows[1].variant if len(rows) > 1 else "",
                lead=_lead(first, rows[1], by) if len(rows) > 1 else "",
                prompts=first.prompts,
                **{name: means[key].value if key in means else None for name, means in found.items()},
            )
        )
    return out


def _lead(first: Mean, second: Mean, by: str) -> str:
    if first.value == second.value:
        return "the same"
    if by == "mass":
        return f"{100 * (first.value - second.value):.2g} points more mass"
    if first.value == 0:
        return f"no {by} at all"
    return f"{by} {second.value / first.value:.2f} times as large"


def summary(study: Study, missing: list[Missing]) -> list[str]:
    """Sentences, the most important first."""
    table = best_by_size(study)
    out = [_extent(study)]
    if table:
        out.append(_winners(table))
        if table[0].damage is None:
            out.append("No damage is known, since the model has no profile: mass and error see the window alone, and often rank policies backwards.")
        out += _costs(study)
    else:
        out.append("No point has a damage, a mass or an error: the files have no queries, so only sizes can be told.")
    uneven = {capacity: len(study.common(capacity)) for capacity in study.capacities}
    if any(count < len(study.prompts) for count in uneven.values()):
        words = ", ".join(f"{count} at {thousands(c)}" for c, count in uneven.items() if count < len(study.prompts))
        out.append(f"Means are over the prompts that every policy has, which are not all of them: {words}.")
    if missing:
        reasons = Counter((each.policy, re.sub(r"\b\d[\d,]*\b", "…", each.why)) for each in missing)
        told = "; ".join(f"{policy} ({count}): {why}" for (policy, why), count in reasons.most_common(4))
        more = "" if len(reasons) <= 4 else f"; and {len(reasons) - 4} further reasons"
        out.append(f"{_count(len(missing), 'point')} cannot be had. {told}{more}.")
    return out


def _extent(study: Study) -> str:
    tokens = sorted({point.prompt_tokens for point in study.points})
    length = thousands(tokens[0]) if len(tokens) == 1 else f"{thousands(tokens[0])} to {thousands(tokens[-1])}"
    tasks = f" of {_count(len(study.tasks), 'task')}" if study.tasks else ""
    sizes = ", ".join(thousands(capacity) for capacity in study.capacities)
    name = f" of {study.model}" if study.model else ""
    return (
        f"{_count(len(study.variants), 'policy', 'policies')} at {_count(len(study.capacities), 'capacity', 'capacities')} "
        f"({sizes} tokens per layer and KV head) over {_count(len(study.prompts), 'prompt')}{tasks}{name}, "
        f"{length} tokens long."
    )


def _winners(table: list[Best]) -> str:
    wins = Counter(best.variant for best in table)
    by = "keeps most of the attention"
    if table[0].error is not None:
        by = "reconstructs attention best"
    if table[0].damage is not None:
        by = "does the least damage"
    best, count = wins.most_common(1)[0]
    if len(wins) == 1:
        head = f"{best} {by} at every size"
    else:
        others = ", ".join(f"{name} at {_sizes(table, name)}" for name in wins if name != best)
        head = f"{best} {by} at {count} of {len(table)} sizes ({others})"
    small = table[0]
    facts = [f"{percent(small.mass)} of the attention mass" if small.mass is not None else ""]
    facts.append(f"an error of {percent(small.error)}" if small.error is not None else "")
    told = " with ".join(fact for fact in facts if fact)
    return (
        f"{head}. At the smallest, {thousands(small.capacity)} tokens or {percent(small.share)} of the bytes, "
        f"{small.variant} keeps {told}."
        if small.mass is not None
        else f"{head}. At the smallest, {thousands(small.capacity)} tokens or {percent(small.share)} of the bytes, "
        f"{small.variant} has {told}."
    )


def _sizes(table: list[Best], name: str) -> str:
    return " and ".join(thousands(best.capacity) for best in table if best.variant == name)


def _costs(study: Study) -> list[str]:
    """How few bytes keep the error below a bound, with whatever policy."""
    means = study.means(error)
    told = []
    for bound in _ERRORS:
        good = [mean for mean in means if mean.value <= bound]
        if good:
            least = min(good, key=lambda mean: mean.bytes_kept)
            told.append(
                f"below {percent(bound)} takes {bytes_words(least.bytes_kept)} "
                f"({percent(least.share)}; {least.variant} at {thousands(least.capacity)})"
            )
    if not means:
        return []
    if not told:
        least = min(means, key=lambda mean: mean.value)
        return [f"No point's mean error is below {percent(_ERRORS[0])}; the least is {percent(least.value)} ({least.variant} at {thousands(least.capacity)})."]
    return [f"A mean error {', '.join(told)}."]


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number} {one if number == 1 else more or one + 's'}"
