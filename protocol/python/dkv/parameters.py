"""The parameters of a policy: what dkv.Policy, dkv.hf.Cache and the C ABI take, in one table.

None means the default, which is the policy's own (`dkv policy show NAME`, docs/POLICIES.md).
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Iterable

from . import checks
from .errors import DkvError, Status


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter. Its name is that of the field of dkv_policy."""

    name: str
    kind: type
    help: str
    check: Callable[[str, object], object]  # The value as the library takes it, or a DkvError.
    is_size: bool = False  # One of the ways to say how much is kept; two at once are refused.


def _number(expected: str, fits: Callable[[float], bool]) -> Callable[[str, object], float]:
    return lambda name, value: checks.number(name, value, expected, fits)


def _words(*known: str) -> Callable[[str, object], str]:
    return lambda name, value: checks.word(name, value, known)


_share = _number("a number above 0 and at most 1", lambda found: 0 < found <= 1)
_at_least_1 = _number("a number of at least 1", lambda found: found >= 1)
_bytes = lambda name, value: checks.count(name, value, least=1, most=(1 << 64) - 1)  # noqa: E731

PARAMETERS = (
    Parameter("capacity", int, "mean tokens kept per layer and KV head, window included", checks.count, is_size=True),
    Parameter("window", int, "last tokens of the prompt: kept, and their queries score the rest", checks.count),
    Parameter("kernel", int, "odd: pooling of the scores along tokens", checks.count),
    Parameter("pool", str, '"max" or "avg"', _words("max", "avg")),
    Parameter("reduce", str, '"mean", "max" or "sum" of the query heads of a KV head', _words("mean", "max", "sum")),
    Parameter("r_max", float, "dynamickv: a head stages at most r_max times the mean budget", _at_least_1),
    Parameter(
        "r_min", float, "dynamickv: a head keeps at least this share of the mean budget",
        _number("a number of 0 … 1", lambda found: 0 <= found <= 1),
    ),
    Parameter("update_interval", int, "dynamickv: layers between two cuts", checks.count),
    Parameter("sinks", int, "streamingllm: first tokens that are kept", checks.count),
    Parameter("beta", float, "pyramidkv: the mean budget over that of the last layer", _at_least_1),
    Parameter(
        "granularity", str, 'dynamickv: "layer", "head" or "layer-head" shares the budget', _words("layer", "head", "layer-head")
    ),
    Parameter(
        "score_norm", str, 'dynamickv: "none", "layer" or "layer-nosink" makes layers comparable',
        _words("none", "layer", "layer-nosink"),
    ),
    Parameter("query_norm", bool, "h2o: divide by the number of queries that can see a token", checks.flag),
    Parameter("ratio", float, "share of the prompt's tokens to keep", _share, is_size=True),
    Parameter("bytes", int, "most bytes of K and V to keep", _bytes, is_size=True),
    Parameter("keep_mass", float, "share of the window's attention to keep", _share, is_size=True),
    Parameter("preset", str, '"paper": the published settings, where nothing else is given', checks.text),
)  # fmt: skip
NAMES = tuple(parameter.name for parameter in PARAMETERS)


def checked(given: dict[str, object]) -> dict[str, object]:
    """Those that are not None, as the library takes them. Raises DkvError (INVALID_ARGUMENT)."""
    found = {each.name: each.check(each.name, given[each.name]) for each in PARAMETERS if given.get(each.name) is not None}
    sizes = [each.name for each in PARAMETERS if each.is_size and each.name in found]
    if len(sizes) > 1:
        raise DkvError(Status.INVALID_ARGUMENT, f"{' and '.join(sizes)} are given: one size is enough")
    return found


def refuse_unknown(callable_name: str, given: Iterable[str], own: Iterable[str] = ()) -> None:
    """Raises TypeError for the first name that is neither a parameter nor one of `own`."""
    known = list(dict.fromkeys([*own, *NAMES]))
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise TypeError(f"{callable_name}() has no option '{name}': {hint}There are {', '.join(known)}")


def signature(of: Callable, place: str) -> inspect.Signature:
    """That of `of`, whose **keywords become every parameter that it does not name, in front of `place`."""
    plain = inspect.signature(of)
    own = [each for each in plain.parameters.values() if each.kind is not inspect.Parameter.VAR_KEYWORD]
    names = [each.name for each in own]
    more = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=f"{each.kind.__name__} | None")
        for each in PARAMETERS
        if each.name not in names
    ]
    at = names.index(place)
    return plain.replace(parameters=[*own[:at], *more, *own[at:]])


def lines(indent: str) -> str:
    """Each parameter and its help, for a docstring."""
    width = 2 + max(map(len, NAMES))
    return "\n".join(f"{indent}{each.name:{width}}{each.help}" for each in PARAMETERS)
