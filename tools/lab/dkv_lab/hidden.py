"""Prompts whose question comes after they were compressed.

The context is compressed with its own last tokens as the window; then the questions follow one by one, each with its
answer, over what was kept. So a policy is judged by what it keeps for questions that it does not know.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from .needles import FAMILIES, Ask, Row, asked, context_of, encode, mean, question_of, start
from .sources import Reader

QUESTIONS = 3  # For each context with needles.

# Per part, so that what is tuned on says nothing of what is reported.
OF_TEXTS = {
    "calibration": (
        "What is this text about?",
        "Which rule does the text state?",
        "Give a short overview of the text.",
        "What does the end of the text say?",
        "Which things does the text describe, and how?",
        "What should a user of this know?",
    ),
    "tuning": (
        "Summarize the text above in one sentence.",
        "Which names are mentioned in the text above?",
        "What does the beginning of the text say?",
    ),
    "report": (
        "What is the main topic of the text?",
        "What would a reader learn from this text?",
        "List the most important terms that the text uses.",
        "Explain in simple words what the middle part of the text says.",
    ),
}


def needle_rows(tokenizer, family: str, part: str, count: int, length: int, seed: int) -> list[Row]:
    """Contexts of `length` tokens with QUESTIONS facts each, until there are `count` questions; asked in any order."""
    templates = list(FAMILIES[family].items())
    reader, rows = Reader(part, seed), []
    for index in range(-(-count // QUESTIONS)):
        key = f"hidden-{family}-{length}-{seed}-{index}"
        rng = random.Random(f"{key}/{part}")
        chosen = [templates[(QUESTIONS * index + turn) % len(templates)] for turn in range(min(QUESTIONS, len(templates)))]
        rows.append(_row(tokenizer, [(name, make(rng)) for name, make in chosen], reader, rng, length, key, "needle"))
    return rows


def ruler_rows(tokenizer, part: str, count: int, length: int, seed: int, makers: dict[str, Callable]) -> list[Row]:
    """One question for each context, since a task's statements belong together."""
    reader, rows, templates = Reader(part, seed), [], list(makers.items())
    for index in range(count):
        key = f"hidden-ruler-{length}-{seed}-{index}"
        rng = random.Random(f"{key}/{part}")
        name, make = templates[index % len(templates)]
        rows.append(_row(tokenizer, [(name, make(rng))], reader, rng, length, key, "ruler"))
    return rows


def text_rows(tokenizer, part: str, count: int, length: int, seed: int) -> list[Row]:
    """Excerpts of `length` tokens of running text, and a question about it."""
    reader, rows = Reader(part, seed), []
    for index in range(count):
        document, text = reader.excerpt(8 * length)
        questions = OF_TEXTS[part]
        question = tuple(asked(tokenizer, questions[index % len(questions)]))
        tokens = (start(tokenizer) + encode(tokenizer, text))[:length]
        key = f"hidden-text-{part}-{length}-{seed}-{index}"
        rows.append(Row(key, "text", document.kind, tokens, [], asks=(Ask(question, (), document.kind),)))
    return rows


def _row(tokenizer, facts: list, reader: Reader, rng, length: int, key: str, task: str) -> Row:
    rng.shuffle(facts)  # In the context; below in the order of the questions.
    template = facts[0][0] if len(facts) == 1 else "several"
    tokens, spans, depths = context_of(tokenizer, [fact for _, fact in facts], reader, rng, length, template)
    asks, at = [], 0
    for name, fact in facts:
        own = depths[at : at + len(fact.statements)]
        at += len(fact.statements)
        question, answer = tuple(question_of(tokenizer, fact)), tuple(encode(tokenizer, fact.answer))
        asks.append(Ask(question, answer, name, mean(own)))
    rng.shuffle(asks)
    return Row(key, task, template, tokens, [], facts=tuple(spans), asks=tuple(asks))
