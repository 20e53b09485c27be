"""What the evaluation compares, by name: how the sidecar is asked for it, and the same choice in torch.

    snapkv  pyramidkv  dynamickv  profile/alpha=0.5/floor=0.2  snapkv/kernel=5/pool=avg  joined/bits=8

With bits a capacity counts bytes: those of so many rows in 16 bits.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

import dkv
from dkv.errors import UserError
from dkv.hf import wishes
from dkv.hf.profile_file import Profile

from . import bits, budgets, scores, surrogate
from .probe import Layer, Prompt, Rankings, Variant, narrowed

_POOLED = ("scores", "joined")
_WINDOW_OF_FORESEEN = 16  # As dkvd's default is; of others it is the evaluation's.
RANKED = {"kernel": 7.0, "pool": "max", "reduce": "mean"}  # Options of every policy that ranks by scores.


class UnknownPolicy(UserError):
    """No such name, or a parameter it does not have."""


@dataclass
class Facts:
    """One prompt, and what rules may look at; what costs time is computed when first asked for."""

    prompt: Prompt
    profiles: dict[str, Profile]  # By their files' stems; the first is the default.
    replay: Callable[[], list[torch.Tensor]] | None = None  # Makes KVzip's scores [Hkv, n] of every compressed layer.
    foreseen: dict[str, list[torch.Tensor]] = field(default_factory=dict)  # Scores [Hkv, N], by the ranking's name.
    _of_windows: dict[int, "Facts"] = field(default_factory=dict)
    _in_bits: dict[int, list[Layer]] = field(default_factory=dict)

    def of_window(self, window: int) -> "Facts":
        """The same prompt for policies with another window; the evaluation's own is the most."""
        if window >= self.prompt.window:
            return self
        if window not in self._of_windows:
            self._of_windows[window] = Facts(narrowed(self.prompt, window), self.profiles, lambda: self.replayed)
        return self._of_windows[window]

    def profile(self, name: str = "") -> Profile:
        if not self.profiles:
            raise UnknownPolicy("profile needs a profile: give --profile")
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

    def ranked(self, kernel: float, pool: str, reduce: str) -> str:
        """The name of the ranking with these options; made when first asked for."""
        if (kernel, pool, reduce) == tuple(RANKED.values()):
            return "scores"
        name = f"scores {kernel:g} {pool} {reduce}"
        if name not in self.rankings.orders:
            made = scores.prompt_scores(self.prompt, int(kernel), pool, reduce)
            self.rankings.orders[name] = [scores.rank(layer) for layer in made]
        return name

    def by_surrogate(self, use: str) -> str:
        """The ranking that the profile's surrogate predicts, by name."""
        name, made = f"surrogate {use}", self.profile(use).predictor()
        if name not in self.rankings.orders:
            if made is None:
                raise UnknownPolicy("reuse and joined need a profile with a surrogate: dkv calibrate MODEL --surrogate")
            pairs = zip(self.prompt.compressed, made.weights)
            found = [surrogate.predicted(self.prompt.layers[index], weights, made.rope) for index, weights in pairs]
            self._rank(name, [layer[:, : self.prompt.prefix] for layer in found])
        return name

    def by_both(self, use: str, options: dict) -> str:
        """The larger of the surrogate's scores and of the most that the window attends, smoothed."""
        other = self.by_surrogate(use)
        name = f"joined {options['kernel']:g} {options['pool']} {use}"
        if name not in self.rankings.orders:
            peaks = [scores.window_peaks(self.prompt.layers[index]) for index in self.prompt.compressed]
            seen = [scores.pool(layer, int(options["kernel"]), options["pool"]) for layer in peaks]
            self._rank(name, [scores.joined(*pair) for pair in zip(seen, self.foreseen[other])])
        return name

    def _rank(self, name: str, found: list[torch.Tensor]) -> None:
        self.foreseen[name] = found
        self.rankings.orders[name] = [scores.rank(layer) for layer in found]

    @functools.cached_property
    def replayed(self) -> list[torch.Tensor]:
        if self.replay is None:
            raise UnknownPolicy("replay needs a model that can be run again")
        return self.replay()

    def by_replay(self) -> str:
        if "replay" not in self.rankings.orders:
            self.rankings.orders["replay"] = [scores.rank(layer[:, : self.prompt.prefix]) for layer in self.replayed]
        return "replay"

    def in_bits(self, count: int) -> list[Layer]:
        if count not in self._in_bits:
            self._in_bits[count] = bits.layers_in(self.prompt, count)
        return self._in_bits[count]

    def shape(self, capacity: int) -> budgets.Shape:
        base = min(capacity - self.prompt.window, self.prompt.prefix)
        return budgets.Shape(len(self.prompt.compressed), self.prompt.kv_heads, self.prompt.prefix, base)


@dataclass(frozen=True)
class Rule:
    """Both functions take the facts and every parameter; the first also the shape and the ranking's name."""

    ranking: str | None  # Of scores.prompt_rankings, "surrogate", "joined" or "replay"; None: the sidecar alone knows it.
    budgets: Callable[..., torch.Tensor] | None
    wish: Callable[..., dict]  # What dkv.Policy gets, beside capacity, window and the options of scores.
    parameters: dict[str, float | str] = field(default_factory=dict)  # With their defaults.
    needs_profile: bool = False
    window: int = 0  # Its own default; 0: the evaluation's.

    @property
    def options(self) -> dict[str, float | str]:
        return self.parameters | (RANKED if self.ranking in _POOLED else {}) | {"window": float(self.window), "bits": ""}


def _uniform(name: str, ranking: str) -> Rule:
    return Rule(ranking, lambda facts, shape, ranking: budgets.uniform(shape), lambda facts: {"name": name})


def _sidecars_own(name: str) -> Rule:
    return Rule(None, None, lambda facts: {"name": name})


def _profile_budgets(facts: Facts, shape: budgets.Shape, ranking: str, alpha: float, floor: float, use: str) -> torch.Tensor:
    used = facts.profile(use)
    return budgets.by_weights(shape, used.tensor(), used.alpha if alpha < 0 else alpha, used.floor if floor < 0 else floor)


def _half_of_profile(facts: Facts, shape: budgets.Shape, ranking: str, **of_profile) -> torch.Tensor:
    return budgets.by_threshold(shape, facts.foreseen[ranking], _profile_budgets(facts, shape, ranking, **of_profile))


def _profile_wish(facts: Facts, alpha: float, floor: float, use: str, name: str = "dynamickv") -> dict:
    used = facts.profile(use)
    made = dkv.Profile(
        name=use or next(iter(facts.profiles)),
        weights=used.weights,
        alpha=used.alpha if alpha < 0 else alpha,
        floor=used.floor if floor < 0 else floor,
        surrogate=used.surrogate_wish(),
    )
    return {"name": name, "profile": made}


_OF_PROFILE = {"alpha": -1.0, "floor": -1.0, "use": ""}  # A negative number: the profile's own.


RULES = {
    "streamingllm": _uniform("streamingllm", "positions"),
    "h2o": _uniform("h2o", "h2o"),
    "snapkv": _uniform("snapkv", "scores"),
    "knorm": _sidecars_own("knorm"),
    "keydiff": _sidecars_own("keydiff"),
    "pyramidkv": Rule(
        "scores",
        lambda facts, shape, ranking, beta: budgets.pyramid(shape, beta),
        lambda facts, beta: {"name": "pyramidkv", "beta": beta},
        {"beta": 20.0},
    ),
    "dynamickv": Rule(
        "scores",
        lambda facts, shape, ranking, m, r_min: budgets.dynamickv(shape, facts.scores, r_min=r_min, update_interval=int(m) or None),
        # m=0: one update, after the last layer.
        lambda facts, m, r_min: {"name": "dynamickv", "update_interval": int(m) or len(facts.prompt.compressed), "r_min": r_min},
        {"m": 4.0, "r_min": 0.1},
    ),
    "profile": Rule("scores", _profile_budgets, _profile_wish, _OF_PROFILE, needs_profile=True),
    "reuse": Rule(
        "surrogate",
        lambda facts, shape, ranking, use: budgets.by_threshold(shape, facts.foreseen[ranking]),
        lambda facts, use: _profile_wish(facts, -1.0, -1.0, use, "reuse"),
        {"use": ""},
        True,
        _WINDOW_OF_FORESEEN,
    ),
    "joined": Rule(
        "joined", _half_of_profile, functools.partial(_profile_wish, name="auto"), _OF_PROFILE, True, _WINDOW_OF_FORESEEN
    ),
    "replay": Rule("replay", _profile_budgets, functools.partial(_profile_wish, name="scores"), _OF_PROFILE, True),
}


def parse(text: str) -> tuple[str, dict[str, float | str]]:
    """The policy's name, and the parameters that the text gives. Raises UnknownPolicy."""
    name, *pairs = text.split("/")
    if name not in RULES:
        raise UnknownPolicy(f"no policy {name}: there are {', '.join(RULES)}")
    allowed, given = RULES[name].options, {}
    for pair in pairs:
        key, _, value = pair.partition("=")
        if key not in allowed:
            raise UnknownPolicy(f"{name} has no parameter {key}: it has {', '.join(allowed) or 'none'}")
        try:
            given[key] = value if isinstance(allowed[key], str) else float(value)
        except ValueError:
            raise UnknownPolicy(f"{name}/{pair}: {key} is {value}, not a number") from None
    if given.get("bits", "16") not in bits.NAMES:
        raise UnknownPolicy(f"{name}/bits={given['bits']}: bits are {', '.join(bits.NAMES)}")
    return name, given


def bits_of(text: str) -> str:
    """"": rows stay as they are."""
    return str(parse(text)[1].get("bits", ""))


def rows_for(text: str, facts: Facts, capacity: int) -> int:
    """Rows of a head, of this policy's bits, in the bytes of `capacity` rows of 16 bits; at most the prompt."""
    found = bits_of(text)
    if not found:
        return capacity
    layer, elements = facts.prompt.layers[facts.prompt.compressed[0]], elements_of(facts)
    if found != "16" and (layer.keys.shape[-1] % bits.BLOCK or layer.values.shape[-1] % bits.BLOCK):
        raise UnknownPolicy(f"{text}: heads of {layer.keys.shape[-1]} dims are not whole blocks of {bits.BLOCK}: leave bits out")
    return bits.in_the_bytes_of(capacity, found, facts.prompt.tokens, elements)[0]


def elements_of(facts: Facts) -> int:
    """Of a row of K and one of V."""
    layer = facts.prompt.layers[facts.prompt.compressed[0]]
    return layer.keys.shape[-1] + layer.values.shape[-1]


def row_bytes(text: str, facts: Facts, capacity: int) -> float:
    """Of one token's K and V in one KV head, on the mean."""
    found, elements = "" if text == "fullkv" else bits_of(text), elements_of(facts)
    if not found:
        return facts.prompt.layers[facts.prompt.compressed[0]].keys.element_size() * elements
    return bits.bytes_of(found, elements) * (1 + bits.in_the_bytes_of(capacity, found, facts.prompt.tokens, elements)[1])


def read_back(text: str, facts: Facts, made: Variant, capacity: int) -> Variant:
    """The variant with its rows in the policy's bits."""
    found, facts = bits_of(text), facts_for(text, facts)
    if found == "mixed":
        share = bits.in_the_bytes_of(capacity, found, facts.prompt.tokens, elements_of(facts))[1]
        made.layers = bits.mixed(facts.prompt, facts.in_bits(4), facts.rankings.orders[made.ranking], made.budgets, share)
    elif found:
        made.layers = facts.in_bits(int(found))
    return made


def rule(text: str) -> Rule:
    """Raises UnknownPolicy."""
    return RULES[parse(text)[0]]


def ranked_options(facts: Facts, name: str, given: dict) -> dict:
    """kernel, pool and reduce: as given; else a profile brings its own kernel."""
    own = RANKED | ({"kernel": float(facts.profile(str(given.get("use", ""))).kernel)} if RULES[name].needs_profile else {})
    return own | {key: given[key] for key in RANKED if key in given}


def _resolved(text: str, facts: Facts) -> tuple[Rule, dict, dict]:
    """The rule, its own parameters, and the options of the scores that it ranks by, if it does."""
    name, given = parse(text)
    rule = RULES[name]
    options = ranked_options(facts, name, given) if rule.ranking in _POOLED else {}
    return rule, rule.parameters | {key: value for key, value in given.items() if key in rule.parameters}, options


def facts_for(text: str, facts: Facts) -> Facts:
    """The prompt with the window that the policy has. Raises UnknownPolicy."""
    name, given = parse(text)
    if not 1 <= given.get("window", 1) <= facts.prompt.window:
        raise UnknownPolicy(f"{text}: a window is 1 … {facts.prompt.window}, the evaluation's")
    return facts.of_window(int(given.get("window", RULES[name].window or facts.prompt.window)))


def variant(text: str, facts: Facts, capacity: int) -> Variant:
    """What the policy keeps, chosen here. Raises UnknownPolicy for one that is the sidecar's alone."""
    facts = facts_for(text, facts)
    rule, parameters, options = _resolved(text, facts)
    if rule.budgets is None:
        raise UnknownPolicy(f"{text} is the sidecar's alone: leave --inline out")
    ranking = rule.ranking
    if ranking == "scores":
        ranking = facts.ranked(**options)
    elif ranking == "surrogate":
        ranking = facts.by_surrogate(parameters["use"])
    elif ranking == "joined":
        ranking = facts.by_both(parameters["use"], options)
    elif ranking == "replay":
        ranking = facts.by_replay()
    shape = facts.shape(rows_for(text, facts, capacity))
    return read_back(text, facts, Variant(f"{text}@{capacity}", rule.budgets(facts, shape, ranking, **parameters), ranking), capacity)


def wish(text: str, facts: Facts, capacity: int) -> dkv.Policy:
    """The policy as the sidecar is asked for it."""
    facts = facts_for(text, facts)
    rule, parameters, options = _resolved(text, facts)
    if options:
        options["kernel"] = int(options["kernel"])
    return dkv.Policy(capacity=rows_for(text, facts, capacity), window=facts.prompt.window, **options, **rule.wish(facts, **parameters))


def as_flags(text: str, window: int, profile: Profile | None) -> dict[str, float | str]:
    """The policy and its parameters under dkv's own names, but for its size, as the sidecar was asked for it.

    window   of the evaluation
    profile  the one that it was measured with

    Raises UnknownPolicy for what these names cannot say.
    """
    name, given = parse(text)
    rule = RULES[name]
    if given.get("use"):
        raise UnknownPolicy(f"{text}: a certificate is of one profile: leave use out")
    if given.get("bits"):
        raise UnknownPolicy(f"{text}: a certificate is of rows as they are: leave bits out")
    if rule.needs_profile and profile is None:
        raise UnknownPolicy(f"{text} needs a profile: give --profile")
    if profile is not None and name == "dynamickv":
        raise UnknownPolicy(f"{text} goes by a profile where there is one, and this was measured without: name profile")
    facts = Facts(Prompt(0, window, [], torch.zeros(0)), {"own": profile} if profile else {})
    own = rule.parameters | {key: value for key, value in given.items() if key in rule.parameters}
    wish = rule.wish(facts, **own)
    out: dict = {"policy": wish.pop("name"), "window": int(given.get("window", rule.window or window))}
    if wish.pop("profile", None) is not None:
        out |= {f"profile_{key}": own[key] for key in ("alpha", "floor") if own.get(key, -1) >= 0}
    if rule.ranking in _POOLED:
        options = ranked_options(facts, name, given)
        out |= options | {"kernel": int(options["kernel"])}
    if wish.get("update_interval") == 0:
        raise UnknownPolicy(f"{text}: a certificate needs a number of layers: give m")
    return out | wish


def certified(text: str, window: int, path: Path, profile: Profile, risk: float) -> wishes.Certificate:
    """The certificate in the profile at `path` for this policy as the evaluation measures it.

    Raises UserError where none fits, and for one of other parameters.
    """
    flags = as_flags(text, window, profile)
    found = wishes.certificate(path, str(flags.pop("policy")), risk)
    if found.wish != {**flags, "capacity": found.wish["capacity"]}:
        theirs = ", ".join(f"{key} {value}" for key, value in found.wish.items() if value != flags.get(key) and key != "capacity")
        raise UserError(f"'{found.name}' is not of {text} as it is measured here ({theirs or 'it says less'}): name the policy as in the certificate")
    return found
