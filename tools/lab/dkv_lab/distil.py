"""Trains a surrogate's weights on what is lost when rows are dropped by them.

A lesson is a prompt and a tail that follows it: a context, and questions with their answers or what the text goes on
with; or a context with a question, and its answer. Each of the prompt's rows has a gate in each KV head, the sigmoid of
its score less the one that its policy cuts at; the logits of attention get the gate's logarithm. KL(full || gated) over
the tail's answers is minimised. The cut moves with the scores, so that the mean budget stays what it is: a head gains
rows only from others.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dkv.hf.profile_file import Profile

from . import budgets, hidden, needles, progress, scores, surrogate
from .needles import FORCED, Row
from .probe import Probe, Prompt, Rankings, Variant, cap, narrowed, softmax

WINDOW = 16  # As dkvd's default is with a surrogate.
PASSES, RATE, ANCHOR = 5, 3e-3, 1e-3  # Over the lessons.
LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # By which all scores may be lowered: reuse does not notice, auto sees more of the window.
_JOINED = 0.4  # The share of steps that train auto's choice; the others train that of reuse.
_HELD = 5  # Every so many contexts are not trained on: an odd number, so that facts and text take turns.
_LEAST_LOSS = 0.05  # Lessons count by the logarithm of their KL; below this there is little to learn.


@dataclass
class Lesson:
    prompt: Prompt
    tail: torch.Tensor  # [T]
    judged: torch.Tensor  # Which of the tail's tokens are judged, ascending, all above 0.
    full: torch.Tensor  # [judged, vocabulary] f16: the full cache's log-probabilities.
    shown: bool = False  # The question is in the prompt: of no use to reuse, which does not look at the window.


def lessons(probe: Probe, tokenizer, row: Row, question: str) -> list[Lesson]:
    """Of one context: its facts asked for, a question about the text, how the text goes on, and each question shown."""
    prompt = _prefilled(probe, row.tokens)
    tails = []
    if row.asks:
        tail, judged = [], []
        for ask in row.asks:
            begin = len(tail) + len(ask.question)
            tail += [*ask.question, *ask.answer]
            judged += range(begin, len(tail))
        tails.append((tail, judged))
    asked = needles.asked(tokenizer, question)
    answer = probe.greedy(prompt, FORCED, tuple(asked)).tolist()
    tails.append((asked + answer, list(range(len(asked), len(asked) + FORCED))))
    if row.continuation:
        tails.append((list(row.continuation), list(range(1, len(row.continuation)))))
    out = [_lesson(probe, prompt, tail, judged) for tail, judged in tails]
    for ask in row.asks:
        if len(ask.answer) > 1:  # The first token is the prefill's, whatever is kept.
            asking = _prefilled(probe, [*row.tokens, *ask.question])
            out.append(_lesson(probe, asking, list(ask.answer), list(range(1, len(ask.answer))), shown=True))
    return out


def _lesson(probe: Probe, prompt: Prompt, tail: list[int], judged: list[int], shown: bool = False) -> Lesson:
    whole = Variant("full", torch.full((len(prompt.compressed), prompt.kv_heads), prompt.prefix))
    ids, places = torch.tensor(tail), torch.tensor(judged)
    with torch.inference_mode():
        full = probe._logprobs(prompt, ids, places, [whole], Rankings({}))[0].half()
    return Lesson(prompt, ids, places, full.clone(), shown)


def _prefilled(probe: Probe, tokens: list[int]) -> Prompt:
    """Without tensors of inference mode, which no gradient passes."""
    prompt = probe.prefill(torch.tensor(tokens, device=probe.model.device))
    for layer in prompt.layers:
        layer.keys, layer.values, layer.queries = layer.keys.clone(), layer.values.clone(), layer.queries.clone()
    return narrowed(prompt, min(WINDOW, prompt.window))


class _Gated:
    """The tail over context rows that are open as far as their gates are."""

    def __init__(self, prompt: Prompt, gates: list[torch.Tensor], tokens: int):
        self.prompt, self.tokens = prompt, tokens
        self.gates = dict(zip(prompt.compressed, gates))

    def attend(self, index: int, call) -> torch.Tensor:
        layer, query, key, value = self.prompt.layers[index], call.query[0], call.key[0], call.value[0]
        heads, n = layer.keys.shape[:2]
        rows = query.reshape(heads, layer.group * self.tokens, -1) * layer.scale
        past, own = cap(rows @ layer.keys.transpose(1, 2), layer.softcap), cap(rows @ key.transpose(1, 2), layer.softcap)
        seen = torch.ones(self.tokens, self.tokens, dtype=torch.bool).tril()
        if layer.sliding is not None:
            reach = torch.arange(self.tokens)[:, None] + n - layer.sliding
            past = past.masked_fill((torch.arange(n)[None] <= reach).repeat(layer.group, 1), -math.inf)
            seen &= ~torch.ones_like(seen).tril(-layer.sliding)
        else:
            past = past + self.gates[index][:, None]
        own = own.masked_fill(~seen.repeat(layer.group, 1), -math.inf)
        weights = softmax(torch.cat([past, own], dim=2), layer.row_sinks(self.tokens))
        out = weights[..., :n] @ layer.values + weights[..., n:] @ value
        return out.reshape(-1, self.tokens, out.shape[-1]).transpose(0, 1)[None]


def gated_kl(probe: Probe, lesson: Lesson, gates: list[torch.Tensor]) -> torch.Tensor:
    last = int(lesson.judged[-1])
    passed = _Gated(lesson.prompt, gates, last)
    logits = probe._forward(lesson.tail[None, :last], lesson.prompt.tokens, passed, logits_to_keep=lesson.judged - 1)[0]
    full = lesson.full.float()
    return (full.exp() * (full - logits.float().log_softmax(-1))).sum(-1).mean()


def open_gates(found: list[torch.Tensor], kept: torch.Tensor, window: int, heat: float) -> list[torch.Tensor]:
    """Logarithms of gates [Hkv, n] from scores [Hkv, N] of every layer and budgets [layers, Hkv]."""
    stacked = torch.stack(found)
    fixed = stacked.detach()
    ordered = fixed.sort(-1, descending=True).values
    last = ordered.shape[-1] - 1
    # Between the last row that is kept and the first that is not.
    cut = (ordered.gather(-1, (kept[..., None] - 1).clamp(0, last)) + ordered.gather(-1, kept[..., None].clamp(0, last))) / 2
    steep = torch.sigmoid((fixed - cut) / heat)
    steep = steep * (1 - steep)
    moved = (steep * (stacked - fixed)).sum() / steep.sum().clamp_min(1e-9)
    gates = torch.nn.functional.logsigmoid((stacked - cut - moved) / heat)
    return list(torch.nn.functional.pad(gates, (0, window)))


class Student:
    """Weights in the coordinates of features with mean 0 and variance 1."""

    def __init__(self, weights: list[torch.Tensor], rope, prompts: list[Prompt], wanted, alpha: float, floor: float, kernel: int):
        self.before, self.rope, self.kernel, self.level = [layer.float() for layer in weights], rope, kernel, 0.0
        self.wanted, self.alpha, self.floor = wanted, alpha, floor
        self.means, self.spreads = [], []
        self._peaks: dict[int, list[torch.Tensor]] = {}  # Of a prompt's layers: they do not change.
        for ordinal, index in enumerate(prompts[0].compressed):
            rows = torch.cat([surrogate.features(prompt.layers[index], rope) for prompt in prompts])[:, :-1]
            self.means.append(rows.mean(0))
            self.spreads.append(rows.std(0).clamp_min(1e-6))
        self.change = [torch.zeros_like(layer).requires_grad_() for layer in self.before]

    def weights(self) -> list[torch.Tensor]:
        out = []
        for before, change, mean, spread in zip(self.before, self.change, self.means, self.spreads):
            slopes = change[:, :-1] / spread
            out.append(before + torch.cat([slopes, (change[:, -1] * 10 - slopes @ mean - self.level)[:, None]], dim=1))
        return out

    def scores(self, prompt: Prompt, joined: bool) -> list[torch.Tensor]:
        layers = [prompt.layers[index] for index in prompt.compressed]
        found = [surrogate.predicted(layer, weights, self.rope)[:, : prompt.prefix] for layer, weights in zip(layers, self.weights())]
        if not joined:
            return found
        if id(prompt) not in self._peaks:
            self._peaks[id(prompt)] = [scores.pool(scores.window_peaks(layer), self.kernel) for layer in layers]
        return [scores.joined(seen, foreseen) for seen, foreseen in zip(self._peaks[id(prompt)], found)]

    def budgets(self, prompt: Prompt, found: list[torch.Tensor], capacity: int, joined: bool) -> torch.Tensor:
        shape = budgets.Shape(len(found), prompt.kv_heads, prompt.prefix, capacity - prompt.window)
        beside = budgets.by_weights(shape, self.wanted, self.alpha, self.floor) if joined else None
        return budgets.by_threshold(shape, [layer.detach() for layer in found], beside)

    def penalty(self) -> torch.Tensor:
        return sum(change[:, :-1].square().sum() for change in self.change)


def train(
    probe: Probe,
    student: Student,
    taught: list[Lesson],
    steps: int,
    rate: float,
    anchor: float,
    sizes: tuple[int, ...],
    seed: int,
    done: Callable[[int, float], None] = lambda step, kl: None,
) -> None:
    """Adam, from whatever the student knows. Lessons come in random order, each with one of the capacities `sizes`."""
    rng, order = random.Random(seed), []
    optimizer = torch.optim.Adam(student.change, lr=rate, betas=(0.9, 0.98))
    for parameter in probe.model.parameters():
        parameter.requires_grad_(False)
    for step in range(steps):
        share = step / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10) * (0.55 + 0.45 * math.cos(math.pi * share))
        order = order or rng.sample(range(len(taught)), len(taught))
        lesson, capacity = taught[order.pop()], rng.choice(sizes)
        joined = lesson.shown or rng.random() < _JOINED
        kl = lost(probe, student, lesson, capacity, joined, 0.6 - 0.35 * share)
        loss = (kl + _LEAST_LOSS).log() + anchor * student.penalty()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        done(step, kl.item())


def lost(probe: Probe, student: Student, lesson: Lesson, capacity: int, joined: bool, heat: float) -> torch.Tensor:
    """KL of the lesson under the student's choice, with gates that are the softer the more heat there is."""
    found = student.scores(lesson.prompt, joined)
    kept = student.budgets(lesson.prompt, found, capacity, joined)
    return gated_kl(probe, lesson, open_gates(found, kept, lesson.prompt.window, heat))


def contexts(tokenizer, count: int, tokens: int, seed: int) -> list[tuple[Row, str]]:
    """Prompts of the calibration part's facts and of running text in turn, and a question about each."""
    facts = hidden.needle_rows(tokenizer, "calibration", "calibration", hidden.QUESTIONS * -(-count // 2), tokens, seed)
    texts = needles.text_rows(tokenizer, "calibration", count // 2, tokens, seed + 100, FORCED + 8, "lesson")
    rows = [row for pair in itertools.zip_longest(facts, texts) for row in pair if row is not None]
    return list(zip(rows, itertools.cycle(hidden.OF_TEXTS["calibration"])))


def improved(probe: Probe, tokenizer, made: Profile, count: int, tokens: int, seed: int) -> dict:
    """The profile's "surrogate", trained further on `count` contexts of the calibration part."""
    before, begun = made.predictor(), time.monotonic()
    found = contexts(tokenizer, count, tokens, seed)
    groups = []
    with progress.of("preparing lessons", [row for row, _ in found]) as done:
        for row, question in found:
            groups.append(lessons(probe, tokenizer, row, question))
            done(row)
    held = [lesson for group in groups[_HELD - 1 :: _HELD] for lesson in group]
    taught = [lesson for index, group in enumerate(groups) for lesson in group if (index + 1) % _HELD]
    wanted = (made.tensor(), made.alpha, made.floor, made.kernel)
    student = Student(before.weights, before.rope, [group[0].prompt for group in groups], *wanted)
    least = min(WINDOW, probe.window) + 8
    sizes = tuple(max(least, tokens // part) for part in (16, 16, 8, 4))
    steps = PASSES * len(taught)
    figures = {"contexts": count, "seed": seed, "steps": steps, "rate": RATE, "anchor": ANCHOR, "before": _judged(probe, student, held, sizes)}
    rows = [Row(str(step), "step", "", [0], []) for step in range(steps)]
    with progress.of("training the surrogate", rows) as done:
        train(probe, student, taught, steps, RATE, ANCHOR, sizes, seed, lambda step, kl: done(rows[step]))
    student.level = best_level(probe, student, held, sizes)
    figures |= {"level": student.level, "after": _judged(probe, student, held, sizes), "seconds": round(time.monotonic() - begun)}
    return dataclasses.replace(before, weights=[layer.detach() for layer in student.weights()], recipe=before.recipe | {"lessons": figures}).as_json()


@torch.no_grad()
def best_level(probe: Probe, student: Student, held: list[Lesson], sizes: tuple[int, ...]) -> float:
    """The one of LEVELS under which auto loses least of lessons that are not trained on; shown and hidden count the same."""

    def loss(level: float) -> float:
        student.level = level
        found: dict[bool, list[float]] = {}
        for lesson in held:
            kls = [lost(probe, student, lesson, size, True, 0.02).item() for size in set(sizes)]
            found.setdefault(lesson.shown, []).extend(math.log(kl + _LEAST_LOSS) for kl in kls)
        return sum(sum(logs) / len(logs) for logs in found.values())

    return min(LEVELS, key=loss) if held else 0.0


@torch.no_grad()
def _judged(probe: Probe, student: Student, held: list[Lesson], sizes: tuple[int, ...]) -> float | None:
    """Mean KL of lessons that are not trained on, hardly softened."""
    kls = [
        lost(probe, student, lesson, size, joined, 0.02)
        for lesson in held
        for size in set(sizes)
        for joined in ((True,) if lesson.shown else (False, True))
    ]
    return round(float(torch.stack(kls).mean()), 4) if kls else None
