"""What an evaluation leaves behind: a CSV of prompts × policies, and beside it budgets and who made it how."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING

from dkv.errors import UserError

if TYPE_CHECKING:  # What reads results starts in a tenth of the time without it.
    import torch

COLUMNS = (
    "key task template tokens policy capacity kept found logprob kl agree continuation_nll full_found"
    " bytes through depth score question"
).split()
_FIRST_VERSION = 13  # Columns that every file has.


class ResultsError(UserError):
    """The file was made by something else."""


def budgets_path(results: Path) -> Path:
    return results.with_suffix(".budgets.jsonl")


def written_path(results: Path) -> Path:
    return results.with_suffix(".written.jsonl")


def runs_path(results: Path) -> Path:
    return results.with_suffix(".runs.json")


class Results:
    """Appended prompt by prompt; a prompt whose policies are all there is not run again."""

    def __init__(self, path: Path):
        self._path, self._columns = path, COLUMNS
        self._done: set[tuple[str, str, str]] = set()
        if path.exists() and _is_ours(path):
            for each in (path, budgets_path(path), written_path(path)):
                _cut_to_whole_lines(each)
        if path.exists() and path.stat().st_size:
            with path.open() as file:
                reader = csv.DictReader(file)
                self._columns = reader.fieldnames or []
                if self._columns != COLUMNS[: max(_FIRST_VERSION, len(self._columns))]:
                    raise ResultsError(f"{path} has other columns than this build writes: choose another output")
                self._done = {(line["key"], line["policy"], line["capacity"]) for line in reader}
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            for beside in (budgets_path(path), written_path(path), runs_path(path)):
                beside.unlink(missing_ok=True)  # Of results that were deleted.
            with path.open("w", newline="") as file:
                csv.DictWriter(file, COLUMNS).writeheader()

    def has(self, keys: list[str], tokens: int, names: list[str], capacities: list[int]) -> bool:
        wanted = [(name, str(c)) for name in names for c in capacities if c < tokens]
        return all((key, *entry) in self._done for key in keys for entry in [("fullkv", "0"), *wanted])

    def append(self, lines: list[dict], budgets: list[torch.Tensor | None]) -> None:
        """Lines of one prompt, and the prefix tokens [layers, heads] of each, where they are known. What was written, if
        something was, goes beside."""
        if "question" not in self._columns and any(line["question"] == "hidden" for line in lines):
            raise ResultsError(f"{self._path} has no column for hidden questions: choose another output, or --question shown")
        with self._path.open("a", newline="") as file, budgets_path(self._path).open("a") as beside:
            writer = csv.DictWriter(file, self._columns, extrasaction="ignore")
            for line, kept in zip(lines, budgets):
                entry = (line["key"], line["policy"], str(line["capacity"]))
                if entry in self._done:
                    continue
                writer.writerow(line)
                self._done.add(entry)
                named = {name: line[name] for name in ("key", "task", "template", "tokens", "policy", "capacity")}
                if "written" in line:
                    with written_path(self._path).open("a") as texts:
                        texts.write(json.dumps(named | line["written"]) + "\n")
                if line["policy"] != "fullkv" and kept is not None:
                    beside.write(json.dumps(named | {"budgets": kept.tolist()}, separators=(",", ":")) + "\n")


def _is_ours(path: Path) -> bool:
    """Of its heading, or what there is of it: others' files are refused as they are."""
    with path.open() as file:
        heading, whole = file.readline().strip(), ",".join(COLUMNS)
    return whole.startswith(heading)


def _cut_to_whole_lines(path: Path) -> None:
    """A line that a killed process left unfinished goes: the next would be appended onto it."""
    if not path.exists():
        return
    with path.open("rb+") as file:
        data = file.read()
        if not data.endswith(b"\n"):
            file.truncate(data.rfind(b"\n") + 1)


def read(paths: list[Path]) -> list[dict]:
    """The lines of all. A file may begin with comments (#), as those of docs/eval do."""
    lines = []
    for path in paths:
        with path.open() as file:
            reader = csv.DictReader(itertools.dropwhile(lambda line: line.startswith("#"), file))
            if missing := [column for column in COLUMNS[:_FIRST_VERSION] if column not in (reader.fieldnames or [])]:
                raise ResultsError(f"{path} has no column {missing[0]}: not what dkv eval writes")
            lines += [{"question": "shown"} | line for line in reader]  # Older files have shown ones alone.
    return lines


def read_budgets(paths: list[Path]) -> list[dict]:
    return _read_lines([budgets_path(path) for path in paths])


def read_written(paths: list[Path]) -> list[dict]:
    return _read_lines([written_path(path) for path in paths])


def _read_lines(paths: list[Path]) -> list[dict]:
    return [json.loads(line) for path in paths if path.exists() for line in path.read_text().splitlines() if line.endswith("}")]


def read_runs(paths: list[Path]) -> list[dict]:
    return [run for path in paths if runs_path(path).exists() for run in json.loads(runs_path(path).read_text())]
