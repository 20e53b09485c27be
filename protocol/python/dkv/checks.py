"""Checks of what callers pass, before a field of C takes it.

Each returns the value as the library takes it. Raises DkvError (INVALID_ARGUMENT): the name, what was found,
what was expected.
"""

from __future__ import annotations

import math
import operator
import typing

from .errors import DkvError, Status

COUNT_MAX = 0xFFFFFFFE  # One below DKV_DEFAULT.


def count(name: str, value: object, least: int = 0, most: int = COUNT_MAX) -> int:
    """An integer of Python, numpy or torch; True and False are not."""
    expected = f"an integer of at least {least}" if most >= COUNT_MAX else f"an integer of {least} … {most}"
    try:
        if _is_bool(value):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        raise refusal(name, value, expected) from None
    if not least <= number <= most:
        raise refusal(name, value, expected if number < least else f"{expected} and at most {most}")
    return number


def number(name: str, value: object, expected: str, fits: typing.Callable[[float], bool]) -> float:
    """A finite number of Python, numpy or torch for which `fits` is true; `expected` says that in words."""
    try:
        if _is_bool(value) or isinstance(value, (str, bytes)):
            raise TypeError
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError, RuntimeError):
        raise refusal(name, value, expected) from None
    if not math.isfinite(found) or not fits(found):
        raise refusal(name, value, expected)
    return found


def seconds(name: str, value: object) -> float:
    return number(name, value, "a number of seconds of at least 0", lambda found: found >= 0)


def flag(name: str, value: object) -> bool:
    if not _is_bool(value):
        raise refusal(name, value, "True or False")
    return bool(value)


def text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise refusal(name, value, "a string that is not empty")
    return value


def word(name: str, value: object, known: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in known:
        raise refusal(name, value, f"one of {', '.join(known)}")
    return value


def instance(name: str, value: object, kind: type) -> object:
    if not isinstance(value, kind):
        raise refusal(name, value, f"a dkv.{kind.__name__}")
    return value


def refusal(name: str, value: object, expected: str) -> DkvError:
    kind = type(value)
    of = "" if value is None or kind in (bool, int, float) else f" ({kind.__name__})"
    shown = repr(value)
    return DkvError(
        Status.INVALID_ARGUMENT, f"{name} is {shown if len(shown) <= 80 else shown[:79] + '…'}{of}, not {expected}"
    )


def _is_bool(value: object) -> bool:
    return isinstance(value, bool) or str(getattr(value, "dtype", "")).rpartition(".")[2] == "bool"
