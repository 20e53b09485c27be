"""RULER's harder tasks (Hsieh et al. 2024): several keys, several values, several questions and chains over real text;
and lists whose most frequent words are asked for.

One statement per fact, the answer forced as for every needle; RULER scores by substrings of free text. Its questions about
SQuAD's and HotpotQA's documents are not among them: `--longbench` takes HotpotQA's.
"""

from __future__ import annotations

import functools
import random
import re
import string
from collections.abc import Callable

from .needles import PLACES, PROSE, Fact
from .sources import documents

_COMMON = 10  # Words that stand in a list six times; the others stand there once.
_CODED = 100  # Coded words; those of a higher rank would not stand in a text of 4,096 tokens.


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


@functools.cache
def _english() -> tuple[str, ...]:
    prose = " ".join(document.text for document in documents() if document.kind in PROSE)
    return tuple(sorted(set(re.findall(r"\b[a-z]{4,9}\b", prose))))


def _common_words(rng) -> Fact:
    """RULER's common words, as it makes them below 4,096 tokens: a numbered list, in no order."""
    pool, seed = rng.sample(_english(), len(_english())), rng.random()
    common = pool[:_COMMON]

    def listing(words: int) -> str:
        listed = 6 * common + pool[_COMMON:][:words]
        random.Random(seed).shuffle(listed)
        numbered = " ".join(f"{index}. {word}" for index, word in enumerate(listed, 1))
        return f"Below is a numbered list of words. In these words, some appear more often than others.\n{numbered}"

    return Fact(
        [],
        "What are the 10 most common words in the above list?",
        " The top 10 words that appear most often in the list are:",
        " " + ", ".join(common),
        listing,
    )


def _frequent_words(rng) -> Fact:
    """RULER's frequent words: coded words whose counts follow Zipf's law, count ∝ rank⁻². The first is a filler."""
    coded = ["...."] + ["".join(rng.choices(string.ascii_lowercase, k=6)) for _ in range(_CODED)]
    shares = [rank**-2 for rank in range(1, len(coded) + 1)]
    seed = rng.random()

    def listing(words: int) -> str:
        drawn = [word for word, share in zip(coded, shares) for _ in range(round(words * share / sum(shares)))]
        random.Random(seed).shuffle(drawn)
        return f"Read the following coded text and track the frequency of each coded word.\n{' '.join(drawn)}"

    return Fact(
        [],
        "Do not provide any explanation. Please ignore the dots '....'. What are the three most frequently appeared words in the above coded text?",
        " According to the coded text above, the three most frequently appeared words are:",
        " " + ", ".join(coded[1:4]),
        listing,
    )


RULER: dict[str, Callable[[random.Random], Fact]] = {
    "multi-key": _multi_key,
    "multi-value": _multi_value,
    "multi-query": _multi_query,
    "variable tracking": _variables,
    "common words": _common_words,
    "frequent words": _frequent_words,
}
