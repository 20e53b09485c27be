"""RULER's harder needles (Hsieh et al. 2024) over real text: several keys, several values, several questions, chains.

One statement per fact, the answer forced as for every needle; RULER scores by substrings of free text.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .needles import PLACES, Fact


def _multi_key(rng) -> Fact:
    """RULER's multi-key: several facts of one form, one is asked for."""
    places = rng.sample(PLACES.split(), 4)
    codes = [rng.randint(100_000, 999_999) for _ in places]
    chosen = rng.randrange(4)
    return Fact(
        [f"One of the special magic numbers for {place} is: {code}." for place, code in zip(places, codes)],
        f"What is the special magic number for {places[chosen]}?",
        " The special magic number is:",
        f" {codes[chosen]}",
    )


def _multi_value(rng) -> Fact:
    """RULER's multi-value: one key, several values, all are asked for."""
    place = rng.choice(PLACES.split())
    codes = [str(rng.randint(1_000, 9_999)) for _ in range(3)]
    return Fact(
        [f"One of the special magic numbers for {place} is: {code}." for code in codes],
        f"What are all the special magic numbers for {place}?",
        " They are:",
        f" {codes[0]}, {codes[1]}, {codes[2]}",
    )


def _multi_query(rng) -> Fact:
    """RULER's multi-query: several keys of one form, two are asked for at once."""
    places = rng.sample(PLACES.split(), 4)
    codes = [rng.randint(1_000, 9_999) for _ in places]
    first, second = rng.sample(range(4), 2)
    return Fact(
        [f"One of the special magic numbers for {place} is: {code}." for place, code in zip(places, codes)],
        f"What are the special magic numbers for {places[first]} and {places[second]}?",
        f" The special magic numbers for {places[first]} and {places[second]} are:",
        f" {codes[first]} and {codes[second]}",
    )


def _variables(rng) -> Fact:
    """RULER's variable tracking: a chain of assignments, the last one's value is asked for."""
    names = ["".join(rng.choice("ABCDEFGHKLMNPRSTVXZ") for _ in range(4)) for _ in range(3)]
    value = rng.randint(10_000, 99_999)
    return Fact(
        [f"VAR {names[0]} = {value}", f"VAR {names[1]} = VAR {names[0]}", f"VAR {names[2]} = VAR {names[1]}"],
        f"What is the value of VAR {names[2]}?",
        f" The value of VAR {names[2]} is",
        f" {value}",
    )


RULER: dict[str, Callable[[random.Random], Fact]] = {
    "multi-key": _multi_key,
    "multi-value": _multi_value,
    "multi-query": _multi_query,
    "variable tracking": _variables,
}
