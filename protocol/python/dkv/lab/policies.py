"""What the evaluation compares, by name: a selection, a budget rule and its parameters.

    snapkv  pyramidkv  dynamickv  profile/alpha=0.5/floor=0.2  joint/beta=0.5  snapkv/kernel=5/pool=avg
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from . import budgets, scores
from .calibrate import ERROR_GRID
from .probe import Prompt, Rankings, Variant
from .profile import Profile, combine


RANKED = {"kernel": 7.0, "pool": "max", "reduce": "mean"}  # Options of every policy that ranks by scores.


@dataclass
class Facts:
    """One prompt, and what rules may look at; what costs time is computed when first asked for."""

    prompt: Prompt
    profiles: dict[str, Profile]  # By their files' stems; the first is the default.

    def profile(self, name: str = "") -> Profile:
        name = name or next(iter(self.profiles))
        if name not in self.profiles:
            raise UnknownPolicy(f"no profile {name}: there are {', '.join(self.profiles)}")
        return self.profiles[name]

    @functools.cached_property
    def scores(self) -> list[torch.Tensor]:
        return scores.prompt_scores(self.prompt)

    @functools.cached_property
    def rankings(self) -> Rankings:
        return scores.prompt_rankings(self.prompt, self.scores)

    @functools.cached_property
    def errors(self) -> torch.Tensor:
        return scores.error_curves(self.prompt, self.rankings.orders["scores"], ERROR_GRID)

    @functools.cached_property
    def masses(self) -> torch.Tensor:
        return scores.mass_curves(self.prompt, self.rankings.orders["scores"], ERROR_GRID)

    def ranked(self, kernel: float, pool: str, reduce: str) -> str:
        """The name of the ranking with these options; made when first asked for."""
        if (kernel, pool, reduce) == tuple(RANKED.values()):
            return "scores"
        name = f"scores {kernel:g} {pool} {reduce}"
        if name not in self.rankings.orders:
            made = scores.prompt_scores(self.prompt, int(kernel), pool, reduce)
            self.rankings.orders[name] = [scores.rank(layer) for layer in made]
        return name

    def shape(self, capacity: int) -> budgets.Shape:
        base = min(capacity - self.prompt.window, self.prompt.prefix)
        return budgets.Shape(len(self.prompt.compressed), self.prompt.kv_heads, self.prompt.prefix, base)


class UnknownPolicy(ValueError):
    """No such name, or a parameter it does not have."""


def variant(text: str, facts: Facts, capacity: int) -> Variant:
    """The variant that `text` names."""
    name, parameters = parse(text)
    rule, ranking, needs_profile = RULES[name]
    if needs_profile and not facts.profiles:
        raise UnknownPolicy(f"{name} needs a profile: give --profile")
    if ranking == "scores":
        ranking = facts.ranked(*(parameters.pop(key, default) for key, default in ranked_options(facts, name, parameters).items()))
    return Variant(f"{text}@{capacity}", rule(facts, facts.shape(capacity), **parameters), ranking)


def ranked_options(facts: Facts, name: str, parameters: dict) -> dict:
    """What scores are ranked with where the policy's text does not say: a profile brings its own kernel."""
    if not RULES[name][2]:
        return RANKED
    return RANKED | {"kernel": float(facts.profile(str(parameters.get("use", ""))).kernel)}


def parse(text: str) -> tuple[str, dict[str, float | str]]:
    name, *pairs = text.split("/")
    if name not in RULES:
        raise UnknownPolicy(f"no policy {name}: there are {', '.join(RULES)}")
    allowed = dict(RULES[name][0].__kwdefaults__ or {})
    if RULES[name][1] == "scores":
        allowed |= RANKED
    parameters = {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in allowed:
            raise UnknownPolicy(f"{name} has no parameter {key}: it has {', '.join(allowed) or 'none'}")
        parameters[key] = value if isinstance(allowed[key], str) else float(value)
    return name, parameters


def _uniform(facts: Facts, shape: budgets.Shape) -> torch.Tensor:
    return budgets.uniform(shape)


def _pyramid(facts: Facts, shape: budgets.Shape, *, beta: float = 20) -> torch.Tensor:
    return budgets.pyramid(shape, beta)


def _dynamickv(facts: Facts, shape: budgets.Shape, *, m: float = 4, r_min: float = 0.1) -> torch.Tensor:
    return budgets.dynamickv(shape, facts.scores, r_min=r_min, update_interval=int(m) or None)


def profile_weights(used: Profile, task: str = "", granularity: str = "") -> torch.Tensor:
    """The profile's weights; of one task alone, or summed over a layer's heads, if wanted."""
    weights = used.tensor()
    if task:
        weights = combine({task: torch.tensor(used.figures[task]["damage"])})
    return weights.sum(1, keepdim=True) if granularity == "layer" else weights


def _profile(
    facts: Facts, shape: budgets.Shape, *, alpha: float = -1, floor: float = -1, task: str = "", granularity: str = "", use: str = ""
) -> torch.Tensor:
    used = facts.profile(use)
    alpha = used.alpha if alpha < 0 else alpha
    floor = used.floor if floor < 0 else floor
    return budgets.by_weights(shape, profile_weights(used, task, granularity), alpha, floor)


def _at(curves: torch.Tensor, base: int) -> torch.Tensor:
    """The curves' values at `base`, between grid points linearly."""
    high = next((i for i, b in enumerate(ERROR_GRID) if b >= base), len(ERROR_GRID) - 1)
    if high == 0 or ERROR_GRID[high] <= base:
        return curves[..., high]
    low = high - 1
    share = (base - ERROR_GRID[low]) / (ERROR_GRID[high] - ERROR_GRID[low])
    return curves[..., low] * (1 - share) + curves[..., high] * share


def _mean_errors(used: Profile) -> torch.Tensor:
    return torch.tensor(used.figures["error"]["mean"])


def _joint(
    facts: Facts,
    shape: budgets.Shape,
    *,
    alpha: float = -1,
    beta: float = 0.5,
    floor: float = -1,
    limit: float = 8,
    granularity: str = "",
    use: str = "",
) -> torch.Tensor:
    """Static weights times how much worse than usual this prompt's error is at the mean budget."""
    used = facts.profile(use)
    alpha = used.alpha if alpha < 0 else alpha
    floor = used.floor if floor < 0 else floor
    weights, error = profile_weights(used, "", granularity), _at(facts.errors, shape.base)
    mean = _at(_mean_errors(used), shape.base)
    if granularity == "layer":
        error, mean = error.mean(1, keepdim=True), mean.mean(1, keepdim=True)
    return budgets.by_weights_and_error(shape, weights, error, mean, alpha, beta, floor, limit)


def _hull(
    facts: Facts, shape: budgets.Shape, *, gain: float = 1, power: float = 1, floor: float = 0.2, at: float = 96
) -> torch.Tensor:
    """Least Σ gain · E(b)^power, gain = (weight / mean E(at)^power)^gain."""
    used = facts.profile()
    mean = _at(_mean_errors(used), int(at)).double() ** power
    gains = (profile_weights(used) / (mean + 1e-6)) ** gain
    return budgets.by_marginal_gain(shape, gains, facts.errors.double() ** power, ERROR_GRID, floor)


def _hull_mean(
    facts: Facts, shape: budgets.Shape, *, gain: float = 1, power: float = 1, floor: float = 0.2, at: float = 96
) -> torch.Tensor:
    """As hull, with the calibration prompts' mean curves: static."""
    used = facts.profile()
    curves = _mean_errors(used).double() ** power
    gains = (profile_weights(used) / (_at(curves, int(at)) + 1e-6)) ** gain
    return budgets.by_marginal_gain(shape, gains, curves, ERROR_GRID, floor)


def _error(facts: Facts, shape: budgets.Shape, *, alpha: float = 0.5, floor: float = 0.2) -> torch.Tensor:
    """The prompt's errors alone: what is best without a profile, perhaps."""
    return budgets.by_weights(shape, _at(facts.errors, shape.base).double(), alpha, floor)


def _mass(facts: Facts, shape: budgets.Shape, *, alpha: float = 0.5, beta: float = 0.5, floor: float = 0.2) -> torch.Tensor:
    """Static weights times the attention mass that the mean budget would lose."""
    lost = _at(facts.masses, shape.base).double()
    return budgets.by_weights(shape, profile_weights(facts.profile()) ** alpha * (lost + 1e-4) ** beta, 1, floor)


# name: (rule, ranking, whether it needs a profile)
RULES = {
    "streamingllm": (_uniform, "positions", False),
    "h2o": (_uniform, "h2o", False),
    "snapkv": (_uniform, "scores", False),
    "pyramidkv": (_pyramid, "scores", False),
    "dynamickv": (_dynamickv, "scores", False),
    "error": (_error, "scores", False),
    "profile": (_profile, "scores", True),
    "joint": (_joint, "scores", True),
    "hull": (_hull, "scores", True),
    "hullmean": (_hull_mean, "scores", True),
    "mass": (_mass, "scores", True),
}
