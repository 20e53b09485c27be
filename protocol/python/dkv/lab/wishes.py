"""The evaluation's policies as the sidecar is asked for them."""

from __future__ import annotations

import dkv

from .policies import Facts, parse, profile_weights, ranked_options

# Of the sidecar alone: the lab has no rule of these names.
SIDECAR_ONLY = ("knorm", "keydiff")


def wish(text: str, facts: Facts, capacity: int) -> dkv.Policy | None:
    """What to ask for; None for a rule that exists in the lab alone."""
    name, parameters = parse(text) if text not in SIDECAR_ONLY else (text, {})
    make = _WISHES.get(name)
    if make is None:
        return None
    wanted = {"capacity": capacity, "window": facts.prompt.window}
    if name in _SCORED:
        wanted |= {key: parameters.pop(key, default) for key, default in ranked_options(facts, name, parameters).items()}
        wanted["kernel"] = int(wanted["kernel"])
    return dkv.Policy(**wanted, **make(facts, **parameters))


def _named(name: str):
    return lambda facts: {"name": name}


def _pyramid(facts: Facts, beta: float = 20) -> dict:
    return {"name": "pyramidkv", "beta": beta}


def _dynamickv(facts: Facts, m: float = 4, r_min: float = 0.1) -> dict:
    # 0: one update, after the last layer.
    return {"name": "dynamickv", "update_interval": int(m) or len(facts.prompt.compressed), "r_min": r_min}


def _profile(facts: Facts, alpha: float = -1, floor: float = -1, task: str = "", granularity: str = "", use: str = "") -> dict:
    used = facts.profile(use)
    made = dkv.Profile(
        name=use or next(iter(facts.profiles)),
        weights=profile_weights(used, task, granularity).tolist(),
        alpha=used.alpha if alpha < 0 else alpha,
        floor=used.floor if floor < 0 else floor,
    )
    return {"name": "dynamickv", "profile": made}


_SCORED = ("snapkv", "pyramidkv", "dynamickv", "profile")
_WISHES = {
    "streamingllm": _named("streamingllm"),
    "h2o": _named("h2o"),
    "knorm": _named("knorm"),
    "keydiff": _named("keydiff"),
    "snapkv": _named("snapkv"),
    "pyramidkv": _pyramid,
    "dynamickv": _dynamickv,
    "profile": _profile,
}
