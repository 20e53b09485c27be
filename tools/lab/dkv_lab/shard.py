"""One part of the prompts of a command that several processes divide among them; `dkv sweep --shard` says the same."""

from __future__ import annotations

import os
import re
import zlib
from dataclasses import dataclass

from .needles import Row

# Of array jobs: the index, how many there are, the first index, the step. As in cli/saved/shard.cc.
_JOBS = (
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP"),
    ("JOB_COMPLETION_INDEX", "", "", ""),
    ("TASK_ID", "TASK_COUNT", "", ""),
)

NOTE = "evaluate: "  # Begins a line that each shard of an evaluation says of the whole run.
HELP = "only part I of N of the prompts, 0/4 … 3/4; auto: as the array job says (Slurm, Kubernetes, TASK_ID), auto/N: of N parts"


@dataclass(frozen=True)
class Shard:
    index: int = 0
    count: int = 1

    def has(self, row: Row) -> bool:
        """By the prompt's tokens."""
        return zlib.crc32(repr(list(row.tokens)).encode()) % self.count == self.index


def parse(text: str) -> Shard:
    """Raises ValueError, saying why."""
    whole = re.fullmatch(r"(\d+)/(\d+)", text)
    if whole and int(whole[1]) < int(whole[2]):
        return Shard(int(whole[1]), int(whole[2]))
    told = re.fullmatch(r"auto(?:/([1-9]\d*))?", text)
    if not told:
        raise ValueError(f"{text}: expected I/N with I from 0 to N-1, auto, or auto/N")
    return _of_environment(text, int(told[1]) if told[1] else None)


def _of_environment(text: str, count: int | None) -> Shard:
    for job in _JOBS:
        index, all_, first, step = (_number(text, name) for name in job)
        if index is None:
            continue
        if count is not None and index >= count:
            raise ValueError(f"{text}: {job[0]} is {index}: an array of {count} runs from 0 to {count - 1}")
        if count is not None:
            return Shard(index, count)
        if not all_:
            raise ValueError(f"{text}: {job[0]} is {index}, but nothing says how many there are: give auto/N")
        first, step = first or 0, step or 1
        if index < first or (index - first) % step or (index - first) // step >= all_:
            raise ValueError(f"{text}: {job[0]} is {index}, not one of {all_} from {first} in steps of {step}: give I/N")
        return Shard((index - first) // step, all_)
    raise ValueError(f"{text}: {', '.join(job[0] for job in _JOBS[:-1])} and {_JOBS[-1][0]} are not set: give I/N")


def _number(text: str, name: str) -> int | None:
    value = os.environ.get(name, "") if name else ""
    if not value:
        return None
    if not value.isdecimal():
        raise ValueError(f"{text}: {name} is '{value}', not a count")
    return int(value)
