"""What a model makes of the caches of a sweep: `dkv report sweep.jsonl --model MODEL --question FILE`.

Each point of the sweep is compacted by `dkv compact`, loaded, and asked the questions one after the other, each before
its answer. The whole cache is asked the same. So a policy is judged by what the model says over what it keeps, for
questions that it did not know.
"""

from __future__ import annotations

import csv
import json
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

import dkv.hf
from dkv import programs
from dkv.errors import UserError

from . import needles, progress
from .needles import FORCED
from .report.sweep import Point


@dataclass(frozen=True)
class Question:
    text: str
    answer: str = ""  # "": the FORCED tokens that the whole cache answers.
    file: str = ""  # Of this saved cache alone: its path, or the end of it.

    def is_of(self, file: str) -> bool:
        return file.endswith(self.file)


@dataclass(frozen=True)
class Verdict:
    """One question asked of one point's cache."""

    point: Point
    question: Question
    kl: float  # KL(whole cache || this one), the mean over the answer's tokens.
    agree: float  # Share of these tokens of which both have the same most likely one.
    found: bool | None  # Whether every token of the given answer is the most likely one; None: none was given.
    whole_found: bool | None  # The same of the whole cache.


@dataclass(frozen=True)
class _Cache:
    """Of a progress line."""

    tokens: range
    task: str = "cache"


@dataclass(frozen=True)
class _Tail:
    """The questions with their answers, as tokens."""

    tokens: torch.Tensor  # [T]
    answers: list[range]  # Of each question: its answer's places in `tokens`.
    questions: list[Question]


def read_questions(path: Path) -> list[Question]:
    """A question a line; or a JSON object a line: {"question": …, "answer": …, "file": …}, the last two optional.

    Raises UserError naming file and line; OSError.
    """
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line.strip():
            continue
        try:
            found.append(_question(json.loads(line)) if line.lstrip().startswith("{") else Question(line.strip()))
        except ValueError as wrong:
            raise UserError(f"{path}:{number}: no question: {wrong}") from None
    if not found:
        raise UserError(f"{path}: there is no question")
    return found


def _question(line: dict) -> Question:
    words = {"text": line.pop("question", None), "answer": line.pop("answer", ""), "file": line.pop("file", "")}
    if line:
        raise ValueError(f"'{next(iter(line))}' is not known: question, answer and file are")
    if not words["text"] or not all(isinstance(word, str) for word in words.values()):
        raise ValueError("'question' is missing, or something is not a text")
    return Question(**words)


@torch.inference_mode()
def judge(points: list[Point], questions: list[Question], model, tokenizer) -> list[Verdict]:
    """File by file, in the order of the points. Raises UserError, also for what `dkv compact` refuses; DkvError for a cache
    that is not the model's."""
    of_file: dict[str, list[Point]] = {}
    for point in points:
        of_file.setdefault(point.file, []).append(point)
        _check_asked(point)
    asked = {file: [question for question in questions if question.is_of(file)] for file in of_file}
    for question in questions:
        if not any(question in found for found in asked.values()):
            raise UserError(f"the question '{question.text}' is of '{question.file}', which the sweep does not have")
    for file, found in asked.items():
        if not found:
            raise UserError(f"{file}: no question is of it")
    verdicts = []
    rows = [_Cache(range(point.prompt_tokens)) for point in points]
    with progress.of("asking", rows) as done, tempfile.TemporaryDirectory(prefix="dkv-judge-") as folder:
        for file, of_this in of_file.items():
            tail, whole = _ask_whole(dkv.hf.load(file, model), model, tokenizer, asked[file])
            for point in of_this:
                made = Path(folder) / "point.safetensors"
                _compact(point, made)
                chances = _chances(model, dkv.hf.load(made, model), tail.tokens)
                verdicts += _verdicts(point, tail, whole, chances)
                done(_Cache(range(point.prompt_tokens)))
    return verdicts


def _check_asked(point: Point) -> None:
    asked = dict(point.asked)
    if not asked or "profile" in asked:
        what = "a --profile, whose file they do not name" if asked else "no 'asked': an older dkv sweep wrote them"
        raise UserError(f"{point.file}: {point.policy} cannot be made again: the sweep's lines have {what}")


def _compact(point: Point, target: Path) -> None:
    flags = [word for key, value in point.asked for word in (f"--{key.replace('_', '-')}", value)]
    command = [programs.find("dkv"), "compact", point.file, "-o", target, "--format", "dkv", "--force", *flags]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(done.stderr.strip().removeprefix("dkv: ") or f"dkv compact {point.file} failed")


def _ask_whole(cache: dkv.hf.LoadedCache, model, tokenizer, questions: list[Question]) -> tuple[_Tail, torch.Tensor]:
    """The questions with their answers, and the whole cache's log-probabilities [T, vocabulary].

    Where a question has no answer, the whole cache's own is taken, by greedy decoding.
    """
    tokens, answers, chances = [], [], []

    def go_on(ids: list[int]) -> torch.Tensor:
        tokens.extend(ids)
        chances.append(_chances(model, cache, torch.tensor(ids)))
        return chances[-1][-1]

    for question in questions:
        last = go_on(needles.asked(tokenizer, question.text))
        begin = len(tokens)
        if question.answer:
            go_on(needles.encode(tokenizer, " " + question.answer.strip()))
        else:
            for _ in range(FORCED):
                last = go_on([int(last.argmax())])
        answers.append(range(begin, len(tokens)))
    return _Tail(torch.tensor(tokens), answers, questions), torch.cat(chances)


def _chances(model, cache: dkv.hf.LoadedCache, tokens: torch.Tensor) -> torch.Tensor:
    """Log-probabilities behind each token [T, vocabulary], after what the cache has."""
    logits = model(tokens[None].to(model.device), past_key_values=cache, use_cache=True).logits[0]
    return logits.float().log_softmax(-1).cpu()


def _verdicts(point: Point, tail: _Tail, whole: torch.Tensor, chances: torch.Tensor) -> list[Verdict]:
    out = []
    for question, places in zip(tail.questions, tail.answers):
        before = torch.tensor(places) - 1  # The token in front of each, whose distribution it is.
        full, ours, said = whole[before], chances[before], tail.tokens[torch.tensor(places)]
        hits = [bool((each.argmax(-1) == said).all()) if question.answer else None for each in (ours, full)]
        kl = (full.exp() * (full - ours)).sum(-1).clamp_min(0).mean()
        agree = (full.argmax(-1) == ours.argmax(-1)).float().mean()
        out.append(Verdict(point, question, float(kl), float(agree), *hits))
    return out


def write(path: Path, verdicts: list[Verdict]) -> None:
    columns = ("file", "policy", "capacity", "asked", "bytes_kept", "question", "kl", "agree", "found", "whole_found")
    with path.open("w", newline="", encoding="utf-8") as out:
        writer = csv.writer(out)
        writer.writerow(columns)
        for each in verdicts:
            point, flags = each.point, [None if flag is None else int(flag) for flag in (each.found, each.whole_found)]
            asked = json.dumps(dict(point.asked))
            sizes = (point.capacity, asked, point.bytes_kept, each.question.text)
            writer.writerow([point.file, point.policy, *sizes, f"{each.kl:.6g}", f"{each.agree:.4f}", *flags])
