"""Numbers that flags take, within their ranges. A refusal says what was found and what was expected."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable


def count(least: int = 0) -> Callable[[str], int]:
    """An integer of at least `least`."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise argparse.ArgumentTypeError(f"{text}: expected an integer of at least {least}")
        return value

    return read


def counts(least: int = 1) -> Callable[[str], list[int]]:
    """Different integers, with commas between them, in ascending order."""

    def read(text: str) -> list[int]:
        try:
            values = [int(word) for word in text.split(",")]
        except ValueError:
            values = [least - 1]
        if min(values) < least:
            raise argparse.ArgumentTypeError(f"{text}: expected integers of at least {least} with commas between them, 64,128")
        return sorted(set(values))

    return read


def number(least: float, most: float = math.inf) -> Callable[[str], float]:
    """A finite number of `least` … `most`."""
    expected = f"a finite number of at least {least:g}" if most == math.inf else f"a number of {least:g} … {most:g}"

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and least <= value <= most):
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return value

    return read


def share(text: str) -> float:
    """Between 0 and 1, which it is not itself."""
    value = number(0, 1)(text)
    if value in (0, 1):
        raise argparse.ArgumentTypeError(f"{text}: expected a number between 0 and 1")
    return value
