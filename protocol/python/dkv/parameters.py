"""The parameters of a policy: what dkv.Policy and dkv.hf.Cache take, from the table that C++ includes.

None means the default: the named policy's own (`dkv policy show NAME`, docs/POLICIES.md), or the sidecar's.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
from collections.abc import Callable, Iterable

from . import checks, programs
from .errors import DkvError, Status


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A line of protocol/policy/parameters.inc."""

    name: str  # As in dkv_policy.
    kind: type
    help: str
    words: tuple[str, ...] = ()  # What a str may be; (): any.
    least: float = 0  # Of a number, and of bytes. The sidecar checks what a count may be.
    most: float = float("inf")
    above_least: bool = False  # Else it may be `least` itself.
    is_size: bool = False  # One of the ways to say how much is kept; two at once are refused.

    def check(self, value: object) -> object:
        """The value as the library takes it. Raises DkvError (INVALID_ARGUMENT)."""
        if self.kind is bool:
            return checks.flag(self.name, value)
        if self.kind is str:
            return checks.word(self.name, value, self.words) if self.words else checks.text(self.name, value)
        if self.kind is int:
            return checks.count(self.name, value, int(self.least), (1 << 64) - 1 if self.name == "bytes" else checks.COUNT_MAX)
        return checks.number(self.name, value, self._expected(), self._holds)

    def _expected(self) -> str:
        if self.above_least:
            return f"a number above {self.least:g} and at most {self.most:g}"
        return f"a number of at least {self.least:g}" if self.most == float("inf") else f"a number of {self.least:g} … {self.most:g}"

    def _holds(self, value: float) -> bool:
        return self.least <= value <= self.most and not (self.above_least and value == self.least)


_KINDS = {"std::uint32_t": int, "std::uint64_t": int, "double": float, "bool": bool}  # Else a word or a text.
_RANGES = {"at_least": ("least",), "between": ("least", "most")}
_ROW = re.compile(
    r"^DKV_(?P<macro>\w+)\((?P<name>\w+), (?P<type>[\w:]+), [^,]+, \w+, (?P<range>\w+)\((?P<bounds>[^)]*)\), \"[^\"]*\","
    r"\n +\"(?P<help>[^\n]*)\",$",
    re.M,
)


def _read() -> tuple[Parameter, ...]:
    """The table without the profile, which is a dkv.Profile."""
    words = re.findall(r"kWordsOf<(\w+)>\{([^}]+)\}", programs.shared("base/score_options.h"))
    words = {kind: tuple(re.findall(r'"([^"]+)"', listed)) for kind, listed in words}
    found = []
    for row in _ROW.finditer(programs.shared("policy/parameters.inc")):
        kind = _KINDS.get(row["type"], str)
        bounds = {}
        if kind is float or row["type"] == "std::uint64_t":
            bounds = dict(zip(_RANGES.get(row["range"], ()), map(float, filter(None, row["bounds"].split(",")))))
        if row["range"] == "share":
            bounds = {"most": 1.0, "above_least": True}
        is_size = row["macro"] in ("SIZE", "CAPACITY")
        if row["type"] != "Profile":
            found.append(Parameter(row["name"], kind, row["help"], words.get(row["type"], ()), **bounds, is_size=is_size))
    return tuple(found)


PARAMETERS = _read()
NAMES = tuple(parameter.name for parameter in PARAMETERS)


def checked(given: dict[str, object]) -> dict[str, object]:
    """Those that are not None, as the library takes them. Raises DkvError (INVALID_ARGUMENT)."""
    found = {each.name: each.check(given[each.name]) for each in PARAMETERS if given.get(each.name) is not None}
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
    helps = {each.name: each.help + (f": {', '.join(each.words)}" if each.words else "") for each in PARAMETERS}
    return "\n".join(f"{indent}{name:{width}}{help}" for name, help in helps.items())
